"""The convolution of the values on a CPU: ours, one sum of all copies, and XLA's own.

    python -m benchmarks.convolution [--rounds=5] [--threads=2]

Sizes are batch x tokens x heads x features of a head x taps, in float32. "alone" is the
convolution, "attention too" its sum with Nyström attention of the same tokens, 64 landmarks, as a
layer has it: XLA may put the two into one loop. The forms take turns; medians over the rounds, in
milliseconds. `one_sum` is what a GPU gets, `xla` the plain form; `ratio` is the faster of these two
over ours. Sizes that the CSV has and that are not measured stay there.
"""

from functools import partial

import numpy as np

from benchmarks.attention import take_turns
from benchmarks.attention_contenders import jax_call
from benchmarks.command_line import add_options, make_parser, numbers, run, use_cores
from benchmarks.tables import write_signed

SIZES = (
    "32x1024x2x32x35,1x1024x4x64x35,1x1024x8x64x35,4x4096x8x64x35,1x4096x12x64x35,"
    "1x1024x4x64x65,1x1024x8x64x65,1x4096x8x64x65,1x4096x12x64x65"
)
NAMES = ("batch", "length", "heads", "depth", "taps")
size = numbers("BxNxHxDxK with K odd", "x", lambda *sizes: min(sizes) >= 1 and sizes[4] % 2)


def main():
    parser = make_parser(__doc__)
    add_options(parser, size, SIZES, "results/benchmarks/convolution.csv")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    rows = []
    for each in arguments.sizes:
        for what in ("alone", "attention too"):
            for name, backward in (("forward", False), ("forward and backward", True)):
                about = {"what": what, "pass": name, "threads": arguments.threads}
                rows.append(measure(each, what, backward, arguments.rounds) | about)
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
                write_signed(arguments.output, rows, (*NAMES, "what", "pass", "threads"))


def measure(size, what, backward, rounds) -> dict:
    """A row of the table."""
    import jax

    import nystrom
    from nystrom.convolution import convolve_in_order
    from nystrom.kernels.convolution import fused, tiled

    jax.config.update("jax_enable_compilation_cache", False)
    batch, length, heads, depth, taps = size
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, batch, length, heads, depth), np.float32)
    filters = rng.standard_normal((heads, taps), np.float32)

    def layer(convolve, query, key, value):
        out = convolve(value, filters)
        return out if what == "alone" else out + nystrom.nystrom_attention(query, key, value)

    forms = {"ours": tiled, "one_sum": fused, "xla": convolve_in_order}
    calls = {name: jax_call(partial(layer, form), inputs, backward) for name, form in forms.items()}
    times = {name: 1e3 * np.median(seconds) for name, seconds in take_turns(calls, rounds)}
    return {
        **dict(zip(NAMES, size, strict=True)),
        **{f"{name}_ms": f"{time:.2f}" for name, time in times.items()},
        "ratio": f"{min(times['one_sum'], times['xla']) / times['ours']:.2f}",
    }


if __name__ == "__main__":
    run(main)
