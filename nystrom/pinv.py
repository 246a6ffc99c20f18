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
    take this form: float32 then stays within 5e-6 of float64 in values and gradients, even where A
    is nearly of rank one (four would be 1e-5).

    Backward, all iterations are taken as functions of Y_j. As the matrices are symmetric, only the
    symmetric part of a gradient matters: it is formed where a product's two sides are to be one,
    and an iteration takes two or four products where that of eq. 7 takes eight. Beyond 6
    iterations eq. 7 is followed as written. Reverse-mode differentiation only.
    """
    _check(a, num_iterations)
    if num_iterations > MAX_FAST_ITERATIONS:
        return matmul(iterative_pinv(a, num_iterations), w)
    flat_a, flat_w = (x.reshape(-1, *x.shape[-2:]) for x in (a, w))
    return _apply_iterates(flat_a, initial_scale(flat_a), flat_w, num_iterations).reshape(w.shape)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _apply_iterates(a, scale, w, num_iterations):
    """Z_n w for Z_0 = scale a^T."""
    return _apply_iterates_fwd(a, scale, w, num_iterations)[0]


def _apply_iterates_fwd(a, scale, w, num_iterations):
    """Z_n w, and what the backward pass needs.

    Z is held transposed: so no L^3 product has a transposed left factor, which XLA's CPU takes
    twice as long for.
    """
    num_symmetric = min(num_iterations, NUM_SYMMETRIC)
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    first = []
    z_t = scale * a
    for _ in range(num_iterations - num_symmetric):
        y = matmul_t(z_t, a)
        y2 = matmul(y, y)
        p = 3.25 * identity - 3.75 * y + 1.75 * y2 - 0.25 * matmul(y2, y)
        first.append((y, p))
        z_t = matmul(p, z_t)
    ys, us, powers = [matmul_t(z_t, a)], [], []
    for _ in range(num_symmetric - 1):
        y = ys[-1]
        u = matmul(y, y) - 3.5 * y
        us.append(u)
        ys.append(0.84375 * y - 0.6875 * u - 0.25 * matmul(u, u))
    for y in ys:
        y_w = matmul(y, w)
        y2_w = matmul(y, y_w)
        powers.append(jnp.concatenate([y2_w, y_w, w], axis=-1))
        w = 3.25 * w - 3.75 * y_w + 1.75 * y2_w - 0.25 * matmul(y, y2_w)
    return matmul(transpose(z_t), w), (a, scale, z_t, w, first, ys, us, powers)


def _apply_iterates_bwd(num_iterations, residuals, d_out):
    a, scale, z_t, w, first, ys, us, powers = residuals
    d_w = matmul(z_t, d_out)
    for i in reversed(range(len(ys))):
        y = ys[i]
        d_y2_w = 1.75 * d_w - 0.25 * matmul(y, d_w)
        d_y_w = matmul(y, d_y2_w) - 3.75 * d_w
        by_p = matmul_t(jnp.concatenate([-0.25 * d_w, d_y2_w, d_y_w], axis=-1), powers[i])
        d_w = 3.25 * d_w + matmul(y, d_y_w)
        if i == len(us):
            d_y = _symmetric(by_p)
        else:
            d_u = -0.6875 * d_y - 0.5 * _symmetric(matmul(us[i], d_y))
            d_y = 0.84375 * d_y - 3.5 * d_u + _symmetric(2 * matmul(y, d_u) + by_p)
    d_outs = [scale * matmul(a, d_out)]  # Z_j^T d_out, which P_j w is multiplied by
    for _, p in first:
        d_outs.append(matmul(p, d_outs[-1]))
    for (y, p), z_d_out in zip(reversed(first), d_outs[-2::-1], strict=True):
        d_p = matmul_t(w, z_d_out) + matmul(d_y, y)
        y_d = matmul(y, _symmetric(d_p))
        by_p = 3.5 * y_d - matmul(y, 0.5 * y_d + 0.25 * transpose(y_d)) - 3.75 * d_p
        d_y = matmul(p, d_y) + by_p
        w = matmul(p, w)
    y_0 = first[0][0] if first else ys[0]  # scale a a^T
    d_a = scale * (2 * matmul(_symmetric(d_y), a) + matmul_t(w, d_out))
    d_scale = (y_0 * d_y).sum(axis=(-2, -1)) + (w * d_outs[0]).sum(axis=(-2, -1))
    return d_a, d_scale[:, None, None] / scale, d_w


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
