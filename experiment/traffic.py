"""What the devices of a compiled program exchange."""

import math
import re

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
COLLECTIVE = re.compile(
    r" = (.*?) "  # its results' types
    r"(?:all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)(?:-start)?\("
)
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def collective_bytes(compiled_text: str) -> int:
    """Bytes that the results of all collectives of a compiled program have on a device.

    `compiled_text` is `jitted.lower(...).compile().as_text()`. Those in a loop are counted once.
    """
    total = 0
    for result in COLLECTIVE.findall(compiled_text):
        for kind, sizes in ARRAY.findall(result):
            total += BYTES[kind] * math.prod(int(size) for size in sizes.split(",") if size)
    return total
