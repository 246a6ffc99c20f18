"""Reviews: those of Text with their labels, as tokens of a vocabulary learnt elsewhere."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from lra_tasks import documents, text
from lra_tasks.documents import (  # noqa: F401 - a task's module has all of these
    DTYPE,
    FIRST_ID,
    ID_OFFSET,
    MASK_ID,
    VOCAB_SIZE,
    decode,
    rows,
    tokenizer,
)
from lra_tasks.store import VOCABULARY

TITLE = "Reviews"
NUM_CLASSES = text.NUM_CLASSES
NUM_DOCUMENTS = 1
VERSION = "1.0.0"
SOURCES = text.SOURCES
LABEL_NAMES = text.LABEL_NAMES
download = text.download

MAX_BYTES = 32_768  # of a review: more than the longest has


def check(config) -> list[str]:
    """Problems of the fields that only tokens of a vocabulary have."""
    problems = documents.check(config)
    if config.sop:
        problems.append("config.task.sop=True: reviews are no pairs")
    if not config.tokenizer:
        problems.append(
            "config.task.tokenizer='': expected a vocabulary, such as a run's folder on documents"
        )
    return problems


set_name, num_examples = documents.set_name, text.num_examples


def why_not_comparable(config, source: str, notes: dict) -> str:
    """LRA's Text is of bytes."""
    return "pieces of a vocabulary, LRA reads bytes"


def find_files(config, source: str) -> list[Path]:
    """Text's files, then the vocabulary's."""
    return [*text.find_files(config, source), tokenizer.find(config.tokenizer)]


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split."""
    *files, vocabulary = files
    notes[VOCABULARY] = vocabulary.read_bytes()
    known = tokenizer.Tokenizer(notes[VOCABULARY], str(vocabulary))
    notes["pieces"] = len(known)
    whole = dataclasses.replace(config, max_length=MAX_BYTES)

    def make(reviews):
        for review in reviews():
            document = review["inputs"].tobytes().decode(errors="ignore")
            segments = known.segments(documents.with_lines(document))
            ids = np.concatenate([*segments, np.zeros(0, DTYPE)])[: config.max_length - 2]
            yield {"inputs": rows.framed(ids), "label": review["label"]}

    makers = text.examples(whole, source, files, notes)
    return {split: functools.partial(make, reviews) for split, reviews in makers.items()}


extra_files = documents.extra_files


def encode(review: str, vocabulary: Path) -> np.ndarray:
    """Token ids of a review, uint16, as a row."""
    return documents.encode(documents.with_lines(review), vocabulary)
