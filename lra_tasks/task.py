"""What a task is, and batches as a pure function of (seed, step)."""

import collections
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lra_tasks.packed import Packed, pack

_packing = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples in a fixed order.

    Attributes:
      examples: random access, `examples.__getitems__([3, 1])` -> list of {"inputs": dtype [n],
        "label": int}, with "inputs2" for a second document; `len(examples)`.
      lengths: int32 [num_examples, num_documents], tokens of each document.
      folder: where a file may be made for what doesn't fit in memory.
      dtype: of the documents, uint8 or uint16.
    """

    examples: Any
    lengths: np.ndarray = dataclasses.field(repr=False)
    folder: Path | None = None
    dtype: type = np.uint8

    def packed(self, where: str, width: int, num_ids: int, num_classes: int) -> Packed:
        """All examples as arrays, read and checked at the first call: see `packed.pack`."""
        with _packing:
            kept = self.__dict__.get("_kept", (0, None))
            if kept[0] < width:
                kept = width, pack(self, where, width, num_ids, num_classes)
                self.__dict__["_kept"] = kept  # frozen is only what it was given
        return kept[1]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with its data opened.

    Attributes:
      id_offset: added to stored uint8 to make token ids (1 for bytes, where 0 is padding).
      splits: {'train': Split, 'validation': Split, 'test': Split}
      source: where the examples are from, never 'auto'.
      fingerprint: sha256, hex: of the official file if there is one, else of the examples in order.
      comparable_to_lra: whether results compare with published ones; if not, why_not_comparable.
      bucket_boundaries: padded lengths, ascending; () pads everything to padded_length.
      first_id: the least id of a token; below it are padding and other special ones.
      mask_id: the id that stands for a hidden token, where the task has one.
      tokenizer: the file of the vocabulary that the ids are of, where there is one.
      sop: whether the label is if halves of a text changed places.
      augment: (ids, keys) -> ids, of a batch's real tokens one after another, with a random uint64
        for each: changes training examples, not their labels or lengths; None: leaves them.
    """

    name: str
    num_classes: int
    vocab_size: int
    max_length: int
    num_documents: int
    id_offset: int
    splits: dict[str, Split]
    source: str
    fingerprint: str
    comparable_to_lra: bool
    why_not_comparable: str
    bucket_boundaries: tuple[int, ...]
    padded_length: int
    first_id: int = 0
    mask_id: int | None = None
    tokenizer: Path | None = None
    sop: bool = False
    augment: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    @property
    def is_full(self) -> bool:
        """Whether every example fills the one length there is, so that no token is padding."""
        lengths = (split.lengths for split in self.splits.values())
        return (
            bool(self.splits)
            and not self.bucket_boundaries
            and all(bool((each == self.padded_length).all()) for each in lengths)
        )


def seeded_permutation(num_items: int, *seed: int) -> np.ndarray:
    """A permutation of range(num_items), int64, the same in every NumPy version.

    (Bit generators' streams are promised never to change; Generator.permutation's is not.)
    """
    return np.argsort(random_bits(num_items, *seed), kind="stable")


def random_bits(num_items: int, *seed: int) -> np.ndarray:
    """Random uint64 [num_items], the same in every NumPy version."""
    return np.random.Philox(np.random.SeedSequence(seed)).random_raw(num_items)


class Batches:
    """Batches of one split, a pure function of (seed, step); safe to use from threads.

    `batches[step]` -> dict of NumPy arrays: inputs int32 [B, L] (two documents: [B, 2, L]) token
    ids, padding 0; mask bool, same shape, True = real token; label int32 [B]; weight float32 [B],
    1 = real example, 0 = padding. `len(batches)` is the batches of an epoch: every example is in
    one exactly once, and one that is not full is filled up with padding.

    With a seed, any step >= 0 is valid and epochs follow one another, each in an order of its
    own; with buckets, examples of similar length (the longest document decides) share a batch.
    Without a seed (evaluation): bucket by bucket in the stored order, steps 0 .. len - 1.
    With `rows`, places in a batch, ascending, `batches[step]` has these of its rows alone.

    `batches[step]` raises ValueError for an example with a token id or label that the task doesn't
    have, or of another length than its split says.
    """

    def __init__(
        self, task: Task, split_name: str, batch_size: int, seed: int | None = None, rows=None
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if seed is not None and seed < 0:
            raise ValueError(f"seed={seed}: expected at least 0")
        self.task = task
        self.split, self.split_name = task.splits[split_name], split_name
        self.batch_size = batch_size
        self.seed = seed
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)
        longest = self.split.lengths.max(axis=1)
        self._widths = np.array(task.bucket_boundaries or (task.padded_length,))
        if longest.max() > self._widths[-1]:
            raise ValueError(
                f"{task.name} {split_name} has a document of {longest.max()} tokens, longer than "
                f"the padded length {self._widths[-1]}; raise config.task.padded_length and the "
                "last of config.task.bucket_boundaries"
            )
        self._longest = longest
        self._bucket = np.searchsorted(self._widths, longest)  # smallest width that holds it
        self._plan = functools.lru_cache(maxsize=2)(self._plan)  # an epoch's plan takes ~10 ms

    def __len__(self) -> int:
        return -(-len(self._longest) // self.batch_size)

    @property
    def shapes(self) -> set[int]:
        """Padded lengths that can occur."""
        if self.seed is None:
            return {self.indices(step)[1] for step in range(len(self))}
        return {int(self._widths[bucket]) for bucket in np.unique(self._bucket)}

    def indices(self, step: int) -> tuple[np.ndarray, int]:
        """Which examples batch `step` has, and the length it is padded to."""
        epoch, position = divmod(step, len(self))
        if step < 0 or (self.seed is None and epoch > 0):
            # IndexError also ends `for batch in batches`.
            raise IndexError(f"step {step}: evaluation has steps 0 to {len(self) - 1}")
        order, starts = self._plan(epoch)
        chosen = order[starts[position] : starts[position + 1]]
        return chosen, int(self._widths[self._bucket[chosen].max()])

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        chosen, width = self.indices(step)
        real_rows = self._rows < len(chosen)
        chosen = chosen[self._rows[real_rows]]
        packed = self._packed
        shape = (len(self._rows), self.task.num_documents, width)
        lengths = np.zeros(shape[:2], np.int32)
        lengths[: len(chosen)] = self.split.lengths[chosen]
        mask = np.arange(width, dtype=np.int32) < lengths[..., None]
        inputs = np.zeros(shape, np.int32)
        real = inputs[: len(chosen)]
        np.add(packed.rows(chosen, width), self.task.id_offset, out=real, dtype=np.int32)
        real *= mask[: len(chosen)]
        if self.task.augment is not None and self.seed is not None:
            keys = random_bits(self.batch_size * shape[1] * width, self.seed, step, 2)
            keys = keys.reshape(self.batch_size, *shape[1:])[self._rows]
            inputs[mask] = self.task.augment(inputs[mask], keys[mask])
        label = np.zeros(len(self._rows), np.int32)
        label[: len(chosen)] = packed.labels[chosen]
        if self.task.num_documents == 1:
            inputs, mask = inputs[:, 0], mask[:, 0]
        weight = real_rows.astype(np.float32)
        return {"inputs": inputs, "mask": mask, "label": label, "weight": weight}

    def token_counts(self) -> np.ndarray:
        """How often each token id is in the split, int64 [vocab_size]; padding is not counted."""
        size = int(self.split.lengths.sum(dtype=np.int64))
        counts = np.zeros(self.task.vocab_size, np.int64)
        for start in range(0, size, 1 << 24):  # NumPy counts on a copy eight times as large
            part = self._packed.tokens[start : min(start + (1 << 24), size)]
            found = np.bincount(part)
            counts[self.task.id_offset :][: len(found)] += found
        return counts

    @functools.cached_property
    def _packed(self) -> Packed:
        task = self.task
        return self.split.packed(
            f"{task.name} {self.split_name}",
            width=int(self._widths[-1]),
            num_ids=task.vocab_size - task.id_offset,
            num_classes=task.num_classes,
        )

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's order of examples, and where each batch starts in it (and the last ends)."""
        count, size = len(self._longest), self.batch_size
        if self.seed is None:
            order = np.argsort(self._bucket, kind="stable")
            return order, np.append(np.arange(0, count, size), count)
        order = seeded_permutation(count, self.seed, epoch, 0)
        order = order[np.argsort(self._bucket[order], kind="stable")]
        ends = np.cumsum(np.bincount(self._bucket, minlength=len(self._widths)))
        groups = np.split(order, ends[:-1])
        full = [group[: len(group) // size * size] for group in groups]
        rest = np.concatenate([group[len(group) // size * size :] for group in groups])
        rest = rest[np.argsort(self._longest[rest], kind="stable")]
        order = np.concatenate([*full, rest])
        batches = np.split(order, np.arange(size, count, size))
        batches = [batches[i] for i in seeded_permutation(len(batches), self.seed, epoch, 1)]
        starts = np.cumsum([0, *map(len, batches)])
        return np.concatenate(batches), starts


def prefetch(
    batches, start: int, stop: int, num_workers: int = 1
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yields (step, batches[step]) for start <= step < stop, built ahead in threads.

    Two batches a thread, but at least 4, are waiting. An exception in building a batch is raised
    when its turn comes. Closing the iterator, or dropping it, stops the threads.
    """
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="batches")
    steps, pending = iter(range(start, stop)), collections.deque()

    def submit(count):
        for step in itertools.islice(steps, count):
            pending.append(pool.submit(batches.__getitem__, step))

    try:
        submit(max(4, 2 * num_workers))
        for step in range(start, stop):
            batch = pending.popleft().result()
            submit(1)  # the place just freed, filled while the consumer works
            yield step, batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
