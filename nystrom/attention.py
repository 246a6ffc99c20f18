"""Nyström attention and exact softmax attention: pure functions with one signature."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array, Bool, Float
from nystrom.chebyshev import chebyshev_pinv
from nystrom.checks import (
    NYSTROM_IMPLEMENTATIONS,
    PINVS,
    all_known,
    check_choice,
    check_count,
    check_implementation,
    check_inputs,
    is_empty,
    known,
)
from nystrom.kernels import choose
from nystrom.landmarks import apart, landmark_means, segment_sums
from nystrom.numerics import (
    common_dtype,
    exact_einsum,
    repeat_heads,
    zero_padded,
)
from nystrom.pinv import iterative_pinv
from nystrom.softmax import attend, softmax

# --- the equations ------------------------------------------------------------------------


class Options(NamedTuple):
    """The static options of Nyström attention."""

    num_landmarks: int
    pinv: str
    pinv_iterations: int
    scale: float
    axis_name: str | None = None


def eq_9(query, key, value, query_mask, key_mask, options):
    """F A^+ G value, from the right; zeros for padded queries.

    F = softmax(Q K~^T / sqrt D), A = softmax(Q~ K~^T / sqrt D), G = softmax(Q~ K^T / sqrt D).
    """
    scale, dtype = options.scale, query.dtype
    query = zero_padded(query, query_mask)
    key, value = zero_padded(key, key_mask), zero_padded(value, key_mask)
    q, k, q_valid, k_valid = landmarks(query, key, query_mask, key_mask, options)
    a_pinv = invert(landmark_matrix(q, k, q_valid, k_valid, scale), options)
    g_value = attend(q.astype(dtype), key, value, key_mask, scale, options.axis_name)
    solved = exact_einsum("...hlm,...mhe->...lhe", a_pinv, g_value)
    (_, k), (shared, solved) = (apart(x, k_valid, dtype) for x in (k, solved))
    out = attend(
        query, k.astype(dtype), solved.astype(dtype), k_valid, scale, values_are_apart=True
    )
    return zero_padded((out + shared).astype(dtype), query_mask)


def landmarks(query, key, query_mask, key_mask, options, sums=segment_sums):
    """Q~ and K~ of eq. 5, *B L H D in float32, and which have a token (None: all)."""
    count, axis_name = options.num_landmarks, options.axis_name
    q, q_valid = landmark_means(query, count, query_mask, axis_name, sums)
    k, k_valid = landmark_means(key, count, key_mask, axis_name, sums)
    return q, repeat_heads(k, query.shape[-2]), q_valid, k_valid


def landmark_matrix(q_landmarks, k_landmarks, q_valid, k_valid, scale):
    """A of eq. 9, *B H L L: zeros in the rows and columns of landmarks without a token."""
    a = softmax(q_landmarks, k_landmarks, k_valid, scale, exact_einsum)
    return zero_padding(a, q_valid, k_valid)


def invert(a, options):
    """A^+ of each matrix."""
    if options.pinv == "chebyshev":
        return chebyshev_pinv(a)
    return iterative_pinv(a, options.pinv_iterations)


def zero_padding(matrix, rows, columns):
    """*B H N M with zeros in the rows and columns of padding."""
    if rows is not None:
        matrix = jnp.where(rows[..., None, :, None], matrix, 0)
    return matrix if columns is None else jnp.where(columns[..., None, None, :], matrix, 0)


# --- what users call ----------------------------------------------------------------------


def nystrom_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    value: Float[Array, "*B M G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    num_landmarks: int = 64,
    pinv: str = "iterative",
    pinv_iterations: int = 6,
    scale: float | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[jax.Array, "*B N H E"]:
    """Nyström approximation of softmax attention, O(N + M) in time and memory (eq. 9).

    F A^+ G value with F = softmax(Q K~^T / sqrt D), A = softmax(Q~ K~^T / sqrt D),
    G = softmax(Q~ K^T / sqrt D), where Q~, K~ are `segment_means` of the real queries and keys
    and A^+ comes from `iterative_pinv` (or `chebyshev_pinv`). Multiplied from the right, so
    nothing larger than N x L is formed.

    Products of tokens are in the inputs' dtype, accumulated in float32 (float64 for float64);
    softmaxes, and all of A and its inverse, are float32 at the highest precision. Float32 is
    multiplied in float32 unless `jax.default_matmul_precision` says otherwise.

    Args:
      query: *B N H D.
      key, value: *B M G D and *B M G E; M need not equal N, nor E equal D. With fewer heads than
        the queries (G divides H), H / G heads of queries in a row share one of keys and values.
      mask: *B N, self-attention's one padding mask, for queries and keys: True for real tokens.
        A real token's result is what it would be without the padding.
      query_mask, key_mask: *B N and *B M, the same apart, for cross-attention.
      num_landmarks: L, at least 1; more than there are real tokens is allowed, and no more than
        max(N, M) are formed.
      pinv: "iterative", the paper's eq. 7, or "chebyshev", nearly the same in half the products.
      pinv_iterations: steps of eq. 7; "chebyshev" takes three of its own. More give a better
        inverse, not always a better attention: the paper's six regularise.
      scale: of the logits; None: 1 / sqrt D.
      is_causal: only False; here so that a causal model fails loudly.
      implementation: "plain", "tiled", "pallas", or None for what suits the platform that the
        program is compiled for: the same function in other steps. "pallas" is kernels for a TPU,
        of one device or inside `jax.shard_map`; no TPU has run them yet.
      axis_name: inside `jax.shard_map`, the axis over which sequences are cut; arrays and masks
        are then this device's pieces. See `sharded_attention`.

    Returns:
      *B N H E in query's dtype; zeros for padded queries and where no key is real.

    Raises:
      ValueError: shapes that don't fit, a mask that is not a padding mask, causal use, an unknown
        `pinv` or `implementation`.
      TypeError: arrays that are not floating-point, masks that are not boolean, options that are
        traced or of another type.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    if known("is_causal", is_causal):
        raise ValueError(
            "is_causal=True: Nyström attention can't be causal, since each landmark is a mean "
            "that mixes past and future positions. softmax_attention(is_causal=True) is exact."
        )
    options = make_options(query, key, num_landmarks, pinv, pinv_iterations, scale, axis_name)
    check_implementation(implementation, axis_name, NYSTROM_IMPLEMENTATIONS)
    return _attention(query, key, value, query_mask, key_mask, options, implementation)


@partial(jax.jit, static_argnums=(5, 6))
def _attention(query, key, value, query_mask, key_mask, options, implementation):
    from nystrom.kernels import tiled

    dtype = common_dtype(query, key, value)
    out_shape = (*query.shape[:-1], value.shape[-1])
    if is_empty(*out_shape, key.shape[-3]):
        return jnp.zeros(out_shape, query.dtype)
    arrays = (x.astype(dtype) for x in (query, key, value))
    plain, tiles = (partial(form, options=options) for form in (eq_9, tiled.nystrom))

    def kernels(*arrays):
        from nystrom.kernels import pallas  # of an experimental part of JAX, for who names it

        return pallas.nystrom(*arrays, options)

    if options.axis_name is not None:
        implementation = "plain"
    longest = max(query.shape[-3], key.shape[-3], key=lambda n: n if all_known(n) else 0)
    logits = (*query.shape[:-3], query.shape[-2], longest, options.num_landmarks)
    arrays = (*arrays, query_mask, key_mask)
    out = choose(implementation, plain, tiles, *arrays, logits=logits, pallas=kernels)
    return out.astype(query.dtype)


def softmax_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    value: Float[Array, "*B M G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    implementation: str | None = None,
) -> Float[jax.Array, "*B N H E"]:
    """Exact attention softmax(Q K^T / sqrt D) V, O(N M) in time (eq. 1).

    Arrays, masks, `scale`, result and errors are those of `nystrom_attention`; `implementation` is
    "plain", "tiled" or None. `is_causal` is honoured, in the plain form: position n attends to
    positions up to n.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    check_implementation(implementation, None)
    is_causal = bool(known("is_causal", is_causal))
    if is_causal and implementation == "tiled":
        raise ValueError("implementation='tiled' has no causal form: leave it out, or 'plain'")
    implementation = "plain" if is_causal else implementation
    scale = check_scale(scale, query)
    return _exact(query, key, value, query_mask, key_mask, scale, is_causal, implementation)


@partial(jax.jit, static_argnums=(5, 6, 7))
def _exact(query, key, value, query_mask, key_mask, scale, is_causal, implementation):
    from nystrom.kernels import tiled

    dtype = common_dtype(query, key, value)
    out_shape = (*query.shape[:-1], value.shape[-1])
    if is_empty(*out_shape, key.shape[-3]):
        return jnp.zeros(out_shape, query.dtype)

    @jax.checkpoint  # the N x M weights are made anew for gradients, not kept
    def plain(query, key, value, query_mask, key_mask):
        query = zero_padded(query, query_mask)
        out = attend(query, key, value, key_mask, scale, None, is_causal).astype(dtype)
        return zero_padded(out, query_mask)

    key, value = zero_padded(key, key_mask), zero_padded(value, key_mask)
    arrays = (x.astype(dtype) for x in (query, key, value))
    tiles = partial(tiled.exact, scale=scale)
    logits = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    out = choose(implementation, plain, tiles, *arrays, query_mask, key_mask, logits=logits)
    return out.astype(query.dtype)


def make_options(
    query, key, num_landmarks, pinv, pinv_iterations, scale, axis_name=None
) -> Options:
    """The checked options of a Nyström attention."""
    num_landmarks = check_count("num_landmarks", num_landmarks)
    longest = query.shape[-3], key.shape[-3]
    if all_known(*longest):
        pieces = 1 if axis_name is None else jax.lax.axis_size(axis_name)
        num_landmarks = min(num_landmarks, max(1, *longest) * pieces)
    check_choice("pinv", pinv, PINVS)
    iterations = check_count("pinv_iterations", pinv_iterations)
    return Options(num_landmarks, pinv, iterations, check_scale(scale, query), axis_name)


def check_scale(scale, query) -> float:
    """The scale of the logits, 1 / sqrt D for None."""
    if scale is None:
        return query.shape[-1] ** -0.5
    is_real = hasattr(known("scale", scale), "__float__") and np.isrealobj(scale)
    if not is_real or isinstance(scale, bool) or np.ndim(scale):
        raise TypeError(f"scale={scale!r}: expected a number")
    try:
        number = float(scale)
    except OverflowError:  # an int beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"scale={scale!r}: expected a finite number")
    return number
