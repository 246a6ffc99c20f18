"""Reformer: attention within buckets of a locality-sensitive hash (Kitaev et al. 2020)."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array, Bool, Float
from nystrom.baselines.per_head import map_heads
from nystrom.checks import check_count, check_floats, check_inputs
from nystrom.gradients import with_gradient
from nystrom.numerics import MASKED, exact_einsum

SELF = -1e5  # the logit of a token with itself: only where it has no other


def reformer_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B N G D"],
    value: Float[Array, "*B N G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B N"] | None = None,
    rotations: Float[Array, "R D P"],
    bucket_size: int = 64,
) -> Float[jax.Array, "*B N H E"]:
    """LSH attention with R rounds of hashing (its section 2, eq. 4-7).

    Per round, tokens are hashed (x -> argmax of [x R; -x R]), sorted by bucket and position and
    cut into chunks of `bucket_size`; a query attends to its own chunk and the one before, to
    itself only for want of others. Rounds are joined so that the result is softmax attention
    over all keys within reach in any round, each counted once (eq. 6). Keys are scaled to unit
    length, and logits not divided by sqrt D, as with the paper's shared queries and keys: pass
    one array as both. Others are hashed alike, but nothing then aligns their chunks.

    There are 2 max(1, n // bucket_size) buckets for n real tokens, so padding changes nothing;
    the first chunk looks at itself alone.

    Args:
      query, key, value, mask, query_mask, key_mask: as for `nystrom_attention`, with M = N.
      rotations: one random matrix a round with P columns, see `random_rotations`; at least
        N // bucket_size of them.
      bucket_size: tokens in a chunk.

    Raises:
      ValueError: unequal lengths, too few rotations, bucket_size < 1, or what
        `nystrom_attention` refuses.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    bucket_size = check_count("bucket_size", bucket_size)
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"query {query.shape} and key {key.shape}: LSH attention needs equal lengths"
        )
    half_buckets = max(1, query.shape[-3] // bucket_size)
    check_floats("rotations", rotations)
    if rotations.ndim != 3 or not rotations.shape[0] or rotations.shape[1] != query.shape[-1]:
        raise ValueError(
            f"rotations have shape {rotations.shape}: expected R D P with R at least 1 and "
            f"D = {query.shape[-1]}"
        )
    if rotations.shape[2] < half_buckets:
        raise ValueError(
            f"rotations have {rotations.shape[2]} columns: {query.shape[-3]} tokens in chunks of "
            f"{bucket_size} need {half_buckets}"
        )
    if (2 * half_buckets + 1) * (query.shape[-3] + bucket_size) > 2**31:  # places in the one sort
        raise ValueError(
            f"{query.shape[-3]} tokens in chunks of {bucket_size}: expected longer chunks, "
            "2 N^2 / bucket_size below 2^31"
        )
    shared = key is query and key_mask is query_mask
    rotations = rotations[..., :half_buckets]
    return _attention(query, key, value, query_mask, key_mask, rotations, bucket_size, shared)


@partial(jax.jit, static_argnums=(6, 7))
def _attention(query, key, value, query_mask, key_mask, rotations, bucket_size, shared):
    attend = partial(_attend, rotations, bucket_size, shared)
    return map_heads(attend, query, key, value, query_mask, key_mask)


def random_rotations(num_hashes: int, depth: int, half_buckets: int, seed: int = 0) -> np.ndarray:
    """Standard normal matrices R D P for `reformer_attention`, float32; equal for equal seeds."""
    sizes = check_count("num_hashes", num_hashes), check_count("depth", depth)
    half_buckets = check_count("half_buckets", half_buckets)
    return _rotations(*sizes, half_buckets, check_count("seed", seed, 0))


@cache
def _rotations(num_hashes, depth, half_buckets, seed):
    rng = np.random.default_rng(seed)
    rotations = rng.normal(size=(num_hashes, depth, half_buckets)).astype(np.float32)
    rotations.flags.writeable = False  # all who ask get this one
    return rotations


def _attend(rotations, bucket_size, shared, q, k, v, query_mask, key_mask):
    length = q.shape[0]
    bucket_size = min(bucket_size, length)
    excess = -length % bucket_size
    if excess:  # whole chunks: what is added is masked like any padding
        everything = jnp.ones(length, bool)
        query_mask = jnp.pad(everything if query_mask is None else query_mask, (0, excess))
        key_mask = jnp.pad(everything if key_mask is None else key_mask, (0, excess))
        q, k, v = (jnp.pad(x, ((0, excess), (0, 0))) for x in (q, k, v))
    if shared:  # queries and keys are one, and so is their order
        k, key_mask = q, query_mask
    q_order, q_place = k_order, k_place = _sort_by_bucket(q, rotations, bucket_size, query_mask)
    if not shared:
        k_order, k_place = _sort_by_bucket(k, rotations, bucket_size, key_mask)

    def chunks(x):
        return x.reshape(x.shape[0], -1, bucket_size, *x.shape[2:])

    def windows(x):
        """Each chunk after the one before it: R G C ... -> R G 2C ..."""
        before = jnp.pad(x[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))
        return jnp.concatenate([before, x], axis=2)

    from_all = jax.vmap(_permute, in_axes=(None, 0, 0))
    q_chunks = chunks(from_all(q, q_order, q_place))
    k_windows = windows(chunks(from_all(_unit(k), k_order, k_place)))
    v_windows = windows(chunks(from_all(v, k_order, k_place)))
    logits = exact_einsum("rgcd,rgwd->rgcw", q_chunks, k_windows)
    rounds = _rounds_in_reach(q_order, q_place, k_order, k_place, chunks, windows)
    logits -= jnp.log(rounds.astype(logits.dtype))
    itself = chunks(q_order)[..., :, None] == windows(chunks(k_order))[..., None, :]
    logits = jnp.where(itself, SELF, logits)
    is_real = jnp.ones_like(k_order, dtype=bool) if key_mask is None else key_mask[k_order]
    logits = jnp.where(windows(chunks(is_real))[..., None, :], logits, MASKED)

    log_total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    out = exact_einsum("rgcw,rgwd->rgcd", jnp.exp(logits - log_total), v_windows)
    out, log_total = (
        jax.vmap(_permute)(x.reshape(x.shape[0], -1, x.shape[-1]), q_place, q_order)
        for x in (out, log_total)
    )
    return (jax.nn.softmax(log_total, axis=0) * out).sum(axis=0)[:length]


def _sort_by_bucket(x, rotations, bucket_size, mask):
    """Per round the tokens in order of bucket, then position, and each token's place in it: R N.

    Padding comes last.
    """
    num_rounds, depth, columns = rotations.shape
    flat = jnp.moveaxis(rotations, 0, 1).reshape(depth, -1).astype(x.dtype)
    rotated = jnp.matmul(jax.lax.stop_gradient(x), flat, precision="highest")
    rotated = rotated.reshape(-1, num_rounds, columns)
    magnitude = jnp.abs(rotated)
    if mask is not None:
        in_use = jnp.arange(columns) < jnp.maximum(1, mask.sum() // bucket_size)
        magnitude = jnp.where(in_use, magnitude, -1)
    column = jnp.argmax(magnitude, axis=-1)
    sign = jnp.take_along_axis(rotated, column[..., None], axis=-1)[..., 0] < 0
    bucket = column + columns * sign.astype(column.dtype)
    if mask is not None:
        bucket = jnp.where(mask[:, None], bucket, 2 * columns)
    length = x.shape[0]
    position = jnp.arange(length, dtype=jnp.int32)
    # One sort of whole numbers is much faster than a sort of pairs.
    order = jnp.sort(bucket.T.astype(jnp.int32) * length + position[None], axis=-1) % length
    place = jax.vmap(lambda order: jnp.zeros_like(order).at[order].set(position))(order)
    return order, place


def _rounds_in_reach(q_order, q_place, k_order, k_place, chunks, windows):
    """For every logit R G C 2C, in how many rounds this query reaches this key: at least 1."""
    num_rounds = q_order.shape[0]
    size = chunks(q_order).shape[2]
    count = jnp.ones((), jnp.int32)
    for shift in range(1, num_rounds):
        # The chunks that the pair has in another round, in this round's order.
        q_chunk = jnp.take_along_axis(jnp.roll(q_place, shift, axis=0) // size, q_order, axis=1)
        k_chunk = jnp.take_along_axis(jnp.roll(k_place, shift, axis=0) // size, k_order, axis=1)
        behind = chunks(q_chunk)[..., :, None] - windows(chunks(k_chunk))[..., None, :]
        count = count + ((behind == 0) | (behind == 1)).astype(jnp.int32)
    return count


def _permute(x, order, place):
    """x[order]; `place` is the inverse of `order`, so that the gradient is a lookup as well."""

    def look_up(primals, constants):
        return primals[0][constants[0]]

    def forward(primals, constants):
        return look_up(primals, constants), ()

    def backward(_, constants, d_out):
        return (d_out[constants[1]],)

    return with_gradient(look_up, forward, backward)((x,), (order, place))


def _unit(x):
    """Rows of unit length; zeros stay zeros."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max(axis=-1, keepdims=True))
    x = x / jnp.where(largest > 0, largest, 1)  # whose square neither vanishes nor overflows
    square = (x**2).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1))
