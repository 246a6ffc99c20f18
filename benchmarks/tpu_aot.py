"""What TPU programs of the attentions and training steps need, compiled ahead of time: no TPU.

    pip install -r benchmarks/requirements-tpu.txt
    python -m benchmarks.tpu_aot [--topology=v5e:2x2] [--lengths=4096,16384,65536] [--steps]
        [--only "ours*" "eq. 9*, joined, forward"]

For one device of the topology: temporary memory, bytes accessed, FLOPs and the
estimate of the time (bytes over bandwidth, or FLOPs over speed if that is more), as XLA's compiler
counts them, and the CPU time that compiling took. Loop bodies are counted once. Ours stands beside
eq. 9 as one would write it (`plain` of benchmarks/attention_contenders.py, with products of
tokens in the inputs' dtype, A and its inverse in float32) and exact attention. Float32 is compiled
at the highest matmul precision throughout. "padded": with a mask, as a batch of texts has.
"joined": query, key and value come as B N C, as a model's projections give them; otherwise B N H D
is how they lie in memory. What the CSV has of this commit is not compiled again without --fresh; a
program without figures does not fit the device's memory.

"ours, kernels" is implementation="pallas": of its kernels XLA counts the bytes that this package
says, each array of a kernel once, and no FLOPs.
"""

import csv
import importlib
import os
import time
from fnmatch import fnmatchcase
from functools import partial

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import nystrom
from benchmarks.attention_contenders import forward_and_backward, plain
from benchmarks.command_line import add_output, count, make_parser, run, several
from benchmarks.tables import same_commit, write_csv
from experiment.provenance import code_version

HEADS, DEPTH, LANDMARKS = 8, 64, 64
EXACT_UP_TO = 16_384  # exact attention's N x N logits take 16 GB at 65,536
COLUMNS = (
    "program", "dtype", "length", "pass", "memory_mb", "accessed_mb", "gflops", "estimate_ms",
    "compile_s", "topology", "jax", "commit",
)  # fmt: skip
NAMES = (*COLUMNS[:4], "topology")  # of a row; the rest are its figures
OURS, KERNELS, EQ_9, EXACT = "ours", "ours, kernels", "eq. 9 in JAX", "exact, JAX"


def main():
    arguments = options(__doc__, "v5e:2x2", "results/benchmarks/tpu_aot.csv")
    place = first_device(platform="tpu", topology_name=arguments.topology)
    fill_table(arguments, COLUMNS, partial(plan, place=place))


def options(description, topology, output):
    """The command line's, with the defaults of a platform."""
    parser = make_parser(description)
    parser.add_argument("--topology", default=topology)
    parser.add_argument("--lengths", type=several(count), default="4096,16384,65536")
    parser.add_argument("--steps", action="store_true", help="training steps of LRA models too")
    parser.add_argument(
        "--only", nargs="+", default=["*"], help="'program, dtype, length, pass' like one of these"
    )
    add_output(parser, output)
    parser.add_argument("--fresh", action="store_true", help="compile again what is in the CSV")
    return parser.parse_args()


def first_device(**topology):
    """Where to put the arrays of a program for one device of a topology."""
    try:
        return SingleDeviceSharding(topologies.get_topology_desc(**topology).devices[0])
    except (RuntimeError, NotImplementedError) as error:
        lines = str(error).splitlines()
        raise SystemExit(
            f"error: no compiler for {topology['platform']} programs here; are this benchmark's "
            f"requirements installed, see --help? {lines[0] if lines else ''}"
        ) from error


def fill_table(arguments, columns, plan):
    """Compiles what the CSV lacks of this commit; `plan(function, arrays)` is a row."""
    path = arguments.output
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    about = {"jax": jax.__version__, "commit": code_version()}
    chosen = [given for given in programs(arguments) if is_named(given[0], arguments.only)]
    if not chosen:
        raise SystemExit(f"error: --only: no program is named like {' or '.join(arguments.only)}")
    for names, make in chosen:
        names = dict(zip(NAMES, map(str, (*names, arguments.topology)), strict=True))
        old = [row for row in rows if names.items() <= row.items()]
        if not arguments.fresh and any(same_commit(row, about) for row in old):
            continue
        rows = [*(row for row in rows if row not in old), names | plan(*make()) | about]
        print("  ".join(f"{name} {rows[-1].get(name, '-')}" for name in columns), flush=True)
        write_csv(path, rows, columns)


def is_named(names, patterns):
    """Whether a program's names, joined by commas, are like one of the patterns."""
    return any(fnmatchcase(", ".join(map(str, names)), pattern) for pattern in patterns)


def programs(arguments):
    """((program, dtype, length, pass), function that makes it and its arguments) of each."""
    for length in arguments.lengths:
        for dtype in (jnp.float32, jnp.bfloat16):
            for name, attention in contenders(arguments.topology, length).items():
                for what in passes(name, arguments.topology):
                    names = name, jnp.dtype(dtype).name, length, what
                    yield names, partial(program, attention, length, dtype, what)
    for task in ("listops", "pathfinder") if arguments.steps else ():
        for attention in ("nystrom", "softmax"):
            length = task_config(task).task.padded_length
            names = f"{task} step, {attention}", "float32", length, "step"
            yield names, partial(training_step, task, attention)


def passes(name, topology):
    """What is compiled of an attention."""
    for layout in ("", "joined, ") if is_tpu(topology) and name != EXACT else ("",):
        for padding in ("", "padded, ") if name in (OURS, KERNELS) else ("",):
            for direction in ("forward", "gradient"):
                yield layout + padding + direction


def is_tpu(topology):
    return topology.startswith("v")  # of a TPU's generation


def contenders(topology, length):
    """Attentions by name, functions of query, key and value B N H D."""
    ours = partial(nystrom.nystrom_attention, num_landmarks=LANDMARKS)
    found = {
        OURS: ours,
        EQ_9: partial(plain, num_landmarks=LANDMARKS),
    }
    if is_tpu(topology):
        found[KERNELS] = partial(ours, implementation="pallas")
    if length <= EXACT_UP_TO:
        found[EXACT] = jax.nn.dot_product_attention
    return found


def program(attention, length, dtype, what):
    """A function and the shapes of its arguments, of which a mask is the last."""
    is_joined, is_padded, backward = (word in what for word in ("joined", "padded", "gradient"))
    shape = (1, length, HEADS * DEPTH) if is_joined else (1, length, HEADS, DEPTH)
    tokens = [jax.ShapeDtypeStruct(shape, dtype)] * (3 + backward)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)

    def run(*arrays):
        options = {"mask": arrays[-1]} if is_padded else {}

        def attend(*inputs):
            apart = (x.reshape(1, length, HEADS, DEPTH) for x in inputs)
            return attention(*apart, **options).reshape(shape)

        arrays = arrays[: len(tokens)]
        return forward_and_backward(attend, *arrays) if backward else attend(*arrays)

    return run, tokens + [mask] * is_padded


def task_config(name):
    """The config of a task's recipe."""
    return importlib.import_module(f"configs.lra_{name}").get_config()


def training_step(task_name, attention):
    """The trainer's step on a batch of the task's recipe, and the shapes of its arguments."""
    from flax import nnx

    import lra_tasks
    from experiment import model, objectives, training

    config = task_config(task_name)
    config.model.attention = attention
    config.task.source = "synthetic"
    task = lra_tasks.load(config.task)
    graph, params = nnx.split(model.make_model(config.model, task, 0))
    optimizer = training.make_optimizer(config)
    state = training.initial_state(optimizer, params)
    batch = lra_tasks.Batches(task, "train", config.batch_size, seed=0)[0]
    width = config.task.padded_length
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), state)
    rows = {
        name: jax.ShapeDtypeStruct((len(x), width) if x.ndim > 1 else x.shape, x.dtype)
        for name, x in batch.items()
    }
    key = jax.random.key(0)
    objective = objectives.make_objective(config, task)
    step = partial(training.train_step.__wrapped__, graph, optimizer, objective=objective)
    return step, [shapes, rows, jax.ShapeDtypeStruct(key.shape, key.dtype)]


def plan(function, arrays, place):
    """Memory (MB), bytes accessed (MB), GFLOPs, estimated ms and CPU seconds of compiling.

    Nothing for a program that the device has no memory for.
    """
    try:
        compiled, seconds = compile_for("tpu", place, function, arrays)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {}
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    estimate = round(1e3 * cost.get("optimal_seconds", 0), 3)  # negative where it has none
    return {
        "memory_mb": round(memory.temp_size_in_bytes / 1e6, 2),
        "accessed_mb": round(cost["bytes accessed"] / 1e6, 1),
        "gflops": round(cost.get("flops", 0) / 1e9, 2),
        "estimate_ms": estimate if estimate > 0 else "",
        "compile_s": round(seconds, 1),
    }


def compile_for(platform, place, function, arrays):
    """The compiled program, and the CPU seconds that compiling took."""
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(function, in_shardings=place, out_shardings=place).trace(*arrays)
        lowered = traced.lower(lowering_platforms=(platform,))
        start = time.process_time()
        compiled = lowered.compile()
    return compiled, time.process_time() - start


if __name__ == "__main__":
    run(main)
