"""One command for a machine with a GPU or a TPU: are values right, and what do things cost there?

    python -m benchmarks.gpu [--minutes=6.5] [--output=results/benchmarks/gpu.csv] [--trace=DIR]
    python -m benchmarks.gpu --quick

Values and gradients of the attentions are compared with float64 first (exit status 1 if ours are
off).

Then milliseconds of attention, forward, and forward and backward: ours, eq. 9 as anyone would write
it, exact attention by cuDNN (bfloat16 alone) and, where PyTorch with CUDA is installed, its exact
attention and the Nyström attentions of `nystrom-attention` and `transformers`. They take turns
round by round; medians. Memory is what the compiled program needs beyond its arguments. Float32 is
multiplied as each does by default: ours in float32, eq. 9 by JAX in TF32.

At last a training step of each LRA task, by its own config on synthetic data at full length. Their
programs are compiled side by side, in the seconds given.

What runs out of memory or time, or isn't there, is said and left out. Rows that the CSV has of
other parts, programs and sizes stay there. --trace writes a trace of the training steps, for
TensorBoard or xprof. --quick has tiny sizes, on any device: that it runs at all; its CSV goes to a
temporary folder.

On a TPU ours is measured with its kernels too (implementation="pallas"), which no TPU has run yet:
the CSV is then tpu.csv.
"""

import concurrent.futures
import contextlib
import csv
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# PyTorch needs memory too. Has to be said before JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

from benchmarks.command_line import (
    count,
    make_parser,
    one_of,
    positive,
    run,
    several,
    writable_file,
)
from benchmarks.gpu_attention import (
    Sizes,
    check_values,
    has_torch,
    megabytes,
    statistics_of,
    take_turns,
    time_attentions,
)
from benchmarks.tables import write_csv
from experiment.provenance import code_version

RESULTS = Path("results/benchmarks")
PARTS = ("values", "bfloat16", "steps", "float32")  # attentions by their dtype
TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
QUICK_TASKS = ("listops",)
COLUMNS = (
    "part", "program", "pass", "dtype", "batch", "heads", "depth", "landmarks", "length",
    "milliseconds", "min", "max", "rounds", "examples_per_second", "compile_s", "memory_mb",
    "relative_error", "device", "driver", "jax", "torch", "commit",
)  # fmt: skip
NAMES = COLUMNS[:9]  # of a row; the rest are its figures
FULL = (
    Sizes("bfloat16", 4, 16, 128, 64, (4_096, 16_384, 65_536, 131_072)),
    Sizes("float32", 1, 8, 64, 64, (4_096, 16_384, 65_536, 131_072)),
)
QUICK = (Sizes("bfloat16", 2, 2, 16, 8, (64,)), Sizes("float32", 1, 2, 16, 8, ()))
QUICK_FIELDS = {
    "batch_size": 4,
    "accumulate_steps": 1,
    "model.num_layers": 1,
    "model.width": 16,
    "model.mlp_width": 16,
    "model.num_landmarks": 8,
    "model.pinv_iterations": 2,
    "task.min_length": 4,
    "task.max_length": 60,
    "task.padded_length": 64,
}


class Bench:
    """Rows of results as they come, and the time that is left for more."""

    def __init__(self, seconds: float, rounds: int, output: Path):
        self.end, self.rounds, self.output = time.monotonic() + seconds, rounds, output
        self.rows, self.wrong = [], []
        self.earlier = []
        if output.exists():
            self.earlier = list(csv.DictReader(output.read_text().splitlines()))
        self.machine = machine()

    def add(self, **values) -> None:
        """Shows a row, and writes all that there are: a later crash loses none."""
        self.rows.append(values | self.machine)
        names = {name: str(values.get(name, "")) for name in NAMES}
        self.earlier = [row for row in self.earlier if not names.items() <= row.items()]
        print("  ".join(f"{name} {value}" for name, value in values.items()), flush=True)
        write_csv(self.output, self.earlier + self.rows, COLUMNS)

    def has_time(self, what: str) -> bool:
        """Whether there is time left; says what is skipped if not."""
        if time.monotonic() < self.end:
            return True
        print(f"skipped: {what}: no time left", flush=True)
        return False

    @contextlib.contextmanager
    def skipping(self, what: str):
        """While entered, what fails is said and left out: no memory, no such library."""
        try:
            yield
        except Exception as error:  # JAX, cuDNN and PyTorch raise many kinds
            lines = str(error).splitlines() or [""]
            print(f"skipped: {what}: {type(error).__name__}: {lines[0][:160]}", flush=True)


def main(arguments=None) -> int:
    """Runs the command; returns its exit status, 1 if values were wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=positive, default=6.5, help="none is begun after these")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--parts", nargs="+", metavar="PART", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--tasks", type=several(one_of(TASKS)), help="whose steps are timed, else all of LRA's"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--trace", help="a folder for a trace of the training steps")
    parser.add_argument("--cache_dir", help="of prepared data, else ~/.cache/nystrom")
    output = "else gpu.csv or tpu.csv in results/benchmarks"
    parser.add_argument("--output", type=writable_file, help=output)
    flags = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp()) if flags.quick and not flags.output else RESULTS
    platform = jax.default_backend()
    flags.output = flags.output or folder / ("tpu.csv" if platform == "tpu" else "gpu.csv")
    if platform not in ("gpu", "tpu") and not flags.quick:
        found = f"its devices are {jax.devices()}"
        parser.error(f"JAX finds no GPU and no TPU, {found}; --quick runs anywhere")
    bench = Bench(60 * flags.minutes, 1 if flags.quick else flags.rounds, flags.output)
    print("  ".join(f"{name} {value}" for name, value in bench.machine.items()), flush=True)
    sizes = {size.dtype: size for size in (QUICK if flags.quick else FULL)}
    for part in flags.parts:
        if part == "values":
            for size in sizes.values():
                check_values(bench, size)
        elif part == "steps":
            time_steps(bench, flags)
        else:
            time_attentions(bench, sizes[part])
    print(f"{len(bench.rows)} rows of these parts in {flags.output}")
    for problem in bench.wrong:
        print(f"WRONG: {problem}", file=sys.stderr)
    return 1 if bench.wrong else 0


def machine() -> dict[str, str]:
    """The card that JAX uses, the driver, and versions."""
    found = {"device": jax.devices()[0].device_kind, "driver": "", "jax": jax.__version__}
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        found["driver"] = lines.partition("\n")[0]  # a line for each card, of one driver
    torch = has_torch()
    return found | {"torch": torch.__version__ if torch else "", "commit": code_version()}


def time_steps(bench: Bench, flags) -> None:
    """The training steps of the tasks, compiled side by side and timed one after another."""
    tasks = flags.tasks or (QUICK_TASKS if flags.quick else TASKS)
    if not bench.has_time("training steps"):
        return
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiling = [pool.submit(compile_step, task, flags) for task in tasks]
        concurrent.futures.wait(compiling)
    for task, compiled in zip(tasks, compiling, strict=True):
        with bench.skipping(f"training step of {task}"):
            time_step(bench, task, flags, *compiled.result())


def compile_step(name: str, flags):
    """The trainer's step on a batch of the task's config, padded to its full length."""
    from flax import nnx

    import lra_tasks
    from experiment import config_checks, model, objectives, training

    config = importlib.import_module(f"configs.lra_{name}").get_config()
    config.update_from_flattened_dict({"task.source": "synthetic", "task.bucket_boundaries": ()})
    config.update_from_flattened_dict(QUICK_FIELDS if flags.quick else {})
    parts = config_checks.choose_accumulate_steps(config, 1, jax.default_backend())
    task = lra_tasks.load(config.task, flags.cache_dir, progress=False)
    graph, params = nnx.split(model.make_model(config.model, task, config.seed))
    optimizer = training.make_optimizer(config)
    state = training.initial_state(optimizer, params)
    batch = jax.device_put(lra_tasks.Batches(task, "train", config.batch_size, seed=0)[0])
    key = jax.random.key(0)
    start = time.perf_counter()
    objective = objectives.make_objective(config, task)
    lowered = training.train_step.lower(
        graph, optimizer, state, batch, key, parts, objective=objective
    )
    compiled = lowered.compile()
    return config, task, compiled, time.perf_counter() - start, (state, batch, key)


def time_step(bench, name, flags, config, task, compiled, seconds, arguments) -> None:
    """The row of a training step."""
    state, batch, key = arguments

    def step():
        nonlocal state
        state, metrics = compiled(state, batch, key)
        jax.block_until_ready(metrics)

    step()
    trace = jax.profiler.trace(f"{flags.trace}/{name}") if flags.trace else None
    with trace or contextlib.nullcontext():
        values = take_turns(bench, {name: step})[name]
    rate = 1e3 * config.batch_size / statistics.median(values)
    bench.add(part="training step", program=f"{name}, {config.model.attention}",
              **{"pass": "step"}, dtype=config.model.dtype, batch=config.batch_size,
              heads=config.model.num_heads, depth=config.model.width // config.model.num_heads,
              landmarks=config.model.num_landmarks, length=task.padded_length,
              **statistics_of(values), examples_per_second=f"{rate:.4g}",
              compile_s=round(seconds, 1), memory_mb=megabytes(compiled))  # fmt: skip


if __name__ == "__main__":
    run(main)
