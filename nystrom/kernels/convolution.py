"""The depthwise convolution for a CPU and for a GPU, with gradients of its own.

By the values the gradient is a convolution with the reversed filters, by the filters a product of
blocks.
"""

import jax
import jax.numpy as jnp

from nystrom.checks import all_known
from nystrom.convolution import convolve_in_order
from nystrom.kernels.gradients import with_gradient
from nystrom.numerics import accumulator, einsum

MIN_BLOCK = 64  # positions of one block-Toeplitz product, at least


def tiled(value, filters):
    """`convolve_in_order` for a CPU, which has a small cache and no fast grouped convolution."""
    return _convolve(_correlate_one_by_one, value, filters)


def fused(value, filters):
    """`convolve_in_order` for an NVIDIA GPU, where XLA makes one kernel of the sum of copies.

    It takes a fifth of the time of cuDNN's grouped convolution, which is half of a training step:
    docs/benchmarks.md.
    """
    return _convolve(_correlate, value, filters)


def _convolve(correlate, value, filters):
    """A sum of shifted copies, with the gradient by the filters from `correlate`."""
    if not all_known(*value.shape):
        return _convolve_copies(value, filters)  # blocks need to know the sizes

    def plain(primals, constants):
        return convolve_in_order(*primals)

    def forward(primals, constants):
        return _convolve_copies(*primals), primals

    def backward(primals, constants, d_out):
        value, filters = primals
        # Or XLA for a GPU may make some 24 kernels of the copies, each with what d_out comes of.
        d_out = jax.lax.optimization_barrier(d_out)
        examples = (x.reshape(-1, *x.shape[-3:]) for x in (value, d_out))
        taps = filters.shape[-1]
        by_filters = _sum_diagonals(correlate(*examples, taps), taps)
        return _convolve_copies(d_out, filters[:, ::-1]), by_filters.astype(filters.dtype)

    return with_gradient(plain, forward, backward)((value, filters))


def _convolve_copies(value, filters):
    """A sum of shifted copies, heads and features as one axis."""
    length, num_heads, depth = value.shape[-3:]
    taps, half = filters.shape[-1], filters.shape[-1] // 2
    x = value.reshape(-1, length, num_heads * depth)
    x = jnp.pad(x, [(0, 0), (half, half), (0, 0)]).astype(accumulator(value.dtype))
    tap = jnp.repeat(filters.T, depth, axis=-1).astype(x.dtype)
    out = sum(tap[k : k + 1, None] * x[:, k : k + length] for k in range(taps))
    return out.reshape(value.shape).astype(value.dtype)


def _correlate(value, d_out, taps):
    """The gradient H T (T + K - 1) by a matrix with which blocks of T values would be multiplied.

    Were the convolution such a product, its matrix would hold the filter in every row, a column
    further on in each.
    """
    half, block = taps // 2, max(MIN_BLOCK, taps // 2)

    def blocks(x):  # H T B (N / T) E
        x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)])
        return x.reshape(len(x), -1, block, *x.shape[2:]).transpose(3, 2, 0, 1, 4)

    x, d_x = blocks(value), blocks(d_out)
    before = jnp.pad(x[:, block - half :, :, :-1], [(0, 0)] * 3 + [(1, 0), (0, 0)])
    after = jnp.pad(x[:, :half, :, 1:], [(0, 0)] * 3 + [(0, 1), (0, 0)])
    windows = jnp.concatenate([before, x, after], axis=1)
    d_x, windows = (y.reshape(*y.shape[:2], -1) for y in (d_x, windows))
    return einsum("hix,hjx->hij", d_x, windows)


def _correlate_one_by_one(value, d_out, taps):
    """`_correlate`, an example after another, which a CPU's cache holds."""

    def add(total, example):
        return total + _correlate(*(x[None] for x in example), taps), None

    start = jax.eval_shape(lambda *x: _correlate(*x, taps), value[:1], d_out[:1])
    zeros = jnp.zeros_like(value, start.dtype, start.shape)
    return jax.lax.scan(add, zeros, (value, d_out))[0]


def _sum_diagonals(matrices, taps):
    """What each tap's gradient is of `_correlate`'s."""
    # With rows one entry longer the numbers that stand in a diagonal stand in a column.
    heads, block, _ = matrices.shape
    skewed = jnp.pad(matrices.reshape(heads, -1), [(0, 0), (0, block)])
    return skewed.reshape(heads, block, -1)[..., :taps].sum(axis=1)
