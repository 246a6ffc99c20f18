"""Landmarks: means over segments of the real tokens (Xiong et al. 2021, eq. 5 and section 3.2)."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.checks import all_known, check_count, check_mask, check_tokens, is_empty
from nystrom.kernels import choose
from nystrom.numerics import accumulator, einsum, zero_padded


def segment_means(
    x: Float[Array, "*B N H D"],
    num_landmarks: int,
    mask: Bool[Array, "*B N"] | None = None,
    *,
    axis_name: str | None = None,
) -> tuple[Float[jax.Array, "*B L H D"], Bool[jax.Array, "*B L"]]:
    """Means of `num_landmarks` consecutive segments of the real tokens of `x`.

    Segments are laid over the real tokens (`mask` True) in order, so padding neither moves a
    segment nor enters a mean. With n real tokens, the first n % L segments hold n // L + 1 of
    them and the others n // L; with n < L the last L - n landmarks are zeros.

    Args:
      x: queries or keys, *B N H D.
      num_landmarks: L, at least 1.
      mask: *B N, True where the token is real; None when all are.
      axis_name: inside `jax.shard_map`, the axis over which the sequence is cut: N is this
        device's piece, the landmarks are those of the whole, the same on every device.

    Returns:
      The landmarks *B L H D in x's dtype, and *B L, True where a landmark has a token.

    Raises:
      ValueError: L < 1, fewer than three dimensions, or a mask that is not *B N.
      TypeError: x does not hold floating-point numbers, L is not an integer, a mask that is not
        boolean.
    """
    check_tokens("x", x)
    check_mask("mask", mask, x.shape[:-2])
    num_landmarks = check_count("num_landmarks", num_landmarks)
    return _segment_means(x, num_landmarks, mask, axis_name)


@partial(jax.jit, static_argnums=(1, 3))
def _segment_means(x, num_landmarks, mask, axis_name):
    from nystrom.kernels import tiled

    def plain(x, mask):
        return landmark_means(zero_padded(x, mask), num_landmarks, mask, axis_name)

    def in_pieces(x, mask):
        return landmark_means(x, num_landmarks, mask, axis_name, tiled.sums)

    form = "plain" if axis_name is not None or is_empty(*x.shape) else None
    membership = (*x.shape[:-3], x.shape[-3], num_landmarks)
    landmarks, valid = choose(form, plain, in_pieces, x, mask, logits=membership)
    if valid is None:
        valid = jnp.ones(landmarks.shape[:-2], bool)
    return landmarks.astype(x.dtype), valid


def segment_sums(
    x: Float[Array, "*B N H D"], segment: Int[Array, "*B N"], num_landmarks: int
) -> Float[Array, "*B L H D"]:
    """Sums of the tokens of each segment, float32 or float64; those of segment L are zeros.

    A product with the 0/1 matrix of membership, on accelerators much faster than adding rows.
    """
    place = jnp.arange(num_landmarks, dtype=segment.dtype)
    member = segment[..., None, :] == place.reshape(*(1,) * (segment.ndim - 1), -1, 1)
    *batch, length, num_heads, depth = x.shape
    tokens = x.reshape(*batch, length, num_heads * depth)
    total = einsum("...ln,...nc->...lc", member.astype(x.dtype), tokens)
    return total.reshape(*batch, num_landmarks, num_heads, depth)


def landmark_means(x, num_landmarks, mask, axis_name=None, sums=segment_sums):
    """`segment_means` in float32 (or float64); `valid` is None where every landmark has a token.

    Padded tokens of `x` are zeros. `sums` is `segment_sums`, or what computes the same.
    """
    length, is_all = x.shape[-3], mask is None and axis_name is None
    if is_all and length % num_landmarks == 0 and length >= 1:
        means, product = (partial(f, num_landmarks) for f in (even_means, even_means_by_product))
        return choose(None, means, means, x, tpu=product), None
    none_empty = is_all and all_known(length) and length >= num_landmarks
    if mask is None:
        mask = jnp.all(jnp.ones_like(x, bool), axis=(-2, -1))  # cut over devices as x is
    segment, size = segment_of_token(mask, num_landmarks, axis_name)
    total = sums(x, segment, num_landmarks)
    if axis_name is not None:
        total = jax.lax.psum(total, axis_name)
    means = total / jnp.maximum(size, 1)[..., None, None].astype(total.dtype)
    return means, None if none_empty else size > 0


def even_means(num_landmarks, x):
    """Means of segments of one length, in float32 (or float64)."""
    *batch, length, num_heads, depth = x.shape
    segments = x.reshape(*batch, num_landmarks, length // num_landmarks, num_heads, depth)
    return segments.mean(axis=-3, dtype=accumulator(x.dtype))


def even_means_by_product(num_landmarks, x):
    """`even_means`, for which a TPU's attention moves a fifth less; a GPU's would move more."""
    length = x.shape[-3]
    segment = whole_part(jnp.arange(length, dtype=jnp.int32), length // num_landmarks)
    sums = segment_sums(x, jnp.broadcast_to(segment, x.shape[:-2]), num_landmarks)
    return sums / (length // num_landmarks)


def apart(x, valid, dtype):
    """What landmarks *B L H D share, and the rest: for products in `dtype`, if that has 16 bits.

    No softmax over keys notices what these share, and of values it passes that on as it is: so the
    bits are left for what tells landmarks apart.
    """
    if dtype == x.dtype:
        return 0, x
    count = x.shape[-3]
    if valid is not None:  # those that are not are zeros
        count = jnp.maximum(valid.sum(axis=-1, dtype=x.dtype), 1)[..., None, None, None]
    shared = jax.lax.stop_gradient((x / count).sum(axis=-3, keepdims=True))
    return shared, x - shared


def segment_of_token(
    mask: Bool[Array, "*B N"], num_landmarks: int, axis_name: str | None = None
) -> tuple[Int[Array, "*B N"], Int[Array, "*B L"]]:
    """The segment of every token, L for padding, which no segment holds; the segments' sizes."""
    rank, count = token_ranks(mask, axis_name)
    quotient = whole_part(count[..., None], num_landmarks)
    remainder = count[..., None] - quotient * num_landmarks
    is_longer = rank < remainder * (quotient + 1)  # in one of the longer segments, the first ones
    size = jnp.where(is_longer, quotient + 1, jnp.maximum(quotient, 1))
    segment = whole_part_by_floats(jnp.where(is_longer, rank, rank - remainder), size)
    place = jnp.arange(num_landmarks, dtype=count.dtype).reshape(*(1,) * count.ndim, -1)
    sizes = quotient + (place < remainder).astype(count.dtype)
    return jnp.where(mask, segment, num_landmarks), sizes


def whole_part_by_floats(x: Int[Array, "..."], y: Int[Array, "..."]) -> Int[Array, "..."]:
    """`whole_part` where that is below 2^20: of floats, off by one at most, and then mended.

    A TPU has no division of integers, and its compiler takes half a minute for 65,536 of them.
    """
    guess = (x.astype(jnp.float32) / y.astype(jnp.float32)).astype(x.dtype)
    rest = x - guess * y
    return guess + (rest >= y).astype(x.dtype) - (rest < 0).astype(x.dtype)


def whole_part(x: Int[Array, "..."], y) -> Int[Array, "..."]:
    """x / y cut to an integer: one operation, where floor division of signed integers is ten."""
    return jax.lax.div(x, jnp.broadcast_to(y, x.shape).astype(x.dtype))


def token_ranks(
    mask: Bool[Array, "*B N"], axis_name: str | None = None
) -> tuple[Int[Array, "*B N"], Int[Array, "*B"]]:
    """Each real token's place among the real ones, counted from 0, and how many there are.

    Inside `jax.shard_map`, `axis_name` is the axis over which the sequence is cut.
    """
    mask = jax.lax.optimization_barrier(mask)  # XLA counts a constant one for long while compiling
    rank = jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - 1
    count = mask.sum(axis=-1, dtype=jnp.int32)
    if axis_name is None:
        return rank, count
    counts = jax.lax.all_gather(count, axis_name)
    before = jnp.arange(len(counts)) < jax.lax.axis_index(axis_name)
    rank += jnp.tensordot(before.astype(jnp.int32), counts, 1)[..., None]
    return rank, jax.lax.psum(count, axis_name)
