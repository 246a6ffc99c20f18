"""The depthwise convolution for a CPU and for a GPU, with gradients of its own.

By the values the gradient is a convolution with the reversed filters, by the filters a product of
blocks.
"""

import jax
import jax.numpy as jnp

from nystrom.checks import all_known
from nystrom.convolution import convolve_in_order
from nystrom.gradients import with_gradient
from nystrom.numerics import accumulator, einsum

MIN_BLOCK = 64  # positions of one block-Toeplitz product, at least
MAX_TAPS = 35  # copies that one loop of a CPU adds, at most
# In float32 numbers: a cache's line, and rows of which multiples share places in a cache.
CACHE_LINE, SHARED = 16, 256


def tiled(value, filters):
    """`convolve_in_order` for a CPU, which has a small cache and no fast grouped convolution."""
    return _convolve(_convolve_in_parts, _correlate_one_by_one, value, filters)


def fused(value, filters):
    """`convolve_in_order` for an NVIDIA GPU, where XLA makes one kernel of the sum of copies.

    A training step takes 0.56 to 0.64 of the time that it takes with cuDNN's grouped convolution:
    docs/benchmarks.md.
    """
    return _convolve(_convolve_copies, _correlate, value, filters)


def _convolve(convolve, correlate, value, filters):
    """By `convolve`, with the gradient by the filters from `correlate`."""
    if not all_known(*value.shape):
        return _convolve_copies(value, filters)  # blocks need to know the sizes

    def plain(primals, constants):
        return convolve_in_order(*primals)

    def forward(primals, constants):
        return convolve(*primals), primals

    def backward(primals, constants, d_out):
        value, filters = primals
        # Or XLA for a GPU may make some 24 kernels of the copies, each with what d_out comes of.
        d_out = jax.lax.optimization_barrier(d_out)
        examples = (x.reshape(-1, *x.shape[-3:]) for x in (value, d_out))
        taps = filters.shape[-1]
        by_filters = _sum_diagonals(correlate(*examples, taps), taps)
        return convolve(d_out, filters[:, ::-1]), by_filters.astype(filters.dtype)

    return with_gradient(plain, forward, backward)((value, filters))


def _convolve_copies(value, filters):
    """A sum of shifted copies, heads and features as one axis."""
    half = filters.shape[-1] // 2
    x, tap = _rows(value, half, half), _taps(value, filters)
    return _add_copies(x, tap, value.shape[-3]).reshape(value.shape).astype(value.dtype)


def _convolve_in_parts(value, filters):
    """`_convolve_copies` for a CPU, with rows apart in its cache, and MAX_TAPS at a time.

    Rows a multiple of 1,024 bytes apart share too few places in a cache for as many as there are
    taps. A loop over more copies, into which XLA may put what comes after too, is compiled without
    vectors. benchmarks/convolution.py has both.
    """
    length, half, num_taps = value.shape[-3], filters.shape[-1] // 2, filters.shape[-1]
    num_parts = -(-num_taps // MAX_TAPS)
    part = -(-num_taps // num_parts)
    surplus = num_parts * part - num_taps
    tap = _taps(value, jnp.pad(filters, [(0, 0), (0, surplus)]))
    spare = CACHE_LINE if tap.shape[-1] % SHARED == 0 else 0
    x = _rows(value, half, half + surplus, spare)

    def add(out, start):
        """Adds to `out` by the taps from `start` on."""
        here = jax.lax.dynamic_slice_in_dim(x, start, length + part - 1, axis=1)
        its = jax.lax.dynamic_slice_in_dim(tap, start, part)
        return out + _add_copies(here, its, length), None

    if num_parts == 1:
        out = _add_copies(x, tap, length)
    else:  # a loop, or XLA would make one sum of them
        starts = part * jnp.arange(num_parts)
        out = jax.lax.scan(add, jnp.zeros_like(x[:, :length, : tap.shape[-1]]), starts)[0]
    return out.reshape(value.shape).astype(value.dtype)


def _rows(value, before, after, spare=0):
    """Heads and features as one axis, in the dtype of sums, with rows of zeros at the ends.

    `spare` zeros follow in each row. One pad makes both, or XLA would take the spare ones out.
    """
    x = value.reshape(-1, value.shape[-3], value.shape[-2] * value.shape[-1])
    return jnp.pad(x, [(0, 0), (before, after), (0, spare)]).astype(accumulator(value.dtype))


def _taps(value, filters):
    """The filters as K rows, each head's number for all of its features."""
    return jnp.repeat(filters.T, value.shape[-1], axis=-1).astype(accumulator(value.dtype))


def _add_copies(x, tap, length):
    """Of rows, which may be longer than the taps, a copy a tap."""
    taps, width = tap.shape
    return sum(tap[k : k + 1, None] * x[:, k : k + length, :width] for k in range(taps))


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
