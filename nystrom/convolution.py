"""Depthwise convolution over positions, the skip connection of the values (section 3.3)."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.checks import check_floats, check_implementation, check_mask, check_tokens, is_empty
from nystrom.kernels import choose
from nystrom.numerics import (
    common_dtype,
    from_front,
    product_precision,
    to_front,
    unless_trailing,
    zero_padded,
)


def depthwise_convolution(
    value: Float[Array, "*B N H E"],
    filters: Float[Array, "H K"],
    mask: Bool[Array, "*B N"] | None = None,
    *,
    implementation: str | None = None,
    axis_name: str | None = None,
) -> Float[jax.Array, "*B N H E"]:
    """Convolves each head's values over positions with that head's filter, zeros beyond the ends.

    As in the authors' code the filter is not flipped and K is odd: out[n] = sum over k of
    filters[h, k] * value[n + k - K // 2]. With a mask, padding is left out as if the real tokens
    stood alone, side by side; padded positions get zeros. Summed in float32 (float64 for float64).

    Inside `jax.shard_map`, `axis_name` is the axis over which the sequence is cut: devices then
    exchange K // 2 tokens of either end.

    Raises:
      ValueError: K is even, filters are not H K, a mask that is not *B N, an unknown form.
      TypeError: values or filters that are not floating-point, a mask that is not boolean.
    """
    check_tokens("value", value)
    check_mask("mask", mask, value.shape[:-2])
    filters = jnp.asarray(filters)
    check_floats("filters", filters)
    num_heads = value.shape[-2]
    if filters.ndim != 2 or filters.shape[0] != num_heads or filters.shape[1] % 2 == 0:
        raise ValueError(f"filters {filters.shape}: expected ({num_heads}, K) with K odd")
    check_implementation(implementation, None)
    return _convolution(value, filters, mask, implementation, axis_name)


@partial(jax.jit, static_argnums=(3, 4))
def _convolution(value, filters, mask, implementation, axis_name):
    from nystrom.kernels.convolution import fused, tiled

    if is_empty(*value.shape):
        return value
    value = zero_padded(value, mask)

    def convolve(value, filters):
        forms = {"cut": fused, "cuda": fused}
        return choose(implementation, convolve_in_order, tiled, value, filters, **forms)

    if axis_name is not None:
        out = _convolve_pieces(convolve, value, filters, mask, axis_name)
    elif mask is None:
        out = convolve(value, filters)
    else:  # with the real tokens moved side by side, and back
        (moved,) = unless_trailing(to_front, mask, value)
        (out,) = unless_trailing(from_front, mask, convolve(moved, filters))
    return zero_padded(out, mask)


def convolve_in_order(value, filters):
    """sum over k of filters[h, k] * value[n + k - K // 2]: XLA's convolution, a group a channel.

    By a TPU's plan a sum of shifted copies moves more than twice as much: CHANGELOG.md.
    """
    length, num_heads, depth = value.shape[-3:]
    dtype, half = common_dtype(value, filters), filters.shape[-1] // 2
    out = jax.lax.conv_general_dilated(
        value.reshape(-1, length, num_heads * depth).astype(dtype),
        jnp.repeat(filters.T, depth, axis=-1)[:, None].astype(dtype),
        window_strides=(1,),
        padding=[(half, half)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=num_heads * depth,
        precision=product_precision(dtype),
    )
    return out.reshape(value.shape).astype(value.dtype)


def _convolve_pieces(convolve, value, filters, mask, axis_name):
    """The convolution of a sequence that is cut over devices, of which this is a piece.

    The K // 2 real tokens before and after a piece may lie on any devices, so the first and last
    of each are gathered: a traffic that does not grow with N.
    """
    length, half = value.shape[-3], filters.shape[-1] // 2
    mask = jnp.ones(value.shape[:-2], bool) if mask is None else mask
    flat = value.reshape(-1, *value.shape[-3:]), mask.reshape(-1, length)
    joined = jax.vmap(partial(_with_neighbours, half=half, axis_name=axis_name))(*flat)
    (out,) = from_front(flat[1], convolve(joined, filters)[:, half : half + length])
    return out.reshape(value.shape)


def _with_neighbours(value, mask, half, axis_name):
    """The real tokens of one example's piece, those of other devices beside them, then zeros."""
    count = mask.sum()
    (real,) = to_front(mask, value)

    def window(x, start):
        """x[start : start + half], zeros beyond the ends."""
        x = jnp.pad(x, [(half, half), (0, 0), (0, 0)])
        return jax.lax.dynamic_slice_in_dim(x, start + half, half)

    def beside(tokens, real_ones, from_end):
        """Of the devices' tokens P half H E, in order, the real ones next to this piece."""
        joined = tokens.reshape(-1, *tokens.shape[2:])
        joined = jnp.where(real_ones.reshape(-1, 1, 1), joined, 0)
        (joined,) = to_front(real_ones.reshape(-1), joined)
        return window(joined, real_ones.sum() - half if from_end else 0)

    tails, heads = window(real, count - half), window(real, 0)
    tails, heads, counts = jax.lax.all_gather((tails, heads, count), axis_name)
    here, devices = jax.lax.axis_index(axis_name), jnp.arange(len(counts))[:, None]
    slots, counts = jnp.arange(half)[None], counts[:, None]
    before = beside(tails, (devices < here) & (slots >= half - counts), from_end=True)
    after = beside(heads, (devices > here) & (slots < counts), from_end=False)
    joined = jnp.concatenate([before, real, jnp.zeros_like(after)])
    # At once after this piece's real tokens, where there are only zeros.
    return jax.lax.dynamic_update_slice_in_dim(joined, after, half + count, axis=0)
