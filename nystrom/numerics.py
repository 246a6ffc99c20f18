"""What the equations share: precision, masked logits, padding as zeros."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array

MASKED = -1e30  # a logit that no softmax notices, yet finite: no NaN where all are masked


def einsum(spec: str, x: Array, y: Array) -> Array:
    """x times y, multiplied in their dtype and accumulated in float32 (float64 for float64).

    Float32 is multiplied in float32 on every platform, unless the user has asked for less with
    `jax.default_matmul_precision`.
    """
    precision, wide = product_precision(x.dtype), accumulator(x.dtype)
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=wide)


def rounded_einsum(spec: str, x: Array, y: Array) -> Array:
    """`einsum` with its result in x's dtype."""
    precision = product_precision(x.dtype)
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=x.dtype)


def rounded(x: Array, dtype) -> Array:
    """x with as many digits as `dtype` has: two conversions XLA may leave out, not this."""
    return jax.lax.reduce_precision(x, jnp.finfo(x.dtype).nexp, jnp.finfo(dtype).nmant)


def product_precision(dtype):
    """What JAX is to be asked for in products of that dtype."""
    if dtype != accumulator(dtype):
        return None
    # JAX makes the attribute at run time.
    return jax.config.jax_default_matmul_precision or "highest"  # type: ignore[attr-defined]


def exact_einsum(spec: str, x: Array, y: Array) -> Array:
    """x times y at the highest precision, whatever the user has asked for: A and its inverse."""
    return jnp.einsum(spec, x, y, precision="highest")


def accumulator(dtype) -> jnp.dtype:
    """Float32, or float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def common_dtype(*arrays: Array) -> jnp.dtype:
    """The dtype that arrays are multiplied in: their own or, where they differ, the wider."""
    return functools.reduce(jnp.promote_types, (x.dtype for x in arrays))


def widened(ids: Array) -> Array:
    """Ids or places in a type that has more than narrow ones hold; what is no integer as it is."""
    is_narrow = jnp.issubdtype(ids.dtype, jnp.integer) and jnp.iinfo(ids.dtype).bits < 32
    return ids.astype(jnp.int32) if is_narrow else ids


def heads_first(x: Array) -> Array:
    """*B N H D as *B H N D, and back."""
    return jnp.swapaxes(x, -2, -3)


def repeat_heads(x: Array, num_heads: int) -> Array:
    """*B N G D as *B N num_heads D: those of queries in a row get the head that they share."""
    *batch, heads, depth = x.shape
    if heads == num_heads:
        return x
    shared = jnp.broadcast_to(x[..., None, :], (*batch, heads, num_heads // heads, depth))
    return shared.reshape(*batch, num_heads, depth)


def zero_padded(x: Array, mask: Array | None):
    """Tokens *B N H D, or *B N C, with zeros, whatever was there, for padding.

    A where, not a product: infinities and NaN must not leak.
    """
    if mask is None:
        return x
    mask = mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))
    return jnp.where(mask, x, 0)


def first_token(x: Array, mask: Array | None) -> Array:
    """The first real token *B C of each sequence *B N C; without a mask the first of all."""
    if mask is None:
        return x[..., 0, :]
    return _take(x, jnp.argmax(mask, axis=-1)[..., None])[..., 0, :]


def to_front(mask: Array, *arrays: Array) -> tuple[Array, ...]:
    """Tokens *B N ... in order with the real ones first."""
    order = jnp.argsort(~mask, axis=-1, stable=True)
    return tuple(_take(x, order) for x in arrays)


def from_front(mask: Array, *arrays: Array) -> tuple[Array, ...]:
    """`to_front`'s way back for the real tokens; padding gets another's."""
    rank = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    return tuple(_take(x, rank) for x in arrays)


def _take(x, index):
    axis = index.ndim - 1
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - index.ndim)), axis)


@functools.partial(jax.jit, static_argnums=0)  # or each eager call would compile the branches anew
def unless_trailing(move: Callable[..., tuple], mask: Array, *arrays: Array):
    """`move(mask, *arrays)`, or the arrays as they are where all padding trails anyway."""
    mask = jax.lax.optimization_barrier(mask)  # XLA sorts a constant one for long while compiling
    trailing = jnp.all(mask[..., :-1] >= mask[..., 1:])
    return jax.lax.cond(trailing, lambda mask, *arrays: arrays, move, mask, *arrays)
