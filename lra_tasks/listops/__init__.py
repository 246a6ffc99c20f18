"""ListOps: value of a nested expression of minimum, maximum, median and sum modulo 10.

Trees as in the Long Range Arena (Tay et al., arXiv 2011.04006): a node at depth d (the root's is 1)
is an operator with probability 1/4 while d < 10, else a digit; 2 to 10 arguments, uniformly. An
expression counts if min_length < its tokens < max_length.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lra_tasks import parallel, synthetic

TITLE = "ListOps"
NUM_CLASSES = 10
CHANCE = 17.2  # the share of the commonest digit
# Fixed here, never built from data: ids must be the same in every process.
TOKENS = ("<pad>", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
VOCAB_SIZE = len(TOKENS)
NUM_DOCUMENTS = 1
ID_OFFSET = 0
FIRST_ID = 1
VERSION = "1.0.0"
SOURCES = ("release", "generated", "synthetic")
LABEL_NAMES = tuple("0123456789")

IDS = {token: i for i, token in enumerate(TOKENS) if i}
FIRST_DIGIT, FIRST_OPERATOR, CLOSE = IDS["0"], IDS["[MIN"], IDS["]"]
OPERATOR_PROBABILITY = 0.25
MAX_DEPTH = 10
MAX_ARGUMENTS = 10

FULL_SIZES = {"train": 96_000, "validation": 2_000, "test": 2_000}
MIN_LENGTH, MAX_LENGTH = 500, 2_000
DRAWS_PER_CHUNK = 2_000  # trees drawn from one seed; part of what a data_seed means
BARREN_CHUNKS = 50  # chunks in a row without a new expression that mean: there are no more


def check(config) -> list[str]:
    """Problems of the fields that only ListOps understands."""
    if config.min_length + 1 >= config.max_length:
        return [
            f"config.task.min_length={config.min_length}: expected less than max_length - 1 = "
            f"{config.max_length - 1} (both bounds are exclusive)"
        ]
    return []


def set_name(config, source: str) -> str:
    """What distinguishes a set: sizes, length bounds, seed."""
    sizes = "-".join(str(n or "all") for n in num_examples(config, source).values())
    name = f"{sizes}-over{config.min_length}-under{config.max_length}"
    return name if source == "release" else f"{name}-seed{config.data_seed}"


def num_examples(config, source: str) -> dict[str, int | None]:
    """Examples of each split; None: as many as the release's file has."""
    if source == "synthetic":
        return synthetic.sizes(config)
    sizes = FULL_SIZES if source == "generated" else {}
    return {split: getattr(config, f"num_{split}") or sizes.get(split) for split in FULL_SIZES}


def why_not_comparable(config, source: str, notes: dict) -> str:
    """'' for the release, or our generator at LRA's sizes and lengths; else the reason."""
    if source == "synthetic":
        return "synthetic examples, for smoke tests"
    if (config.min_length, config.max_length) != (MIN_LENGTH, MAX_LENGTH):
        return (
            f"expressions of more than {config.min_length} and less than {config.max_length} "
            f"tokens, LRA's have more than {MIN_LENGTH} and less than {MAX_LENGTH}"
        )
    sizes = notes.get("sizes") or num_examples(config, source)
    if sizes != FULL_SIZES:
        return f"{sizes} examples, LRA has {FULL_SIZES}"
    return ""


def find_files(config, source: str) -> list[Path]:
    """The release's TSV files, or its archive; nothing for the other sources."""
    if source != "release":
        return []
    from lra_tasks.listops import release

    return release.find_files(config)


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split."""
    if source == "release":
        from lra_tasks.listops import release

        return release.examples(config, files, notes)
    sizes = num_examples(config, source)
    num_workers = 0 if source == "synthetic" else None
    seen: set[bytes] = set()
    # The small splits first: they don't depend on train's size, and train has none of theirs.
    return {
        split: functools.partial(
            generate,
            split,
            sizes[split],
            seed=config.data_seed,
            min_length=config.min_length,
            max_length=config.max_length,
            seen=seen,
            num_workers=num_workers,
        )
        for split in ("test", "validation", "train")
    }


def generate(
    split: str,
    size: int,
    *,
    seed: int,
    min_length: int,
    max_length: int,
    seen: set[bytes],
    num_workers: int | None = None,
) -> Iterator[dict]:
    """Yields `size` distinct expressions with their values, the same for any number of workers.

    Expressions whose hash is in `seen` are skipped; new ones are added to it.

    Raises ValueError if there are not so many distinct expressions of these lengths.
    """
    stream = ("test", "validation", "train").index(split)
    chunks = ((seed, stream, number, min_length, max_length) for number in itertools.count())
    made = barren = 0
    for chunk in parallel.ordered_map(draw_chunk, chunks, num_workers):
        barren += 1
        for ids, label in chunk:
            digest = hashlib.blake2b(ids, digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
            barren = 0
            yield {"inputs": np.frombuffer(ids, np.uint8), "label": label}
            made += 1
            if made == size:
                return
        if barren == BARREN_CHUNKS:
            raise ValueError(
                f"found {made} distinct expressions of more than {min_length} and less than "
                f"{max_length} tokens for {split}, asked for {size}: lower config.task.num_{split} "
                "or widen config.task.min_length and max_length"
            )


def draw_chunk(chunk: tuple[int, int, int, int, int]) -> list[tuple[bytes, int]]:
    """Draws DRAWS_PER_CHUNK trees; returns (token ids, value) of those of the right length."""
    seed, stream, number, min_length, max_length = chunk
    rng = random.Random(f"listops {seed} {stream} {number}")
    drawn = (draw_tree(rng, max_length) for _ in range(DRAWS_PER_CHUNK))
    return [tree for tree in drawn if tree is not None and len(tree[0]) > min_length]


def draw_tree(rng: random.Random, max_length: int) -> tuple[bytes, int] | None:
    """Draws one tree; returns (token ids, value), or None once it has max_length tokens."""
    # Only random() is used: of Python's generators, its stream alone is promised never to change.
    uniform = rng.random
    ids = bytearray()

    def grow(depth: int) -> int:
        if depth >= MAX_DEPTH or uniform() >= OPERATOR_PROBABILITY:
            digit = int(uniform() * 10)
            ids.append(FIRST_DIGIT + digit)
            return digit
        operator = int(uniform() * 4)
        ids.append(FIRST_OPERATOR + operator)
        arguments = []
        for _ in range(2 + int(uniform() * (MAX_ARGUMENTS - 1))):
            arguments.append(grow(depth + 1))
            if len(ids) >= max_length:
                return 0
        ids.append(CLOSE)
        return apply(operator, arguments)

    value = grow(1)
    return None if len(ids) >= max_length else (bytes(ids), value)


def apply(operator: int, arguments: list[int]) -> int:
    """Value of an operator, 0 .. 3 for MIN, MAX, MED (integer part of the median), SM."""
    if operator == 0:
        return min(arguments)
    if operator == 1:
        return max(arguments)
    if operator == 2:
        ordered, half = sorted(arguments), len(arguments) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return sum(arguments) % 10


def evaluate(ids: Iterable[int]) -> int:
    """Value of an expression given as token ids.

    Raises ValueError if it is not one whole expression.
    """
    operators: list[int] = []
    arguments: list[list[int]] = [[]]
    for i in map(int, ids):
        if FIRST_DIGIT <= i < FIRST_OPERATOR:
            arguments[-1].append(i - FIRST_DIGIT)
        elif FIRST_OPERATOR <= i < CLOSE:
            operators.append(i - FIRST_OPERATOR)
            arguments.append([])
        elif i == CLOSE:
            if not operators:
                raise ValueError("']' without an operator that it closes")
            values = arguments.pop()
            if not values:
                raise ValueError(f"{TOKENS[FIRST_OPERATOR + operators[-1]]} without arguments")
            arguments[-1].append(apply(operators.pop(), values))
        else:
            raise ValueError(f"token id {i}: expected 1 to {CLOSE}")
    if operators:
        raise ValueError(f"{len(operators)} operators are not closed by ']'")
    if len(arguments[0]) != 1:
        raise ValueError(f"{len(arguments[0])} expressions, expected one")
    return arguments[0][0]


def augment(ids: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Whole expressions, one after another, with each operator's arguments in the order of keys.

    No value changes, since none of the operators asks for an order, and no length.

    Args:
      ids: token ids [T].
      keys: uint64 [T]; an argument goes where the key of its first token puts it.
    """
    is_open, is_close = (ids >= FIRST_OPERATOR) & (ids < CLOSE), ids == CLOSE
    depth = np.cumsum(is_open.astype(np.int64) - is_close)  # after each token
    # Every token is an argument, by its first token, or the bracket that ends them: size tokens
    # at a level, whose place in the new order follows from the place of the operator above it.
    level = depth - is_open
    brackets = np.flatnonzero(is_open | is_close)
    brackets = brackets[np.argsort(depth[brackets] + is_close[brackets], kind="stable")]
    size = np.ones(len(ids), np.int64)
    size[brackets[::2]] = brackets[1::2] - brackets[::2] + 1
    level[brackets[1::2]] += 1
    keys = np.where(is_close, np.iinfo(keys.dtype).max, keys)
    place = np.arange(len(ids))
    for depth_above in range(int(level.max(initial=0))):
        above = np.flatnonzero(is_open & (level == depth_above))
        within = np.flatnonzero(level == depth_above + 1)
        parent = np.searchsorted(above, within) - 1
        within = within[np.lexsort((keys[within], parent))]  # parents stay in their order
        before = np.cumsum(size[within]) - size[within]
        starts = np.searchsorted(parent, np.arange(len(above)))
        place[within] = place[above[parent]] + 1 + before - before[starts[parent]]
    out = np.empty_like(ids)
    out[place] = ids
    return out


def encode(text: str) -> np.ndarray:
    """Token ids, uint8, of an expression with tokens separated by spaces.

    Round brackets, which the official files have, are dropped.

    Raises ValueError for an unknown token, or if it is not one whole expression.
    """
    tokens = text.replace("(", " ").replace(")", " ").split()
    try:
        ids = np.array([IDS[token] for token in tokens], np.uint8)
    except KeyError as error:
        expected = " ".join(TOKENS[1:])
        raise ValueError(f"unknown token {error.args[0]!r}: expected one of {expected}") from None
    if len(ids):
        evaluate(ids)
    return ids


def decode(ids: Iterable[int]) -> str:
    """The expression of token ids; padding is dropped."""
    return " ".join(TOKENS[i] for i in ids if i)
