"""The released model's attention: exact, or Nyström with one starting scale for all heads."""

import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import (
    Options,
    attend,
    landmark_matrix,
    landmarks,
    nystrom_attention,
    softmax_attention,
)
from nystrom.checks import is_empty
from nystrom.language.config import LanguageConfig
from nystrom.numerics import accumulator, exact_einsum, zero_padded
from nystrom.pinv import initial_scale, iterate

ITERATIONS = 6  # of eq. 7, which the model was trained with


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


def shared_scale_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N H D"],
    value: Float[Array, "*B N H E"],
    mask: Bool[Array, "*B N"] | None,
    num_landmarks: int,
    *,
    pad_landmarks: bool = False,
) -> Float[Array, "*B N H E"]:
    """`nystrom_attention`, but that eq. 8's scale is one for all heads of an example.

    What the released weights were trained with, but for a scale that the whole batch shared: in a
    batch of one it is the same, and here no example bears on another. Six steps do not reach the
    inverse, so the scale shows in the result. `pad_landmarks` does with padding as `transformers`
    does: landmarks are means over padding too, and nothing but G's logits are masked.
    """
    if is_empty(*value.shape):
        return value
    scale, dtype = query.shape[-1] ** -0.5, query.dtype
    options = Options(num_landmarks, "iterative", ITERATIONS, scale)
    real = None if pad_landmarks else mask
    q, k, q_valid, k_valid = landmarks(query, key, real, real, options)
    a = landmark_matrix(q, k, q_valid, k_valid, scale)
    own = initial_scale(a)
    shared = jnp.broadcast_to(own.min(axis=-3, keepdims=True), own.shape)  # the largest norms'
    a_pinv = iterate(a, shared, ITERATIONS)
    g_value = _attended(q.astype(dtype), key, value, mask, scale)
    solved = exact_einsum("...hlm,...mhe->...lhe", a_pinv, g_value.astype(a.dtype))
    out = _attended(query, k.astype(dtype), solved.astype(dtype), k_valid, scale)
    return zero_padded(out.astype(dtype), real)


def _attended(query, key, value, key_mask, scale):
    """Exact attention whose result keeps the digits that it was summed in."""
    if query.dtype == accumulator(query.dtype):
        return softmax_attention(query, key, value, key_mask=key_mask, scale=scale)
    return attend(query, zero_padded(key, key_mask), zero_padded(value, key_mask), key_mask, scale)
