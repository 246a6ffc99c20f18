"""Preparing a set of examples: written once, whole or not at all. store.py says what it holds."""

import contextlib
import errno
import hashlib
import json
import math
import operator
import os
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np

from lra_tasks import progress
from lra_tasks.disk import digest_of, lock, naming_cache_dir, sha256_of_file, sync
from lra_tasks.packed import document_names, foreign_ids
from lra_tasks.store import SPLITS


def prepare(root: Path, name: str, module: ModuleType, config, source: str, files, show: bool):
    """Prepares a set unless it is there, safely against other processes; returns its directory.

    Whatever ends the preparation early (an exception, Ctrl-C, kill -9) leaves nothing that counts
    as a set: it is written in a sibling and renamed when whole. OSError if the cache can't be
    written.
    """
    target = root / "lra" / name / module.VERSION
    remove_stale(root)
    if (target / "set.json").is_file():
        return target
    with naming_cache_dir(root), lock(root / "preparing" / f"{name}.lock", show):
        if (target / "set.json").is_file():  # another process made it meanwhile
            return target
        progress.say(f"preparing {name} in {root}", show)
        temporary = root / "preparing" / name
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)  # no set.json: not one of ours, or damaged
        try:
            written = _write(temporary, name, module, config, source, files, show)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(written, target)
            sync(target.parent)
        except KeyboardInterrupt:
            progress.say(f"interrupted: {name} will be prepared from its beginning", show)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def remove_stale(root: Path) -> None:
    """Removes what interrupted preparations left; leaves those that are under way alone."""
    for temporary in (root / "preparing").glob("*/"):
        with contextlib.suppress(OSError), lock(Path(f"{temporary}.lock"), wait=False):
            shutil.rmtree(temporary, ignore_errors=True)


def _write(temporary: Path, name, module, config, source, files, show: bool) -> Path:
    """Writes the whole set below `temporary`; returns the directory to rename."""
    from lra_tasks.builder import LongRangeArena

    notes: dict = {}
    totals = module.num_examples(config, source)
    _check_room(temporary.parent, module, totals)
    digests, lengths = {}, {}

    def watched(split, make):
        def examples():
            digests[split] = hashlib.sha256()
            rows = lengths[split] = []
            for row in progress.track(make(), f"{name} {split}", totals.get(split), show):
                rows.append(_measure(row, module, config, split, len(rows), digests[split]))
                yield {name: as_stored(value) for name, value in row.items()}

        return examples

    makers = module.examples(config, source, files, notes)
    if not isinstance(makers, dict) or not all(map(callable, makers.values())):
        made = f"{module.__name__}.examples gave {makers!r}"
        raise ValueError(f"{made}, expected a function for each split that yields its examples")
    if set(makers) != set(SPLITS):
        raise ValueError(f"task module {module.__name__} makes splits {sorted(makers)}")
    builder = LongRangeArena(
        set_name=name,
        version=module.VERSION,
        num_documents=module.NUM_DOCUMENTS,
        data_dir=str(temporary),
        splits={split: watched(split, make) for split, make in makers.items()},
    )
    builder.download_and_prepare()
    directory = Path(builder.data_dir)
    for split in SPLITS:
        count, total = len(lengths[split]), totals.get(split)
        if not count:
            sources = _sources(module, split, files)
            raise ValueError(f"{name}: no examples for the {split} split{sources}")
        if total and count != total:
            progress.say(f"warning: {name}: {count} {split} examples, not {total}", show)
        np.save(directory / f"lengths-{split}.npy", np.array(lengths[split], np.int32))
        np.save(directory / f"sums-{split}.npy", np.array(builder.record_sums[split], np.uint32))
    extra = module.extra_files(notes) if hasattr(module, "extra_files") else {}
    for file_name, data in extra.items():
        (directory / file_name).write_bytes(data)
    fingerprint, fingerprint_of = _fingerprint(files, extra, digests, show)
    written = sorted(directory.iterdir())
    description = {
        "name": name,
        "source": source,
        "num_examples": {split: len(lengths[split]) for split in SPLITS},
        "fingerprint": fingerprint,
        "fingerprint_of": fingerprint_of,
        "notes": notes,
        "file_sizes": {path.name: path.stat().st_size for path in written},
        "file_digests": {
            path.name: sha256_of_file(path) for path in written if "array_record" not in path.name
        },
    }
    description = json.loads(json.dumps(description, default=_plain))  # as it will be read
    description["digest"] = digest_of(description)
    (directory / "set.json").write_text(json.dumps(description, indent=2) + "\n")
    for path in directory.iterdir():
        sync(path)
    return directory


def _sources(module, split, files) -> str:
    """What the examples of a split were to come from."""
    if not files:
        return f": {module.__name__} made none, see config.task.num_{split}"
    return "; files read: " + ", ".join([*map(str, files[:2]), *(["..."] if files[2:] else [])])


def _fingerprint(files, extra, digests, show: bool) -> tuple[str, str]:
    """What says which examples these are, and of what it is the sha256, hex.

    It is of the one file, unless token ids follow from a vocabulary too; else of the examples.
    """
    if len(files) == 1 and files[0].is_file() and not extra:
        return sha256_of_file(files[0], show), files[0].name
    joined = "".join(f"{split} {digests[split].hexdigest()}\n" for split in SPLITS)
    return hashlib.sha256(joined.encode()).hexdigest(), "examples"


def _check_room(folder: Path, module: ModuleType, totals: dict) -> None:
    """OSError where pictures, of which a byte is stored a pixel, need more room than there is."""
    pixels = math.prod(getattr(module, "PICTURE_SHAPE", (0,)))
    needed, free = sum(filter(None, totals.values())) * pixels, shutil.disk_usage(folder).free
    if needed > free:
        gigabytes = f"{needed / 1e9:,.1f} GB are needed, {free / 1e9:,.1f} GB free"
        raise OSError(errno.ENOSPC, gigabytes, str(folder))


def _measure(example: dict, module: ModuleType, config, split, index: int, digest) -> list[int]:
    """Adds an example to the digest and returns the lengths of its documents."""
    names = document_names(module.NUM_DOCUMENTS)
    sizes = []
    dtype = np.dtype(getattr(module, "DTYPE", np.uint8))
    if not isinstance(example, dict):
        found = type(example).__name__
        raise ValueError(f"{split} example {index} is {found}, expected a dict")
    if example.keys() != {*names, "label"}:
        found, expected = ", ".join(map(str, example)), ", ".join((*names, "label"))
        raise ValueError(f"{split} example {index} has {found}, expected {expected}")
    for name in names:
        document = example[name]
        found = type(document).__name__
        if isinstance(document, np.ndarray):
            found = f"{document.dtype}{list(document.shape)}"
        if found != f"{dtype}[{np.size(document)}]" or not document.size:
            raise ValueError(
                f"{split} example {index}: {name} is {found}, expected a non-empty {dtype} vector"
            )
        if problem := foreign_ids(document, module.VOCAB_SIZE - module.ID_OFFSET):
            raise ValueError(f"{split} example {index}: {name} has {problem}")
        if document.size > config.max_length:
            found = f"{split} example {index}: {name} has {document.size} tokens"
            raise ValueError(f"{found}, more than config.task.max_length={config.max_length}")
        digest.update(len(document).to_bytes(8, "little"))
        digest.update(document.tobytes())
        sizes.append(len(document))
    label = example["label"]
    if not hasattr(label, "__index__") or np.ndim(label) or not 0 <= label < module.NUM_CLASSES:
        expected = f"an integer, 0 to {module.NUM_CLASSES - 1}"
        raise ValueError(f"{split} example {index}: label {label!r}, expected {expected}")
    label = operator.index(label)
    digest.update(label.to_bytes(8, "little", signed=True))
    return sizes


def _plain(value):
    """What of a task's notes is no JSON: NumPy's numbers, and text for anything else."""
    return value.item() if isinstance(value, np.generic) else str(value)


def as_stored(value):
    """A document as bytes; uint16 have the lower one first."""
    if not isinstance(value, np.ndarray) or value.dtype == np.uint8:
        return value
    return value.astype("<u2").view(np.uint8)
