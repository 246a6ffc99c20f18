"""What is wrong with arguments, said before anything is computed: the errors of every attention."""

import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array

IMPLEMENTATIONS = ("plain", "tiled")
NYSTROM_IMPLEMENTATIONS = (*IMPLEMENTATIONS, "pallas")
PINVS = ("iterative", "chebyshev")


def check_inputs(query, key, value, mask=None, query_mask=None, key_mask=None):
    """The queries' and the keys' mask, where `mask` stands for both.

    Raises unless the arrays are an attention's: the errors of `nystrom_attention`.
    """
    for name, array in (("query", query), ("key", key), ("value", value)):
        check_tokens(name, array)
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"key {key.shape} and value {value.shape}: expected *B M G D and *B M G E, alike but "
            "for the features"
        )
    if query.shape[:-3] != key.shape[:-3] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {query.shape} and key {key.shape}: expected *B N H D and *B M G D with the "
            "same batch and head features"
        )
    heads, key_heads = query.shape[-2], key.shape[-2]
    if heads != key_heads and (key_heads == 0 or heads % key_heads):
        raise ValueError(
            f"query has {heads} heads and key {key_heads}: expected as many, or a multiple of them"
        )
    check_mask("query_mask", query_mask, query.shape[:-2])
    check_mask("key_mask", key_mask, key.shape[:-2])
    if mask is None:
        return query_mask, key_mask
    if query_mask is not None or key_mask is not None:
        raise ValueError(
            "mask is self-attention's one mask, for queries and keys: give it alone, or else "
            "query_mask and key_mask"
        )
    if query.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"mask with query {query.shape} and key {key.shape}: their lengths differ, so this is "
            "no self-attention; give query_mask and key_mask"
        )
    check_mask("mask", mask, query.shape[:-2])
    return mask, mask


def check_tokens(name: str, x: Array) -> None:
    """Raises unless `x` is a floating-point array *B N H D."""
    check_floats(name, x)
    if x.ndim < 3:
        raise ValueError(f"{name} has shape {x.shape}: expected *B N H D")
    if is_empty(x.shape[-1]) and name != "value":
        raise ValueError(f"{name} has shape {x.shape}: each head needs at least one feature D")


def check_floats(name: str, x: Array) -> None:
    """Raises unless `x` is an array of floating-point numbers."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        found = f"dtype {x.dtype}" if hasattr(x, "dtype") else f"type {type(x).__name__}"
        raise TypeError(f"{name} has {found}: expected an array of floating-point numbers")
    if jnp.dtype(x.dtype).itemsize < 2:
        raise TypeError(f"{name} has dtype {x.dtype}: expected numbers of 16 bits or more")
    if isinstance(x, np.ndarray) and not x.dtype.isnative:  # JAX may take them for others
        raise TypeError(f"{name} has swapped bytes: give {name}.astype(np.{x.dtype.name})")
    if isinstance(x, np.ma.MaskedArray):  # JAX may take them for whole
        raise TypeError(f"{name} is a masked array: give {name}.data, and which tokens are real")


def check_result(attention, out: Array, query: Array, value: Array) -> None:
    """Raises unless an attention's output is *B N H E in the queries' dtype."""
    expected = jax.ShapeDtypeStruct((*query.shape[:-1], value.shape[-1]), query.dtype)
    found = getattr(out, "shape", None), getattr(out, "dtype", None)
    if all_known(*expected.shape) and found != (expected.shape, expected.dtype):
        what = f"{out.dtype}{list(out.shape)}" if hasattr(out, "dtype") else type(out).__name__
        raise TypeError(
            f"{attention} gave {what}, expected {expected.dtype}{list(expected.shape)}: *B N H E "
            "in the queries' dtype"
        )


def check_mask(name: str, mask: Array | None, shape: tuple) -> None:
    """Raises unless `mask` is None or a boolean array of the tokens' shape *B N (symbolic too)."""
    if mask is None:
        return
    check_mask_type(name, mask)
    if mask.shape == (*shape[:-1], 1, 1, *shape[-1:]):
        raise ValueError(
            f"{name} has shape {mask.shape}, Flax's: expected a padding mask *B N = {shape}, so "
            f"give {name}[..., 0, 0, :]; Flax's attention_fn is nystrom.attention_fn()"
        )
    if mask.shape != shape:
        raise ValueError(
            f"{name} has shape {mask.shape}: expected a padding mask *B N = {shape}. "
            "A mask over pairs of positions (causal, banded) can't be honoured."
        )


def check_features(x: Array, width: int, mask: Array | None) -> None:
    """Raises unless `x` is a floating-point array *B N C with C = width, `mask` None or *B N."""
    check_floats("x", x)
    if x.ndim < 2 or x.shape[-1] != width:
        raise ValueError(f"x has shape {x.shape}: expected *B N C with C = {width}")
    check_mask("mask", mask, x.shape[:-1])


def check_mask_type(name: str, mask: Array) -> None:
    """Raises unless `mask` is an array of Booleans."""
    if getattr(mask, "dtype", None) != jnp.bool_:
        found = f"dtype {mask.dtype}" if hasattr(mask, "dtype") else f"type {type(mask).__name__}"
        raise TypeError(f"{name} has {found}: expected a bool array, True for real tokens")


def check_ids(tokens: Array, longest: int, *, mask=None, types=None, hint: str = "") -> None:
    """Raises unless `tokens` are integers *B N with N at most `longest`, and the others fit."""
    for name, ids in (("tokens", tokens), ("types", types)):
        if ids is not None:
            check_integers(name, ids, "integer ids")
    if tokens.ndim < 1 or tokens.shape[-1] > longest:
        raise ValueError(f"tokens {tokens.shape}: expected *B N, N at most {longest}{hint}")
    if mask is not None:
        check_mask_type("mask", mask)
    for name, array in (("mask", mask), ("types", types)):
        if array is not None and array.shape != tokens.shape:
            raise ValueError(f"{name} {array.shape} and tokens {tokens.shape}: not alike")


def check_integers(name: str, x, what: str = "integers") -> None:
    """Raises unless `x` is an array of integers."""
    if not jnp.issubdtype(getattr(x, "dtype", object), jnp.integer):
        found = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"{name} have dtype {found}: expected an array of {what}")


def check_count(name: str, value, least: int = 1) -> int:
    """`value` as an int; raises unless it is a whole number of at least `least`."""
    known(name, value)
    try:
        count = operator.index(value)
    except TypeError:
        count = None
    if count is None or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected an integer of at least {least}")
    if count < least:
        raise ValueError(f"{name}={value}: at least {least} is needed")
    return count


def check_number(name: str, value, least: int | float) -> None:
    """Raises unless `value` is a number of at least `least`."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r}: expected a number of at least {least}")
    if not float(value) >= least:  # nor is NaN
        raise ValueError(f"{name}={value}: at least {least} is needed")


def check_choice(name: str, value, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}")


def check_implementation(implementation, axis_name, known_ones=IMPLEMENTATIONS) -> None:
    """Raises for an unknown form, and but for the plain one of a sequence cut over devices."""
    if implementation is not None:
        check_choice("implementation", implementation, known_ones)
    if axis_name is not None and implementation not in (None, "plain"):
        raise ValueError(
            f"implementation={implementation!r} can't be used with axis_name: leave it out"
        )


def known(name: str, value):
    """`value`, unless it is one that jit has yet to learn."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced: it must be known when compiling. Give it as a Python value, "
            "outside of jit or by jit's static_argnames."
        )
    return value


def all_known(*sizes) -> bool:
    """Whether none of the sizes is symbolic."""
    return all(isinstance(size, int) for size in sizes)


def is_empty(*sizes) -> bool:
    """Whether any of the sizes is known to be zero (symbolic ones are taken not to be)."""
    return any(all_known(size) and size == 0 for size in sizes)
