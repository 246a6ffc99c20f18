"""Iterative Moore-Penrose pseudo-inverse (Xiong et al. 2021, eq. 7 and 8)."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Float
from nystrom.checks import check_count, check_floats
from nystrom.numerics import accumulator

NEVER_STOPPED = 6  # iterations, the paper's number, that every matrix takes


def iterative_pinv(
    a: Float[Array, "*B L L"], num_iterations: int = 6
) -> Float[jax.Array, "*B L L"]:
    """Pseudo-inverse of each matrix by `num_iterations` steps of eq. 7 from eq. 8's start.

    Z_0 = A^T / (|A|_1 |A|_inf), Z <- Z/4 (13 I - A Z (15 I - A Z (7 I - A Z))). The scale is
    each matrix's own, so a result never depends on another matrix in the batch. Zero rows and
    columns stay zero, hence so does a zero matrix. Six steps regularise: a small eigenvalue of
    A A^T is multiplied by at most (13/4)^6.

    So is rounding outside of A's range, without end. Past six steps a matrix therefore stops, in
    values and gradients, where its residual |A Z A - A| is at rounding or least (in exact
    arithmetic it only falls): more iterations never give a worse inverse. Attention with it may
    still be worse than with six, which regularise.

    Runs in float32 at the highest matmul precision (float64 for float64); returns a's dtype. It
    must have eq. 8's product of norms as a number: float32 has those from 1e-38 to 3e38.

    Raises:
      ValueError: a is not *B L L, or num_iterations < 1.
      TypeError: a is not floating-point, num_iterations not an integer known when tracing.
    """
    check_square(a)
    return _inverse(a, check_count("num_iterations", num_iterations))


@partial(jax.jit, static_argnums=1)
def _inverse(a, num_iterations):
    wide = a.astype(accumulator(a.dtype))
    return iterate(wide, initial_scale(wide), num_iterations).astype(a.dtype)


def iterate(
    a: Float[Array, "*B L L"], scale: Float[Array, "*B 1 1"], num_iterations: int
) -> Float[Array, "*B L L"]:
    """Eq. 7 from Z_0 = scale A^T."""
    z = scale * a.mT
    for _ in range(min(num_iterations, NEVER_STOPPED)):
        z = _step(z, matmul(a, z))
    if num_iterations <= NEVER_STOPPED:
        return z
    best, going, least = z, jnp.asarray(True), jnp.asarray(jnp.inf, a.dtype)
    for step in range(NEVER_STOPPED, num_iterations + 1):
        az = matmul(a, z)
        residual = _residual(a, az)
        going = going & (residual < least)
        best, least = jnp.where(going, z, best), jnp.where(going, residual, least)
        going = going & (residual > a.shape[-1] * jnp.finfo(a.dtype).eps)
        if step < num_iterations:  # else there is nothing to do but to look at the last
            z = jnp.where(going, _step(z, az), z)
    return best


def _step(z, az):
    """Z/4 (13 I - A Z (15 I - A Z (7 I - A Z))) (eq. 7)."""
    identity = identity_like(z)
    inner = 7 * identity - az
    inner = 15 * identity - matmul(az, inner)
    return matmul(z, 13 * identity - matmul(az, inner)) / 4


def _residual(a, az):
    """|A Z A - A| / |A| of each matrix, *B 1 1, without a gradient; 0 for a zero matrix."""
    difference, a = jax.lax.stop_gradient((matmul(az, a) - a, a))
    largest = jnp.abs(a).max(axis=(-2, -1), keepdims=True, initial=0)
    largest = jnp.where(largest > 0, largest, 1)  # whose square may be no number
    difference, norm = (
        jnp.sqrt(((x / largest) ** 2).sum(axis=(-2, -1), keepdims=True)) for x in (difference, a)
    )
    return difference / jnp.where(norm > 0, norm, 1)


def initial_scale(a: Float[Array, "*B L L"]) -> Float[Array, "*B 1 1"]:
    """Eq. 8's 1 / (|A|_1 |A|_inf) of each matrix, 1 for a zero matrix."""
    magnitude = jnp.abs(a)
    norm_1 = magnitude.sum(axis=-2, keepdims=True).max(axis=-1, keepdims=True, initial=0)
    norm_inf = magnitude.sum(axis=-1, keepdims=True).max(axis=-2, keepdims=True, initial=0)
    is_number = norm_1 * norm_inf > 0
    # Two reciprocals, for the gradient to square no product of norms.
    by_1, by_inf = (1 / jnp.where(is_number, norm, 1) for norm in (norm_1, norm_inf))
    return by_1 * by_inf


def identity_like(a: Float[Array, "*B L L"]) -> Float[Array, "*B L L"]:
    """I for each matrix."""
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)


def matmul(x: Array, y: Array) -> Array:
    """x y at the highest precision."""
    return jnp.matmul(x, y, precision="highest")


def check_square(a: Array) -> None:
    """Raises unless `a` holds square matrices of floating-point numbers."""
    check_floats("a", a)
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a has shape {a.shape}: expected square matrices *B L L")
