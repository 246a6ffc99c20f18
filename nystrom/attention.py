"""Nyström attention and exact softmax attention: pure functions with one signature."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.chebyshev import apply_chebyshev_pinv, chebyshev_pinv
from nystrom.landmark_attention import MASKED, attend_from_landmarks, attend_to_landmarks
from nystrom.landmark_matrix import landmark_matrix
from nystrom.landmarks import check_mask, check_tokens, segment_means
from nystrom.pinv import apply_pinv, iterative_pinv

PINVS = ("iterative", "chebyshev")


def nystrom_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M H D"],
    value: Float[Array, "*B M H D"],
    *,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    num_landmarks: int = 64,
    pinv: str = "iterative",
    pinv_iterations: int = 6,
    is_causal: bool = False,
) -> Float[Array, "*B N H D"]:
    """Nyström approximation of softmax attention, O(N + M) in time and memory (eq. 9).

    F A^+ G value with F = softmax(Q K~^T / sqrt D), A = softmax(Q~ K~^T / sqrt D),
    G = softmax(Q~ K^T / sqrt D), where Q~, K~ are `segment_means` of the real queries and keys
    and A^+ comes from `iterative_pinv` (or `chebyshev_pinv`). Multiplied from the right, so
    nothing larger than N x L is formed.

    Args:
      query: *B N H D.
      key, value: *B M H D; M need not equal N.
      query_mask, key_mask: *B N and *B M, True for real tokens; None when all are real. A real
        token's result is what it would be without the padding. In self-attention pass the
        same mask as both.
      num_landmarks: L, at least 1; more than there are real tokens is allowed.
      pinv: "iterative", the paper's eq. 7, or "chebyshev", nearly the same in half the products.
      pinv_iterations: steps of eq. 7; "chebyshev" takes three of its own.
      is_causal: only False; here so that a causal model fails loudly.

    Returns:
      *B N H D in query's dtype; zeros for padded queries and where no key is real. Computed in
      float32 at the highest matmul precision (float64 for float64).

    Raises:
      ValueError: shapes that don't fit, a mask that is not a padding mask, causal use, an unknown
        `pinv`.
      TypeError: arrays that are not floating-point, masks that are not boolean.
    """
    check_inputs(query, key, value, query_mask, key_mask)
    _check_pinv(pinv)
    query = zero_padded(query, query_mask)
    if is_causal:
        raise ValueError(
            "is_causal=True: Nyström attention can't be causal, since each landmark is a mean "
            "that mixes past and future positions. Use softmax_attention's exact form."
        )
    batch, dtype = query.shape[:-3], query.dtype
    (query, key, value), query_mask, key_mask = _flatten_batch(
        promote(query, key, value), query_mask, key_mask
    )
    q_landmarks, q_valid = _landmarks(query, num_landmarks, query_mask)
    k_landmarks, k_valid = _landmarks(key, num_landmarks, key_mask)
    a = landmark_matrix(q_landmarks, k_landmarks, q_valid, k_valid)
    context = attend_from_landmarks(q_landmarks, key, value, key_mask)
    if pinv == "chebyshev":
        solved = apply_chebyshev_pinv(a, context)
    else:
        solved = apply_pinv(a, context, pinv_iterations)
    out = attend_to_landmarks(query, k_landmarks, solved, query_mask, k_valid)
    return out.reshape(*batch, *out.shape[1:]).astype(dtype)


def softmax_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M H D"],
    value: Float[Array, "*B M H D"],
    *,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
) -> Float[Array, "*B N H D"]:
    """Exact attention softmax(Q K^T / sqrt D) V, O(N M) in time and memory (eq. 1).

    Arguments, result and errors are those of `nystrom_attention`.
    """
    check_inputs(query, key, value, query_mask, key_mask)
    batch, dtype = query.shape[:-3], query.dtype
    (query, key, value), query_mask, key_mask = _flatten_batch(
        promote(query, zero_padded(key, key_mask), zero_padded(value, key_mask)),
        query_mask,
        key_mask,
    )
    key, value = (jnp.swapaxes(x, -2, -3) for x in (key, value))
    out = attend_to_landmarks(query, key, value, query_mask, key_mask)
    return out.reshape(*batch, *out.shape[1:]).astype(dtype)


class NystromFactors(NamedTuple):
    """The factors of the N x M matrix F A^+ G that Nyström attention applies to the values."""

    f: Float[Array, "*B H N L"]
    a_pinv: Float[Array, "*B H L L"]
    g: Float[Array, "*B H L M"]

    def rows(self, positions: Int[Array, " R"]) -> Float[Array, "*B H R M"]:
        """The rows of F A^+ G that belong to the given query positions, all if asked for all."""
        f = self.f[..., jnp.asarray(positions), :]
        return _einsum("...nl,...lm->...nm", _einsum("...nl,...lk->...nk", f, self.a_pinv), self.g)


def nystrom_factors(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M H D"],
    *,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    num_landmarks: int = 64,
    pinv: str = "iterative",
    pinv_iterations: int = 6,
) -> NystromFactors:
    """F, A^+ and G of `nystrom_attention`, for inspection; their N x M product is not formed.

    Arguments and errors are those of `nystrom_attention`. Rows of padded queries, columns of
    padded keys and what belongs to inert landmarks are zeros; float32 (float64 for float64).
    """
    check_inputs(query, key, key, query_mask, key_mask)
    _check_pinv(pinv)
    query = zero_padded(query, query_mask)
    query, key = promote(query, key)
    q_landmarks, q_valid = segment_means(query, num_landmarks, query_mask)
    k_landmarks, k_valid = segment_means(key, num_landmarks, key_mask)
    a = jnp.where(k_valid[..., None, None, :], _softmax(q_landmarks, k_landmarks, k_valid), 0)
    a = _zero_rows(a, q_valid)
    f = _zero_rows(_softmax(query, k_landmarks, k_valid), query_mask)
    f = jnp.where(k_valid[..., None, None, :], f, 0)
    g = _zero_rows(_softmax(q_landmarks, key, key_mask), q_valid)
    if key_mask is not None:
        g = jnp.where(key_mask[..., None, None, :], g, 0)
    a_pinv = chebyshev_pinv(a) if pinv == "chebyshev" else iterative_pinv(a, pinv_iterations)
    return NystromFactors(f, a_pinv, g)


def _landmarks(x, num_landmarks, mask):
    """`segment_means` as B H L D, and which are valid, None where all are."""
    landmarks, valid = segment_means(x, num_landmarks, mask)
    if mask is None and num_landmarks <= x.shape[1]:
        valid = None
    return jnp.swapaxes(landmarks, -2, -3), valid


def _flatten_batch(tokens, query_mask, key_mask):
    """Arrays *B N H D, and masks, with one batch dimension."""
    masks = (
        None if mask is None else mask.reshape(-1, mask.shape[-1])
        for mask in (query_mask, key_mask)
    )
    return tuple(x.reshape(-1, *x.shape[-3:]) for x in tokens), *masks


def _softmax(query, key, key_mask):
    """softmax over the real keys of query key^T / sqrt D: *B H N M."""
    if key_mask is not None:
        key = jnp.where(key_mask[..., None, None], key, 0)
    logits = _einsum("...nhd,...mhd->...hnm", query * query.shape[-1] ** -0.5, key)
    if key_mask is not None:
        logits = jnp.where(key_mask[..., None, None, :], logits, MASKED)
    return jax.nn.softmax(logits, axis=-1)


def _einsum(spec, x, y):
    return jnp.einsum(spec, x, y, precision="highest")


def _zero_rows(matrix, mask):
    return matrix if mask is None else jnp.where(mask[..., None, :, None], matrix, 0)


def zero_padded(x, mask):
    """Tokens *B N H D with zeros, whatever was there, for padding."""
    return x if mask is None else jnp.where(mask[..., None, None], x, 0)


def promote(*arrays):
    """Arrays in the dtype that attention computes in: float32, or float64 for float64."""
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(array.astype(dtype) for array in arrays)


def _check_pinv(pinv):
    if pinv not in PINVS:
        raise ValueError(f"pinv={pinv!r}: expected one of {', '.join(PINVS)}")


def check_inputs(query, key, value, query_mask, key_mask):
    """Raises unless the arrays are an attention's: the errors of `nystrom_attention`."""
    for name, array in (("query", query), ("key", key), ("value", value)):
        check_tokens(name, array)
    if key.shape != value.shape:
        raise ValueError(f"key {key.shape} and value {value.shape}: expected one shape *B M H D")
    if query.shape[:-3] != key.shape[:-3] or query.shape[-2:] != key.shape[-2:]:
        raise ValueError(
            f"query {query.shape} and key {key.shape}: expected *B N H D and *B M H D with the "
            "same batch, heads and head features"
        )
    check_mask("query_mask", query_mask, query)
    check_mask("key_mask", key_mask, key)
