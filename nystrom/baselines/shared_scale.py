"""Nyström attention as the authors' code has it where that differs from the paper."""

import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import landmark_matrix, landmarks, make_options, softmax_attention
from nystrom.checks import check_inputs, is_empty
from nystrom.landmarks import apart
from nystrom.numerics import accumulator, exact_einsum, zero_padded
from nystrom.pinv import initial_scale, iterate
from nystrom.softmax import attend

ITERATIONS = 6  # of eq. 7, which their models were trained with


def authors_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N H D"],
    value: Float[Array, "*B N H E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B N"] | None = None,
    num_landmarks: int = 64,
    pinv_iterations: int = ITERATIONS,
) -> Float[Array, "*B N H E"]:
    """`nystrom_attention` with padding as the authors' LRA code has it, to compare runs with.

    Padded queries and keys are zeros that the landmarks are means over too, F and A are not masked,
    and eq. 8's scale is the least of all heads of all examples (that are computed together: of a
    device, of a part of a batch). So padding and the other examples of a batch change results.
    Arguments are as for `nystrom_attention`, of self-attention with as many heads of keys.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    query, key = zero_padded(query, query_mask), zero_padded(key, key_mask)
    out = shared_scale_attention(
        query,
        key,
        value,
        key_mask,
        num_landmarks,
        num_iterations=pinv_iterations,
        pad_landmarks=True,
        batch_scale=True,
    )
    return zero_padded(out, query_mask)


def shared_scale_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N H D"],
    value: Float[Array, "*B N H E"],
    mask: Bool[Array, "*B N"] | None,
    num_landmarks: int,
    *,
    num_iterations: int = ITERATIONS,
    pad_landmarks: bool = False,
    batch_scale: bool = False,
) -> Float[Array, "*B N H E"]:
    """`nystrom_attention`, but that eq. 8's scale is one for all heads of an example.

    Six steps do not reach the inverse, so the scale shows in the result. With `batch_scale` all
    examples share it, as in the authors' code; without it no example bears on another, and in a
    batch of one it is the same. `pad_landmarks` does with padding as `transformers` does: landmarks
    are means over padding too, and nothing but G's logits are masked.
    """
    if is_empty(*value.shape):
        return value
    options = make_options(query, key, num_landmarks, "iterative", num_iterations, None)
    scale, dtype = options.scale, query.dtype
    real = None if pad_landmarks else mask
    q, k, q_valid, k_valid = landmarks(query, key, real, real, options)
    a = landmark_matrix(q, k, q_valid, k_valid, scale)
    own = initial_scale(a)
    least = own.min(axis=None if batch_scale else -3, keepdims=True)  # the largest norms'
    a_pinv = iterate(a, jnp.broadcast_to(least, own.shape), num_iterations)
    g_value = _attended(q.astype(dtype), key, value, mask, scale)
    solved = exact_einsum("...hlm,...mhe->...lhe", a_pinv, g_value.astype(a.dtype))
    (_, k), (shared, solved) = (apart(x, k_valid, dtype) for x in (k, solved))
    out = _attended(query, k.astype(dtype), solved.astype(dtype), k_valid, scale) + shared
    return zero_padded(out.astype(dtype), real)


def _attended(query, key, value, key_mask, scale):
    """Exact attention whose result keeps the digits that it was summed in."""
    if query.dtype == accumulator(query.dtype):
        return softmax_attention(query, key, value, key_mask=key_mask, scale=scale)
    return attend(query, zero_padded(key, key_mask), zero_padded(value, key_mask), key_mask, scale)
