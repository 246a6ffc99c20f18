"""Forms of the equations that are tuned for a platform, and the choice among forms.

A form is here for a measurement: `benchmarks/attention.py` has that of the tiled ones on a CPU, and
`benchmarks/forms.py` from what size on; `benchmarks/convolution.py` that of the convolution's there
and `benchmarks/gpu.py` on a GPU, `benchmarks/tpu_aot.py` that of the landmarks' for a TPU.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType

from nystrom.checks import all_known


def choose(
    implementation: str | None,
    plain: Callable[..., Any],
    tiled: Callable[..., Any],
    *arrays: Any,
    logits: tuple[Any, ...] = (),
    cut: Callable[..., Any] | None = None,
    cuda: Callable[..., Any] | None = None,
    tpu: Callable[..., Any] | None = None,
    pallas: Callable[..., Any] | None = None,
) -> Any:
    """`tiled(*arrays)` on a CPU and `plain(*arrays)` elsewhere, or the one that is named.

    `pallas(*arrays)`, kernels for a TPU, is only for who names it, and only there: XLA can't cut a
    kernel over devices by itself, and no TPU has run these yet.

    On an NVIDIA GPU it is `cuda(*arrays)`, on a TPU `tpu(*arrays)`, where that is given and no form
    is named.

    The choice is made when a program is lowered for its platform, not when it is traced. Attentions
    say what they count as `logits`, as a shape *B H N M. Tiles of those need to know the sizes, so
    arrays of symbolic shapes get the plain form; and so do few logits, for which tiles are no
    faster, and take longer to compile. So do arrays that are cut over devices: on a mesh with
    Explicit axes types say how, and a tile's would not; on one with Auto axes XLA would give every
    device all tiles. `cut(*arrays)`, if there is one, is then a CPU's.
    """
    meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays)]
    if implementation is None and any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        implementation = "plain"
    if implementation is None and logits:
        sizes = (size for x in jax.tree.leaves(arrays) for size in x.shape)
        if not all_known(*sizes) or _are_few(logits):
            implementation = "plain"
    if implementation == "plain":
        return plain(*arrays)
    if implementation == "tiled":
        return tiled(*arrays)
    if implementation == "pallas" and pallas is not None:
        return jax.lax.platform_dependent(*arrays, default=plain, tpu=pallas)
    cpu = cut if any(map(_may_be_cut, [*meshes, jax.sharding.get_abstract_mesh()])) else tiled
    forms = {"cpu": cpu, "cuda": cuda, "tpu": tpu}
    own = {name: form for name, form in forms.items() if form is not None}
    return jax.lax.platform_dependent(*arrays, default=plain, **own)


def _are_few(logits):
    """Whether tiles of them are no faster: a CPU's cache holds all, or all of many small heads."""
    total, of_head = math.prod(logits), math.prod(logits[-2:])
    return total <= 2**17 or (total <= 2**19 and of_head <= 2**14)


def _may_be_cut(mesh):
    """Whether XLA may cut arrays of this mesh: not inside shard_map, whose axes are Manual."""
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return any(size > 1 and kind == AxisType.Auto for size, kind in kinds)
