"""No attention at all: every token keeps its own value."""

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import check_inputs, zero_padded


def identity_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N H D"],
    value: Float[Array, "*B N H D"],
    *,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B N"] | None = None,
) -> Float[Array, "*B N H D"]:
    """The values as they are, zeros where padded: the ablation that tells what attention adds.

    Arguments and errors are those of `nystrom_attention`; the lengths must be equal.
    """
    check_inputs(query, key, value, query_mask, key_mask)
    if query.shape != value.shape:
        raise ValueError(f"query {query.shape} and value {value.shape}: lengths must be equal")
    return zero_padded(zero_padded(value, key_mask), query_mask).astype(query.dtype)
