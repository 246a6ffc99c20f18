"""`iterative_pinv(a) @ w` in fewer products, forward and backward, by symmetric matrices."""

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Float
from nystrom.gradients import with_gradient
from nystrom.pinv import (
    NEVER_STOPPED,
    identity_like,
    initial_scale,
    iterate,
    iterative_pinv,
    matmul,
)

NUM_SYMMETRIC = 3  # last iterations that follow Y_j alone


def apply_pinv(
    a: Float[Array, "*B L L"], w: Float[Array, "*B L E"], num_iterations: int = 6
) -> Float[Array, "*B L E"]:
    """`iterative_pinv(a, num_iterations) @ w`.

    Every iterate is Z_j = c A^T p(c A A^T), so Y_j = A Z_j is symmetric and commutes with all
    its kind. Eq. 7 is Z_{j+1} = Z_j P_j with P_j = (13 I - 15 Y_j + 7 Y_j^2 - Y_j^3) / 4, hence
    Y_{j+1} = Y_j P_j, and from any j on

        Z_n w = Z_j P_j P_{j+1} ... P_{n-1} w,

    where P_j w takes three thin products, and Y_{j+1} two of L^3: with U_j = Y_j^2 - 7/2 Y_j it is
    (27/8 Y_j - 11/4 U_j - U_j^2) / 4. Eq. 7 takes four. But rounding in Y_j grows up to 13/4 times
    an iteration, which eq. 7 corrects by computing A Z_j anew, so only the last three iterations
    take this form: float32 then stays within 4e-6 of float64 in values and gradients by w, and 2e-5
    by A, of the largest (with four it strays further), or as near as eq. 7 where A is almost of
    rank one and the result far smaller than w.

    Backward, every iteration is taken as a function of Y_j alone. As the matrices are symmetric,
    only the symmetric part of a gradient matters, and Y_{j+1} takes three products where eq. 7
    takes eight. Of each iteration Y_j is kept, and nothing else of its size. It goes matrix by
    matrix, so that a CPU's cache holds what it makes.

    Beyond 6 iterations eq. 7 is followed as written.
    """
    if num_iterations > NEVER_STOPPED:
        return matmul(iterative_pinv(a, num_iterations), w)

    batch = a.shape[:-2]

    def plain(primals, constants):
        a, scale, w = primals
        return matmul(iterate(a, scale, num_iterations), w)

    def forward(primals, constants):
        return _forward(*primals, num_iterations)

    def backward(residuals, constants, d_out):
        return one_by_one(_backward, (residuals, d_out), batch)

    return with_gradient(plain, forward, backward)((a, initial_scale(a), w))


def _forward(a, scale, w, num_iterations):
    """Z_n w, and what the backward pass needs.

    Z is held transposed: so no product has a transposed left factor, which XLA's CPU takes longer
    for.
    """
    num_symmetric = min(num_iterations, NUM_SYMMETRIC)
    identity = identity_like(a)
    z_t, ys, ws = scale * a, [], [w]
    for _ in range(num_iterations - num_symmetric):
        y = matmul_t(z_t, a)
        y2 = matmul(y, y)
        p = (13 * identity - 15 * y + 7 * y2 - matmul(y2, y)) / 4
        z_t = matmul(p, z_t)
        ys.append(y)
    y = matmul_t(z_t, a)
    for _ in range(num_symmetric - 1):
        y2 = matmul(y, y)
        y_w = matmul(y, w)
        w = (13 * w - 15 * y_w + matmul(y2, 7 * w - y_w)) / 4
        u = y2 - 7 / 2 * y
        ys.append(y)
        ws.append(w)
        y = (27 / 8 * y - 11 / 4 * u - matmul(u, u)) / 4
    ys.append(y)
    ws.append(_times_p(y, w)[0])
    return matmul(z_t.mT, ws[-1]), (a, scale, z_t, ys, ws)


def one_by_one(function, arrays, batch):
    """`function(*arrays)`, of matrices *batch x y, one matrix of each after another."""
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[-2:]), arrays)
    out = jax.lax.map(lambda each: function(*each), flat)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), out)


def _backward(residuals, d_out):
    a, scale, z_t, ys, ws = residuals
    first_ys, last_ys = ys[: 1 - len(ws)], ys[1 - len(ws) :]
    vs = [scale * matmul(a, d_out)]  # Z_j^T d_out
    for y in first_ys:
        vs.append(_times_p(y, vs[-1])[0])
    d_w, d_y = matmul(z_t, d_out), None  # not vs[-1], where rounding has grown
    for y, w in zip(last_ys[::-1], ws[-2::-1], strict=True):
        d_y, d_w, _ = _step_back(y, d_y, d_w, w)
    w = ws[-1]
    for y, v in zip(first_ys[::-1], vs[-2::-1], strict=True):
        d_y, _, w = _step_back(y, d_y, v, w)
    d_a = scale * (2 * matmul(d_y, a) + matmul_t(w, d_out))
    d_scale = (ys[0] * d_y).sum(axis=(-2, -1), keepdims=True)
    d_scale += (w * vs[0]).sum(axis=(-2, -1), keepdims=True)
    return d_a, d_scale / scale, d_w


def _step_back(y, d_next, v, w):
    """The gradient of Y_j from d_next, that of Y_{j+1}, and from v^T P_j w; P_j v and P_j w."""
    v_3 = -v / 4
    v_2 = 7 / 4 * v + matmul(y, v_3)
    v_1 = -15 / 4 * v + matmul(y, v_2)
    p_v = 13 / 4 * v + matmul(y, v_1)
    p_w, powers = _times_p(y, w)
    by_p = matmul_t(jnp.concatenate([v_3, v_2, v_1], axis=-1), powers)
    if d_next is None:
        return _symmetric(by_p), p_v, p_w
    y_d = matmul(y, d_next)
    d_u = -11 / 16 * d_next - _symmetric(matmul(y, y_d) - 7 / 2 * y_d) / 2
    d_y = 27 / 32 * d_next - 7 / 2 * d_u + _symmetric(2 * matmul(y, d_u) + by_p)
    return d_y, p_v, p_w


def _times_p(y, w):
    """P_j w; and Y_j^2 w, Y_j w and w beside one another."""
    y_w = matmul(y, w)
    y2_w = matmul(y, y_w)
    p_w = (13 * w - 15 * y_w + 7 * y2_w - matmul(y, y2_w)) / 4
    return p_w, jnp.concatenate([y2_w, y_w, w], axis=-1)


def matmul_t(x: Array, y: Array) -> Array:
    """x y^T at the highest precision."""
    return jnp.einsum("...ij,...kj->...ik", x, y, precision="highest")


def _symmetric(x):
    return (x + x.mT) / 2
