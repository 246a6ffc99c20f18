"""What the devices of a compiled program exchange."""

import math
import re

# Of XLA's types; those of less than 8 bits take a byte, as they do where they are not packed.
BYTES = {f"{kind}{8 * size}": size for kind in "su" for size in (1, 2, 4, 8)}
BYTES |= {"f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
BYTES |= dict.fromkeys(("pred", "s2", "u2", "s4", "u4", "f4e2m1fn", "f8e8m0fnu", "f8e3m4"), 1)
BYTES |= dict.fromkeys(("f8e4m3", "f8e4m3fn", "f8e4m3fnuz", "f8e4m3b11fnuz"), 1)
BYTES |= dict.fromkeys(("f8e5m2", "f8e5m2fnuz"), 1)
COLLECTIVE = re.compile(
    r" = (.*?) "  # its results' types
    r"(?:all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)(?:-start)?\("
)
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def collective_bytes(compiled_text: str) -> int:
    """Bytes that the results of all collectives of a compiled program have on a device.

    `compiled_text` is `jitted.lower(...).compile().as_text()`. Those in a loop are counted once.
    """
    return sum(map(num_bytes, COLLECTIVE.findall(compiled_text)))


def num_bytes(shape: str) -> int:
    """The size of an array, or a tuple of arrays, as a program's text has its shape."""
    return sum(
        BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in ARRAY.findall(shape)
    )
