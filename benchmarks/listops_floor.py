"""What ListOps gives away: accuracy and loss of knowing only some of an expression's tokens.

    python -m benchmarks.listops_floor [--cache_dir=DIR]

For each row, the labels' frequencies given what the row knows, counted over the training split
with half a count added to each label, predict validation and test. A model whose scores match a
row need know no more. The last rows know the root operator and some of its own digits: those
before the first operator within it, those after the last closing bracket within it, both, and
all, which takes knowing every token's depth. Of these digits they know the least for MIN, the
greatest for MAX, the mean, rounded down, and how many (up to 4) for MED, nothing for SM.
"""

import itertools
from collections import defaultdict

import numpy as np

import lra_tasks
from benchmarks.command_line import add_output, make_parser, run
from benchmarks.tables import write_csv
from configs import lra_listops
from lra_tasks.listops import CLOSE, FIRST_DIGIT, FIRST_OPERATOR


def tokens_at(*positions):
    """Knows the tokens at some positions; -2 is the one before the last closing bracket."""
    return lambda tokens: tuple(tokens[p] for p in positions)


def root_and(digits):
    """Knows the root operator, and what `digits(tokens)`, a list of 0 .. 9, say of its value."""

    def known(tokens):
        operator, found = tokens[0] - FIRST_OPERATOR, digits(tokens)
        if operator == 3 or not found:
            return (operator,)
        if operator == 2:
            return operator, sum(found) // len(found), min(len(found), 4)
        return operator, (min, max)[operator](found)

    return known


def leading_digits(tokens):
    """The digits before the first token that is none."""
    return [t - FIRST_DIGIT for t in itertools.takewhile(lambda t: t < FIRST_OPERATOR, tokens)]


def first_digits(tokens):
    """The root's digits before the first operator within it."""
    return leading_digits(tokens[1:])


def last_digits(tokens):
    """The root's digits after the last closing bracket within it."""
    return leading_digits(tokens[-2:0:-1])


def outer_digits(tokens):
    """The first ones and the last: no expression of over 500 tokens is digits alone."""
    return first_digits(tokens) + last_digits(tokens)


def own_digits(tokens):
    """All digits that are the root's own arguments."""
    found, depth = [], 0
    for token in tokens:
        if token == CLOSE:
            depth -= 1
        elif token >= FIRST_OPERATOR:
            depth += 1
        elif depth == 1:
            found.append(token - FIRST_DIGIT)
    return found


KNOWN = {
    "nothing": tokens_at(),
    "root operator": tokens_at(0),
    "root, last token": tokens_at(0, -2),
    "root, next token": tokens_at(0, 1),
    "root, next two tokens": tokens_at(0, 1, 2),
    "root, next and last token": tokens_at(0, 1, -2),
    "root, first digits": root_and(first_digits),
    "root, last digits": root_and(last_digits),
    "root, first and last digits": root_and(outer_digits),
    "root, all its own digits": root_and(own_digits),
}


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--cache_dir", default="")
    add_output(parser, "results/benchmarks/listops_floor.csv")
    arguments = parser.parse_args()
    config = lra_listops.get_config()
    config.task.source = "generated"
    task = lra_tasks.load(config.task, arguments.cache_dir or None)
    splits = {name: read(split.examples) for name, split in task.splits.items()}
    print(f"{task.name}, source {task.source}, fingerprint {task.fingerprint}")
    rows = []
    for name, known in KNOWN.items():
        counts = defaultdict(lambda: np.full(task.num_classes, 0.5))
        for tokens, label in splits["train"]:
            counts[known(tokens)][label] += 1
        scores = {split: score(counts, known, splits[split]) for split in ("validation", "test")}
        columns = (f"{split}: {100 * a:5.2f} %, {b:.4f} nats" for split, (a, b) in scores.items())
        print(f"{name:28}" + "  ".join(columns), flush=True)
        for split, (accuracy, loss) in scores.items():
            row = {"known": name, "split": split}
            row |= {"accuracy": f"{accuracy:.4f}", "loss_nats": f"{loss:.4f}"}
            rows.append(row | {"source": task.source, "fingerprint": task.fingerprint})
    write_csv(arguments.output, rows)


def read(examples) -> list[tuple[list[int], int]]:
    """(tokens, label) of every example."""
    rows = examples.__getitems__(range(len(examples)))
    return [(row["inputs"].tolist(), int(row["label"])) for row in rows]


def score(counts, known, examples) -> tuple[float, float]:
    """Accuracy, and mean loss in nats, of the counted frequencies on examples."""
    correct, loss = 0, 0.0
    for tokens, label in examples:
        frequency = counts[known(tokens)]
        correct += frequency.argmax() == label
        loss -= np.log(frequency[label] / frequency.sum())
    return correct / len(examples), loss / len(examples)


if __name__ == "__main__":
    run(main)
