"""Softmax attention as one writes it (eq. 1): its weights, its values and their gradients."""

from functools import partial

import jax
import jax.numpy as jnp

from nystrom.gradients import vary_over, with_gradient
from nystrom.numerics import MASKED, accumulator, einsum, heads_first, rounded, rounded_einsum


def attend(
    query, key, value, key_mask, scale, axis_name=None, is_causal=False, values_are_apart=False
):
    """softmax(scale query key^T) value over the real keys (eq. 1), *B N H E in float32.

    Of O = W V the gradient by the logits is W (dO V^T - dO . O), where . is of rows (Dao et al.
    2022, appendix B.2): of all that has N x M numbers W alone is kept, in the inputs' dtype.

    In 16 bits W does not add up to 1: O is divided by what it adds up to, or what all values have
    in common would get lost. Where `values_are_apart` (`landmarks.apart`) that is no loss, and what
    is as large as the tokens is rounded too, for a GPU to move less.
    """
    options = {"scale": scale, "axis_name": axis_name, "is_causal": is_causal}

    def plain(primals, key_mask):
        primals = map(heads_first, primals)
        return heads_first(_context(*primals, key_mask, _product, False, **options)[0])

    def forward(primals, key_mask):
        dtype = primals[2].dtype
        is_late = not values_are_apart and dtype != accumulator(dtype)
        primals = tuple(map(heads_first, primals))
        product = _product_rounded if values_are_apart else _product
        out, weights, total = _context(*primals, key_mask, product, is_late, **options)
        return heads_first(out), (*primals, out, weights, total)

    def backward(residuals, key_mask, d_out):
        query, key, value, out, weights, total = residuals
        dtype, d_out, unit = value.dtype, heads_first(d_out), None
        if total is not None:
            d_out = d_out / total
        if dtype == jnp.float16:
            unit = _unit(d_out)
            d_out = d_out / unit
        if total is not None:
            d_out = rounded(d_out, dtype)
        parts = weights, d_out, value, out
        if values_are_apart:
            d_logits = jax.lax.platform_dependent(*parts, default=_by_rows, tpu=_by_out)
        else:
            d_logits = _by_out(*parts)
        d_logits = (scale * d_logits).astype(dtype)
        d_out = vary_over(d_out.astype(dtype), jax.typeof(value).mat.varying)
        logits = partial(by_group, rounded_einsum, "...nd,...md->...nm")
        context = partial(by_group, rounded_einsum, "...nm,...me->...ne", weights)
        found = *jax.vjp(logits, query, key)[1](d_logits), *jax.vjp(context, value)[1](d_out)
        if unit is not None:
            found = ((unit * x.astype(unit.dtype)).astype(dtype) for x in found)
        return tuple(map(heads_first, found))

    return with_gradient(plain, forward, backward)((query, key, value), key_mask)


def _by_out(weights, d_out, value, out):
    """W (dO V^T - dO . O)."""
    d_weights = by_group(einsum, "...ne,...me->...nm", d_out.astype(value.dtype), value)
    mean = (d_out * out).sum(axis=-1, keepdims=True)
    return weights.astype(out.dtype) * (d_weights - mean)


def _by_rows(weights, d_out, value, out):
    """`_by_out` with dO . O = W . dO V^T, which a GPU has at hand where rows of W are short."""
    product = einsum if value.dtype == jnp.float16 else rounded_einsum  # float16 may overflow
    d_weights = by_group(product, "...ne,...me->...nm", d_out.astype(value.dtype), value)
    weights, d_weights = (x.astype(out.dtype) for x in (weights, d_weights))
    mean = _total(weights * d_weights)
    if value.dtype != out.dtype:
        mean = mean / _total(weights)
    return weights * (d_weights - mean)


def _unit(x):
    """A power of two above each example's largest number: float16 has few digits below 2^-14."""
    largest = jnp.abs(x).max(axis=(-3, -2, -1), keepdims=True, initial=0)
    return jnp.exp2(jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1))) + 1)


def _product(weights, value):
    """W V, *B H N E in float32."""
    return by_group(einsum, "...nm,...me->...ne", weights, value)


def _product_rounded(weights, value):
    """The same rounded to value's dtype, but for a TPU, which moves no less for it."""

    def product(weights, value):
        out = by_group(rounded_einsum, "...nm,...me->...ne", weights, value)
        return out.astype(accumulator(value.dtype))

    return jax.lax.platform_dependent(weights, value, default=product, tpu=_product)


def _context(query, key, value, key_mask, product, is_late, scale, axis_name, is_causal):
    """The result *B H N E of eq. 1, weights *B H N M in value's dtype, and what these add up to.

    Weights are normalised (None: they add up to 1) or, if it `is_late`, the result is.
    """
    weights = _exponentials(query, key, key_mask, scale, einsum, axis_name, is_causal)
    if not is_late:
        weights = weights / _total(weights, axis_name)
    total = _total(rounded(weights, value.dtype), axis_name) if is_late else None
    weights = weights.astype(value.dtype)
    if is_causal and key_mask is not None:  # a query may have no key, and must not get later ones
        weights = jnp.where(jnp.tri(*weights.shape[-2:], dtype=bool), weights, 0)
    out = product(weights, value)
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
