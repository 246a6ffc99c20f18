"""Time and memory of attention alone: ours, eq. 9 as written in JAX, PyTorch's, and exact.

    python -m benchmarks.attention [--quick] [--lengths=1024,4096] [--rounds=5] [--fresh]
    python -m benchmarks.attention --long

Needs `pip install -r benchmarks/requirements.txt`. Batch 1, 8 heads of 64, float32. A case is
a length, a number of landmarks, and forward or forward and backward. Its contenders share one
process and its threads and take turns; medians over the rounds. Before anything is timed,
outputs and gradients must equal eq. 9 in float64. Peak memory, beyond inputs, is each
contender's in a process of its own. Exact attention has no landmarks: it takes turns in the
cases of the fewest, up to the length where it takes seconds. Cases that this commit has
finished with as many threads and the same pages are kept in the CSV, so that an interrupted
run goes on; `--fresh` measures them again. `--long` measures ours alone, 1 head and 64
landmarks, up to 1,048,576 tokens. `--huge_pages` lets every contender's allocations use
transparent huge pages (GLIBC_TUNABLES=glibc.malloc.hugetlb=1).
"""

import argparse
import csv
import ctypes
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import attention_contenders as contenders
from benchmarks.attention_contenders import EXACT, LUCIDRAINS, NYSTROM, OURS, TORCH_NYSTROM
from benchmarks.attention_report import MODES, draw, print_summary, print_table
from benchmarks.command_line import count, make_parser, run, several, use_cores, writable_folder
from benchmarks.tables import made_by, same_commit, write_csv, write_signed

LENGTHS = (1024, 2048, 4096, 16384, 65536)
LANDMARKS = (64, 256)
LONG_LENGTHS = (4096, 16384, 65536, 262144, 1048576)
EXACT_UP_TO = 4096
TOLERANCE = {OURS: 1e-5}  # others', relative to the largest entry: 1e-4
PASSED_ON = ("threads", "output_dir", "plots_dir")  # to a case's own process
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", type=several(count), default=LENGTHS)
    parser.add_argument("--landmarks", type=several(count), default=LANDMARKS)
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--quick", action="store_true", help="lengths up to 4,096, 3 rounds")
    parser.add_argument("--fresh", action="store_true", help="measure again what is in the CSV")
    parser.add_argument("--long", action="store_true", help="long sequences instead of the grid")
    parser.add_argument("--huge_pages", action="store_true")
    parser.add_argument("--output_dir", type=writable_folder, default="results/benchmarks")
    parser.add_argument("--plots_dir", type=writable_folder, default="docs")
    parser.add_argument(
        "--measure", help=argparse.SUPPRESS
    )  # one case's memory, by a fresh process
    arguments = parser.parse_args()
    if arguments.huge_pages and "GLIBC_TUNABLES" not in os.environ:
        command = [sys.executable, "-m", "benchmarks.attention", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | HUGE_PAGES)
    # Before JAX starts: it takes as many threads as there are cores that it may use.
    use_cores(arguments.threads)
    if arguments.measure:
        print(json.dumps(peak_memory(**json.loads(arguments.measure))))
        return
    if arguments.quick:
        arguments.rounds = 3
        given, arguments.lengths = arguments.lengths, [n for n in arguments.lengths if n <= 4096]
        if not arguments.lengths:
            parser.error(f"--quick has lengths up to 4,096, given {', '.join(map(str, given))}")
    for length, number in itertools.product(arguments.lengths, arguments.landmarks):
        if length % number:  # eq. 9 as written has whole segments
            parser.error(f"--lengths and --landmarks: {number} does not divide {length}")
    if arguments.long:
        long_sequences(arguments)
    else:
        grid(arguments)


def grid(arguments):
    """Measures all cases that the CSV lacks, writes it after each, and draws the plots."""
    path = arguments.output_dir / "attention.csv"
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    about = made_by()
    setting = setting_of(arguments) | {"processor": about["processor"]}
    for length in arguments.lengths:
        for num_landmarks in arguments.landmarks:
            case = {"length": length, "num_landmarks": num_landmarks, **setting}
            old = [row for row in rows if is_of(row, case)]
            if not arguments.fresh and any(same_commit(row, about) for row in old):
                continue
            names = list(NYSTROM)
            if num_landmarks == min(arguments.landmarks) and length <= EXACT_UP_TO:
                names += EXACT
            new = measure_pair(length, num_landmarks, names, arguments)
            rows = [row for row in rows if row not in old] + [row | about for row in new]
            write_csv(path, rows)
            print_table(new)
    rows = [row for row in rows if is_of(row, setting)]
    print_summary(rows)
    draw(rows, arguments.plots_dir)


def setting_of(arguments) -> dict:
    """What figures of one table have in common."""
    return {"threads": arguments.threads, "huge_pages": "GLIBC_TUNABLES" in os.environ}


def is_of(row, case) -> bool:
    """Whether a row, of the CSV or new, has these values."""
    return all(str(row.get(name, "")) == str(value) for name, value in case.items())


def measure_pair(length, num_landmarks, names, arguments) -> list[dict]:
    """Checks, time and memory of both modes at one length and number of landmarks."""
    import jax
    import torch

    torch.set_num_threads(arguments.threads)
    inputs = contenders.make_inputs(length)
    errors = check(inputs, num_landmarks, names)
    times = {}
    for mode in MODES:
        functions = {
            name: contenders.make(name, inputs, num_landmarks, mode == MODES[1]) for name in names
        }
        times |= {(mode, name): values for name, values in take_turns(functions, arguments.rounds)}
    cases = list(times)

    def memory(case):
        mode, name = case
        return measure_memory(
            arguments,
            name=name,
            length=length,
            num_landmarks=num_landmarks,
            backward=mode == MODES[1],
        )

    with ThreadPoolExecutor(arguments.threads) as pool:
        megabytes = list(pool.map(memory, cases))
    return [
        {
            "length": length,
            "num_landmarks": num_landmarks,
            "mode": mode,
            "contender": name,
            "milliseconds": round(1e3 * statistics.median(times[mode, name]), 3),
            "min": round(1e3 * min(times[mode, name]), 3),
            "max": round(1e3 * max(times[mode, name]), 3),
            "rounds": len(times[mode, name]),
            "extra_megabytes": round(used["extra"], 1),
            "relative_error": errors.get(name, ("", ""))[0],
            "relative_error_own_scale": errors.get(name, ("", ""))[1],
            **setting_of(arguments),
            "jax": jax.__version__,
            "torch": torch.__version__,
        }
        for (mode, name), used in zip(cases, megabytes, strict=True)
    ]


def check(inputs, num_landmarks, names) -> dict[str, tuple[str, str]]:
    """Each Nyström contender's largest error against eq. 9 in float64.

    Two figures: the output's relative to its largest entry and the gradients' relative to the
    largest of all gradients, whichever is larger; and with each gradient relative to its own
    largest entry. The second is larger where queries and keys have tiny gradients: means over many
    independent tokens are almost equal, which makes A almost of rank one.

    Raises unless the first is within tolerance (for nystrom-attention, whose heads share one
    initial scale, of eq. 9 with such a scale in float32).
    """
    expected = contenders.reference(inputs, num_landmarks)
    errors = {}
    for name in (name for name in names if name in NYSTROM):
        against = expected
        if name == LUCIDRAINS:
            against = contenders.make("shared scale", inputs, num_landmarks, True)()
        results = contenders.make(name, inputs, num_landmarks, True)()
        results = contenders.to_numpy(name, [_detach(x) for x in results])
        against = [np.asarray(x) for x in against]
        wrong = [np.abs(x - y).max() for x, y in zip(results, against, strict=True)]
        largest = [np.abs(x).max() for x in against]
        error = max(wrong[0] / largest[0], max(wrong[1:]) / max(largest[1:]))
        own_scale = max(x / y for x, y in zip(wrong, largest, strict=True))
        if not error <= TOLERANCE.get(name, 1e-4):
            raise AssertionError(
                f"{name}: N={inputs[0].shape[1]}, {num_landmarks} landmarks: differs from eq. 9 by "
                f"{error:.1e} of the largest entry, allowed {TOLERANCE.get(name, 1e-4):.0e}"
            )
        errors[name] = f"{error:.1e}", f"{own_scale:.1e}"
    return errors


def take_turns(functions, rounds, budget=40.0):
    """(name, seconds per call in each round) of functions that run in turns.

    A turn lasts 50 ms or one call. A call before it, unless it takes half a second, is not counted:
    the cache and the free pages are another contender's then. A contender that has had `budget`
    seconds gets no more turns.
    """
    seconds, spent = {name: [] for name in functions}, dict.fromkeys(functions, 0.0)
    once = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        once[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, function in functions.items():
            if spent[name] > budget:
                continue
            if once[name] < 0.5:
                function()
            calls = int(max(1, min(50, 0.05 / once[name])))
            start = time.perf_counter()
            for _ in range(calls):
                function()
            elapsed = time.perf_counter() - start
            spent[name] += elapsed
            seconds[name].append(elapsed / calls)
    return seconds.items()


def measure_memory(arguments, **case) -> dict:
    """`peak_memory` of a case in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.attention", f"--measure={json.dumps(case)}"]
    command += [f"--{name}={getattr(arguments, name)}" for name in PASSED_ON]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(result.stdout)


def peak_memory(name, length, num_landmarks, backward, heads=contenders.HEADS) -> dict:
    """Megabytes that a call needs at its peak: beyond its inputs, and of the process in all."""
    if name in (*TORCH_NYSTROM, contenders.TORCH_EXACT):
        small = contenders.make_inputs(2 * num_landmarks)
        contenders.make(name, small, num_landmarks, backward)()  # libraries and threads are there
    function = contenders.make(name, contenders.make_inputs(length, heads), num_landmarks, backward)
    gc.collect()  # JAX frees the NumPy arrays it has copied when Python next collects
    ctypes.CDLL(None).malloc_trim(0)  # what compiling has left
    Path("/proc/self/clear_refs").write_text("5")  # the peak is measured from here
    before = _status("VmRSS")
    function()
    return {"extra": _status("VmHWM") - before, "peak": _status("VmHWM")}


def long_sequences(arguments):
    """Time and memory of ours, forward and backward, over LONG_LENGTHS; how they grow."""
    functions = {
        length: contenders.make(OURS, contenders.make_inputs(length, heads=1), 64, True)
        for length in LONG_LENGTHS
    }
    rows = []
    for length, seconds in take_turns(functions, arguments.rounds):
        used = measure_memory(
            arguments, name=OURS, length=length, num_landmarks=64, backward=True, heads=1
        )
        rows.append(
            {
                "length": length,
                "seconds": statistics.median(seconds),
                "nanoseconds_per_token": round(1e9 * statistics.median(seconds) / length, 1),
                "extra_megabytes": round(used["extra"], 1),
                "peak_megabytes": round(used["peak"], 1),
                "threads": arguments.threads,
            }
        )
        print("  ".join(f"{name} {value:,.5g}" for name, value in rows[-1].items()), flush=True)
        path = arguments.output_dir / "attention_long.csv"
        write_signed(path, rows, ("length", "threads"))
    fitted = [row for row in rows if row["length"] <= 262144]
    for name in ("seconds", "extra_megabytes"):
        logs = np.log([[row["length"], row[name]] for row in fitted])
        print(f"{name} grow as N^{np.polyfit(*logs.T, 1)[0]:.3f} from 4,096 to 262,144")
    each = [row["nanoseconds_per_token"] for row in rows if row["length"] >= 16384]
    print(f"time per token from 16,384 on: largest / smallest {max(each) / min(each):.2f}")


def _status(field):
    """A size from /proc/self/status, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def _detach(x):
    return x.detach() if hasattr(x, "detach") else x


if __name__ == "__main__":
    run(main)
