"""The depthwise convolution for a CPU: one loop forward, one product for the filters' gradient."""

import jax
import jax.numpy as jnp

from nystrom.convolution import convolve_in_order
from nystrom.kernels.gradients import with_gradient
from nystrom.numerics import accumulator, exact_einsum

MIN_BLOCK = 64  # positions of one block-Toeplitz product, at least


def convolve(value, filters):
    """`convolve_in_order`; its gradient by the values is the same with the filter reversed."""

    def plain(primals, constants):
        return convolve_in_order(*primals)

    def forward(primals, constants):
        return _convolve(*primals), primals

    def backward(primals, constants, d_out):
        value, filters = primals
        return _convolve(d_out, filters[:, ::-1]), _filter_gradient(value, d_out, filters)

    return with_gradient(plain, forward, backward)((value, filters))


def _convolve(value, filters):
    """The same with heads and features as one axis: far faster than a grouped convolution."""
    length, num_heads, depth = value.shape[-3:]
    taps, half = filters.shape[-1], filters.shape[-1] // 2
    x = value.reshape(-1, length, num_heads * depth)
    x = jnp.pad(x, [(0, 0), (half, half), (0, 0)]).astype(accumulator(value.dtype))
    tap = jnp.repeat(filters.T, depth, axis=-1).astype(x.dtype)
    out = sum(tap[k : k + 1, None] * x[:, k : k + length] for k in range(taps))
    return out.reshape(value.shape).astype(value.dtype)


def _filter_gradient(value, d_out, filters):
    """The correlation of values and cotangent, as a product of blocks of positions.

    Were the convolution a product of blocks with a Toeplitz matrix, this would be that matrix's
    gradient, whose diagonals belong to one tap each.
    """
    length, num_heads, depth = value.shape[-3:]
    taps, half = filters.shape[-1], filters.shape[-1] // 2
    block = max(MIN_BLOCK, half)

    def add_example(total, example):
        x, d_x = (
            jnp.pad(y.astype(total.dtype), [(0, -length % block), (0, 0), (0, 0)])
            .reshape(-1, block, num_heads, depth)
            .transpose(2, 1, 0, 3)
            for y in example
        )
        before = jnp.pad(x[:, block - half :, :-1], [(0, 0), (0, 0), (1, 0), (0, 0)])
        after = jnp.pad(x[:, :half, 1:], [(0, 0), (0, 0), (0, 1), (0, 0)])
        windows = jnp.concatenate([before, x, after], axis=1)
        windows, d_x = (y.reshape(*y.shape[:2], -1) for y in (windows, d_x))
        return total + exact_einsum("hnx,hmx->hnm", d_x, windows), None

    examples = tuple(x.reshape(-1, length, num_heads, depth) for x in (value, d_out))
    shape = (num_heads, block, block + taps - 1)
    start = jnp.zeros_like(examples[0], accumulator(value.dtype), shape)
    d_toeplitz, _ = jax.lax.scan(add_example, start, examples)
    # Row n of a Toeplitz matrix holds the filter from column n on; with rows one entry longer
    # the same numbers hold it from column 0 on.
    skewed = jnp.pad(d_toeplitz.reshape(num_heads, -1), [(0, 0), (0, block)])
    d_filters = skewed.reshape(num_heads, block, -1)[..., :taps].sum(axis=1)
    return d_filters.astype(filters.dtype)
