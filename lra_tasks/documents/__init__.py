"""Documents: texts as tokens of a vocabulary learnt from them, to pretrain a language model on.

Sources: a folder of UTF-8 files, each a document (`release`, in config.task.data_dir), the film
reviews of the package of Text without their labels (`package`), toy texts (`synthetic`). Lines are
segments. With config.task.sop a row is a pair of halves, and its label whether they changed places.
"""

import contextlib
import functools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lra_tasks import text
from lra_tasks.disk import naming_file
from lra_tasks.documents import rows, tokenizer
from lra_tasks.store import SPLITS, VOCABULARY
from lra_tasks.task import seeded_permutation

TITLE = "Documents"
NUM_CLASSES = 2
VOCAB_SIZE = 1 << 16  # at most: config.task.vocab_size says how many
NUM_DOCUMENTS = 1
ID_OFFSET = 0
FIRST_ID = tokenizer.MASK + 1
MASK_ID = tokenizer.MASK
DTYPE = np.uint16
VERSION = "1.2.0"
SOURCES = ("release", "package", "synthetic")
LABEL_NAMES = ("in order", "swapped")

HELD_OUT = 20  # a folder's validation and test are each one of so many of its files
LEAST_LENGTH = 8
MAX_LINE = 100_000  # characters of one line that a vocabulary is learnt from


def check(config) -> list[str]:
    """Problems of the fields that only tokens of a vocabulary have."""
    problems = []
    if not tokenizer.LEAST_SIZE <= config.vocab_size <= VOCAB_SIZE:
        problems.append(
            f"config.task.vocab_size={config.vocab_size}: expected {tokenizer.LEAST_SIZE} to "
            f"{VOCAB_SIZE}"
        )
    if config.max_length < LEAST_LENGTH:
        problems.append(
            f"config.task.max_length={config.max_length}: expected {LEAST_LENGTH} or more"
        )
    try:
        tokenizer.library()
    except ImportError as error:
        return [*problems, f"config.task.name={config.name!r}: {error}"]
    file = None
    with contextlib.suppress(ValueError):  # that there is none is said where it is needed
        file = tokenizer.find(config.tokenizer) if config.tokenizer else None
    try:
        pieces = len(tokenizer.load(file)) if file else 0
    except ValueError as error:
        return [*problems, f"config.task.tokenizer={config.tokenizer!r}: {error}"]
    if pieces > config.vocab_size:
        problems.append(
            f"config.task.vocab_size={config.vocab_size}: the vocabulary has {pieces:,}"
        )
    return problems


def has_labels(config) -> bool:
    """Pairs alone have them."""
    return config.sop


def set_name(config, source: str) -> str:
    """What distinguishes a set: sizes, length, vocabulary, kind of rows, seed."""
    sizes = "-".join(str(getattr(config, f"num_{split}") or "all") for split in SPLITS)
    kind = "pairs" if config.sop else "texts"
    name = f"{sizes}-{kind}-length{config.max_length}-vocab{config.vocab_size}"
    return f"{name}-seed{config.data_seed}"


def num_examples(config, source: str) -> dict[str, int | None]:
    """Only reading tells."""
    return dict.fromkeys(SPLITS)


def why_not_comparable(config, source: str, notes: dict) -> str:
    """It is no task of the Long Range Arena."""
    return "documents are no task of LRA's"


def find_files(config, source: str) -> list[Path]:
    """The documents' files, and the vocabulary's if one is given."""
    given = [tokenizer.find(config.tokenizer)] if config.tokenizer else []
    if source == "package":
        return text.find_files(config, source) + given
    if source == "synthetic":
        return given
    folder = Path(config.data_dir)
    if not config.data_dir or not folder.is_dir():
        raise ValueError(
            "set config.task.data_dir to a folder of UTF-8 files, each a document (the last that "
            "were prepared with the config's other settings need none)"
        )
    found = document_files(folder)
    if len(found) < len(SPLITS):
        raise ValueError(f"{folder} has {len(found)} files, expected 3 or more: each is a document")
    return found + given


def document_files(folder: Path) -> list[Path]:
    """All files in a folder and those in it, linked ones once, but for hidden ones, in order."""
    found, seen = [], set()
    for here, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split; what `extra_files` keeps goes to `notes`."""
    *files, given = files if config.tokenizer else (*files, None)
    texts = functools.partial(read_texts, config, source, files)

    @functools.cache
    def learnt():
        if given:
            model = given.read_bytes()
        else:
            model = tokenizer.train(_lines(texts("train")), config.vocab_size)
        known = tokenizer.Tokenizer(model, config.tokenizer or "the vocabulary")
        notes["pieces"] = len(known)
        notes["vocabulary"] = "given" if given else "learnt"
        notes[VOCABULARY] = model
        return known

    def make(split):
        rng = random.Random(f"documents {config.data_seed} {split}")
        for document in texts(split):
            segments = learnt().segments(document)
            if not segments:
                continue
            if config.sop:
                for ids, swapped in rows.pairs(segments, config.max_length, rng):
                    yield {"inputs": ids, "label": swapped}
            else:
                for ids in rows.cut(segments, config.max_length):
                    yield {"inputs": ids, "label": 0}

    return {split: functools.partial(make, split) for split in SPLITS}


def extra_files(notes: dict) -> dict[str, bytes]:
    """Files to keep with a set, taken out of its notes: the vocabulary."""
    return {VOCABULARY: notes.pop(VOCABULARY)}


def encode(document: str, vocabulary: Path) -> np.ndarray:
    """Token ids of a text, uint16, as a row."""
    segments = tokenizer.load(vocabulary).segments(document)
    return rows.framed(np.concatenate(segments)) if segments else np.zeros(0, np.uint16)


def decode(ids: np.ndarray, vocabulary: Path) -> str:
    """The text of token ids; padding is dropped."""
    ids = np.asarray(ids)
    return tokenizer.load(vocabulary).decode(ids[ids != tokenizer.PAD])


def read_texts(config, source: str, files: list[Path], split: str) -> Iterator[str]:
    """The documents of a split.

    Raises ValueError for a file that is not UTF-8, or more documents asked for than there are.
    """
    if source == "synthetic":
        for example in text.synthetic_reviews(config, split):
            yield example["inputs"].tobytes().decode()
        return
    if source == "package":
        from lra_tasks.text import imdb

        reviews = imdb.package_splits(files, {})[split]
        chosen = [with_lines(review.decode()) for review, _ in reviews]
    else:
        chosen = _files_of(config, files)[split]
    size = getattr(config, f"num_{split}")
    if size > len(chosen):
        raise ValueError(f"config.task.num_{split}={size}: there are {len(chosen)} documents")
    for document in chosen[: size or len(chosen)]:
        yield _read(document) if isinstance(document, Path) else document


def with_lines(review: str) -> str:
    """A review with its breaks as ends of lines."""
    return review.replace("<br /><br />", "\n")


def _files_of(config, files):
    """A folder's files by split, drawn with data_seed."""
    order = seeded_permutation(len(files), config.data_seed)
    mixed = [files[i] for i in order]
    sizes = [config.num_validation, config.num_test]
    validation, test = (size or max(1, len(files) // HELD_OUT) for size in sizes)
    if validation + test >= len(files):
        raise ValueError(
            f"config.task.num_validation={validation} and num_test={test} leave none of the "
            f"{len(files)} files for train"
        )
    cut = len(mixed) - validation - test
    parts = mixed[:cut], mixed[cut : cut + validation], mixed[cut + validation :]
    return dict(zip(SPLITS, parts, strict=True))


def _read(path):
    try:
        with naming_file(path):
            return path.read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error


def _lines(documents):
    """Lines that are not blank, long ones in pieces: SentencePiece leaves out those of a MiB."""
    for document in documents:
        for line in map(str.strip, document.splitlines()):
            yield from (line[i : i + MAX_LINE] for i in range(0, len(line), MAX_LINE))
