"""Linformer: keys and values projected to a fixed length (Wang et al. 2020)."""

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import check_inputs, promote, zero_padded
from nystrom.landmark_attention import attend_to_landmarks


def linformer_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M H D"],
    value: Float[Array, "*B M H D"],
    *,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    projection: Float[Array, "H L P"],
) -> Float[Array, "*B N H D"]:
    """softmax(Q (E K)^T / sqrt D) E V (its eq. 7), O(N + M) in time and memory.

    The paper has projections of keys and of values apart (E and F), per head or shared by
    heads, by keys and values, or by layers; the Nyströmformer authors' runs have one per head
    for both keys and values and all layers, as here. Its column p belongs to the p-th real
    token: a shorter or padded input meets the first columns only.

    Args:
      query, key, value, query_mask, key_mask: as for `nystrom_attention`.
      projection: E of every head, H L P: from up to P tokens to L.

    Raises:
      ValueError: another number of heads, M > P, or what `nystrom_attention` refuses.
    """
    check_inputs(query, key, value, query_mask, key_mask)
    *batch, length, num_heads, _ = key.shape
    if projection.ndim != 3 or projection.shape[0] != num_heads:
        raise ValueError(f"projection has shape {projection.shape}: expected {num_heads} L P")
    if length > projection.shape[2]:
        raise ValueError(
            f"key has {length} positions: the projection takes at most {projection.shape[2]}"
        )
    dtype = query.dtype
    query, key, value, projection = promote(
        query, zero_padded(key, key_mask), zero_padded(value, key_mask), projection
    )

    def flatten(x):
        return x.reshape(-1, *x.shape[len(batch) :])

    query, key, value = map(flatten, (query, key, value))
    if query_mask is not None:
        query_mask = flatten(query_mask)
    if key_mask is not None:
        key, value = _to_front(flatten(key_mask), key, value)
    keys, values = _project(projection[..., :length], key, value)
    out = attend_to_landmarks(query, keys, values, query_mask, None)
    return out.reshape(*batch, *out.shape[1:]).astype(dtype)


def _to_front(mask, *tokens):
    """Arrays B M H D with the real tokens first, in order."""

    def gather(tokens):
        order = jnp.argsort(~mask, axis=-1, stable=True)[..., None, None]
        return tuple(jnp.take_along_axis(x, order, axis=1) for x in tokens)

    only_trailing = jnp.all(mask[:, :-1] >= mask[:, 1:])
    return jax.lax.cond(only_trailing, lambda tokens: tokens, gather, tokens)


def _project(projection, *tokens):
    """Each head's E times its tokens: B M H D -> B H L D, a product of two matrices a head."""
    stacked = jnp.concatenate(tokens, axis=0)
    by_head = jnp.transpose(stacked, (2, 1, 0, 3)).reshape(*stacked.shape[2:0:-1], -1)
    out = jax.lax.map(lambda args: jnp.matmul(*args, precision="highest"), (projection, by_head))
    out = out.reshape(*out.shape[:2], len(tokens), -1, stacked.shape[-1])
    return tuple(jnp.transpose(out[:, :, i], (2, 0, 1, 3)) for i in range(len(tokens)))
