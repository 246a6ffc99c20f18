"""Random inputs, masks, JAX's modes and jitted functions that the tests of the attentions share."""

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

LENGTH, HEADS, DEPTH = 13, 2, 4
MODES = {  # JAX's strict ones
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: jax.enable_x64(True),
    "leaks": jax.checking_leaks,
    "nans": lambda: jax.debug_nans(True),
}


def normal(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def random_inputs(seed, *batch, length=LENGTH, key_length=None, heads=HEADS, dtype=np.float32):
    """Query, key and value, standard normal."""
    key_length = key_length or length
    return (
        normal(seed, *batch, length, heads, DEPTH, dtype=dtype),
        normal(seed + 1000, *batch, key_length, heads, DEPTH, dtype=dtype),
        normal(seed + 2000, *batch, key_length, heads, DEPTH, dtype=dtype),
    )


def mask_with(num_real, length, where, seed=0):
    """A mask *N with num_real real tokens: padding trailing, leading or strewn among them."""
    mask = np.zeros(length, bool)
    if where == "trailing":
        mask[:num_real] = True
    elif where == "leading":
        mask[length - num_real :] = True
    else:
        mask[np.random.default_rng(seed).permutation(length)[:num_real]] = True
    return mask


def spread(x, mask, fill):
    """Tokens `x` at the mask's real places, `fill` at the others."""
    out = np.full((len(mask), *x.shape[1:]), fill, x.dtype)
    out[mask] = x
    return out


def equations(jaxpr, name):
    """The equations of a program with the primitive of that name, those of programs in it too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def jitted(function, **options):
    """jit, with results as NumPy arrays: comparing those compiles nothing."""
    compiled = jax.jit(function, **options)
    return lambda *args, **kwargs: jax.tree.map(np.asarray, compiled(*args, **kwargs))


def softmax(logits):
    """Over the last axis, in NumPy."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
