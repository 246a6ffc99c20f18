"""Retrieval: does one of two papers cite the other? AAN papers as bytes (Radev et al., 2013).

The texts can't be redistributed: users bring the release's TSV files, up to 8 GB, or the archive
that has them. Both are streamed: memory does not grow with their size.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lra_tasks import release, synthetic
from lra_tasks.disk import naming_file
from lra_tasks.text import check, decode, encode, num_examples, set_name

__all__ = ["check", "decode", "encode", "num_examples", "set_name"]

TITLE = "Retrieval"
NUM_CLASSES = 2
VOCAB_SIZE = 257
NUM_DOCUMENTS = 2
ID_OFFSET = 1
FIRST_ID = 1
VERSION = "1.0.0"
SOURCES = ("release", "synthetic")
LABEL_NAMES = ("neither cites the other", "one cites the other")

FOLDER = "tsv_data"
FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
OFFICIAL_ROWS = {"train": 147_086, "validation": 18_090, "test": 17_437}
MAX_LENGTH = 4_000  # bytes of each text that LRA reads
COLUMNS = 5  # label, id1, id2, text1, text2
LABELS = {b"0": 0, b"1": 1, b"0.0": 0, b"1.0": 1}

MAX_LINE_BYTES = 16 << 20
MAX_BAD_SHARE = 0.001  # of a file's rows; with more malformed ones preparation fails
MAX_ROWS = 10 * OFFICIAL_ROWS["train"]
SHOWN = 5  # malformed rows that are named one by one


def why_not_comparable(config, source: str, notes: dict) -> str:
    """'' for all the official pairs at LRA's length; else the reason."""
    if source == "synthetic":
        return "synthetic examples, for smoke tests"
    if config.max_length != MAX_LENGTH:
        return f"the first {config.max_length:,} bytes of each text, LRA reads {MAX_LENGTH:,}"
    if config.num_train or config.num_validation or config.num_test:
        return "config.task.num_train, num_validation or num_test leaves out a part of the pairs"
    if notes["pairs"] != OFFICIAL_ROWS:
        return f"well-formed pairs: {notes['pairs']}, the official files have {OFFICIAL_ROWS}"
    return ""


def find_files(config, source: str) -> list[Path]:
    """The three TSV files or the release's archive; [] for synthetic."""
    if source != "release":
        return []
    return release.find_release(config.data_dir, FOLDER, tuple(FILES.values()))


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split."""
    if source == "synthetic":
        return {split: functools.partial(synthetic_pairs, config, split) for split in FILES}
    notes |= {"pairs": {}, "malformed_rows": {}, "empty_texts": {}}
    return {split: functools.partial(_pairs, config, split, files, notes) for split in FILES}


def _pairs(config, split: str, files: list[Path], notes: dict) -> Iterator[dict]:
    limit = getattr(config, f"num_{split}")
    count = 0
    with contextlib.closing(_streams(files, FILES[split])) as streams:
        where, file = next(streams)
        for example in read_pairs(file, where, OFFICIAL_ROWS[split], config.max_length, notes):
            yield example
            count += 1
            if count == limit:
                break
    if limit > count:
        raise ValueError(f"config.task.num_{split}={limit}: {where} has {count} well-formed rows")
    notes["pairs"][split] = count


def _streams(files: list[Path], name: str) -> Iterator[tuple[str, BinaryIO]]:
    """Yields one TSV file as (how to call it in messages, stream), open until this is closed.

    From the archive each of the three is found in a pass of its own, which ends where it ends.
    """
    if len(files) > 1:
        path = next(path for path in files if path.name == name)
        with naming_file(path), open(path, "rb") as file:
            yield str(path), file
    else:
        suffix = f"{FOLDER}/{name}"
        for member, file in release.stream_archive(
            files[0], lambda member: f"/{member}".endswith(f"/{suffix}")
        ):
            yield f"{files[0]}: {member}", file
        raise ValueError(f"{files[0]}: has no member lra_release/{suffix}")


def read_pairs(
    file: BinaryIO, where: str, num_expected: int, max_length: int, notes: dict
) -> Iterator[dict]:
    """Yields the pairs of a TSV without header or quotes: label, id1, id2, text1, text2.

    At most MAX_LINE_BYTES are in memory. An empty text (official papers may have none) becomes
    one space. A byte-order mark is left out and counted in `notes`. Malformed rows (columns, label,
    UTF-8, over-long) are skipped, counted in `notes["malformed_rows"][where]`, and named in one
    warning.

    Raises:
      ValueError: more than MAX_BAD_SHARE of the rows are malformed (known as soon as they are more
        than that share of `num_expected`); there are none; or more than MAX_ROWS.
    """
    problems: list[str] = []
    rows = bad = empty = 0

    def summary():
        shown = "".join(f"\n  {problem}" for problem in problems)
        return f"{where}: {bad:,} of {rows:,} rows are malformed, the first:{shown}"

    while line := file.readline(MAX_LINE_BYTES + 1):
        rows += 1
        if rows == 1:
            line = release.without_mark(line, where, notes)
        if rows > MAX_ROWS:
            raise ValueError(f"{where}: more than {MAX_ROWS:,} rows, expected {num_expected:,}")
        problem, example = parse_row(line, max_length)
        if problem:
            bad += 1
            if len(problems) < SHOWN:
                problems.append(f"{where}, line {rows}: {problem}")
            if bad > MAX_BAD_SHARE * max(rows, num_expected):
                raise ValueError(f"{summary()}\nAt most {MAX_BAD_SHARE:.1%} may be. {LAYOUT}")
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                pass  # the rest of an over-long line
        else:
            empty += example.pop("num_empty")
            yield example
    notes["malformed_rows"][where] = bad
    notes["empty_texts"][where] = empty
    if not rows or bad > MAX_BAD_SHARE * rows:
        what = summary() if rows else f"{where}: empty"
        raise ValueError(f"{what}\nAt most {MAX_BAD_SHARE:.1%} may be. {LAYOUT}")
    if bad:
        warnings.warn(f"{summary()}\nThey are left out.", stacklevel=2)


LAYOUT = (
    "Expected label, id1, id2, text1, text2 in each line, separated by single tabs, the label 0 or "
    "1, the texts in UTF-8."
)


def parse_row(line: bytes, max_length: int) -> tuple[str, dict]:
    """What is wrong with a row, or '' and its example (with the number of empty texts in it)."""
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES:,} bytes", {}
    fields = line.rstrip(b"\r\n").split(b"\t", COLUMNS)
    if len(fields) != COLUMNS:
        more = " or more" if len(fields) > COLUMNS else ""
        return f"{len(fields)}{more} columns, expected {COLUMNS}", {}
    label, _, _, *texts = fields
    if label not in LABELS:
        return f"label {label[:20]!r}, expected 0 or 1 (or 0.0, 1.0)", {}
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start} of the line", {}
    documents = [np.frombuffer(text[:max_length] or b" ", np.uint8) for text in texts]
    example = {"inputs": documents[0], "inputs2": documents[1], "label": LABELS[label]}
    return "", {**example, "num_empty": sum(not text for text in texts)}


TOPICS = (("parsing", "grammar", "treebank"), ("speech", "audio", "phoneme"), ("image", "caption"))
OTHER = ("we", "propose", "a", "method", "for", "results", "on", "the", "task", "of")


def synthetic_pairs(config, split: str) -> Iterator[dict]:
    """Toy papers: a pair is positive if both are about the same topic, told by their words."""
    rng = synthetic.split_rng(config, split)
    for index in range(synthetic.sizes(config)[split]):
        label = index % 2
        first = int(rng.integers(len(TOPICS)))
        second = first if label else (first + int(rng.integers(1, len(TOPICS)))) % len(TOPICS)
        yield {
            "inputs": _synthetic_paper(rng, first, config.max_length),
            "inputs2": _synthetic_paper(rng, second, config.max_length),
            "label": label,
        }


def _synthetic_paper(rng: np.random.Generator, topic: int, max_length: int) -> np.ndarray:
    length = max(32, synthetic.document_length(rng, max_length))
    words = []
    for choice in rng.integers(1 << 16, size=length // 4 + 1):
        vocabulary = OTHER if words and choice % 2 else TOPICS[topic]
        words.append(vocabulary[choice // 2 % len(vocabulary)])
    return np.frombuffer(" ".join(words).encode()[: min(length, max_length)], np.uint8)
