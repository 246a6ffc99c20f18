"""Forms of the equations that are tuned for a platform, and the choice among forms.

A form is here for a measurement: `benchmarks/attention.py` has that of the tiled one, on a CPU.
"""

from collections.abc import Callable
from typing import Any

import jax


def choose(
    implementation: str | None, plain: Callable[..., Any], tiled: Callable[..., Any], *arrays: Any
) -> Any:
    """`tiled(*arrays)` on a CPU and `plain(*arrays)` elsewhere, or the one that is named.

    The choice is made when a program is lowered for its platform, not when it is traced. Tiles need
    to know the sizes: arrays of symbolic shapes get the plain form.
    """
    sizes = [size for x in jax.tree.leaves(arrays) for size in x.shape]
    symbolic = not all(isinstance(size, int) for size in sizes)
    if implementation == "plain" or (implementation is None and symbolic):
        return plain(*arrays)
    if implementation == "tiled":
        return tiled(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=tiled, default=plain)
