"""A split's examples as arrays, from which a batch is gathered without a loop over examples."""

import mmap
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lra_tasks.disk import is_writable

MEMORY_SHARE = 0.25  # of the machine's memory: a split with more tokens is mapped from a file
READ_AT_ONCE = 1_024  # records; one by one they take three times as long


def document_names(num_documents: int) -> tuple[str, ...]:
    """Names of the documents in an example: ("inputs",) or ("inputs", "inputs2")."""
    return ("inputs", "inputs2")[:num_documents]


class Packed(NamedTuple):
    """All examples of a split.

    Attributes:
      tokens: the split's dtype [total + longest], the documents one after another, then zeros.
      starts: int64 [num_examples, num_documents], where each begins in `tokens`.
      labels: int64 [num_examples]
    """

    tokens: np.ndarray
    starts: np.ndarray
    labels: np.ndarray

    def rows(self, chosen: np.ndarray, width: int) -> np.ndarray:
        """[len(chosen), num_documents, width]: documents, and what happens to follow each."""
        windows = np.lib.stride_tricks.sliding_window_view(self.tokens, width)
        return windows[self.starts[chosen]]


def pack(split, where: str, width: int, num_ids: int, num_classes: int) -> Packed:
    """Reads all examples, once and in order; each record is compared with its checksum in this.

    Args:
      split: a `task.Split`. Where its tokens are more than MEMORY_SHARE of the memory and it has a
        folder, they are in a file there that has no name, so that nothing is left of it when the
        process ends, however that may be.
      where: what errors begin with.
      width: the longest row that will be asked for.
      num_ids, num_classes: stored ids and labels are below these.

    Raises:
      ValueError: an example with a token id or label that the task doesn't have, or of another
        length than the split says, or an id that the split's dtype can't hold; or a damaged one.
    """
    lengths = split.lengths
    ends = np.cumsum(lengths, dtype=np.int64).reshape(lengths.shape)
    starts = ends - lengths
    tokens = _allocate(int(lengths.sum(dtype=np.int64)) + width, split.folder, split.dtype)
    labels = np.zeros(len(lengths), np.int64)
    names = document_names(lengths.shape[1])
    num_ids = min(num_ids, np.iinfo(tokens.dtype).max + 1)
    for first in range(0, len(lengths), READ_AT_ONCE):
        part = slice(first, min(first + READ_AT_ONCE, len(lengths)))
        examples = split.examples.__getitems__(list(range(part.start, part.stop)))
        documents = [example[name] for example in examples for name in names]
        joined = np.concatenate(documents)
        labels[part] = [example["label"] for example in examples]
        if (
            [len(document) for document in documents] != lengths[part].ravel().tolist()
            or foreign_ids(joined, num_ids)
            or labels[part].min() < 0
            or labels[part].max() >= num_classes
        ):
            for index, example in enumerate(examples, first):
                if problem := _problem(example, names, lengths[index], num_ids, num_classes):
                    raise ValueError(f"{where}, example {index}: {problem}")
        tokens[starts[part.start, 0] : ends[part.stop - 1, -1]] = joined
    return Packed(tokens, starts, labels)


def _problem(example: dict, names: tuple[str, ...], lengths, num_ids: int, num_classes: int) -> str:
    """What of an example the model would turn into NaN or another example; '' if nothing."""
    for name, length in zip(names, lengths, strict=True):
        if len(example[name]) != length:
            return f"{name} has {len(example[name])} tokens, expected {length}"
        if wrong := foreign_ids(example[name], num_ids):
            return f"{name} has {wrong}"
    if not 0 <= example["label"] < num_classes:
        return f"label {example['label']}, expected 0 to {num_classes - 1}"
    return ""


def foreign_ids(ids: np.ndarray, limit: int) -> str:
    """'' if all token ids are 0 .. limit - 1, else what is wrong with the first that isn't.

    An embedding of `limit` rows would give NaN, or another token's row, without a word.
    """
    if ids.dtype == np.uint8 and limit > 255:
        return ""
    outside = (ids < 0) | (ids >= limit)
    if not outside.any():
        return ""
    position = int(outside.argmax())
    return f"the token id {ids[position]} at position {position}, expected 0 to {limit - 1}"


def _allocate(num_items: int, folder: Path | None, dtype: type = np.uint8) -> np.ndarray:
    """Zeros [num_items]: in memory, or in a file where that would be much of it."""
    size = num_items * np.dtype(dtype).itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if folder is None or size <= MEMORY_SHARE * memory:
        return np.zeros(num_items, dtype)
    place = folder if is_writable(folder) else tempfile.gettempdir()
    with tempfile.TemporaryFile(dir=place) as file:
        try:
            # A disk that is full later would kill the process. (macOS can't be asked.)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.ftruncate(file.fileno(), size)
        except OSError as error:
            raise type(error)(
                f"{place}: no room for a file of {size:,} bytes with the tokens of a split "
                f"({error}); make room there"
            ) from error
        return np.frombuffer(mmap.mmap(file.fileno(), size), dtype)
