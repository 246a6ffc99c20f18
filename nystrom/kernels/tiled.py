"""Eq. 1 and eq. 9 for a CPU: in tiles that stay in its cache, the inverse by symmetric matrices."""

import math

import jax
import jax.numpy as jnp

from nystrom.attention import Options, landmark_matrix, landmarks
from nystrom.chebyshev import apply_chebyshev_pinv
from nystrom.checks import all_known
from nystrom.gradients import with_gradient
from nystrom.kernels.symmetric_pinv import apply_pinv
from nystrom.kernels.tiles import (
    as_bits,
    check_known,
    from_bits,
    from_short,
    from_short_gradient,
    to_short,
    to_short_gradient,
)
from nystrom.landmarks import apart, segment_sums
from nystrom.numerics import accumulator, heads_first, zero_padded
from nystrom.softmax import attend

TO_LANDMARKS, FROM_LANDMARKS = (to_short, to_short_gradient), (from_short, from_short_gradient)
PIECE = 2**18  # numbers of tokens that are summed at a time: 1 MB


def nystrom(query, key, value, query_mask, key_mask, options: Options):
    """`attention.eq_9`, with tiles for its two attentions between tokens and landmarks."""
    scale, heads = options.scale, query.shape[-2]
    q, k, q_valid, k_valid = landmarks(query, key, query_mask, key_mask, options, sums)
    a = landmark_matrix(q, k, q_valid, k_valid, scale)
    g_value = from_landmarks(grouped_by_keys(q, key.shape[-2]), key, value, key_mask, scale)
    g_value = g_value.reshape(*g_value.shape[:-3], heads, -1, g_value.shape[-1])
    if options.pinv == "chebyshev":
        solved = apply_chebyshev_pinv(a, g_value)
    else:
        solved = apply_pinv(a, g_value, options.pinv_iterations)
    _, k = apart(k, k_valid, query.dtype)  # for forward mode, which rounds it
    return to_landmarks(query, heads_first(k), solved, query_mask, k_valid, scale)


def exact(query, key, value, query_mask, key_mask, scale):
    """`softmax.attend`, with tiles of queries, or of keys if there are more of them."""
    *batch, length, heads, depth = query.shape
    groups = key.shape[-2]
    check_known(length, key.shape[-3])
    if length < key.shape[-3]:
        query = zero_padded(query, query_mask)
        out = from_landmarks(grouped_by_keys(query, groups), key, value, key_mask, scale)
        return zero_padded(heads_first(out.reshape(*batch, heads, length, -1)), query_mask)
    if heads != groups:  # heads that share keys become positions
        query = query.reshape(*batch, length, groups, -1, depth)
        query = jnp.swapaxes(query, -2, -3).reshape(*batch, -1, groups, depth)
        if query_mask is not None:
            query_mask = jnp.repeat(query_mask, heads // groups, axis=-1)
    key, value = (heads_first(x) for x in (key, value))
    out = to_landmarks(query, key, value, query_mask, key_mask, scale)
    if heads != groups:
        out = jnp.swapaxes(out.reshape(*batch, length, -1, groups, out.shape[-1]), -2, -3)
    return out.reshape(*batch, length, heads, -1)


def sums(x, segment, num_landmarks):
    """`segment_sums` of tokens, whatever padding holds: each is added to its row, on a CPU faster
    than a product.

    The gradient by a token is its segment's: a row taken.
    """
    dtype = x.dtype

    def plain(primals, segment):
        (x,) = primals
        return segment_sums(zero_padded(x, segment < num_landmarks), segment, num_landmarks)

    def forward(primals, segment):
        (x,) = primals
        *batch, length, heads, depth = x.shape
        check_known(length)
        if not all_known(*batch):
            return plain(primals, segment), ()
        examples = math.prod(batch)
        first = jnp.arange(examples, dtype=segment.dtype)[:, None] * (num_landmarks + 1)
        row = segment.reshape(examples, length) + first  # an example's last row is for padding
        num_rows = examples * (num_landmarks + 1)
        total = _sums_of_rows(x.reshape(-1, heads * depth), row.reshape(-1), num_rows)
        total = total.reshape(examples, -1, heads, depth)[:, :num_landmarks]
        return total.reshape(*batch, num_landmarks, heads, depth), ()

    def backward(residuals, segment, d_sums):
        is_real, place = segment < num_landmarks, jnp.minimum(segment, num_landmarks - 1)
        d_x = jnp.take_along_axis(d_sums, place[..., None, None], axis=-3, mode="promise_in_bounds")
        return (zero_padded(d_x, is_real).astype(dtype),)

    return with_gradient(plain, forward, backward)((x,), segment)


def _sums_of_rows(tokens, row, num_rows):
    """The sums R C of the tokens N C that go to each row; in pieces, for XLA copies what it adds.

    The last row is nobody's: the first tokens of the last piece, if others have had them, go there.
    """
    length, width = tokens.shape
    size, stored = min(length, max(1, PIECE // width)), as_bits(tokens)

    def add(i, total):
        start = jnp.minimum(i * size, length - size)
        piece = from_bits(jax.lax.dynamic_slice_in_dim(stored, start, size), tokens.dtype)
        to = jax.lax.dynamic_slice_in_dim(row, start, size)
        to = jnp.where(start + jnp.arange(size) < i * size, num_rows - 1, to)
        return total.at[to].add(piece.astype(total.dtype), mode="promise_in_bounds")

    total = jnp.zeros_like(tokens, shape=(num_rows, width), dtype=accumulator(tokens.dtype))
    return jax.lax.fori_loop(0, math.ceil(length / size), add, total)


def grouped_by_keys(landmarks, groups):
    """Landmarks *B L H D of queries -> *B G (H/G L) D, beside the keys that they share."""
    *batch, length, heads, depth = landmarks.shape
    return heads_first(landmarks).reshape(*batch, groups, heads // groups * length, depth)


def to_landmarks(query, keys, values, query_mask, valid, scale, passes=TO_LANDMARKS):
    """softmax(scale query keys^T) values over the valid: *B N H D, *B H L D, *B H L E."""
    values_of, gradient_of = passes

    def plain(primals, constants):
        query, keys, values = primals
        query_mask, valid = constants
        query = zero_padded(query, query_mask)
        keys, values = (heads_first(x) for x in (keys, values))
        out = attend(query, keys.astype(query.dtype), values.astype(query.dtype), valid, scale)
        return zero_padded(out.astype(query.dtype), query_mask)

    batch, constants = query.shape[:-3], (query_mask, valid)

    def forward(primals, constants):
        out = values_of(*_flat(batch, primals), *_flat(batch, constants), scale)
        return _shaped(batch, out), primals

    def backward(primals, constants, d_out):
        flat = _flat(batch, primals), _flat(batch, constants), *_flat(batch, (d_out,))
        return tuple(_shaped(batch, d) for d in gradient_of(*flat, scale))

    return with_gradient(plain, forward, backward)((query, keys, values), constants)


def from_landmarks(queries, key, value, key_mask, scale, passes=FROM_LANDMARKS):
    """softmax(scale queries key^T) value over the real keys: *B G L D, *B M G D, *B M G E."""
    values_of, gradient_of = passes

    def plain(primals, constants):
        queries, key, value = primals
        (key_mask,) = constants
        queries = heads_first(queries).astype(key.dtype)
        key, value = zero_padded(key, key_mask), zero_padded(value, key_mask)
        return heads_first(attend(queries, key, value, key_mask, scale))

    batch = queries.shape[:-3]

    def forward(primals, constants):
        found = values_of(*_flat(batch, primals), *_flat(batch, constants), scale)
        context, largest, total = (_shaped(batch, x) for x in found)
        return context, (*primals, context, largest, total)

    def backward(residuals, constants, d_out):
        flat = _flat(batch, residuals), *_flat(batch, constants), *_flat(batch, (d_out,))
        return tuple(_shaped(batch, d) for d in gradient_of(*flat, scale))

    return with_gradient(plain, forward, backward)((queries, key, value), (key_mask,))


def _flat(batch, arrays):
    """Arrays with one batch dimension instead of `batch`; None stays."""
    return tuple(None if x is None else x.reshape(-1, *x.shape[len(batch) :]) for x in arrays)


def _shaped(batch, x):
    """`_flat`'s way back, of one array."""
    return x.reshape(*batch, *x.shape[1:])
