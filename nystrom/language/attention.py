"""The released model's attention: exact, or Nyström with one starting scale for all heads."""

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import nystrom_attention, softmax_attention
from nystrom.baselines.shared_scale import shared_scale_attention
from nystrom.language.config import LanguageConfig


def language_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N H D"],
    value: Float[Array, "*B N H E"],
    mask: Bool[Array, "*B N"] | None,
    config: LanguageConfig,
) -> Float[Array, "*B N H E"]:
    """Attention as `config` has it: its `attention`, its landmarks and its padding."""
    as_transformers = config.padding == "transformers"
    if config.attention == "softmax":
        if as_transformers:
            return softmax_attention(query, key, value, key_mask=mask)
        return softmax_attention(query, key, value, mask=mask)
    if config.inv_coeff_init_option:
        return nystrom_attention(query, key, value, mask=mask, num_landmarks=config.num_landmarks)
    return shared_scale_attention(
        query, key, value, mask, config.num_landmarks, pad_landmarks=as_transformers
    )
