"""What the linear-time baselines share: an attention of one head of one example, mapped."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import promote, zero_padded


def map_heads(
    attend: Callable[..., Array],
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M H D"],
    value: Float[Array, "*B M H D"],
    query_mask: Bool[Array, "*B N"] | None,
    key_mask: Bool[Array, "*B M"] | None,
) -> Float[Array, "*B N H D"]:
    """attend(q ND, k MD, v MD, query_mask N, key_mask M) of every head, in query's dtype.

    `attend` finds padding as zeros, float32 (or float64), and masks None where all is real; what
    it returns for padded queries and where no key is real is replaced by zeros, so it must only
    be finite. On CPU heads follow one another, so that what a head needs stays in cache, and
    all products are of matrices; elsewhere they are computed at once. The backward pass
    recomputes a head, and so keeps none of its intermediate arrays.
    Inputs have passed `check_inputs`.
    """
    *batch, length, num_heads, depth = query.shape
    dtype = query.dtype
    same = key is query and key_mask is query_mask
    query = _heads_first(query, query_mask)
    key = query if same else _heads_first(key, key_mask)
    value = _heads_first(value, key_mask)
    masks = _repeat_heads(query_mask, num_heads), _repeat_heads(key_mask, num_heads)
    attend = jax.checkpoint(attend, prevent_cse=False)
    map_over = jax.lax.map if jax.default_backend() == "cpu" else _vmap
    if same:
        out = map_over(lambda args: attend(args[0], *args), (query, value, *masks))
    else:
        out = map_over(lambda args: attend(*args), (query, key, value, *masks))
    out = jnp.swapaxes(out.reshape(*batch, num_heads, length, depth), -2, -3)
    if key_mask is not None:
        out = jnp.where(key_mask.any(axis=-1)[..., None, None, None], out, 0)
    return zero_padded(out, query_mask).astype(dtype)


def _vmap(function, args):
    return jax.vmap(function)(args)


def _heads_first(x, mask):
    """*B N H D -> (B H) N D, padding as zeros."""
    (x,) = promote(zero_padded(x, mask))
    return jnp.swapaxes(x, -2, -3).reshape(-1, x.shape[-3], x.shape[-1])


def _repeat_heads(mask, num_heads):
    """*B N -> (B H) N."""
    if mask is None:
        return None
    return jnp.repeat(mask.reshape(-1, mask.shape[-1]), num_heads, axis=0)


def kernel_average(
    query_features: Float[Array, "N F"], key_features: Float[Array, "M F"], v: Float[Array, "M D"]
) -> Float[Array, "N D"]:
    """Values averaged with the weights query_features key_features^T, N x M never formed.

    Zeros where all weights of a query are zero.
    """
    with_ones = jnp.concatenate([v, jnp.ones_like(v[:, :1])], axis=1)
    summary = matmul(key_features.T, with_ones)
    out = matmul(query_features, summary)
    total = out[:, -1:]
    positive = total > jnp.finfo(total.dtype).tiny
    return jnp.where(positive, out[:, :-1] / jnp.where(positive, total, 1), 0)


def matmul(x, y):
    return jnp.matmul(x, y, precision="highest")
