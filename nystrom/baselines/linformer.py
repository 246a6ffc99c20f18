"""Linformer: keys and values projected to a fixed length (Wang et al. 2020)."""

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import softmax_attention
from nystrom.checks import check_floats, check_inputs, is_empty
from nystrom.numerics import common_dtype, einsum, to_front, unless_trailing, zero_padded


def linformer_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    value: Float[Array, "*B M G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    projection: Float[Array, "G L P"],
) -> Float[jax.Array, "*B N H E"]:
    """softmax(Q (E K)^T / sqrt D) E V (its eq. 7), O(N + M) in time and memory.

    The paper has projections of keys and of values apart (E and F), per head or shared by
    heads, by keys and values, or by layers; the Nyströmformer authors' runs have one per head
    for both keys and values and all layers, as here. Its column p belongs to the p-th real
    token: a shorter or padded input meets the first columns only.

    Args:
      query, key, value, mask, query_mask, key_mask: as for `nystrom_attention`.
      projection: E of every head of keys, G L P: from up to P tokens to L.

    Raises:
      ValueError: another number of heads, M > P, or what `nystrom_attention` refuses.
      TypeError: a projection that is not floating-point, or what `nystrom_attention` refuses.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    length, num_heads = key.shape[-3:-1]
    check_floats("projection", projection)
    if projection.ndim != 3 or projection.shape[0] != num_heads or not projection.shape[1]:
        raise ValueError(f"projection has shape {projection.shape}: expected {num_heads} L P")
    if length > projection.shape[2]:
        raise ValueError(
            f"key has {length} positions: the projection takes at most {projection.shape[2]}"
        )
    return _attention(query, key, value, query_mask, key_mask, projection[..., :length])


@jax.jit
def _attention(query, key, value, query_mask, key_mask, projection):
    out_shape = (*query.shape[:-1], value.shape[-1])
    if is_empty(*out_shape, key.shape[-3]):
        return jnp.zeros(out_shape, query.dtype)
    with jax.numpy_dtype_promotion("standard"):  # parameters are float32 where tokens are not
        dtype = common_dtype(query, key, value, projection)
    key, value = (zero_padded(x, key_mask).astype(dtype) for x in (key, value))
    if key_mask is not None:
        key, value = unless_trailing(to_front, key_mask, key, value)
    projection = projection.astype(dtype)
    key, value = (einsum("glm,...mgd->...lgd", projection, x).astype(dtype) for x in (key, value))
    out = softmax_attention(query.astype(dtype), key, value, query_mask=query_mask)
    return out.astype(query.dtype)
