"""What a task defines, and prepared sets of its examples on disk.

A task is a module `lra_tasks/<name>` listed in `lra_tasks.NAMES`, or in LANGUAGE_NAMES. It knows
where its examples come from; everything else (preparing once: writing.py; opening: here;
batches: task.py) is done for it.
Importing it must be cheap: no tensorflow_datasets, no JAX. It defines

    TITLE                     what reports call it
    NUM_CLASSES, VOCAB_SIZE   int (VOCAB_SIZE counts the padding id)
    NUM_DOCUMENTS             1 or 2
    ID_OFFSET                 added to stored uint8 to make token ids: 1 for bytes, else 0
    FIRST_ID                  the least token id that is no padding
    VERSION                   "1.0.0"; raised when the same settings come to mean other examples
    SOURCES                   the sources it has, a subset of lra_tasks.SOURCES, in the order in
                              which 'auto' prefers them ('synthetic' is never chosen by 'auto')

    check(config) -> list[str]
        Problems of the fields that only this task understands, as "config.task.<field>=<value>:
        what is allowed". (Names, sources, sizes, lengths, buckets, data_dir's existence and
        find_files are checked for every task already.)
    set_name(config, source) -> str
        What distinguishes this set of examples from others of this task and source: sizes,
        lengths, seed, difficulty. Letters, digits, '-' and '_'.
    find_files(config, source) -> list[Path]
        The official files or folders that `source` reads, cheaply found (config.task.data_dir for
        'release'; it may be ''). Raises ValueError or FileNotFoundError saying what was looked for,
        where, and what to fetch and where to put it. [] where nothing is read. Their names, sizes
        and times, of folders those of the files in them, are part of the set's directory name. If
        it is one file, its sha256 is the fingerprint of the set. (release.find_release finds the
        LRA archive or its folders.)
    num_examples(config, source) -> dict[str, int | None]
        Size of 'train', 'validation', 'test', None where only reading tells (for progress bars).
    examples(config, source, files, notes) -> dict[str, Callable[[], Iterable[dict]]]
        For each split a function that makes its examples one by one, in a fixed order:
        {"inputs": uint8 [n], "label": int}, with "inputs2" for a second document. They are called
        and consumed in the order of the dict, each once. Documents are cut to max_length already,
        and are not empty. `notes` is a dict to put JSON-able facts in (files skipped, ...); they
        are shown by `lra_tasks.prepare` and stay with the set.
    why_not_comparable(config, source, notes) -> str
        '' where results on this set compare with the published ones, else the reason.
    LABEL_NAMES               what the labels stand for, NUM_CLASSES of them
    decode(ids) -> str        text of token ids (int or uint8 array, padding dropped), and
    encode(text) -> uint8 [n] what is stored of a text (ValueError if it is none), both with the
                              vocabulary's path too where sets have one; or instead
    PICTURE_SHAPE             (height, width), for tasks whose inputs are pixels

    DTYPE                     (optional) np.uint16 where a byte is not enough for stored ids
    CHANCE                    (optional) accuracy in % of what knows the labels' shares alone, where
                              that is not one in NUM_CLASSES
    MASK_ID                   (optional) the token id that stands for hidden ones
    has_labels(config) -> bool  (optional) False where the examples are only to have tokens hidden
    extra_files(notes)        (optional) {name: bytes} to keep with the set, taken out of the notes
    augment(ids, keys)        (optional) what config.task.augment does: see task.Task

    download(folder, progress) -> None      (optional)
        Fetches the official files into `folder`, which becomes data_dir, when 'release' is asked
        for (by name or by 'auto') and neither data_dir nor a prepared set is there. Raises OSError
        where that fails. Must not leave a partial file that find_files would take for whole.

`lra_tasks.synthetic` has helpers for the 'synthetic' source, `lra_tasks.parallel.ordered_map` runs
a generator on all cores, `lra_tasks.task.seeded_permutation` shuffles the same way everywhere.

On disk, below `<cache_dir>/datasets`:

    lra/<task>-<source>-<set_name>[-<key of the official files>]/<VERSION>/
        lra-<split>.array_record-...   the examples, and tensorflow-datasets' own JSON files
        lengths-<split>.npy            int32 [num_examples, num_documents]
        sums-<split>.npy               uint32 [num_examples], crc32 of each record, compared when
                                       the record is read: opening must not read gigabytes
        set.json                       sizes, fingerprint, notes, sha256 of files without examples
    preparing/<set>/                   being written; renamed into place when whole
    preparing/<set>.lock               held (flock) by the process that writes it
"""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from lra_tasks.disk import digest_of, expand_user, path_problem, sha256_of_file
from lra_tasks.task import Split

SPLITS = ("train", "validation", "test")
VOCABULARY = "tokenizer.model"  # the file, in a set or a run's folder, that its token ids are of


def datasets_dir(cache_dir: str | os.PathLike | None) -> Path:
    """`<cache_dir>/datasets`; None or "": below $XDG_CACHE_HOME/nystrom or ~/.cache/nystrom."""
    if not cache_dir:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "nystrom"
    if problem := path_problem(cache_dir):
        raise ValueError(f"cache_dir={str(cache_dir)!r}: {problem}")
    return expand_user(cache_dir) / "datasets"


def directory_name(task_name: str, module: ModuleType, config, source: str, files) -> str:
    """The set's directory name below `lra/`; '*' for the files' key if `files` is None."""
    set_name = module.set_name(config, source)
    if not isinstance(set_name, str):  # all of a task's sets would be one
        raise ValueError(f"{module.__name__}.set_name gave {set_name!r}, expected a string")
    name = f"{task_name}-{source}-{set_name}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"set name {name!r} may only have letters, digits, '-' and '_'")
    if files is None:
        return f"{name}-key*"
    return f"{name}-key{_files_key(files)}" if files else name


def find_prepared(root: Path, name: str, version: str) -> list[Path]:
    """Directories of whole sets whose name matches (a glob), newest first."""
    found = [path.parent for path in (root / "lra").glob(f"{name}/{version}/set.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def fingerprint(directory: Path) -> str | None:
    """What set.json says a prepared set's data are, or None; unread, `open_splits` checks it."""
    return _described(directory, lambda description: description["fingerprint"])


def has_given_vocabulary(directory: Path) -> bool:
    """Whether set.json says that a prepared set's vocabulary was not learnt from its texts."""
    return _described(directory, lambda description: description["notes"]["vocabulary"]) == "given"


def _described(directory, read):
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return read(json.loads((directory / "set.json").read_text()))
    return None


def open_splits(
    directory: Path, num_documents: int, dtype: type = np.uint8
) -> tuple[dict[str, Split], dict]:
    """The splits of a prepared set and the contents of its set.json.

    Raises ValueError if its files do not belong together (damaged after it was prepared).
    """
    from lra_tasks.builder import LongRangeArena, StoredExamples

    description = _read_description(directory)
    builder = LongRangeArena(
        set_name=directory.parent.name,
        version=directory.name,
        num_documents=num_documents,
        data_dir=str(directory.parent.parent.parent),
    )
    splits = {}
    for split in SPLITS:
        try:
            sums = directory / f"sums-{split}.npy"
            sums = np.load(sums, allow_pickle=False) if "digest" in description else None
            examples = StoredExamples(builder, split, sums, dtype)
            lengths = np.load(directory / f"lengths-{split}.npy", allow_pickle=False)
        except Exception as error:  # array_record raises bare RuntimeErrors and more
            raise unreadable(directory, f"{split}: {error}") from error
        expected = description["num_examples"][split]
        if len(examples) != expected or lengths.shape != (expected, num_documents):
            problem = f"{split} has {len(examples)} examples and lengths {lengths.shape}"
            raise ValueError(damaged(directory, f"{problem}, expected {expected}"))
        splits[split] = Split(examples, lengths, directory, dtype)
    return splits, description


def _read_description(directory: Path) -> dict:
    """Contents of set.json, after a check that the set's files are as it lists them.

    Sizes of all, and contents but for the examples'; sets of older versions list sizes alone.
    """
    try:
        description = json.loads((directory / "set.json").read_text())
        sizes = description["file_sizes"]
        contents = {}
        if description.keys() & {"digest", "file_digests"}:
            contents = description["file_digests"]
            if description["digest"] != digest_of(description):
                raise ValueError("not as it was written")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(damaged(directory, f"set.json: {error!r}")) from error
    if (name := description.get("name", directory.parent.name)) != directory.parent.name:
        raise ValueError(damaged(directory, f"it is the set {name}, renamed"))
    for name, size in sizes.items():
        actual = (directory / name).stat().st_size if (directory / name).is_file() else "no"
        if actual != size:
            raise ValueError(damaged(directory, f"{name} has {actual} bytes, expected {size}"))
        if name in contents and sha256_of_file(directory / name) != contents[name]:
            raise ValueError(damaged(directory, f"{name} is not as it was written"))
    return description


def _files_key(files: list[Path]) -> str:
    """Eight hex digits from the names, sizes and times of the official files.

    Of a vocabulary, which every run keeps a copy of, its contents.
    """
    digest = hashlib.sha256()
    for path in files:
        if path.name == VOCABULARY:
            digest.update(sha256_of_file(path).encode())
            continue
        for name, status in _statuses(str(path), path.name):
            facts = f"\0{status.st_size}\0{status.st_mtime_ns}\n"
            digest.update(os.fsencode(name) + facts.encode())
    return digest.hexdigest()[:8]


def _statuses(path: str, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """The name and status of a file, or of each file in a folder but hidden ones."""
    if not os.path.isdir(path):
        yield name, os.stat(path)
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                yield from _statuses(entry.path, f"{name}/{entry.name}")
            elif not entry.name.startswith("."):
                yield f"{name}/{entry.name}", entry.stat()


def unreadable(directory: Path, problem: str) -> Exception:
    """What to raise for a set that can't be read: it is damaged, or the system refused."""
    for code in (errno.EACCES, errno.ENFILE, errno.EMFILE):  # whose text begins that one's
        if os.strerror(code) in problem:
            return OSError(code, os.strerror(code), str(directory))
    return ValueError(damaged(directory, problem))


def damaged(directory: Path, problem: str) -> str:
    return (
        f"the prepared set in {directory} is damaged ({problem}). Delete that folder; it is "
        "prepared again at the next start."
    )
