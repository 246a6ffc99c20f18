"""Is the op slower than it was? This checkout's attention beside another's, process by process.

    git worktree add ../before COMMIT
    python -m benchmarks.attention_versions ../before [--cases=1024/64,4096/256] [--rounds=2]
                                            [--padded]

For each case, tokens/landmarks (batch 1, 8 heads of 64, float32), each checkout gets a process of
its own, taking turns: medians of 15 calls forward, and forward and backward, in milliseconds, and
of those the medians over the rounds, and MiB of temporary memory. `ratio` is this checkout's time
over the other's. With --padded, an eighth of the tokens is padding, at the end.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CALLS = 15
FIELDS = (
    "length", "landmarks", "what", "before_ms", "now_ms", "ratio", "before_mib", "now_mib", "rounds"
)  # fmt: skip


def main():
    # Who measures has another checkout's modules, and takes none of the benchmarks'.
    if len(sys.argv) == 2 and sys.argv[1].startswith("--measure="):
        print(json.dumps(measure(*json.loads(sys.argv[1].partition("=")[2]))))
        return
    from benchmarks.command_line import checkout_with, count, make_parser, several
    from benchmarks.tables import write_signed

    parser = make_parser(__doc__)
    cases, before = several(case_of), checkout_with("nystrom/__init__.py")
    parser.add_argument("before", type=before, help="the other checkout")
    parser.add_argument("--cases", type=cases, default="1024/64,4096/64,1024/256,4096/256")
    parser.add_argument("--rounds", type=count, default=2)
    parser.add_argument("--padded", action="store_true", help="an eighth of the tokens")
    parser.add_argument("--output", type=Path, default="results/benchmarks/attention_versions.csv")
    arguments = parser.parse_args()
    rows = []
    for case in arguments.cases:
        found = {"before": [], "now": []}
        for _ in range(arguments.rounds):
            found["before"].append(measured(arguments.before, *case, arguments.padded))
            found["now"].append(measured(ROOT, *case, arguments.padded))
        for what in found["now"][0]:
            figures = [[x[what] for x in each] for each in found.values()]
            before, now = (statistics.median(ms for ms, _ in each) for each in figures)
            values = (*case, what, f"{before:.1f}", f"{now:.1f}", f"{now / before:.2f}")
            values += (*(f"{each[0][1]:.1f}" for each in figures), arguments.rounds)
            rows.append(dict(zip(FIELDS, values, strict=True)))
            print(*rows[-1].values(), flush=True)
    write_signed(arguments.output, rows, ("length", "landmarks", "what"))


def measured(checkout: Path, *case) -> dict[str, tuple[float, float]]:
    """`measure` in a process that imports a checkout's nystrom."""
    # By its path: as a module, it would import this checkout's.
    command = [sys.executable, str(Path(__file__).resolve()), f"--measure={json.dumps(case)}"]
    env = os.environ | {"PYTHONPATH": str(checkout)}
    out = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def case_of(text: str) -> tuple[int, int]:
    """Tokens and landmarks of "tokens/landmarks"."""
    numbers = tuple(map(int, text.split("/")))
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(f"{text}: expected tokens/landmarks")
    return numbers


def measure(length: int, landmarks: int, padded: bool) -> dict[str, tuple[float, float]]:
    """Of the attention that is imported and of its gradient: milliseconds of a call, and MiB."""
    import jax
    import jax.numpy as jnp

    import nystrom

    *arrays, weight = (jax.random.normal(jax.random.key(i), (1, length, 8, 64)) for i in range(4))
    mask = jnp.arange(length)[None] < length - length // 8 if padded else None

    def attend(query, key, value, mask):
        masks = {"query_mask": mask, "key_mask": mask}
        return nystrom.nystrom_attention(query, key, value, num_landmarks=landmarks, **masks)

    def loss(*arrays):
        return (attend(*arrays) * weight).sum()

    functions = {"forward": attend, "forward+backward": jax.grad(loss, (0, 1, 2))}
    told = {}
    for what, function in functions.items():
        compiled = jax.jit(function).lower(*arrays, mask).compile()
        jax.block_until_ready(compiled(*arrays, mask))
        seconds = []
        for _ in range(CALLS):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arrays, mask))
            seconds.append(time.perf_counter() - start)
        mib = compiled.memory_analysis().temp_size_in_bytes / 2**20
        told[f"padded, {what}" if padded else what] = 1e3 * statistics.median(seconds), mib
    return told


if __name__ == "__main__":
    main()
