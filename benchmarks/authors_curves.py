"""Do we train as the authors' setting does? Ours and PyTorch's losses, step by step.

    python -m benchmarks.authors_curves [--steps=1000] [--seed=0] [-- --config.field=value ...]

ListOps `:authors`, the setting of the authors' released code: our training step, and the same model
written in PyTorch with PyTorch's own AdamW and OneCycleLR (`torch_nystromformer.py`), from the same
initial weights on the same batches. Dropout draws differ, so losses agree up to its noise; with
`-- --config.model.dropout_rate=0` nothing differs but rounding. Both losses go to a CSV, until
the end to one named .partial.csv, and a figure beside it. Needs PyTorch (`pip install torch`) and
prepares ListOps on first use.
"""

import argparse
import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.command_line import count, make_parser, run, seed, writable_file

OUTPUT = "results/benchmarks/authors_curves.csv"
WINDOW = 50  # steps that a curve in the figure is a mean of


def main(arguments: list[str] | None = None):
    """Trains both and writes their losses and the figure."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=count, default=1_000)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--threads", type=count, default=2)
    parser.add_argument("--cache_dir", default="", help="where prepared data are kept")
    parser.add_argument("--output", type=writable_file, help=f"else {OUTPUT}")
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.overrides and not options.output:
        parser.error("other fields need an --output of their own")
    options.output = options.output or Path(OUTPUT)
    import torch

    import lra_tasks
    from benchmarks import torch_nystromformer
    from benchmarks.train_step import our_training
    from configs import reading

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    given = ("--config=configs/lra_listops.py:authors", f"--config.seed={options.seed}",
             "--config.task.source=generated")  # fmt: skip
    config, _, _ = reading.read_config([*given, *options.overrides])
    task = lra_tasks.load(config.task, options.cache_dir or None)
    batches = lra_tasks.Batches(task, "train", config.batch_size, seed=config.seed)
    our_step, model = our_training(config, task, config.accumulate_steps)
    peer = torch_nystromformer.classifier_like(model, config, task)
    peer.to("cuda" if torch.cuda.is_available() else "cpu")
    peer_step = torch_nystromformer.make_step(config, peer.train())

    def both(batch):
        total, weight = our_step(batch)["loss"]
        return float(total / weight), peer_step(batch)

    pairs = (both(batches[step]) for step in range(options.steps))
    describe(write(pairs, options.output), options.output)


def write(pairs: Iterable[tuple[float, float]], output: Path) -> np.ndarray:
    """Writes both losses of each step as they come; `output` is replaced when all have."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.csv")
    losses = []
    with partial.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "ours", "pytorch"))
        for step, pair in enumerate(pairs, 1):
            losses.append(pair)
            writer.writerow((step, *(f"{loss:.5f}" for loss in pair)))
            if step % 20 == 0:
                file.flush()
                ours, theirs = np.mean(losses[-20:], axis=0)
                print(f"step {step}: ours {ours:.4f}, PyTorch {theirs:.4f}", flush=True)
    os.replace(partial, output)
    return np.array(losses)


def describe(losses: np.ndarray, output: Path) -> None:
    """Prints how far the curves are apart, and draws them."""
    from matplotlib.figure import Figure

    window = min(WINDOW, len(losses))
    smooth = np.apply_along_axis(np.convolve, 0, losses, np.ones(window) / window, "valid")
    apart = np.abs(losses[:, 0] - losses[:, 1])
    print(
        f"{len(losses)} steps: losses of a step differ by {apart.mean():.4f} in the mean, "
        f"{apart.max():.4f} at most; means of {window} steps by at most "
        f"{np.abs(smooth[:, 0] - smooth[:, 1]).max():.4f}"
    )
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = np.arange(window, len(losses) + 1)
    for curve, name, style in zip(smooth.T, ("ours", "PyTorch"), ("-", "--"), strict=True):
        axes.plot(steps, curve, style, label=name)
    axes.set_xlabel("training step")
    axes.set_ylabel("training loss (nats)")
    axes.set_title(f"ListOps :authors, means of {window} steps", fontsize=10)
    axes.legend(frameon=False)
    figure.savefig(output.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    run(main)
