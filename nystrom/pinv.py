"""Iterative Moore-Penrose pseudo-inverse (Xiong et al. 2021, eq. 7 and 8)."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Float

MAX_FAST_ITERATIONS = 6  # beyond these apply_pinv follows eq. 7 as written
NUM_SYMMETRIC = 3  # last iterations that follow Y_j alone


def iterative_pinv(a: Float[Array, "*B L L"], num_iterations: int = 6) -> Float[Array, "*B L L"]:
    """Pseudo-inverse of each matrix by `num_iterations` steps of eq. 7 from eq. 8's start.

    Z_0 = A^T / (|A|_1 |A|_inf), Z <- Z/4 (13 I - A Z (15 I - A Z (7 I - A Z))). The scale is
    each matrix's own, so a result never depends on another matrix in the batch. Zero rows and
    columns stay zero, hence so does a zero matrix. Six steps regularise: a small eigenvalue of
    A A^T is multiplied by at most (13/4)^6.

    Runs in float32 at the highest matmul precision (float64 for float64); returns a's dtype.

    Raises:
      ValueError: a is not *B L L, or num_iterations < 1.
    """
    _check(a, num_iterations)
    x = a.astype(jnp.promote_types(a.dtype, jnp.float32))
    identity = jnp.eye(x.shape[-1], dtype=x.dtype)
    z = initial_scale(x) * jnp.swapaxes(x, -1, -2)
    for _ in range(num_iterations):
        az = matmul(x, z)
        inner = 7 * identity - az
        inner = 15 * identity - matmul(az, inner)
        inner = 13 * identity - matmul(az, inner)
        z = 0.25 * matmul(z, inner)
    return z.astype(a.dtype)


def apply_pinv(
    a: Float[Array, "*B L L"], w: Float[Array, "*B L D"], num_iterations: int = 6
) -> Float[Array, "*B L D"]:
    """`iterative_pinv(a, num_iterations) @ w` with fewer products.

    Every iterate is Z_j = c A^T p(c A A^T), so Y_j = A Z_j is symmetric and commutes with all
    its kind. Eq. 7 is Z_{j+1} = Z_j P_j with P_j = (13 I - 15 Y_j + 7 Y_j^2 - Y_j^3) / 4, hence
    Y_{j+1} = Y_j P_j, and from any j on

        Z_n w = Z_j P_j P_{j+1} ... P_{n-1} w,

    where P_j w takes three thin products, and Y_{j+1} two of L^3: with U_j = Y_j^2 - 7/2 Y_j it is
    (27/8 Y_j - 11/4 U_j - U_j^2) / 4. Eq. 7 takes four. But rounding in Y_j grows up to 13/4 times
    an iteration, which eq. 7 corrects by computing A Z_j anew, so only the last three iterations
    take this form: float32 then stays within 7e-6 of float64 in values and gradients (with four,
    1.4e-5), or as near as eq. 7 where A is almost of rank one and the result far smaller than w.

    Backward, every iteration is taken as a function of Y_j alone. As the matrices are symmetric,
    only the symmetric part of a gradient matters, and Y_{j+1} takes three products where eq. 7
    takes eight. Of each iteration Y_j is kept, and nothing else of its size. Beyond 6 iterations
    eq. 7 is followed as written. Reverse-mode differentiation only.
    """
    _check(a, num_iterations)
    if num_iterations > MAX_FAST_ITERATIONS:
        return matmul(iterative_pinv(a, num_iterations), w)
    flat_a, flat_w = (x.reshape(-1, *x.shape[-2:]) for x in (a, w))
    return _apply_iterates(flat_a, initial_scale(flat_a), flat_w, num_iterations).reshape(w.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _apply_iterates(a, scale, w, num_iterations):
    """Z_n w for Z_0 = scale a^T. On CPU in two halves, which XLA computes beside each other."""
    num_parts = 2 if jax.default_backend() == "cpu" and len(a) > 1 else 1
    parts = zip(*(jnp.array_split(x, num_parts) for x in (a, scale, w)), strict=True)
    return jnp.concatenate([_apply_iterates_fwd(*part, num_iterations)[0] for part in parts])


def _apply_iterates_fwd(a, scale, w, num_iterations):
    """Z_n w, and what the backward pass needs.

    Z is held transposed: so no product has a transposed left factor, which XLA's CPU takes longer
    for.
    """
    num_symmetric = min(num_iterations, NUM_SYMMETRIC)
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    z_t, ys, ws = scale * a, [], [w]
    for _ in range(num_iterations - num_symmetric):
        y = matmul_t(z_t, a)
        y2 = matmul(y, y)
        p = 3.25 * identity - 3.75 * y + 1.75 * y2 - 0.25 * matmul(y2, y)
        z_t = matmul(p, z_t)
        ys.append(y)
    y = matmul_t(z_t, a)
    for _ in range(num_symmetric - 1):
        y2 = matmul(y, y)
        y_w = matmul(y, w)
        w = 3.25 * w - 3.75 * y_w + matmul(y2, 1.75 * w - 0.25 * y_w)
        u = y2 - 3.5 * y
        ys.append(y)
        ws.append(w)
        y = 0.84375 * y - 0.6875 * u - 0.25 * matmul(u, u)
    ys.append(y)
    ws.append(_times_p(y, w)[0])
    return transpose(matmul(transpose(ws[-1]), z_t)), (a, scale, z_t, ys, ws)


def _apply_iterates_bwd(num_iterations, residuals, d_out):
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
    d_scale = (ys[0] * d_y).sum(axis=(-2, -1)) + (w * vs[0]).sum(axis=(-2, -1))
    return d_a, d_scale[:, None, None] / scale, d_w + _late_zero(d_y)


def _step_back(y, d_next, v, w):
    """The gradient of Y_j from d_next, that of Y_{j+1}, and from v^T P_j w; P_j v and P_j w."""
    after = 0 if d_next is None else _late_zero(d_next)
    v_3 = -0.25 * v
    v_2 = 1.75 * v + matmul(y, v_3 + after)
    v_1 = -3.75 * v + matmul(y, v_2)
    p_v = 3.25 * v + matmul(y, v_1)
    p_w, powers = _times_p(y, w, after)
    by_p = matmul_t(jnp.concatenate([v_3, v_2, v_1], axis=-1), powers)
    if d_next is None:
        return _symmetric(by_p), p_v, p_w
    y_d = matmul(y, d_next)
    d_u = -0.6875 * d_next - 0.5 * _symmetric(matmul(y, y_d) - 3.5 * y_d)
    d_y = 0.84375 * d_next - 3.5 * d_u + _symmetric(2 * matmul(y, d_u) + by_p)
    return d_y, p_v, p_w


def _times_p(y, w, after=0):
    """P_j w; and Y_j^2 w, Y_j w and w beside one another."""
    y_w = matmul(y, w + after)
    y2_w = matmul(y, y_w)
    p_w = 3.25 * w - 3.75 * y_w + 1.75 * y2_w - 0.25 * matmul(y, y2_w)
    return p_w, jnp.concatenate([y2_w, y_w, w], axis=-1)


def _late_zero(x):
    """Zeros that XLA has only when it has x: what they are added to waits, and takes no memory."""
    return 0 * x[:, :1, :1]


_apply_iterates.defvjp(_apply_iterates_fwd, _apply_iterates_bwd)


def initial_scale(a: Float[Array, "*B L L"]) -> Float[Array, "*B 1 1"]:
    """Eq. 8's 1 / (|A|_1 |A|_inf) of each matrix, 1 for a zero matrix."""
    magnitude = jnp.abs(a)
    norm_1 = magnitude.sum(axis=-2).max(axis=-1)
    norm_inf = magnitude.sum(axis=-1).max(axis=-1)
    bound = norm_1 * norm_inf
    return (1 / jnp.where(bound > 0, bound, 1))[..., None, None]


def matmul(x, y):
    """x y at the highest precision."""
    return jnp.matmul(x, y, precision="highest")


def matmul_t(x, y):
    """x y^T at the highest precision."""
    return jnp.einsum("...ij,...kj->...ik", x, y, precision="highest")


def transpose(x):
    """The transpose of each matrix."""
    return jnp.swapaxes(x, -1, -2)


def _symmetric(x):
    return 0.5 * (x + transpose(x))


def check_square(a):
    """Raises unless `a` holds square matrices."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a has shape {a.shape}: expected square matrices *B L L")


def _check(a, num_iterations):
    check_square(a)
    if num_iterations < 1:
        raise ValueError(f"num_iterations={num_iterations}: at least 1 is needed")
