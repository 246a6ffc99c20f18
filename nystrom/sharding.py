"""Nyström attention of arrays that are cut over the devices of a mesh."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import check_scale, nystrom_attention
from nystrom.checks import check_count, check_inputs, is_empty
from nystrom.self_attention import Bound

MASKS = {"mask", "query_mask", "key_mask"}
OPTIONS = inspect.signature(nystrom_attention).parameters.keys() - MASKS - {
    "query", "key", "value", "axis_name"
}  # fmt: skip


def sharded_attention(
    mesh: Mesh,
    *,
    sequence_axis: str | None = "sequence",
    batch_axis: str | None = None,
    **options,
) -> Callable[..., Float[jax.Array, "*B N H E"]]:
    """`nystrom_attention` for sequences that lie in pieces on the devices of a mesh.

    The result takes query, key, value and masks as `nystrom_attention` does and returns what that
    would return, in the same pieces. What crosses devices are landmarks, L x D, and the L x E
    result of the inner attention, of each head and example: it does not grow with the length.
    Lengths that the devices don't divide are padded, which moves tokens; examples must be divided.

    Args:
      mesh: a mesh of JAX, with axes of any type (Auto or Explicit).
      sequence_axis: the axis over which N and M are cut; None: they are whole.
      batch_axis: the axis over which the first dimension, of examples, is cut; None: it is whole.
      options: those of `nystrom_attention`, but `axis_name`.

    Raises:
      ValueError: a name that is no axis of the mesh, one axis for both, or numbers that can't be.
        The result raises as `nystrom_attention` does, and where there is a `batch_axis` but no
        examples, or some that its devices don't divide.
      TypeError: masks, `axis_name` or unknown names among the options, or numbers that are none.
    """
    for axis in (sequence_axis, batch_axis):
        if axis is not None and axis not in mesh.axis_names:
            names = ", ".join(mesh.axis_names)
            raise ValueError(f"{axis!r} is no axis of the mesh: it has {names}")
    if sequence_axis is not None and sequence_axis == batch_axis:
        raise ValueError(f"{batch_axis!r} is to cut sequences and examples: expected two axes")
    if "axis_name" in options:
        raise TypeError("axis_name is given by sequence_axis: leave it out")
    if unknown := sorted(options.keys() - OPTIONS):
        what = "masks are arguments of the result; " if set(unknown) & MASKS else ""
        raise TypeError(f"{', '.join(unknown)}: {what}options are {', '.join(sorted(OPTIONS))}")
    # As Python's numbers, for arrays have no hash.
    for name in {"num_landmarks", "pinv_iterations"} & options.keys():
        options[name] = check_count(name, options[name])
    if options.get("scale") is not None:
        options["scale"] = check_scale(options["scale"], None)
    attend = Bound.of(nystrom_attention, axis_name=sequence_axis, **options)
    return Bound.of(_sharded, cut=_Cut(mesh, sequence_axis, batch_axis), attend=attend)


class _Cut(NamedTuple):
    """How arrays are cut; equal to others that cut them so, whose programs are shared."""

    mesh: Mesh
    sequence_axis: str | None
    batch_axis: str | None


def _sharded(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    value: Float[Array, "*B M G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    cut: _Cut,
    attend: Callable[..., Array],
) -> Float[jax.Array, "*B N H E"]:
    """What `sharded_attention` returns, with its mesh and options bound."""
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    return _attention(query, key, value, query_mask, key_mask, cut, attend)


@partial(jax.jit, static_argnums=(5, 6))
def _attention(query, key, value, query_mask, key_mask, cut, attend):
    mesh, sequence_axis, batch_axis = cut
    pieces = 1 if sequence_axis is None else mesh.shape[sequence_axis]
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = [axis for axis, kind in kinds.items() if kind == AxisType.Explicit]

    def cut_over(*axes):  # as far as types of arrays say it
        spec = PartitionSpec(*(axis if axis in explicit else None for axis in axes))
        return NamedSharding(mesh, spec)

    length = query.shape[-3]
    num_batch = query.ndim - 3
    if batch_axis is not None and not num_batch:
        raise ValueError(f"batch_axis={batch_axis!r}: query {query.shape} has no examples")
    if batch_axis is not None and query.shape[0] % mesh.shape[batch_axis]:
        raise ValueError(
            f"batch_axis={batch_axis!r}: query {query.shape} has {query.shape[0]} examples for "
            f"{mesh.shape[batch_axis]} devices, which must divide them"
        )
    out_shape = (*query.shape[:-1], value.shape[-1])
    if is_empty(*out_shape):  # which JAX can't cut
        return jnp.zeros(out_shape, query.dtype)
    query, query_mask = _padded(query, query_mask, pieces)
    (key, _), (value, key_mask) = (_padded(x, key_mask, pieces) for x in (key, value))
    batch = (batch_axis, *[None] * (num_batch - 1)) if num_batch else ()
    specs = [PartitionSpec(*batch, sequence_axis)] * 5
    arrays = (query, key, value, query_mask, key_mask)
    if explicit:
        place = cut_over(*batch, sequence_axis)
        arrays = tuple(None if x is None else jax.reshard(x, place) for x in arrays)

    def local(query, key, value, query_mask, key_mask):
        return attend(query, key, value, query_mask=query_mask, key_mask=key_mask)

    out = jax.shard_map(local, mesh=mesh, in_specs=tuple(specs), out_specs=specs[0])(*arrays)
    if out.shape[-3] == length:
        return out
    if explicit:  # which has no pieces of unequal lengths
        out = jax.reshard(out, cut_over(*batch))
    return out[..., :length, :, :]


def _padded(x, mask, pieces):
    """Tokens, and their mask, of a length that `pieces` divides."""
    excess = -x.shape[-3] % pieces
    if not excess:
        return x, mask
    mask = jnp.ones(x.shape[:-2], bool) if mask is None else mask
    widths = [(0, 0)] * (x.ndim - 3) + [(0, excess)]
    return jnp.pad(x, [*widths, (0, 0), (0, 0)]), jnp.pad(mask, widths)
