"""No attention at all: every token keeps its own value."""

import jax

from nystrom.array_typing import Array, Bool, Float
from nystrom.checks import check_inputs
from nystrom.numerics import repeat_heads, zero_padded


def identity_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N G D"],
    value: Float[Array, "*B N G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B N"] | None = None,
) -> Float[jax.Array, "*B N H E"]:
    """The values as they are, zeros where padded: the ablation that tells what attention adds.

    Arguments and errors are those of `nystrom_attention`; the lengths must be equal.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    if query.shape[-3] != value.shape[-3]:
        raise ValueError(f"query {query.shape} and value {value.shape}: lengths must be equal")
    return _identity(query, value, query_mask, key_mask)


@jax.jit
def _identity(query, value, query_mask, key_mask):
    value = repeat_heads(value, query.shape[-2])
    return zero_padded(zero_padded(value.astype(query.dtype), key_mask), query_mask)
