"""What the linear-time baselines share: an attention of one head of one example, mapped."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Float
from nystrom.checks import is_empty
from nystrom.kernels import choose
from nystrom.numerics import accumulator, common_dtype, repeat_heads, zero_padded
from nystrom.pinv import matmul


def map_heads(
    attend: Callable[..., Array],
    query: Array,
    key: Array,
    value: Array,
    query_mask: Array | None,
    key_mask: Array | None,
) -> Array:
    """attend(q ND, k MD, v ME, query_mask N, key_mask M) of every head: *B N H E, query's dtype.

    `attend` finds padding as zeros, float32 (or float64), and masks None where all is real; what
    it returns for padded queries and where no key is real is replaced by zeros, so it must only
    be finite. On CPU heads follow one another, so that what a head needs stays in cache, and
    all products are of matrices; elsewhere they are computed at once. The backward pass
    recomputes a head, and so keeps none of its intermediate arrays. Inputs have passed
    `check_inputs`.
    """
    *batch, length, num_heads, _ = query.shape
    out_shape = (*query.shape[:-1], value.shape[-1])
    if is_empty(*out_shape, key.shape[-3]):
        return jnp.zeros(out_shape, query.dtype)
    wide = accumulator(common_dtype(query, key, value))
    key, value = (repeat_heads(x, num_heads) for x in (key, value))
    heads = [
        _heads_first(x.astype(wide), mask)
        for x, mask in ((query, query_mask), (key, key_mask), (value, key_mask))
    ]
    masks = _of_heads(query_mask, num_heads), _of_heads(key_mask, num_heads)
    attend = jax.checkpoint(attend, prevent_cse=False)

    def in_turn(*arrays):
        return jax.lax.map(lambda arrays: attend(*arrays), arrays)

    out = choose(None, jax.vmap(attend), in_turn, *heads, *masks)
    out = jnp.swapaxes(out.reshape(*batch, num_heads, length, -1), -2, -3)
    if key_mask is not None:
        out = jnp.where(jnp.any(key_mask, axis=-1)[..., None, None, None], out, 0)
    return zero_padded(out.astype(query.dtype), query_mask)


def _heads_first(x, mask):
    """*B N H D -> (B H) N D, padding as zeros."""
    x = jnp.swapaxes(zero_padded(x, mask), -2, -3)
    return x.reshape(-1, *x.shape[-2:])


def _of_heads(mask, num_heads):
    """*B N -> (B H) N."""
    if mask is None:
        return None
    mask = jnp.broadcast_to(mask[..., None, :], (*mask.shape[:-1], num_heads, mask.shape[-1]))
    return mask.reshape(-1, mask.shape[-1])


def kernel_average(
    query_features: Float[Array, "N F"],
    key_features: Float[Array, "M F"],
    v: Float[Array, "M E"],
    mean: Float[Array, "1 E"] | None = None,
) -> Float[Array, "N E"]:
    """Values averaged with the weights query_features key_features^T, N x M never formed.

    `mean`, or zeros, where all weights of a query are zero.
    """
    with_ones = jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=1)
    summary = matmul(key_features.T, with_ones)
    out = matmul(query_features, summary)
    total = out[:, -1:]
    nothing = total <= jnp.finfo(total.dtype).tiny  # NaN is not nothing
    otherwise = jnp.zeros_like(out[:, :-1]) if mean is None else mean
    return jnp.where(nothing, otherwise, out[:, :-1] / jnp.where(nothing, 1, total))
