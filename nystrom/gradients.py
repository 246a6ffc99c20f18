"""A function with a backward pass of its own that every other transformation still understands.

`jax.custom_vjp` gives a function a backward pass and takes forward mode away. `with_gradient` takes
nothing away: values come from `forward`, the reverse mode is `backward`, and every other derivative
(jvp, hessian, gradient of gradient) is that of `plain`, the same function as one would write it.
For that the derivative is a primitive: a linear map that knows its transpose.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, unmapped_aval
from jax.interpreters import ad, batching, mlir


class _Map(NamedTuple):
    """A linear map (known, x) -> list of arrays of types `out`, tuned, and as one writes it."""

    tuned: Callable[..., list]
    plain: Callable[..., list]
    out: tuple[Any, ...]


def with_gradient(plain: Callable, forward: Callable, backward: Callable) -> Callable:
    """`plain(primals, constants)` with values from `forward` and gradients from `backward`.

    Args:
      plain: (primals, constants) -> output; primals are floating-point arrays, constants a pytree
        of arrays without a derivative (masks). The output is one array.
      forward: (primals, constants) -> (output, residuals), a pytree of floating-point arrays.
      backward: (residuals, constants, cotangent) -> cotangents of the primals.
    """

    @jax.custom_jvp
    def value_and_residuals(primals, constants):
        return forward(primals, constants)

    @value_and_residuals.defjvp
    def _(arguments, tangents):
        primals, constants = arguments
        out, residuals = value_and_residuals(primals, constants)
        others, structure = jax.tree.flatten((constants, residuals))

        def of_plain(others):
            constants, _ = jax.tree.unflatten(structure, others)
            return lambda *primals: plain(primals, constants)

        def ahead(primals, others, tangents):
            return [jax.jvp(of_plain(others), primals, tangents)[1]]

        def back(primals, others, cotangents):
            return list(jax.vjp(of_plain(others), *primals)[1](cotangents[0]))

        def back_tuned(primals, others, cotangents):
            constants, residuals = jax.tree.unflatten(structure, others)
            return list(backward(residuals, constants, cotangents[0]))

        (d_out,) = _linear.bind(
            *primals,
            *others,
            *tangents[0],
            ahead=_Map(ahead, ahead, (jax.typeof(out),)),
            back=_Map(back_tuned, back, tuple(map(jax.typeof, primals))),
            counts=(len(primals), len(others)),
        )
        # What residuals add to higher derivatives is in those of `plain`, by the primals alone.
        return (out, residuals), (d_out, jax.tree.map(jnp.zeros_like, residuals))

    def function(primals, constants=()):
        return value_and_residuals(_alike(tuple(primals), constants), constants)[0]

    return function


def _alike(primals, constants):
    """Inside shard_map, primals that all vary over the axes that anything varies over.

    What was equal on all devices then gets the sum of its devices' gradients.
    """
    varying = frozenset().union(*map(_varying_axes, jax.tree.leaves((primals, constants))))
    return tuple(vary_over(x, varying) for x in primals)


def vary_over(x, axes):
    """Inside shard_map, x as an array that varies over these axes too."""
    missing = tuple(axis for axis in axes if axis not in _varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _varying_axes(x):
    return jax.typeof(x).mat.varying


_linear = Primitive("linear_with_transpose")
_linear.multiple_results = True


def _split(args, counts):
    first, second = counts[0], sum(counts)
    return tuple(args[:first]), tuple(args[first:second]), tuple(args[second:])


@_linear.def_impl
def _apply(*args, ahead, back, counts):
    return ahead.tuned(*_split(args, counts))


@_linear.def_abstract_eval
def _types(*args, ahead, back, counts):
    return list(ahead.out)


mlir.register_lowering(_linear, mlir.lower_fun(_apply, multiple_results=True))


def _jvp(args, tangents, *, ahead, back, counts):
    primals, others, x = _split(args, counts)
    d_primals, _, d_x = _split(tangents, counts)
    out = _linear.bind(*args, ahead=ahead, back=back, counts=counts)
    total = [ad.Zero(aval) for aval in ahead.out]
    if any(type(d) is not ad.Zero for d in d_x):
        d_x = [ad.instantiate_zeros(d) for d in d_x]
        total = _linear.bind(*primals, *others, *d_x, ahead=ahead, back=back, counts=counts)
    if any(type(d) is not ad.Zero for d in d_primals):
        d_primals = [ad.instantiate_zeros(d) for d in d_primals]
        _, more = jax.jvp(lambda *p: ahead.plain(p, others, x), primals, tuple(d_primals))
        total = [ad.add_tangents(*pair) for pair in zip(total, more, strict=True)]
    return out, total


def _transpose(cotangents, *args, ahead, back, counts):
    primals, others, _ = _split(args, counts)
    cotangents = [ad.instantiate_zeros(c) for c in cotangents]
    out = _linear.bind(*primals, *others, *cotangents, ahead=back, back=ahead, counts=counts)
    return [None] * sum(counts) + list(out)


def _batch(args, axes, *, ahead, back, counts):
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    known = sum(counts)
    # With x mapped, and so both maps' results, one is the transpose of the other again.
    x = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args[known:], axes[known:], strict=True)
    )
    known_axes = _split(axes, counts)[:2]

    def mapped(linear):
        functions = (jax.vmap(f, in_axes=(*known_axes, 0)) for f in linear[:2])
        return _Map(*functions, tuple(unmapped_aval(size, 0, aval) for aval in linear.out))

    out = _linear.bind(*args[:known], *x, ahead=mapped(ahead), back=mapped(back), counts=counts)
    return out, [0] * len(out)


ad.primitive_jvps[_linear] = _jvp
ad.primitive_transposes[_linear] = _transpose
batching.primitive_batchers[_linear] = _batch
