"""From how many logits on do tiles pay on a CPU? The tiled form beside the plain one, by size.

    python -m benchmarks.forms [--rounds=5] [--threads=2]

Sizes are batch x tokens x heads x features of a head x landmarks, with 0 landmarks for exact
attention, in float32, with a padding mask where the batch is larger than 1. The forms take turns;
medians over the rounds, in milliseconds, and the CPU time of compiling each once. `ratio` is plain
over tiled; where it is about 1 or less with gradients, `nystrom.kernels` chooses the plain form.
Sizes that the CSV has and that are not measured stay there.
"""

import time
from functools import partial

import numpy as np

from benchmarks.attention import take_turns
from benchmarks.attention_contenders import jax_call
from benchmarks.command_line import add_options, make_parser, numbers, run, use_cores
from benchmarks.tables import write_signed

SIZES = (
    "1x512x8x64x64,1x1024x8x64x64,1x512x8x64x128,1x2048x8x64x64,1x1024x8x64x256,"
    "32x64x4x16x32,32x128x4x16x32,32x256x4x16x32,256x128x4x16x32,4x256x8x64x64,"
    "8x512x2x32x64,32x256x2x32x64,32x768x2x32x64,32x128x8x64x0,1x256x8x64x0,1x512x8x64x0,"
    "8x256x8x64x0"
)
FORMS = ("tiled", "plain")
NAMES = ("batch", "length", "heads", "depth", "landmarks")
size = numbers("BxNxHxDxL", "x", lambda *sizes: min(sizes[:4]) >= 1)


def main():
    parser = make_parser(__doc__)
    add_options(parser, size, SIZES, "results/benchmarks/forms.csv")
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    rows = []
    for each in arguments.sizes:
        for what, backward in (("forward", False), ("forward and backward", True)):
            rows.append(measure(each, backward, arguments.rounds) | {"pass": what})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
            write_signed(arguments.output, rows, (*NAMES, "pass"))


def measure(size, backward, rounds) -> dict:
    """A row of the table."""
    import jax

    import nystrom

    jax.config.update("jax_enable_compilation_cache", False)
    batch, length, heads, depth, landmarks = size
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((4, batch, length, heads, depth), np.float32)
    mask = None
    if batch > 1:
        mask = np.arange(length) < rng.integers(length // 2, length + 1, (batch, 1))
    attend = nystrom.softmax_attention
    if landmarks:
        attend = partial(nystrom.nystrom_attention, num_landmarks=landmarks)
    calls, compile_s = {}, {}
    for form in FORMS:
        start = time.process_time()
        calls[form] = jax_call(partial(attend, mask=mask, implementation=form), inputs, backward)
        compile_s[form] = time.process_time() - start
    times = {name: 1e3 * np.median(seconds) for name, seconds in take_turns(calls, rounds)}
    return {
        **dict(zip(NAMES, size, strict=True)),
        "logits": batch * length * heads * (landmarks or length),
        **{f"{form}_ms": f"{times[form]:.2f}" for form in FORMS},
        "ratio": f"{times['plain'] / times['tiled']:.2f}",
        **{f"{form}_compile_s": f"{compile_s[form]:.1f}" for form in FORMS},
    }


if __name__ == "__main__":
    run(main)
