"""What ListOps gives away: accuracy and loss of knowing only an expression's first or last tokens.

    python -m benchmarks.listops_floor [--cache_dir=DIR]

For each set of tokens, the labels' frequencies given those tokens, counted over the training
split with half a count added to each label, predict validation and test. A model whose scores
match a row need know no more than its tokens.
"""

import argparse
from collections import defaultdict

import numpy as np

import lra_tasks
from configs import lra_listops

# Position 0 is the root operator, 1 its first argument or that argument's operator, and -2 the
# token before the last closing bracket.
KNOWN = {
    "nothing": (),
    "root operator": (0,),
    "root, last token": (0, -2),
    "root, next token": (0, 1),
    "root, next two tokens": (0, 1, 2),
    "root, next and last token": (0, 1, -2),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache_dir", default="")
    arguments = parser.parse_args()
    config = lra_listops.get_config()
    config.task.source = "generated"
    task = lra_tasks.load(config.task, arguments.cache_dir or None)
    splits = {name: read(split.examples) for name, split in task.splits.items()}
    print(f"{task.name}, source {task.source}, fingerprint {task.fingerprint}")
    for name, positions in KNOWN.items():
        counts = defaultdict(lambda: np.full(task.num_classes, 0.5))
        for tokens, label in splits["train"]:
            counts[tuple(tokens[p] for p in positions)][label] += 1
        scores = {
            split: score(counts, positions, splits[split]) for split in ("validation", "test")
        }
        columns = (f"{split}: {100 * a:5.2f} %, {b:.4f} nats" for split, (a, b) in scores.items())
        print(f"{name:26}" + "  ".join(columns))


def read(examples) -> list[tuple[np.ndarray, int]]:
    """(tokens, label) of every example."""
    rows = examples.__getitems__(range(len(examples)))
    return [(row["inputs"], int(row["label"])) for row in rows]


def score(counts, positions, examples) -> tuple[float, float]:
    """Accuracy, and mean loss in nats, of the counted frequencies on examples."""
    correct, loss = 0, 0.0
    for tokens, label in examples:
        frequency = counts[tuple(tokens[p] for p in positions)]
        correct += frequency.argmax() == label
        loss -= np.log(frequency[label] / frequency.sum())
    return correct / len(examples), loss / len(examples)


if __name__ == "__main__":
    main()
