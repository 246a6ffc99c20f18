"""Softmax attention as one writes it (eq. 1): its weights, its values and their gradients."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.checks import all_known
from nystrom.gradients import with_gradient
from nystrom.numerics import MASKED, accumulator, einsum, heads_first, rounded, rounded_einsum


def attend(query, key, value, key_mask, scale, axis_name=None, is_causal=False):
    """softmax(scale query key^T) value over the real keys (eq. 1), *B N H E in float32.

    Of O = W V the gradient by the logits is W (dO V^T - dO . O), where . is of rows (Dao et al.
    2022, appendix B.2): of all that has N x M numbers W alone is kept, in the inputs' dtype.

    In 16 bits, products with many keys keep what all values have in common: see `_context`. With
    few, as landmarks are, there is as much of the weights' gradient as of tokens, and it is rounded
    too.
    """
    context = partial(_context, scale=scale, axis_name=axis_name, is_causal=is_causal)

    def plain(primals, key_mask):
        return heads_first(context(*map(heads_first, primals), key_mask, False)[0])

    def forward(primals, key_mask):
        _, _, value = primals
        primals = tuple(map(heads_first, primals))
        _, (*_, num_keys, _), (*_, width) = (x.shape for x in primals)
        is_long = not all_known(num_keys) or num_keys > width
        is_late = is_long and value.dtype != accumulator(value.dtype)
        out, weights, total = context(*primals, key_mask, is_late)
        return heads_first(out), (*primals, out, weights, total)

    def backward(residuals, key_mask, d_out):
        query, key, value, out, weights, total = residuals
        groups, dtype = key.shape[-3], value.dtype
        d_out, product = heads_first(d_out), rounded_einsum
        if total is not None:
            d_out, product = rounded(d_out / total, dtype), einsum
        mean = (d_out * out).sum(axis=-1, keepdims=True)
        d_out = d_out.astype(dtype)
        d_weights = by_group(product, "...ne,...me->...nm", d_out, value).astype(out.dtype)
        d_logits = (scale * weights.astype(out.dtype) * (d_weights - mean)).astype(dtype)
        d_query = by_group(einsum, "...nm,...md->...nd", d_logits, key)
        query, d_out, weights, d_logits = (
            grouped(x, groups) for x in (query, d_out, weights, d_logits)
        )
        d_key = einsum("...nm,...nd->...md", d_logits, query)
        d_value = einsum("...nm,...ne->...me", weights, d_out)
        return tuple(heads_first(x).astype(dtype) for x in (d_query, d_key, d_value))

    return with_gradient(plain, forward, backward)((query, key, value), key_mask)


def _context(query, key, value, key_mask, is_late, scale, axis_name, is_causal):
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
    out = by_group(einsum, "...nm,...me->...ne", weights, value)
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
    *_, heads, length, _ = x.shape
    groups = y.shape[-3]
    if heads == groups:
        return product(spec, x, y)
    out = product(spec, grouped(x, groups), y)
    # An axis at a time, as arrays on Explicit axes need it.
    apart = out.reshape(*out.shape[:-2], -1, length, out.shape[-1])
    return apart.reshape(*x.shape[:-1], -1)


def grouped(x, groups):
    """*B H N D as *B G (H/G N) D: beside the keys that they share."""
    *batch, heads, length, depth = x.shape
    if heads == groups:
        return x
    return x.reshape(*batch, groups, -1, length, depth).reshape(*batch, groups, -1, depth)
