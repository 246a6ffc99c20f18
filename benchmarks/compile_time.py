"""What a first run waits for: the compilations of this checkout's train.py beside another's.

    git worktree add ../before COMMIT
    python -m benchmarks.compile_time ../before [--config=configs/lra_listops.py:quick] [--rounds=3]

The checkouts take turns, each in a process of its own that keeps no compiled program: 30 steps and
an evaluation, in which every length of a batch is met. A row is a function that was compiled: for
how many lengths, the seconds of one and of all (medians over the rounds), and of both the ratio of
this checkout's to the other's. A config that the other has not is this checkout's: with
`benchmarks/quick_0_1.py` both compile one model. Rows of other configs stay in the CSV.
"""

import csv
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.command_line import add_output, checkout_with, count, make_parser, run
from benchmarks.tables import signed, write_csv

ROOT = Path(__file__).resolve().parent.parent
STEPS = 30
COMPILED = re.compile(r"Finished XLA compilation of jit\((train_step|eval_step)\) in ([\d.]+) sec")
FIELDS = (
    "config", "function", "programs_before", "programs_now", "one_before_s", "one_now_s",
    "one_ratio", "all_before_s", "all_now_s", "all_ratio", "rounds",
)  # fmt: skip


def main():
    parser = make_parser(__doc__)
    parser.add_argument("before", type=checkout_with("train.py"), help="the other checkout")
    parser.add_argument("--config", default="configs/lra_listops.py:quick")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--cache_dir", default="", help="where prepared data are kept")
    add_output(parser, "results/benchmarks/compile_time.csv")
    arguments = parser.parse_args()
    found = {"before": [], "now": []}
    for number in range(arguments.rounds):
        for name, checkout in (("before", arguments.before), ("now", ROOT)):
            found[name].append(compilations(checkout, arguments))
            print(f"round {number + 1}, {name}: {found[name][-1]}", flush=True)
    rows = signed([row(arguments, function, found) for function in ("train_step", "eval_step")])
    if arguments.output.exists():
        old = csv.DictReader(arguments.output.read_text().splitlines())
        rows = [each for each in old if each["config"] != arguments.config] + rows
    write_csv(arguments.output, rows)
    print(arguments.output.read_text(), end="")


def compilations(checkout: Path, arguments) -> dict[str, list[float]]:
    """The seconds of each compilation of a function, in a run of a checkout's train.py."""
    config = arguments.config
    if not (checkout / config.partition(":")[0]).is_file():
        config = str(ROOT / config)
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}/run",
            f"--config.num_train_steps={STEPS}", f"--config.eval_every={STEPS}",
            "--config.warmup_steps=10", f"--config.cache_dir={arguments.cache_dir}",
        ]  # fmt: skip
        env = os.environ | {"JAX_LOG_COMPILES": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
        ran = subprocess.run(command, cwd=checkout, env=env, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)} ended with\n{ran.stderr[-2000:]}")
    seconds: dict[str, list[float]] = {}
    for function, took in COMPILED.findall(ran.stderr):
        seconds.setdefault(function, []).append(float(took))
    return seconds


def row(arguments, function, found):
    """One line of the table."""
    rounds = {name: [x[function] for x in each] for name, each in found.items()}
    counts = [len(each[0]) for each in rounds.values()]
    one = [statistics.median(itertools.chain(*x)) for x in rounds.values()]
    whole = [statistics.median(map(sum, x)) for x in rounds.values()]
    figures = (f"{x:.2f}" for before, now in (one, whole) for x in (before, now, now / before))
    values = arguments.config, function, *counts, *figures, arguments.rounds
    return dict(zip(FIELDS, values, strict=True))


if __name__ == "__main__":
    run(main)
