"""Is the op slower than it was? This checkout's attention beside another's, process by process.

    git worktree add ../before COMMIT
    python -m benchmarks.attention_versions ../before [--cases=1024/64,4096/256] [--rounds=2]
                                            [--padded] [--dtype=bfloat16]

For each case, tokens/landmarks (batch 1, 8 heads of 64, float32 unless --dtype says otherwise),
each checkout gets a process of its own in each round; the two take turns call by call, for what
else the machine does to slow both alike. Of 51 calls each, forward, and forward and backward:
medians in milliseconds, and of those the medians over the rounds, and MiB of temporary memory.
`ratio` is the median over the rounds of this checkout's time over the other's. With --padded, an
eighth of the tokens is padding, at the end.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CALLS = 51
DTYPES = ("float32", "bfloat16", "float16")
PASSES = ("forward", "forward+backward")
FIELDS = (
    "length", "landmarks", "what", "before_ms", "now_ms", "ratio", "before_mib", "now_mib", "rounds"
)  # fmt: skip


def main():
    from benchmarks.command_line import (
        add_output,
        checkout_with,
        count,
        make_parser,
        numbers,
        one_of,
        several,
    )
    from benchmarks.tables import write_signed

    parser = make_parser(__doc__)
    cases = several(numbers("tokens/landmarks", "/", lambda *both: min(both) >= 1))
    before = checkout_with("nystrom/__init__.py")
    parser.add_argument("before", type=before, help="the other checkout")
    parser.add_argument("--cases", type=cases, default="1024/64,4096/64,1024/256,4096/256")
    parser.add_argument("--rounds", type=count, default=2)
    parser.add_argument("--padded", action="store_true", help="an eighth of the tokens")
    parser.add_argument("--dtype", type=one_of(DTYPES), default="float32")
    add_output(parser, "results/benchmarks/attention_versions.csv")
    arguments = parser.parse_args()
    rows = []
    for case in arguments.cases:
        for what in PASSES:
            rounds = [
                in_turns((arguments.before, ROOT), (*case, arguments.padded, arguments.dtype, what))
                for _ in range(arguments.rounds)
            ]
            (_, before_mib), (_, now_mib) = rounds[0]
            times = [(before, now) for (before, _), (now, _) in rounds]
            before, now = map(statistics.median, zip(*times, strict=True))
            ratio = statistics.median(now / before for before, now in times)
            name = f"padded, {what}" if arguments.padded else what
            name = name if arguments.dtype == "float32" else f"{arguments.dtype}, {name}"
            values = (*case, name, f"{before:.1f}", f"{now:.1f}", f"{ratio:.2f}")
            values += (f"{before_mib:.1f}", f"{now_mib:.1f}", arguments.rounds)
            rows.append(dict(zip(FIELDS, values, strict=True)))
            print(*rows[-1].values(), flush=True)
            write_signed(arguments.output, rows, ("length", "landmarks", "what"))


def in_turns(checkouts: tuple[Path, ...], case: tuple) -> list[tuple[float, float]]:
    """`measure` in a process of each checkout, call by call in turns: median ms of a call, MiB."""
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(process_of(checkout, case)) for checkout in checkouts]
        mib = [answer(process) for process in processes]
        ms = [[answer(process, ask=True) for process in processes] for _ in range(CALLS)]
    medians = map(statistics.median, zip(*ms, strict=True))
    return list(zip(medians, mib, strict=True))


def process_of(checkout: Path, case: tuple) -> subprocess.Popen:
    """A process of `measure` that imports a checkout's nystrom; it ends with its input."""
    # By its path: as a module, it would import this checkout's.
    command = [sys.executable, str(Path(__file__).resolve()), f"--measure={json.dumps(case)}"]
    env, pipe = os.environ | {"PYTHONPATH": str(checkout)}, subprocess.PIPE
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True, bufsize=1)


def answer(process: subprocess.Popen, ask: bool = False) -> float:
    """The next number that a process says, of those for which it needs to be asked if so told."""
    if ask:
        process.stdin.write("\n")
    line = process.stdout.readline()
    if not line:
        sys.exit(f"a process of {process.args[1]} ended: what it says is above")
    return float(line)


def measure(length: int, landmarks: int, padded: bool, dtype: str, what: str) -> None:
    """Of the attention that is imported, or its gradient: says MiB and, for a line read, ms."""
    import jax
    import jax.numpy as jnp

    import nystrom

    shape = 1, length, 8, 64
    *arrays, weight = (jax.random.normal(jax.random.key(i), shape, dtype) for i in range(4))
    mask = jnp.arange(length)[None] < length - length // 8 if padded else None

    def attend(query, key, value, mask):
        masks = {"query_mask": mask, "key_mask": mask}
        return nystrom.nystrom_attention(query, key, value, num_landmarks=landmarks, **masks)

    def loss(*arrays):
        return (attend(*arrays) * weight).sum()

    function = attend if what == "forward" else jax.grad(loss, (0, 1, 2))
    compiled = jax.jit(function).lower(*arrays, mask).compile()
    for _ in range(2):
        jax.block_until_ready(compiled(*arrays, mask))
    print(compiled.memory_analysis().temp_size_in_bytes / 2**20, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays, mask))
        print(1e3 * (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    # Who measures has another checkout's modules, and takes none of the benchmarks'.
    if len(sys.argv) == 2 and sys.argv[1].startswith("--measure="):
        measure(*json.loads(sys.argv[1].partition("=")[2]))
    else:
        from benchmarks.command_line import run

        run(main)
