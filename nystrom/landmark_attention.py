"""The two inner attentions of eq. 9, in tiles: no N x L array outlives the tile it is made in.

Each is exact softmax attention between the N tokens and the L landmarks. Their backward passes
recompute the softmax tile by tile. All products are arranged so that none contracts the
leading dimension of its left factor, which XLA CPU would transpose or multiply slowly; hence
the transposed copies of tiles, kept apart from the products by `optimization_barrier`.
Reverse-mode differentiation only (`custom_vjp`), and once.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float

MASKED = -1e30  # a logit that no softmax notices, yet finite: no NaN where all are masked
TILE_BYTES = {"cpu": 2**21}  # of logits: larger ones leave the cache, smaller cost more turns
DEFAULT_TILE_BYTES = 2**28  # accelerators want few, large steps


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
    def tile(short, carry, long):
        keys, values, valid = short
        query, query_mask = long
        weights, total = _weights(_heads_first(query, query_mask, keys.dtype), keys, valid)
        out = _einsum("bhnl,bhld->bhnd", weights, values) / total
        return carry, (_tokens_first(out, query_mask, query.dtype),)

    tiling = _Tiling.of(query, keys)
    short = keys * query.shape[-1] ** -0.5, values, valid
    _, (out,) = tiling.scan(tile, (), short, (query, query_mask), fills=(0,))
    return out, (query, keys, values, query_mask, valid)


def _to_landmarks_bwd(residuals, d_out):
    query, keys, values, query_mask, valid = residuals
    scale = query.shape[-1] ** -0.5

    def tile(short, carry, long):
        scaled_keys, values, valid = short
        query, query_mask, d_out = long
        dtype = values.dtype
        tokens = _heads_first(query, query_mask, dtype)
        d_tokens = _heads_first(d_out, query_mask, dtype)
        weights, total = _weights(tokens, scaled_keys, valid)
        weights = weights / total
        d_weights = _einsum("bhnd,bhld->bhnl", d_tokens, values)
        d_logits = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True))
        d_query = _einsum("bhnl,bhld->bhnd", d_logits, scaled_keys)
        d_keys, d_values = carry
        d_keys += _einsum("bhdn,bhnl->bhdl", _positions_last(query, query_mask, dtype), d_logits)
        d_values += _einsum("bhdn,bhnl->bhdl", _positions_last(d_out, query_mask, dtype), weights)
        return (d_keys, d_values), (_tokens_first(d_query, query_mask, query.dtype),)

    tiling = _Tiling.of(query, keys)
    zeros = jnp.zeros_like(jnp.swapaxes(keys, -1, -2))
    short = keys * scale, values, valid
    (d_keys, d_values), (d_query,) = tiling.scan(
        tile, (zeros, zeros), short, (query, query_mask, d_out), fills=(1,)
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
    def tile(queries, carry, long):
        largest, total, context = carry
        key, value, key_mask = long
        key, value = (_heads_first(x, key_mask, queries.dtype) for x in (key, value))
        logits = _einsum("bhld,bhnd->bhln", queries, key)
        if key_mask is not None:
            logits = jnp.where(key_mask[:, None, None, :], logits, MASKED)
        previous, largest = largest, jnp.maximum(largest, logits.max(axis=-1, keepdims=True))
        weights = jnp.exp(logits - largest)
        shrink = jnp.exp(previous - largest)
        total = total * shrink + weights.sum(axis=-1, keepdims=True)
        context = context * shrink + _einsum("bhln,bhnd->bhld", weights, value)
        return (largest, total, context), ()

    tiling, key_mask = _Tiling.of_keys(key, queries, key_mask)
    start = jnp.full((*queries.shape[:-1], 1), MASKED, queries.dtype)
    carry = start, jnp.zeros_like(start), jnp.zeros_like(queries)
    (largest, total, context), _ = tiling.scan(
        tile, carry, queries * key.shape[-1] ** -0.5, (key, value, key_mask)
    )
    context = context / total
    log_total = largest + jnp.log(total)
    return context, (queries, key, value, key_mask, context, log_total)


def _from_landmarks_bwd(residuals, d_context):
    queries, key, value, key_mask, context, log_total = residuals
    scale = key.shape[-1] ** -0.5

    def tile(short, d_queries, long):
        scaled_queries, d_context, log_total, mean = short
        key, value, key_mask = long
        dtype = scaled_queries.dtype
        keys, values = (_heads_first(x, key_mask, dtype) for x in (key, value))
        weights = jnp.exp(_einsum("bhnd,bhld->bhnl", keys, scaled_queries) - log_total)
        if key_mask is not None:
            weights = jnp.where(key_mask[:, None, :, None], weights, 0)
        d_logits = weights * (_einsum("bhnd,bhld->bhnl", values, d_context) - mean)
        d_key = _einsum("bhnl,bhld->bhnd", d_logits, scaled_queries)
        d_value = _einsum("bhnl,bhld->bhnd", weights, d_context)
        d_queries += _einsum("bhdn,bhnl->bhdl", _positions_last(key, key_mask, dtype), d_logits)
        d_key, d_value = (_tokens_first(x, None, key.dtype) for x in (d_key, d_value))
        return d_queries, (d_key, d_value)

    tiling, key_mask = _Tiling.of_keys(key, queries, key_mask)
    mean = (context * d_context).sum(axis=-1, keepdims=True)
    log_total, mean = (jnp.swapaxes(x, -1, -2) for x in (log_total, mean))
    d_queries, (d_key, d_value) = tiling.scan(
        tile,
        jnp.zeros_like(jnp.swapaxes(queries, -1, -2)),
        (queries * scale, d_context, log_total, mean),
        (key, value, key_mask),
        fills=(2, 3),
    )
    d_queries = jnp.swapaxes(d_queries * scale, -1, -2)
    return d_queries, d_key, d_value, None


attend_from_landmarks.defvjp(_from_landmarks_fwd, _from_landmarks_bwd)


class _Tiling(NamedTuple):
    """How B N tokens are cut: `batch` examples a tile, and each example in `steps` tiles.

    Several examples share a tile only if each fits whole, so that cutting moves no data.
    """

    total: int  # N
    batch: int
    steps: int
    length: int  # positions in a tile; where steps * length > N the difference is padded

    @staticmethod
    def of(tokens, landmarks):
        (num_examples, length, num_heads, _), num_landmarks = tokens.shape, landmarks.shape[-2]
        budget = TILE_BYTES.get(jax.default_backend(), DEFAULT_TILE_BYTES)
        example_bytes = length * num_heads * num_landmarks * landmarks.dtype.itemsize
        at_once = 4 * budget  # measured faster on CPU than a loop of four
        if num_examples * example_bytes <= at_once:
            return _Tiling(length, num_examples, 1, length)
        if example_bytes <= at_once:
            most = max(1, budget // example_bytes)
            batch = max(n for n in range(1, most + 1) if num_examples % n == 0)
            return _Tiling(length, batch, 1, length)
        steps = min(length, math.ceil(example_bytes / budget))
        steps = next((n for n in range(steps, 2 * steps) if length % n == 0), steps)
        return _Tiling(length, 1, steps, math.ceil(length / steps))

    @staticmethod
    def of_keys(key, queries, key_mask):
        """The same, and the mask that the padding of a last tile makes necessary."""
        tiling = _Tiling.of(key, queries)
        if key_mask is None and tiling.steps * tiling.length > tiling.total:
            key_mask = jnp.ones(key.shape[:2], bool)
        return tiling, key_mask

    def scan(self, tile, carry, short, long, fills=()):
        """`tile` over all tiles of `long`, with `short` and `carry` cut by examples only.

        Returns the carry, and the tiles' outputs, as many as `fills` has numbers, in one piece
        each. `fills` are to differ wherever they meet in a program: of equal ones XLA makes one
        array, and copies it for every loop.
        """
        excess = self.steps * self.length - self.total
        if excess:
            long = jax.tree.map(
                lambda x: jnp.pad(x, [(0, 0), (0, excess)] + [(0, 0)] * (x.ndim - 2)), long
            )
        tokens = jax.tree.leaves(long)[0]

        def cut(x, example, position=0, length=None):
            start = (example, position) + (0,) * (x.ndim - 2)
            return jax.lax.dynamic_slice(x, start, (self.batch, length or x.shape[1], *x.shape[2:]))

        def cut_long(example, position):
            cut_here = partial(cut, example=example, position=position, length=self.length)
            return jax.tree.map(cut_here, long)

        def put(whole, piece, example, position=0):
            return jax.lax.dynamic_update_slice(whole, piece, (example, position, 0, 0))

        # A tile is cut one turn ahead and carried: cut and transposed in the same turn, XLA CPU
        # makes one loop of both, many times slower than the copy and the transposition.
        def turn(i, state):
            carry, here, outputs = state
            example, position = i // self.steps * self.batch, i % self.steps * self.length
            after = (i + 1) // self.steps * self.batch, (i + 1) % self.steps * self.length
            carry_part, short_part = jax.tree.map(partial(cut, example=example), (carry, short))
            carry_part, pieces = tile(short_part, carry_part, here)
            carry = jax.tree.map(partial(put, example=example), carry, carry_part)
            outputs = jax.tree.map(
                partial(put, example=example, position=position), outputs, pieces
            )
            return carry, cut_long(*after), outputs

        turns = tokens.shape[0] // self.batch * self.steps
        if turns == 1:
            carry, outputs = tile(short, carry, long)
        else:
            outputs = tuple(jnp.full(tokens.shape, fill, tokens.dtype) for fill in fills)
            start = carry, cut_long(0, 0), outputs
            carry, _, outputs = jax.lax.fori_loop(0, turns, turn, start)
        return carry, tuple(x[:, : self.total] for x in outputs)


def _weights(tokens, scaled_keys, valid):
    """exp of the logits less their largest, and its sum: the softmax before normalisation."""
    logits = _einsum("bhnd,bhld->bhnl", tokens, scaled_keys)
    if valid is not None:
        logits += jnp.where(valid, 0, MASKED)[:, None, None, :]
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True)


def _heads_first(x, mask, dtype):
    """bnhd -> bhnd in the dtype of the computation, padding (whatever it holds) as zeros."""
    return jnp.swapaxes(_clean(x, mask).astype(dtype), 1, 2)


def _positions_last(x, mask, dtype):
    """bnhd -> bhdn, a copy of its own."""
    x = jnp.transpose(_clean(x, mask).astype(dtype), (0, 2, 3, 1))
    return jax.lax.optimization_barrier(x)


def _tokens_first(x, mask, dtype):
    """bhnd -> bnhd, zeros where padded."""
    return _clean(jnp.swapaxes(x, 1, 2), mask).astype(dtype)


def _clean(x, mask):
    return x if mask is None else jnp.where(mask[:, :, None, None], x, 0)


def _einsum(spec, x, y):
    return jnp.einsum(spec, x, y, precision="highest")
