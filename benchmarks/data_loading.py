"""What a training step spends outside the compiled program: data, transfer and dispatch.

    python -m benchmarks.data_loading [--task=listops] [--steps=40] [--threads=2] [--rates_only]

First the examples per second of `batches[step]` on one thread, gathered from the split's arrays as
they are, and read record by record as they were before there were arrays: both in turns, medians
of rounds, the batches compared. And how long making the arrays takes, once a run. Then, without
--rates_only, medians over training steps of: building a batch (in this thread; `train.py` does it
in another, ahead of time), putting it on the device, the call of the jitted step until it returns,
and the whole step until its result is there. Then the loop as `train.py` has it, with batches built
ahead, beside one over batches in memory: the difference is what loading costs.
"""

import argparse
import importlib
import os
import statistics
import time

ROUNDS = 7


def compare_rates(batches) -> None:
    """Prints examples per second of building batches, gathered and record by record."""
    import numpy as np

    start = time.perf_counter()
    batches[0]
    seconds = time.perf_counter() - start
    count = max(1, min(len(batches), 2_048 // batches.batch_size))
    ways = {"gathered": batches.__getitem__, "by record": lambda i: from_records(batches, i)}
    rates = {name: [] for name in ways}
    for first in range(0, ROUNDS * count, count):
        built = {}
        for name, build in ways.items():
            start = time.perf_counter()
            built[name] = [build(step) for step in range(first, first + count)]
            rate = count * batches.batch_size / (time.perf_counter() - start)
            rates[name].append(rate)
        for ours, theirs in zip(*built.values(), strict=True):
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name], strict=True)
    gathered, by_record = (statistics.median(values) for values in rates.values())
    print(f"{batches.task.name}: {gathered:,.0f} examples/s gathered, {by_record:,.0f} by record")
    print(f"{gathered / by_record:.1f} times as fast")
    print(f"arrays of {len(batches.split.lengths):,} examples made in {seconds:.2f} s")


def from_records(batches, step: int) -> dict:
    """`batches[step]`, its examples read and laid down one by one."""
    import numpy as np

    task, split = batches.task, batches.split
    chosen, width = batches.indices(step)
    shape = (batches.batch_size, task.num_documents, width)
    inputs, lengths = np.zeros(shape, np.int32), np.zeros(shape[:2], np.int32)
    label = np.zeros(batches.batch_size, np.int32)
    for row, example in enumerate(split.examples.__getitems__(chosen.tolist())):
        label[row] = example["label"]
        for document, name in enumerate(("inputs", "inputs2")[: task.num_documents]):
            inputs[row, document, : len(example[name])] = example[name]
    lengths[: len(chosen)] = split.lengths[chosen]
    mask = np.arange(width) < lengths[..., None]
    inputs += task.id_offset * mask
    if task.num_documents == 1:
        inputs, mask = inputs[:, 0], mask[:, 0]
    weight = (np.arange(batches.batch_size) < len(chosen)).astype(np.float32)
    return {"inputs": inputs, "mask": mask, "label": label, "weight": weight}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--task", default="listops")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache_dir", default="", help="where prepared data are kept")
    parser.add_argument("--num_train", type=int, default=0, help="examples; 0: the task's own")
    parser.add_argument("--rates_only", action="store_true", help="no training steps")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])

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
    compare_rates(batches)
    if arguments.rates_only:
        return
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
    main()
