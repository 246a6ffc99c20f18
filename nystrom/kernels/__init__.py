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
    faster, and take longer to compile. Arrays on a mesh with Explicit axes, whose types say how
    they are cut, get it too, for a tile's types would not.
    """
    if implementation is None and any(map(_is_cut_by_type, jax.tree.leaves(arrays))):
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
    own = {name: form for name, form in (("cuda", cuda), ("tpu", tpu)) if form is not None}
    return jax.lax.platform_dependent(*arrays, cpu=tiled, default=plain, **own)


def _are_few(logits):
    """Whether tiles of them are no faster: a CPU's cache holds all, or all of many small heads."""
    total, of_head = math.prod(logits), math.prod(logits[-2:])
    return total <= 2**17 or (total <= 2**19 and of_head <= 2**14)


def _is_cut_by_type(x):
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types
