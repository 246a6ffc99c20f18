"""Attention between many tokens and few landmarks, in tiles, forward and backward.

No N x L array outlives the tile it is made in; the backward passes make its softmax anew. What a
tile computes is written for one head of one example, in float32 matrices that stay in a CPU's
cache; `_Tiling.scan` maps it over heads and examples and takes the tiles in turn.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.checks import all_known
from nystrom.numerics import MASKED, accumulator, exact_einsum, zero_padded

TILE_BYTES = 2**20  # of a tile's logits and weights: larger ones leave the cache
HEADS_PER_TURN = 8  # of one example, written out, or of several: more are no faster


def to_short(
    query: Float[Array, "B N H D"],
    keys: Float[Array, "B H L D"],
    values: Float[Array, "B H L E"],
    query_mask: Bool[Array, "B N"] | None,
    valid: Bool[Array, "B L"] | None,
    scale: float,
) -> Float[Array, "B N H E"]:
    """softmax(scale query keys^T) values over the valid keys; zeros for padded queries."""

    def tile(short, carry, tokens, mask):
        keys, values, bias = short
        (query,) = tokens
        weights, total = _weights(query, keys, bias)
        return carry, (exact_einsum("nl,ld->nd", weights, values) / total,)

    tiling = _Tiling.of(query, keys)
    wide_keys, wide_values = _wide(keys, values)
    short = wide_keys * scale, wide_values, _bias(valid, keys)
    _, (out,) = tiling.scan(tile, short, (), (query,), query_mask, (values.shape[-1],))
    return out


def to_short_gradient(primals, masks, d_out, scale):
    """Gradients of `to_short` by query, keys and values."""
    query, keys, values = primals
    query_mask, valid = masks

    def tile(short, carry, tokens, mask):
        keys, values, bias = short
        query, d_out = tokens
        d_keys, d_values = carry
        weights, total = _weights(query, keys, bias)
        d_out = d_out / total  # which normalises the weights where they are multiplied
        d_weights = exact_einsum("nd,ld->nl", d_out, values)
        mean = (weights * d_weights).sum(axis=-1, keepdims=True) / total
        d_logits = weights * (d_weights - mean)
        d_query = exact_einsum("nl,ld->nd", d_logits, keys)
        d_keys += exact_einsum("nd,nl->dl", query, d_logits)
        d_values += exact_einsum("nd,nl->dl", d_out, weights)
        return (d_keys, d_values), (d_query,)

    tiling = _Tiling.of(query, keys)
    wide_keys, wide_values = _wide(keys, values)
    short = wide_keys * scale, wide_values, _bias(valid, keys)
    start = tuple(jnp.zeros_like(x).mT for x in short[:2])
    tokens = query, d_out
    (d_keys, d_values), (d_query,) = tiling.scan(
        tile, short, start, tokens, query_mask, (query.shape[-1],)
    )
    d_keys, d_values = (x.mT for x in (d_keys * scale, d_values))
    return d_query, d_keys.astype(keys.dtype), d_values.astype(values.dtype)


def from_short(
    queries: Float[Array, "B H L D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H E"],
    key_mask: Bool[Array, "B M"] | None,
    scale: float,
) -> tuple[Float[Array, "B H L E"], Float[Array, "B H L 1"], Float[Array, "B H L 1"]]:
    """softmax(scale queries key^T) value over the real keys, zeros where there is none; and of the
    softmax the largest logit and the denominator."""

    def tile(queries, carry, tokens, mask):
        largest, total, context = carry
        key, value = tokens
        logits = _logits(queries, key, mask)
        previous, largest = largest, jnp.maximum(largest, logits.max(axis=-1, keepdims=True))
        weights = jnp.exp(logits - largest)
        shrink = jnp.exp(previous - largest)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        context = context * shrink + exact_einsum("ln,nd->ld", weights, value)
        return (largest, total, context), ()

    (queries,) = _wide(queries * scale)
    tiling = _Tiling.of(key, queries)
    rows = queries.shape[:-1]
    column = jnp.zeros_like(queries, shape=(*rows, 1))
    carry = (
        column + jnp.finfo(column.dtype).min,
        column,
        jnp.zeros_like(queries, shape=(*rows, value.shape[-1])),
    )
    (largest, total, context), _ = tiling.scan(tile, queries, carry, (key, value), key_mask, ())
    return context / total, largest, total


def _logits(queries, key, mask):
    """Logits of the real keys, the same to the bit in both passes: their exponentials are not
    normalised anew."""
    logits = exact_einsum("ld,nd->ln", queries, key)
    return logits if mask is None else jnp.where(mask, logits, MASKED)


def from_short_gradient(residuals, key_mask, d_context, scale):
    """Gradients of `from_short` by queries, key and value."""
    queries, key, value, context, largest, total = residuals

    def tile(short, d_queries, tokens, mask):
        queries, d_context, largest, mean = short
        key, value = tokens
        weights = jnp.exp(_logits(queries, key, mask) - largest)
        d_logits = weights * (exact_einsum("ld,nd->ln", d_context, value) - mean)
        d_key = exact_einsum("ln,ld->nd", d_logits, queries)
        d_value = exact_einsum("ln,ld->nd", weights, d_context)
        return d_queries + exact_einsum("ln,nd->ld", d_logits, key), (d_key, d_value)

    tiling = _Tiling.of(key, queries)
    d_context = d_context / total  # which normalises the weights where they are multiplied
    mean = (context * d_context).sum(axis=-1, keepdims=True)
    (wide,) = _wide(queries * scale)
    d_queries, (d_key, d_value) = tiling.scan(
        tile,
        (wide, d_context, largest, mean),
        jnp.zeros_like(wide),
        (key, value),
        key_mask,
        (key.shape[-1], value.shape[-1]),
    )
    return (d_queries * scale).astype(queries.dtype), d_key, d_value


def check_known(*lengths, form="tiled"):
    """Raises unless none of them is symbolic."""
    for length in lengths:
        if not all_known(length):
            raise ValueError(
                f"implementation={form!r} with a length of {length}: tiles need to know it when "
                "compiling; leave implementation out, or 'plain'"
            )


class _Tiling(NamedTuple):
    """How B N H tokens are cut: tiles of `heads` heads of `batch` examples, in `steps` pieces."""

    total: int  # N
    batch: int
    heads: int
    steps: int
    length: int  # positions in a tile; where steps * length > N the last two overlap

    @staticmethod
    def of(tokens, landmarks):
        (num_examples, length, num_heads, _), num_landmarks = tokens.shape, landmarks.shape[-2]
        check_known(length, num_landmarks)
        head_bytes = 2 * length * num_landmarks * accumulator(landmarks.dtype).itemsize
        heads = _largest_divisor(num_heads, HEADS_PER_TURN)
        batch = _largest_divisor(num_examples, HEADS_PER_TURN // num_heads)
        steps = min(length, math.ceil(head_bytes / TILE_BYTES))
        if steps > 1:
            steps = next((n for n in range(steps, 2 * steps) if length % n == 0), steps)
        return _Tiling(length, batch, heads, steps, math.ceil(length / steps))

    def scan(self, tile, short, carry, tokens, mask, depths):
        """`tile` over all tiles of `tokens`, with `short` and `carry` cut by examples and heads.

        `tile(short, carry, tokens, mask)` returns the new carry and its outputs; it is given one
        head of one example: without B and H, and with zeros for padded tokens. Returns the carry,
        and the tiles' outputs, in one piece each with features as `depths` says, in the tokens'
        dtype, zeros where padded.
        """
        num_examples, _, num_heads, _ = tokens[0].shape
        stored = tuple(map(as_bits, tokens))

        def turn(i, state):
            carry, outputs = state
            part, groups = i // self.steps, num_heads // self.heads
            start, is_new = self.place(i % self.steps)
            position = start, self.length
            example = part // groups * self.batch, self.batch
            head = part % groups * self.heads, self.heads
            here = tuple(
                from_bits(_cut(x, example, position, head), of.dtype)
                for x, of in zip(stored, tokens, strict=True)
            )
            here_mask = None if mask is None else _cut(mask, example, position)
            if is_new is not None and jax.tree.leaves(carry):  # what is summed is so once
                shape = self.batch, self.length
                here_mask = jnp.broadcast_to(is_new, shape) if mask is None else here_mask & is_new
            short_part, carry_part = jax.tree.map(lambda x: _cut(x, example, head), (short, carry))
            carry_part, pieces = _each_head(tile, short_part, carry_part, here, here_mask)
            carry = jax.tree.map(lambda x, y: _put(x, y, example, head), carry, carry_part)
            outputs = jax.tree.map(
                lambda x, y: _put(x, as_bits(y), example, position, head), outputs, pieces
            )
            return carry, outputs

        turns = num_examples // self.batch * (num_heads // self.heads) * self.steps
        if turns == 1:
            carry, outputs = _each_head(tile, short, carry, tokens, mask)
        else:
            shape = tokens[0].shape[:-1]
            outputs = tuple(jnp.zeros_like(stored[0], shape=(*shape, n)) for n in depths)
            carry, outputs = jax.lax.fori_loop(0, turns, turn, (carry, outputs))
            outputs = tuple(from_bits(x, tokens[0].dtype) for x in outputs)
        return carry, outputs

    def place(self, step):
        """Where the tile of a step begins and, if tiles overlap, which positions no other has.

        The last tile comes first: what it has of the one before it is then made good.
        """
        overlap = self.steps * self.length - self.total
        if not overlap:
            return step * self.length, None
        start = jnp.where(step == 0, self.total - self.length, (step - 1) * self.length)
        return start, (step > 0) | (jnp.arange(self.length) >= overlap)


def _largest_divisor(number, at_most):
    return max(n for n in range(1, max(1, at_most) + 1) if number % n == 0)


def as_bits(x):
    """Bfloat16 as integers: XLA's compiler for CPUs would widen all of an array to cut it."""
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if x.dtype == jnp.bfloat16 else x


def from_bits(x, dtype):
    """`as_bits`'s way back."""
    return jax.lax.bitcast_convert_type(x, dtype) if dtype == jnp.bfloat16 else x


def _cut(x, *places):
    """Of each leading axis the (start, size) that `places` has."""
    starts, sizes = zip(*places, strict=True)
    rest = x.shape[len(places) :]
    return jax.lax.dynamic_slice(x, starts + (0,) * len(rest), sizes + rest)


def _put(x, piece, *places):
    """x with the piece where `_cut` would take it."""
    starts = tuple(start for start, _ in places)
    return jax.lax.dynamic_update_slice(x, piece, starts + (0,) * (x.ndim - len(starts)))


def _each_head(tile, short, carry, tokens, mask):
    """`tile` of each head, one after another, of the examples as a batch.

    Heads as a batch too would need copies of the tokens, and are slower. Examples one after another
    take longer to compile, and are no faster.
    """
    dtype = tokens[0].dtype
    examples = jax.vmap(tile) if len(tokens[0]) > 1 else _of_one(tile)
    tokens = _wide(*(zero_padded(x, mask) for x in tokens))

    def of_head(i, tree, axis):
        return jax.tree.map(lambda x: jax.lax.index_in_dim(x, i, axis, keepdims=False), tree)

    def joined(trees, axis):
        return jax.tree.map(lambda *x: jnp.stack(x, axis), *trees)

    results = [
        examples(*of_head(i, (short, carry), 1), of_head(i, tokens, 2), mask)
        for i in range(tokens[0].shape[2])
    ]
    carries, outputs = zip(*results, strict=True)
    outputs = tuple(zero_padded(x, mask).astype(dtype) for x in joined(outputs, 2))
    return joined(carries, 1), outputs


def _of_one(function):
    """`jax.vmap` of it for a batch of one, of which XLA would keep more."""

    def mapped(*args):
        out = function(*jax.tree.map(lambda x: jnp.squeeze(x, 0), args))
        return jax.tree.map(lambda x: x[None], out)

    return mapped


def _weights(tokens, scaled_keys, bias):
    """exp of the logits less their largest, and its sum: the softmax before normalisation."""
    logits = exact_einsum("nd,ld->nl", tokens, scaled_keys)
    if bias is not None:
        logits += bias[None]
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _bias(valid, keys):
    """What to add to logits for landmarks that are not valid to get no weight: B H L."""
    if valid is None:
        return None
    bias = jnp.where(valid, 0, jnp.asarray(MASKED, accumulator(keys.dtype)))
    return jnp.broadcast_to(bias[:, None], keys.shape[:-1])


def _wide(*arrays):
    """Arrays in float32, or float64."""
    return tuple(x.astype(accumulator(x.dtype)) for x in arrays)
