"""Iterative Moore-Penrose pseudo-inverse (Xiong et al. 2021, eq. 7 and 8)."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Float

MAX_FAST_ITERATIONS = 6  # beyond these apply_pinv follows eq. 7 as written
NUM_SYMMETRIC = 2  # last iterations in symmetric form; with 4, gradients lose a digit
NUM_SYMMETRIC_FORWARD = 4  # where no gradient is taken: the value loses none


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

    where Y_{j+1} is a polynomial of degree 4 in Y_j that takes two products, and P_j w two thin
    ones: about two L^3 products an iteration instead of four, and half as many backward, since the
    gradients by Y_j are symmetric too. Rounding in Y_j grows up to 13/4 times an iteration,
    which eq. 7 corrects by computing A Z_j anew. So only the last two iterations take the
    symmetric form, and the last four where no gradient is taken: float32 then stays as near to
    float64 as eq. 7 as written does, in values and gradients, even where A is nearly of rank one.
    Beyond 6 iterations eq. 7 is followed as written. Reverse-mode differentiation only.
    """
    _check(a, num_iterations)
    if num_iterations > MAX_FAST_ITERATIONS:
        return matmul(iterative_pinv(a, num_iterations), w)
    return _apply_iterates(a, initial_scale(a) * transpose(a), w, num_iterations)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _apply_iterates(a, z, w, num_iterations):
    """Z_n w for Z_0 = z, a positive multiple of a's transpose."""
    return _iterate(a, z, w, num_iterations, NUM_SYMMETRIC_FORWARD)[0]


def _apply_iterates_fwd(a, z, w, num_iterations):
    return _iterate(a, z, w, num_iterations, NUM_SYMMETRIC)


def _iterate(a, z, w, num_iterations, most_symmetric):
    """Z_n w, and what the backward pass needs."""
    num_symmetric = min(num_iterations, most_symmetric)
    identity = jnp.eye(a.shape[-1], dtype=a.dtype)
    first, last = [], []
    for _ in range(num_iterations - num_symmetric):
        y = matmul(a, z)
        p = 0.25 * (13 * identity - 15 * y + matmul(matmul(y, y), 7 * identity - y))
        first.append((z, y, p))
        z = matmul(z, p)
    y = matmul(a, z)
    for step in range(num_symmetric):
        y2 = matmul(y, y)
        y2_w = matmul(y2, w)
        last.append((y, y2, w, y2_w))
        w = 0.25 * (13 * w + 7 * y2_w - matmul(y, 15 * w + y2_w))
        if step < num_symmetric - 1:
            u = y2 - 3.5 * y  # y (13 - 15 y + 7 y^2 - y^3) = 3.375 y - u (u + 2.75)
            y = 0.25 * (3.375 * y - 2.75 * u - matmul(u, u))
    return matmul(z, w), (a, z, w, first, last)


def _apply_iterates_bwd(num_iterations, residuals, d_out):
    """Gradients by y and p, polynomials in one symmetric matrix, are taken to be symmetric too."""
    a, z, w, first, last = residuals
    d_z = matmul(d_out, transpose(w))
    d_w = matmul(transpose(z), d_out)
    d_y = jnp.zeros_like(a)  # that of Y_n, which nothing uses
    for step, (y, y2, w, y2_w) in enumerate(reversed(last)):
        d_y2_w = 0.25 * (7 * d_w - matmul(y, d_w))
        d_y2 = _symmetric(matmul(d_y2_w, transpose(w)))
        half = -0.125 * matmul(d_w, transpose(15 * w + y2_w))
        d_w = 3.25 * d_w - 3.75 * matmul(y, d_w) + matmul(y2, d_y2_w)
        if step:
            d_u = -0.25 * (2.75 * d_y + 2 * _symmetric(matmul(y2 - 3.5 * y, d_y)))
            half += 0.421875 * d_y - 1.75 * d_u
            d_y2 += d_u
        d_y = 2 * _symmetric(half + matmul(y, d_y2))
    a_t = transpose(a)
    d_a = matmul(d_y, transpose(z))
    d_z += matmul(a_t, d_y)
    for z, y, p in reversed(first):
        d_p = _symmetric(matmul(transpose(z), d_z))
        y_d_p = matmul(y, d_p)
        y_d_p_y = matmul(y, y_d_p + 0.5 * transpose(y_d_p))
        d_y = 0.5 * _symmetric(7 * y_d_p - y_d_p_y) - 3.75 * d_p
        d_a += matmul(d_y, transpose(z))
        d_z = matmul(d_z, p) + matmul(a_t, d_y)
    return d_a, d_z, d_w


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
