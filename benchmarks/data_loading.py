"""What a training step spends outside the compiled program: data, transfer and dispatch.

    python -m benchmarks.data_loading [--task=listops] [--steps=40] [--threads=2]

First medians over training steps of: building a batch (in this thread; `train.py` does it in
another, ahead of time), putting it on the device, the call of the jitted step until it returns, and
the whole step until its result is there. Then a loop that waits for every step, with batches built
ahead as `train.py` has them, beside one over batches in memory: the difference is what loading
costs. One device.
"""

import importlib
import statistics
import time

from benchmarks.command_line import count, make_parser, one_of, run, seed, use_cores
from lra_tasks.check_config import NAMES


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--task", type=one_of(NAMES), default="listops")
    parser.add_argument("--steps", type=count, default=40)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--cache_dir", default="", help="where prepared data are kept")
    parser.add_argument("--num_train", type=seed, default=0, help="examples; 0: the task's own")
    arguments = parser.parse_args()
    use_cores(arguments.threads)

    import jax

    import lra_tasks
    from benchmarks.train_step import our_training
    from experiment.config_checks import choose_accumulate_steps

    config = importlib.import_module(f"configs.lra_{arguments.task}").get_config()
    config.task.num_train = arguments.num_train or config.task.num_train
    config.accumulate_steps = choose_accumulate_steps(
        config, jax.device_count(), jax.default_backend()
    )
    task = lra_tasks.load(config.task, arguments.cache_dir or None)
    batches = lra_tasks.Batches(task, "train", config.batch_size, seed=0)
    step, _ = our_training(config, task, config.accumulate_steps)
    in_memory = [batches[i] for i in range(arguments.steps)]
    for width in sorted(batches.shapes):
        for batch in in_memory:
            if batch["inputs"].shape[-1] == width:
                jax.block_until_ready(step(batch))
                break

    parts = {"build a batch": [], "put on the device": [], "dispatch": [], "whole step": []}
    for i in range(arguments.steps):
        times = [time.perf_counter()]
        batch = batches[i]
        times.append(time.perf_counter())
        batch = jax.block_until_ready(jax.device_put(batch))
        times.append(time.perf_counter())
        result = step(batch)
        times.append(time.perf_counter())
        jax.block_until_ready(result)
        times.append(time.perf_counter())
        for name, start, stop in zip(parts, times[:3], times[1:4], strict=False):
            parts[name].append(stop - start)
        parts["whole step"].append(times[4] - times[2])
    whole = statistics.median(parts["whole step"])
    print(f"{task.name} ({task.source}), batch {config.batch_size}, {arguments.threads} threads")
    for name, values in parts.items():
        median = statistics.median(values)
        print(f"{name:<20}{1e3 * median:9.2f} ms{100 * median / whole:8.2f} % of the step")

    loops = {"loaded ahead": [], "in memory": []}
    for _ in range(3):
        for name, values in loops.items():
            pairs = enumerate(in_memory)
            if name == "loaded ahead":
                pairs = lra_tasks.prefetch(batches, 0, arguments.steps)
            start = time.perf_counter()
            for _, batch in pairs:
                jax.block_until_ready(step(batch))
            values.append(time.perf_counter() - start)
    ahead, memory = (statistics.median(values) for values in loops.values())
    print(f"loop of {arguments.steps} steps: {ahead:.2f} s, from memory {memory:.2f} s")
    print(f"data loading costs {100 * (ahead / memory - 1):.2f} % of the loop")


if __name__ == "__main__":
    run(main)
