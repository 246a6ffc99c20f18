"""Nyström attention as the `attention_fn` of Flax's multi-head attention, NNX and Linen."""

from collections.abc import Callable

import jax.numpy as jnp

from nystrom.array_typing import Array, Bool
from nystrom.attention import nystrom_attention


def attention_fn(
    num_landmarks: int = 64,
    pinv_iterations: int = 6,
    cross_attention: bool = False,
    pinv: str = "iterative",
) -> Callable[..., Array]:
    """An `attention_fn` for `nnx.MultiHeadAttention` and `linen.MultiHeadDotProductAttention`.

    The result takes what either module passes: query *B N H D, key and value *B M H D, and a
    padding mask *B 1 1 M (True or non-zero = real key), or None. Flax has no mask for the queries.
    In self-attention the keys' mask is the queries' too, and it is taken so where N = M,
    unless `cross_attention`; otherwise every query counts as real.

    The result raises ValueError for what would change the outcome and can't be honoured: a
    mask over pairs of positions or heads, a bias, causal use, dropout of attention weights.
    """

    # Linen passes only keywords that it finds by name in the signature; NNX passes all.
    def nystrom(
        query,
        key,
        value,
        bias=None,
        mask=None,
        dropout_rng=None,
        dropout_rate=0.0,
        deterministic=True,
        is_causal=False,
        **_,
    ):
        if bias is not None:
            raise ValueError("bias: Nyström attention can't add a bias to logits it never forms")
        if dropout_rate > 0.0 and not deterministic:
            raise ValueError(
                f"dropout_rate={dropout_rate}: Nyström attention has no attention weights to drop; "
                "set dropout_rate=0 in the attention module and drop its output instead"
            )
        key_mask = None if mask is None else _key_mask(mask, key)
        same_length = query.shape[-3] == key.shape[-3]
        return nystrom_attention(
            query,
            key,
            value,
            query_mask=key_mask if same_length and not cross_attention else None,
            key_mask=key_mask,
            num_landmarks=num_landmarks,
            pinv=pinv,
            pinv_iterations=pinv_iterations,
            is_causal=is_causal,
        )

    return nystrom


def _key_mask(mask: Array, key: Array) -> Bool[Array, "*B M"]:
    """The padding mask *B M in Flax's *B 1 1 M; any other mask is refused."""
    *batch, length = key.shape[:-2]
    if mask.ndim != len(batch) + 3 or mask.shape[-3:] != (1, 1, length):
        raise ValueError(
            f"mask has shape {mask.shape}: Nyström attention honours padding masks only, "
            f"{(*batch, 1, 1, length)} here (batch, 1, 1, keys). A mask over pairs of positions "
            "(causal, banded, nn.make_attention_mask) or per head can't be applied to landmarks; "
            "for padding pass is_real[:, None, None, :]."
        )
    return jnp.broadcast_to(mask[..., 0, 0, :] != 0, (*batch, length))
