"""Examples per second of whole training steps: ours, padded and bucketed, beside PyTorch's.

    python -m benchmarks.train_step [--tasks=listops,text] [--rounds=5] [--threads=2]

Needs PyTorch (`pip install torch`) and prepares the tasks' data on first use. All run in one
process on the same cores, batches and batch size, taking turns round by round; medians over
the rounds. Forward, backward and AdamW in float32, dropout on. Before anything is timed, both
must give the same logits for the same weights. PyTorch pads as the authors' code does, every
document to `padded_length`, and takes the batch whole and in the parts that ours takes it in: the
ratios are to the faster of the two. Ours takes each core for a device, and runs in length buckets
too, as `train.py` has it; beside that, on all cores as one device. Steps per round: 1 of PyTorch's,
2 padded, and 8 bucketed for the buckets to be met in proportion.
"""

import dataclasses
import importlib
import statistics
import time

from benchmarks.command_line import add_output, count, make_parser, one_of, run, several, use_cores
from benchmarks.tables import write_signed
from lra_tasks.check_config import NAMES

STEPS_PER_ROUND = {
    "PyTorch, padded": 1,
    "PyTorch, padded, in parts": 1,
    "ours, padded": 2,
    "ours, bucketed": 8,
    "ours, bucketed, one device": 8,
}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--tasks", type=several(one_of(NAMES)), default="listops,text")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--accumulate_steps", type=count, help="instead of the config's")
    parser.add_argument("--cache_dir", default="", help="where prepared data are kept")
    add_output(parser, "results/benchmarks/train_step.csv")
    arguments = parser.parse_args()
    # Before JAX starts: it takes as many threads as there are cores that it may use.
    use_cores(arguments.threads)
    import jax

    jax.config.update("jax_num_cpu_devices", arguments.threads)
    rows = []
    for name in arguments.tasks:
        rows += benchmark(name, arguments)
        write_signed(arguments.output, rows, ("task", "contender", "threads"))


def benchmark(task_name, arguments) -> list[dict]:
    """Times one task's contenders; prints a table and returns its rows."""
    import jax
    import torch

    import lra_tasks
    from benchmarks import torch_nystromformer
    from experiment.config_checks import choose_accumulate_steps
    from experiment.mesh import make_mesh

    torch.set_num_threads(arguments.threads)
    config = importlib.import_module(f"configs.lra_{task_name}").get_config()
    if arguments.accumulate_steps:
        config.accumulate_steps = arguments.accumulate_steps
    parts, mesh_parts = (
        choose_accumulate_steps(config, devices, jax.default_backend())
        for devices in (1, jax.device_count())
    )
    task = lra_tasks.load(config.task, arguments.cache_dir or None)
    bucketed = lra_tasks.Batches(task, "train", config.batch_size, seed=0)
    without = dataclasses.replace(task, bucket_boundaries=())
    padded = lra_tasks.Batches(without, "train", config.batch_size, seed=0)

    one_device_step, model = our_training(config, task, parts)
    our_step, _ = our_training(config, task, mesh_parts, make_mesh(config))
    peer = torch_nystromformer.classifier_like(model, config, task)
    check_same_model(model, peer, task)
    peer_step = torch_nystromformer.make_step(config, peer.train())
    parts_step = torch_nystromformer.make_step(config, peer, parts)

    contenders = {  # a step, its batches, and the parts that it takes one in
        "PyTorch, padded": (peer_step, padded, 1),
        "PyTorch, padded, in parts": (parts_step, padded, parts),
        "ours, padded": (our_step, padded, mesh_parts),
        "ours, bucketed": (our_step, bucketed, mesh_parts),
        "ours, bucketed, one device": (one_device_step, bucketed, parts),
    }
    warm_up(contenders, bucketed)
    rates = {name: [] for name in contenders}
    for round_number in range(arguments.rounds):
        for name, (step, batches, _) in contenders.items():
            count = STEPS_PER_ROUND[name]
            ready = [batches[round_number * count + i] for i in range(count)]
            start = time.perf_counter()
            for batch in ready:
                jax.block_until_ready(step(batch))
            seconds = time.perf_counter() - start
            rates[name].append(count * config.batch_size / seconds)
    num_parts = {name: parts for name, (_, _, parts) in contenders.items()}
    return report(task, config, arguments, rates, num_parts)


def our_training(config, task, num_parts, mesh=None):
    """`train.py`'s own step from its own start, as a function of a batch; and the model."""
    import jax
    from flax import nnx

    from experiment import training
    from experiment.mesh import put_batch, put_whole
    from experiment.model import make_model
    from experiment.objectives import make_objective

    model = make_model(config.model, task, config.seed)
    objective = make_objective(config, task)
    graph, params = nnx.split(model)
    optimizer = training.make_optimizer(config)
    state = training.initial_state(optimizer, params)
    state = jax.tree.map(jax.numpy.copy, state)  # given to the step, while the model is kept
    state = state if mesh is None else put_whole(mesh, state)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def step(batch):
        nonlocal state
        batch = jax.device_put(batch) if mesh is None else put_batch(mesh, batch)
        state, metrics = training.train_step(
            graph, optimizer, state, batch, key, num_parts, mesh, objective
        )
        return metrics

    return step, model


def check_same_model(model, peer, task):
    """Raises unless both give the same logits for the same weights, on documents of full length."""
    import numpy as np
    import torch

    tokens = np.random.default_rng(0).integers(1, task.vocab_size, (2, task.padded_length))
    ours = np.asarray(model(tokens.astype(np.int32), np.ones(tokens.shape, bool)))
    with torch.no_grad():
        theirs = peer.eval()(torch.from_numpy(tokens), torch.ones(tokens.shape)).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def warm_up(contenders, bucketed):
    """Compiles every shape and runs each contender once more."""
    import jax

    seen = set()
    for step in range(10_000):
        width = bucketed.indices(step)[1]
        if width not in seen:
            for name in ("ours, bucketed", "ours, bucketed, one device"):
                contenders[name][0](bucketed[step])
            seen.add(width)
        if seen == bucketed.shapes:
            break
    for step, batches, _ in contenders.values():
        for _ in range(2):
            jax.block_until_ready(step(batches[0]))


def report(task, config, arguments, rates, num_parts):
    """Prints the table and returns its rows."""
    import jax
    import torch

    base = max(statistics.median(rates[name]) for name in rates if name.startswith("PyTorch"))
    buckets = "buckets " + " ".join(map(str, task.bucket_boundaries))
    rows = []
    print(f"\n{task.name} ({task.source}), batch {config.batch_size}, {arguments.threads} threads")
    print(f"{'':<26}{'examples/s':>11}{'(min':>8}{'max)':>8}{'x PyTorch':>11}")
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:<26}{median:11.1f}{min(values):8.1f}{max(values):8.1f}{median / base:11.2f}")
        rows.append(
            {
                "task": task.name,
                "source": task.source,
                "contender": name,
                "padding": buckets if "bucketed" in name else str(task.padded_length),
                "batch_size": config.batch_size,
                "accumulate_steps": num_parts[name],
                "threads": arguments.threads,
                "rounds": arguments.rounds,
                "examples_per_second": round(median, 2),
                "min": round(min(values), 2),
                "max": round(max(values), 2),
                "times_pytorch": round(median / base, 2),
                "jax": jax.__version__,
                "torch": torch.__version__,
            }
        )
    return rows


if __name__ == "__main__":
    run(main)
