"""The two inner attentions of eq. 9, in tiles: no N x L array outlives the tile it is made in.

Each is exact softmax attention between the N tokens and the L landmarks. Their backward passes
recompute the softmax tile by tile (where one tile is all, XLA may keep it instead). What a tile
computes is written for one head of one example, in matrices; `_Tiling.scan` maps it over heads and
examples and takes the tiles in turn. Reverse-mode differentiation only (`custom_vjp`), and once.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float

MASKED = -1e30  # a logit that no softmax notices, yet finite: no NaN where all are masked
# Of a tile's logits and weights. On CPU those of one head, for heads follow one another there:
# larger tiles leave the cache, smaller ones cost more turns. Accelerators want few, large steps.
TILE_BYTES = {"cpu": 2**20}
DEFAULT_TILE_BYTES = 2**28
HEADS_PER_TURN = 8  # on CPU: of as many examples as have no more, or of one


@jax.custom_vjp
def attend_to_landmarks(
    query: Float[Array, "B N H D"],
    keys: Float[Array, "B H L D"],
    values: Float[Array, "B H L D"],
    query_mask: Bool[Array, "B N"] | None,
    valid: Bool[Array, "B L"] | None,
) -> Float[Array, "B N H D"]:
    """softmax(query keys^T / sqrt D) values over the valid landmarks; zeros for padded queries."""
    return _to_landmarks_fwd(query, keys, values, query_mask, valid)[0]


def _to_landmarks_fwd(query, keys, values, query_mask, valid):
    def tile(short, carry, tokens, mask):
        keys, values, bias = short
        (query,) = tokens
        weights, total = _weights(query, keys, bias)
        return carry, (_einsum("nl,ld->nd", weights, values) / total,)

    short = keys * query.shape[-1] ** -0.5, values, _bias(valid, keys)
    tiling = _Tiling.of(query, keys)
    _, (out,) = tiling.scan(tile, short, (), (query,), query_mask, (values,))
    return out, (query, keys, values, query_mask, valid)


def _to_landmarks_bwd(residuals, d_out):
    query, keys, values, query_mask, valid = residuals
    scale = query.shape[-1] ** -0.5

    def tile(short, carry, tokens, mask):
        keys, values, bias = short
        query, d_out = tokens
        d_keys, d_values = carry
        weights, total = _weights(query, keys, bias)
        weights = weights / total
        d_weights = _einsum("nd,ld->nl", d_out, values)
        d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
        d_query = _einsum("nl,ld->nd", d_logits, keys)
        d_keys += _einsum("nd,nl->dl", query, d_logits)
        d_values += _einsum("nd,nl->dl", d_out, weights)
        return (d_keys, d_values), (d_query,)

    short = keys * scale, values, _bias(valid, keys)
    zeros = jnp.zeros_like(jnp.swapaxes(keys, -1, -2))
    tiling = _Tiling.of(query, keys)
    (d_keys, d_values), (d_query,) = tiling.scan(
        tile, short, (zeros, zeros), (query, d_out), query_mask, (values,)
    )
    d_keys, d_values = (jnp.swapaxes(x, -1, -2) for x in (d_keys * scale, d_values))
    return d_query, d_keys, d_values, None, None


attend_to_landmarks.defvjp(_to_landmarks_fwd, _to_landmarks_bwd)


@jax.custom_vjp
def attend_from_landmarks(
    queries: Float[Array, "B H L D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H D"],
    key_mask: Bool[Array, "B M"] | None,
) -> Float[Array, "B H L D"]:
    """softmax(queries key^T / sqrt D) value over the real keys; zeros where there is none."""
    return _from_landmarks_fwd(queries, key, value, key_mask)[0]


def _from_landmarks_fwd(queries, key, value, key_mask):
    def tile(queries, carry, tokens, mask):
        largest, total, context = carry
        key, value = tokens
        logits = _einsum("ld,nd->ln", queries, key)
        if mask is not None:
            logits = jnp.where(mask, logits, MASKED)
        previous, largest = largest, jnp.maximum(largest, logits.max(axis=-1, keepdims=True))
        weights = jnp.exp(logits - largest)
        shrink = jnp.exp(previous - largest)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        context = context * shrink + _einsum("ln,nd->ld", weights, value)
        return (largest, total, context), ()

    tiling, key_mask = _Tiling.of_keys(key, queries, key_mask)
    start = jnp.full((*queries.shape[:-1], 1), MASKED, queries.dtype)
    carry = start, jnp.zeros_like(start), jnp.zeros_like(queries)
    (largest, total, context), _ = tiling.scan(
        tile, queries * key.shape[-1] ** -0.5, carry, (key, value), key_mask
    )
    context = context / total
    log_total = largest + jnp.log(total)
    return context, (queries, key, value, key_mask, context, log_total)


def _from_landmarks_bwd(residuals, d_context):
    queries, key, value, key_mask, context, log_total = residuals
    scale = key.shape[-1] ** -0.5

    def tile(short, d_queries, tokens, mask):
        queries, d_context, log_total, mean = short
        key, value = tokens
        weights = jnp.exp(_einsum("nd,ld->nl", key, queries) - log_total)
        if mask is not None:
            weights = jnp.where(mask[:, None], weights, 0)
        d_logits = weights * (_einsum("nd,ld->nl", value, d_context) - mean)
        d_key = _einsum("nl,ld->nd", d_logits, queries)
        d_value = _einsum("nl,ld->nd", weights, d_context)
        return d_queries + _einsum("nd,nl->dl", key, d_logits), (d_key, d_value)

    tiling, key_mask = _Tiling.of_keys(key, queries, key_mask)
    mean = (context * d_context).sum(axis=-1, keepdims=True)
    log_total, mean = (jnp.swapaxes(x, -1, -2) for x in (log_total, mean))
    d_queries, (d_key, d_value) = tiling.scan(
        tile,
        (queries * scale, d_context, log_total, mean),
        jnp.zeros_like(jnp.swapaxes(queries, -1, -2)),
        (key, value),
        key_mask,
        (d_context, d_context),
    )
    d_queries = jnp.swapaxes(d_queries * scale, -1, -2)
    return d_queries, d_key, d_value, None


attend_from_landmarks.defvjp(_from_landmarks_fwd, _from_landmarks_bwd)


class _Tiling(NamedTuple):
    """How B N tokens are cut: tiles of `batch` examples, each example in `steps` pieces."""

    total: int  # N
    batch: int
    steps: int
    length: int  # positions in a tile; where steps * length > N the difference is padded

    @staticmethod
    def of(tokens, landmarks):
        (num_examples, length, num_heads, _), num_landmarks = tokens.shape, landmarks.shape[-2]
        head_bytes = 2 * length * num_landmarks * landmarks.dtype.itemsize
        platform = jax.default_backend()
        budget = TILE_BYTES.get(platform, DEFAULT_TILE_BYTES)
        if platform == "cpu":
            at_once, steps = HEADS_PER_TURN // num_heads, math.ceil(head_bytes / budget)
        else:
            example_bytes = num_heads * head_bytes
            at_once, steps = budget // example_bytes, math.ceil(example_bytes / budget)
        batch = max(n for n in range(1, max(1, at_once) + 1) if num_examples % n == 0)
        steps = min(length, steps)
        if steps > 1:
            steps = next((n for n in range(steps, 2 * steps) if length % n == 0), steps)
        return _Tiling(length, batch, steps, math.ceil(length / steps))

    @staticmethod
    def of_keys(key, queries, key_mask):
        """The same, and the mask that the padding of a last tile makes necessary."""
        tiling = _Tiling.of(key, queries)
        if key_mask is None and tiling.steps * tiling.length > tiling.total:
            key_mask = jnp.ones(key.shape[:2], bool)
        return tiling, key_mask

    def scan(self, tile, short, carry, tokens, mask, after=()):
        """`tile` over all tiles of `tokens`, with `short` and `carry` cut by examples only.

        `tile(short, carry, tokens, mask)` returns the new carry and its outputs; it is given one
        head of one example: without B and H, and with zeros for padded tokens. Returns the carry,
        and the tiles' outputs, in one piece each, zeros where padded. `after` has an array for each
        output, one of the last things that must be computed before the first tile.
        """
        excess = self.steps * self.length - self.total
        if excess:
            tokens, mask = jax.tree.map(
                lambda x: jnp.pad(x, [(0, 0), (0, excess)] + [(0, 0)] * (x.ndim - 2)),
                (tokens, mask),
            )

        def cut(x, example, position=0, length=None):
            start = (example, position) + (0,) * (x.ndim - 2)
            return jax.lax.dynamic_slice(x, start, (self.batch, length or x.shape[1], *x.shape[2:]))

        def put(whole, piece, example, position=0):
            return jax.lax.dynamic_update_slice(whole, piece, (example, position, 0, 0))

        def turn(i, state):
            carry, outputs = state
            example, position = i // self.steps * self.batch, i % self.steps * self.length
            here = jax.tree.map(lambda x: cut(x, example, position, self.length), (tokens, mask))
            short_part, carry_part = jax.tree.map(lambda x: cut(x, example), (short, carry))
            carry_part, pieces = _each_head(tile, short_part, carry_part, *here)
            carry = jax.tree.map(lambda x, y: put(x, y, example), carry, carry_part)
            outputs = jax.tree.map(lambda x, y: put(x, y, example, position), outputs, pieces)
            return carry, outputs

        turns = len(tokens[0]) // self.batch * self.steps
        if turns == 1:
            carry, outputs = _each_head(tile, short, carry, tokens, mask)
        else:
            # Filled with one of its numbers, for XLA to allocate it when those are there. All is
            # overwritten.
            outputs = tuple(jnp.full_like(tokens[0], x[0, 0, 0, 0]) for x in after)
            carry, outputs = jax.lax.fori_loop(0, turns, turn, (carry, outputs))
        return carry, tuple(x[:, : self.total] for x in outputs)


def _each_head(tile, short, carry, tokens, mask):
    """`tile` of each head of each example: on CPU one after another, elsewhere at once.

    One head's matrices stay in the CPU's cache, and their products need no common layout.
    """
    over = _one_by_one if jax.default_backend() == "cpu" else jax.vmap
    tokens = tuple(_clean(x, mask) for x in tokens)
    heads = over(tile, in_axes=(0, 0, 1, None), out_axes=(0, 1))
    carry, outputs = over(heads, in_axes=(0, 0, 0, 0), out_axes=(0, 0))(short, carry, tokens, mask)
    return carry, tuple(_clean(x, mask) for x in outputs)


def _one_by_one(function, in_axes, out_axes):
    """What `jax.vmap` does, written out as one call after another."""

    def mapped(*args):
        def pick(i, arg, axis):
            if axis is None:
                return arg
            return jax.tree.map(lambda x: jax.lax.index_in_dim(x, i, axis, keepdims=False), arg)

        def stack(results, axis):
            return jax.tree.map(lambda *x: jnp.stack(x, axis), *results)

        size = jax.tree.leaves(args[0])[0].shape[in_axes[0]]
        results = [
            function(*(pick(i, *pair) for pair in zip(args, in_axes, strict=True)))
            for i in range(size)
        ]
        return tuple(map(stack, zip(*results, strict=True), out_axes))

    return mapped


def _weights(tokens, scaled_keys, bias):
    """exp of the logits less their largest, and its sum: the softmax before normalisation."""
    logits = _einsum("nd,ld->nl", tokens, scaled_keys)
    if bias is not None:
        logits += bias
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _bias(valid, keys):
    """What to add to logits for landmarks that are not valid to get no weight: B H L."""
    if valid is None:
        return None
    bias = jnp.where(valid, 0, jnp.asarray(MASKED, keys.dtype))
    return jnp.broadcast_to(bias[:, None], keys.shape[:-1])


def _clean(x, mask):
    """Tokens B N H D with zeros, whatever was there, where padded."""
    return x if mask is None else jnp.where(mask[:, :, None, None], x, 0)


def _einsum(spec, x, y):
    return jnp.einsum(spec, x, y, precision="highest")
