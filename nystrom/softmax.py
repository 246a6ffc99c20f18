"""Softmax attention as one writes it (eq. 1): its weights, its values and their gradients."""

import jax
import jax.numpy as jnp

from nystrom.gradients import with_gradient
from nystrom.numerics import MASKED, accumulator, einsum, heads_first, rounded, rounded_einsum


def attend(
    query, key, value, key_mask, scale, axis_name=None, is_causal=False, values_are_apart=False
):
    """softmax(scale query key^T) value over the real keys (eq. 1), *B N H E in float32.

    Of O = W V the gradient by the logits is W (dO V^T - dO . O), where . is of rows (Dao et al.
    2022, appendix B.2): of all that has N x M numbers W alone is kept, in the inputs' dtype.

    Values in 16 bits may have more in common than tells them apart. If not, as `landmarks.apart`
    has them, `values_are_apart`, and O and the gradient of W are rounded to 16 bits too.
    """
    options = dict(scale=scale, axis_name=axis_name, is_causal=is_causal)

    def plain(primals, key_mask):
        primals = map(heads_first, primals)
        return heads_first(_context(*primals, key_mask, einsum, False, **options)[0])

    def forward(primals, key_mask):
        dtype = primals[2].dtype
        primals = tuple(map(heads_first, primals))
        is_late = not values_are_apart and dtype != accumulator(dtype)
        out, weights, total = _context(*primals, key_mask, product, is_late, **options)
        return heads_first(out.astype(accumulator(dtype))), (*primals, out, weights, total)

    def backward(residuals, key_mask, d_out):
        query, key, value, out, weights, total = residuals
        groups, dtype = key.shape[-3], value.dtype
        d_out = heads_first(d_out)
        if total is not None:
            d_out = rounded(d_out / total, dtype)
        mean = (d_out * out.astype(d_out.dtype)).sum(axis=-1, keepdims=True)
        d_weights = by_group(product, "...ne,...me->...nm", d_out.astype(dtype), value)
        d_logits = scale * weights.astype(mean.dtype) * (d_weights.astype(mean.dtype) - mean)
        query, d_out, weights, d_logits = (
            grouped(x.astype(dtype), groups) for x in (query, d_out, weights, d_logits)
        )
        d_query = einsum("...nm,...md->...nd", d_logits, key)
        d_key = einsum("...nm,...nd->...md", d_logits, query)
        d_value = einsum("...nm,...ne->...me", weights, d_out)
        d_query = ungrouped(d_query, out.shape)
        return tuple(heads_first(x).astype(dtype) for x in (d_query, d_key, d_value))

    product = rounded_einsum if values_are_apart else einsum
    return with_gradient(plain, forward, backward)((query, key, value), key_mask)


def _context(query, key, value, key_mask, product, is_late, scale, axis_name, is_causal):
    """The result *B H N E of eq. 1, weights *B H N M in value's dtype, and what these add up to.

    Weights are normalised (None: they add up to 1) or, if it `is_late`, the result is: by the sum
    of what was multiplied, so that rounding takes nothing from what all values have in common.
    """
    weights = _exponentials(query, key, key_mask, scale, einsum, axis_name, is_causal)
    if not is_late:
        weights = weights / _total(weights, axis_name)
    total = _total(rounded(weights, value.dtype), axis_name) if is_late else None
    weights = weights.astype(value.dtype)
    if is_causal and key_mask is not None:  # a query may have no key, and must not get later ones
        weights = jnp.where(jnp.tri(*weights.shape[-2:], dtype=bool), weights, 0)
    out = by_group(product, "...nm,...me->...ne", weights, value)
    if axis_name is not None:
        out = jax.lax.psum(out, axis_name)
    return out / total if is_late else out, weights, total


def softmax(query, key, key_mask, scale, product=einsum):
    """softmax(scale query key^T) over the real keys (eq. 1): *B H N M in float32."""
    query, key = heads_first(query), heads_first(key)
    weights = _exponentials(query, key, key_mask, scale, product)
    return weights / _total(weights)


def _exponentials(query, key, key_mask, scale, product, axis_name=None, is_causal=False):
    """exp of the logits less their largest, in float32: the softmax before normalisation."""
    logits = scale * by_group(product, "...nd,...md->...nm", query, key)
    if key_mask is not None:
        logits = jnp.where(key_mask[..., None, None, :], logits, MASKED)
    if is_causal:
        logits = jnp.where(jnp.tri(*logits.shape[-2:], dtype=bool), logits, MASKED)
    least = jnp.finfo(logits.dtype).min
    largest = jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True, initial=least))
    return jnp.exp(logits - (largest if axis_name is None else jax.lax.pmax(largest, axis_name)))


def _total(weights, axis_name=None):
    """What the weights of each query add up to."""
    total = weights.sum(axis=-1, keepdims=True)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def by_group(product, spec, x, y):
    """The product of x *B H N D with y *B G M E, whose heads are shared by H / G of x each."""
    return ungrouped(product(spec, grouped(x, y.shape[-3]), y), x.shape)


def grouped(x, groups):
    """*B H N D as *B G (H/G N) D: beside the keys that they share."""
    *batch, heads, length, depth = x.shape
    if heads == groups:
        return x
    # An axis at a time, as arrays on Explicit axes need it.
    return x.reshape(*batch, groups, -1, length, depth).reshape(*batch, groups, -1, depth)


def ungrouped(x, shape):
    """`grouped`'s way back, to heads and length of that shape *B H N D."""
    *batch, heads, length, _ = shape
    if x.shape[-3] == heads:
        return x
    return x.reshape(*x.shape[:-2], -1, length, x.shape[-1]).reshape(*batch, heads, length, -1)
