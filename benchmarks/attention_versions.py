"""Is the op slower than it was? This checkout's attention beside another's, process by process.

    git worktree add ../before COMMIT
    python -m benchmarks.attention_versions ../before [--cases=1024/64,4096/256] [--rounds=2]

For each case, tokens/landmarks (batch 1, 8 heads of 64, float32), each checkout gets a process of
its own, taking turns: medians of 15 calls forward, and forward and backward, in milliseconds, and
of those the medians over the rounds. `ratio` is this checkout's time over the other's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CALLS = 15
FIELDS = ("length", "landmarks", "what", "before_ms", "now_ms", "ratio", "rounds")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--cases", default="1024/64,4096/64,1024/256,4096/256")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default="results/benchmarks/attention_versions.csv")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the case that a process is to time
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(time_calls(arguments.measure)))
        return
    if arguments.before is None:
        parser.error("expected the folder of another checkout")
    if not (arguments.before / "nystrom" / "__init__.py").is_file():
        parser.error(f"{arguments.before}: no package nystrom there, expected a checkout of this")
    from benchmarks.tables import write_signed  # here: measuring has another checkout's

    rows = []
    for case in arguments.cases.split(","):
        found = {"before": [], "now": []}
        for _ in range(arguments.rounds):
            found["before"].append(measured(arguments.before.resolve(), case))
            found["now"].append(measured(ROOT, case))
        for what in ("forward", "forward+backward"):
            before, now = (statistics.median(x[what] for x in each) for each in found.values())
            length, landmarks = case.split("/")
            values = (length, landmarks, what, f"{before:.1f}", f"{now:.1f}", f"{now / before:.2f}")
            rows.append(dict(zip(FIELDS, (*values, arguments.rounds), strict=True)))
            print(*rows[-1].values(), flush=True)
    write_signed(arguments.output, rows)


def measured(checkout: Path, case: str) -> dict[str, float]:
    """`time_calls` in a process that imports a checkout's nystrom."""
    # By its path: as a module, it would import this checkout's.
    command = [sys.executable, str(Path(__file__).resolve()), f"--measure={case}"]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def time_calls(case: str) -> dict[str, float]:
    """Milliseconds of a call of the attention that is imported, and of its gradient."""
    import jax

    import nystrom

    length, landmarks = map(int, case.split("/"))
    *arrays, weight = (jax.random.normal(jax.random.key(i), (1, length, 8, 64)) for i in range(4))

    def attend(query, key, value):
        return nystrom.nystrom_attention(query, key, value, num_landmarks=landmarks)

    def loss(*arrays):
        return (attend(*arrays) * weight).sum()

    functions = {"forward": attend, "forward+backward": jax.grad(loss, (0, 1, 2))}
    told = {}
    for what, function in functions.items():
        function = jax.jit(function)
        jax.block_until_ready(function(*arrays))
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            jax.block_until_ready(function(*arrays))
            seconds.append(time.perf_counter() - start)
        told[what] = 1e3 * statistics.median(seconds)
    return told


if __name__ == "__main__":
    main()
