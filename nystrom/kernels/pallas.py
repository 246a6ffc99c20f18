"""Eq. 9 for a TPU: kernels that read every token once a pass and keep no weight.

XLA writes the weights of tokens over landmarks to the device's memory and reads them again, which
is more than query, key and value are. A kernel here takes a tile of tokens into fast memory, of as
many heads as fill a register's lanes, and makes the weights there, for gradients anew.

Tokens come to the kernels as B N C, heads side by side as a model's projections have them, what
landmarks have as B H L D. Weights are L x T: the tile's tokens in lanes.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from nystrom.attention import Options, eq_9, invert, landmark_matrix, landmarks
from nystrom.checks import all_known
from nystrom.gradients import vary_over, with_gradient
from nystrom.kernels import tiled
from nystrom.kernels.tiles import check_known
from nystrom.landmarks import apart, segment_sums
from nystrom.numerics import (
    MASKED,
    accumulator,
    einsum,
    exact_einsum,
    heads_first,
    product_precision,
    rounded,
    zero_padded,
)

LANES = 128
TILE_BYTES = 2**19  # of the tokens of a tile
TILE_WEIGHTS = 2**17  # numbers, of a head
MOST_LANDMARKS = 2**17  # numbers, of a block: what landmarks have stays in fast memory
DTYPES = (jnp.float32, jnp.bfloat16)
ONE_PASS = ("default", "bfloat16", "BF16_BF16_F32")  # names of that precision


def nystrom(query, key, value, query_mask, key_mask, options: Options, interpret=False):
    """`attention.eq_9`, with kernels for all that it does with tokens.

    With `interpret` they are XLA's operations, for any platform. What they are not made for, other
    dtypes, symbolic batches and more landmarks than fast memory holds, gets the plain form.
    """
    length, heads, depth = query.shape[-3:]
    others, groups = key.shape[-3:-1]
    check_known(length, others, form="pallas")
    depths, count = (depth, value.shape[-1]), options.num_landmarks
    shared = heads // groups * count  # landmarks of queries that have their keys in common
    fit = _fits(heads, count, depths) and _fits(groups, shared, depths)
    if query.dtype not in DTYPES or not all_known(*query.shape[:-3]) or not fit:
        return eq_9(query, key, value, query_mask, key_mask, options)
    q_mask, k_mask = (
        jnp.ones(x.shape[:-2], bool) if mask is None else mask
        for x, mask in ((query, query_mask), (key, key_mask))
    )
    own_sums = partial(sums, interpret=interpret)
    q, k, q_valid, k_valid = landmarks(query, key, q_mask, k_mask, options, own_sums)
    a_pinv = invert(landmark_matrix(q, k, q_valid, k_valid, options.scale), options)
    inner, outer = (
        [partial(each, interpret=interpret) for each in passes]
        for passes in ((from_short, from_short_gradient), (to_short, to_short_gradient))
    )
    _, k = apart(k, k_valid, query.dtype)
    q, k, scale = tiled.grouped_by_keys(q, groups), heads_first(k), options.scale
    g_value = tiled.from_landmarks(q, key, value, key_mask, scale, inner)
    g_value = g_value.reshape(*g_value.shape[:-3], heads, -1, g_value.shape[-1])
    solved = exact_einsum("...lm,...me->...le", a_pinv, g_value)
    return tiled.to_landmarks(query, k, solved, query_mask, k_valid, scale, outer)


def sums(x, segment, num_landmarks, interpret):
    """`landmarks.segment_sums` of tokens, whatever padding holds."""
    dtype = x.dtype

    def plain(primals, segment):
        (x,) = primals
        return segment_sums(zero_padded(x, segment < num_landmarks), segment, num_landmarks)

    def forward(primals, segment):
        (x,) = primals
        *batch, length, heads, depth = x.shape
        flat = x.reshape(-1, length, heads, depth)
        marks = jnp.where(segment < num_landmarks, segment + 1, 0).reshape(-1, length)
        shape = len(flat), heads, num_landmarks, depth

        def tile(h, marks, x, total):
            place = jax.lax.broadcasted_iota(jnp.int32, (num_landmarks, marks.shape[-1]), 0)
            total[h] += _dot("lt,td->ld", marks == (place + 1).astype(marks.dtype), x)

        (total,) = _Tiling.of(shape, flat).call(
            tile, (), (flat,), marks, [(shape, 0)], (), interpret
        )
        return heads_first(total).reshape(*batch, num_landmarks, heads, depth), ()

    def backward(residuals, segment, d_sums):
        place = jnp.arange(num_landmarks, dtype=segment.dtype)
        member = segment[..., None] == place.reshape(*(1,) * segment.ndim, -1)
        flat = d_sums.astype(dtype).reshape(*d_sums.shape[:-2], -1)
        d_x = einsum("...nl,...lc->...nc", member.astype(dtype), flat).astype(dtype)
        return (d_x.reshape(*segment.shape, *d_sums.shape[-2:]),)

    return with_gradient(plain, forward, backward)((x,), segment)


def from_short(queries, key, value, key_mask, scale, interpret):
    """`tiles.from_short`: the context, and of the softmax the largest logit and the denominator.

    That is the sum of weights as they are multiplied, as in `softmax.attend`.
    """

    def tile(h, real, queries, key, value, context, largest, total):
        logits = _logits(queries[h], key, real, scale)
        before = largest[h]
        largest[h] = jnp.maximum(before, logits.max(axis=1, keepdims=True))
        weights = _rounded(jnp.exp(logits - largest[h]), key.dtype)
        shrink = jnp.exp(before - largest[h])
        total[h] = shrink * total[h] + weights.sum(axis=1, keepdims=True)
        context[h] = shrink * context[h] + _dot("lt,te->le", weights, value)

    rows = queries.shape[:-1]
    least = float(jnp.finfo(jnp.float32).min)
    outputs = [((*rows, value.shape[-1]), 0), ((*rows, 1), least), ((*rows, 1), 0)]
    context, largest, total = _Tiling.of(queries.shape, key, value).call(
        tile, (queries.astype(key.dtype),), (key, value), key_mask, outputs, (), interpret
    )
    return context / total, largest, total


def from_short_gradient(residuals, key_mask, d_context, scale, interpret):
    """`tiles.from_short_gradient`: by queries, key and value."""
    queries, key, value, context, largest, total = residuals
    d_context = rounded(d_context, key.dtype)

    def tile(h, real, queries, d_context, largest, total, mean, key, value, d_queries):
        weights = jnp.exp(_logits(queries[h], key, real, scale) - largest[h])
        weights = _rounded(weights, key.dtype) / total[h]
        d_weights = _dot("le,te->lt", d_context[h], value)
        d_logits = scale * weights * (d_weights - mean[h])
        d_queries[h] += _dot("lt,td->ld", d_logits, key)
        return _dot("lt,ld->td", d_logits, queries[h]), _dot("lt,le->te", weights, d_context[h])

    mean = (context * d_context).sum(axis=-1, keepdims=True)
    short = queries.astype(key.dtype), d_context.astype(key.dtype), largest, total, mean
    depths = key.shape[-1], value.shape[-1]
    d_queries, d_key, d_value = _Tiling.of(queries.shape, key, value).call(
        tile, short, (key, value), key_mask, [(queries.shape, 0)], depths, interpret
    )
    return d_queries.astype(queries.dtype), d_key, d_value


def to_short(query, keys, values, query_mask, valid, scale, interpret):
    """`tiles.to_short`: B N H E."""

    def tile(h, real, keys, values, shared, bias, query):
        weights = _weights(keys[h], query, bias[0], scale)
        return (_dot("lt,le->te", weights, values[h]) + shared[h],)

    shared, values = _apart(values, valid, query.dtype)
    short = keys.astype(query.dtype), values.astype(query.dtype), shared, _bias(valid, keys)
    (out,) = _Tiling.of(keys.shape, query, values).call(
        tile, short, (query,), query_mask, (), values.shape[-1:], interpret
    )
    return out


def to_short_gradient(primals, masks, d_out, scale, interpret):
    """`tiles.to_short_gradient`: by query, keys and values."""
    query, keys, values = primals
    query_mask, valid = masks

    def tile(h, real, keys, values, bias, query, d_out, d_keys, d_values):
        weights = _weights(keys[h], query, bias[0], scale)
        d_weights = _dot("le,te->lt", values[h], d_out)
        d_logits = scale * weights * (d_weights - (weights * d_weights).sum(axis=0, keepdims=True))
        d_keys[h] += _dot("lt,td->ld", d_logits, query)
        d_values[h] += _dot("lt,te->le", weights, d_out)
        return (_dot("lt,ld->td", d_logits, keys[h]),)

    _, values = _apart(values, valid, query.dtype)
    short = keys.astype(query.dtype), values.astype(query.dtype), _bias(valid, keys)
    outputs = [(keys.shape, 0), (values.shape, 0)]
    d_keys, d_values, d_query = _Tiling.of(keys.shape, query, values).call(
        tile, short, (query, d_out), query_mask, outputs, query.shape[-1:], interpret
    )
    return d_query, d_keys.astype(keys.dtype), d_values.astype(values.dtype)


def _logits(queries, key, real, scale):
    """Logits L x T of the real keys, the same to the bit in both passes."""
    logits = scale * _dot("ld,td->lt", queries, key)
    return logits if real is None else jnp.where(real > 0, logits, MASKED)


def _weights(keys, query, bias, scale):
    """A tile's softmax over landmarks, L x T."""
    logits = scale * _dot("ld,td->lt", keys, query) + bias
    weights = jnp.exp(logits - logits.max(axis=0, keepdims=True))
    return weights / weights.sum(axis=0, keepdims=True)


def _rounded(x, dtype):
    """`numerics.rounded`, which a kernel can't have; of one no conversion is left out."""
    return x.astype(dtype).astype(x.dtype)


def _apart(values, valid, dtype):
    """`landmarks.apart` of B H L E; what is shared is B H 1 E."""
    shared, values = apart(heads_first(values), valid, dtype)
    return heads_first(jnp.zeros_like(values[:, :1]) + shared), heads_first(values)


def _bias(valid, keys):
    """What to add to landmarks' logits, B 1 L 1: those that are not valid get no weight."""
    valid = jnp.ones((len(keys), keys.shape[-2]), bool) if valid is None else valid
    return jnp.where(valid, 0, jnp.asarray(MASKED, keys.dtype))[:, None, :, None]


def _dot(spec, x, y):
    """The product in y's dtype, accumulated in float32.

    A kernel multiplies float32 in one pass or in full: what a user asks for between is full.
    """
    asked = product_precision(y.dtype)
    precision = "default" if asked in (None, *ONE_PASS) else "highest"
    x, wide = x.astype(y.dtype), accumulator(y.dtype)
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=wide)


def _block(heads, depths):
    """How many heads a block has: as few as fill lanes, or all."""
    return next(
        n
        for n in range(1, heads + 1)
        if n == heads or (heads % n == 0 and all(n * depth % LANES == 0 for depth in depths))
    )


def _fits(heads, landmarks, depths):
    """Whether fast memory holds what the landmarks of a block have."""
    return _block(heads, depths) * landmarks * max(*depths, LANES) <= MOST_LANDMARKS


class _Tiling(NamedTuple):
    """How tokens B N H D are cut: `heads` of a block, `tokens` of a tile."""

    examples: int
    length: int
    heads: int
    blocks: int
    tokens: int

    @classmethod
    def of(cls, short, tokens, others=None):
        """For landmarks B H L D of that shape; `others` have the other depth that there is."""
        examples, heads, landmarks, depth = short
        depths = depth, depth if others is None else others.shape[-1]
        block = _block(heads, depths)
        token_bytes = block * max(depths) * tokens.dtype.itemsize
        most = max(LANES, min(TILE_BYTES // token_bytes, TILE_WEIGHTS // landmarks))
        length = tokens.shape[1]
        return cls(examples, length, block, heads // block, min(length, 2 ** int(math.log2(most))))

    def call(self, tile, short, tokens, marks, outputs, depths, interpret):
        """The outputs by landmark, and those by token: B N H with features as `depths` says.

        `tile(h, marks, *short, *tokens, *outputs)` is given one head's tokens, zeros where padded,
        and references of all heads of what landmarks have; it returns its outputs by token.
        `marks` B N are positive for real tokens (None: all are), `outputs` shapes and what stands
        there first.
        """
        steps = pl.cdiv(self.length, self.tokens)
        excess = steps * self.tokens - self.length
        if excess and marks is None:
            marks = jnp.ones((self.examples, self.length), bool)
        if marks is None:
            marks = ()
        else:
            marks = (jnp.pad(marks.astype(jnp.float32), ((0, 0), (0, excess)))[:, None],)
        counts = len(marks), len(short), len(tokens), len(outputs)

        def kernel(*refs):
            refs = iter(refs)
            marks, short, tokens, by_landmark = ([next(refs) for _ in range(n)] for n in counts)
            by_token = list(refs)
            short, by_landmark = ([ref.at[0] for ref in some] for some in (short, by_landmark))

            @pl.when(pl.program_id(2) == 0)
            def _():
                for ref, (_, first) in zip(by_landmark, outputs, strict=True):
                    ref[...] = jnp.full_like(ref, first)

            row = column = None
            if marks:
                row = marks[0][0]
                ones = jnp.ones((1, LANES), row.dtype)
                column = jnp.einsum("xt,xd->td", row, ones, precision="default")[:, :1]
            for h in range(self.heads):
                here = [self._of_head(ref, h)[...] for ref in tokens]
                if marks:
                    here = [jnp.where(column > 0, x, 0) for x in here]
                found = tile(h, row, *short, *here, *by_landmark) or ()
                for ref, x in zip(by_token, found, strict=True):
                    x = jnp.where(column > 0, x, 0) if marks else x
                    self._of_head(ref, h)[...] = x.astype(ref.dtype)

        dtype, all_heads = tokens[0].dtype, self.heads * self.blocks
        flat = [x.reshape(self.examples, self.length, -1) for x in tokens]
        axes = jax.typeof(tokens[0]).mat  # inside shard_map, those over which they vary
        struct = partial(jax.ShapeDtypeStruct, manual_axis_type=axes)
        results = [
            *(struct(shape, accumulator(dtype)) for shape, _ in outputs),
            *(struct((*flat[0].shape[:2], all_heads * n), dtype) for n in depths),
        ]
        arrays = [vary_over(x, axes.varying) for x in (*marks, *short, *flat)]
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *results))
        found = pl.pallas_call(
            kernel,
            grid=(self.examples, self.blocks, steps),
            in_specs=[self._mask_spec()] * len(marks) + [self._spec(x) for x in (*short, *flat)],
            out_specs=[self._spec(x) for x in results],
            out_shape=results,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=size),
            interpret=interpret,
        )(*arrays)
        count = len(outputs)
        tokens = (x.reshape(*x.shape[:2], all_heads, -1) for x in found[count:])
        return *found[:count], *tokens

    def _of_head(self, ref, h):
        depth = ref.shape[-1] // self.heads
        return ref.at[0, :, h * depth : (h + 1) * depth]

    def _spec(self, x):
        """What a tile sees of tokens B N C, of landmarks B H L D, or of B 1 L 1."""
        if x.ndim == 3:
            width = x.shape[-1] // self.blocks
            return pl.BlockSpec((1, self.tokens, width), lambda b, h, n: (b, n, h))
        heads, move = (1, 0) if x.shape[1] == 1 else (self.heads, 1)
        return pl.BlockSpec((1, heads, *x.shape[2:]), lambda b, h, n: (b, h * move, 0, 0))

    def _mask_spec(self):
        return pl.BlockSpec((1, 1, self.tokens), lambda b, h, n: (b, 0, n))
