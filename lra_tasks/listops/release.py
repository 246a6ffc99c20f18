"""Reading the ListOps files of the Long Range Arena release. They are not trusted."""

import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lra_tasks import listops, release
from lra_tasks.disk import naming_file

FOLDER = "listops-1000"
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
HEADER = b"Source\tTarget"
MAX_LINES = 10 * 96_000  # of a file; the longest official one has 96,001
IDS = {token.encode(): i for token, i in listops.IDS.items()}
LABELS = {str(digit).encode(): digit for digit in range(10)}


def find_files(config) -> list[Path]:
    """The three TSV files in the order of FILES, or the archive that should hold them."""
    return release.find_release(config.data_dir, FOLDER, tuple(FILES.values()))


def examples(config, files: list[Path], notes: dict) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split, in the files' order.

    Expressions outside the config's bounds of length are left out and counted in `notes`.
    """
    if len(files) == 1:
        read_all = functools.cache(functools.partial(_read_archive, files[0], notes))
        rows = {split: (lambda split=split: read_all()[split]) for split in FILES}
    else:
        rows = {
            split: functools.partial(_read_file, path, notes)
            for split, path in zip(FILES, files, strict=True)
        }
    return {split: functools.partial(_select, split, rows[split], config, notes) for split in FILES}


def parse_row(line: bytes) -> tuple[bytes, int]:
    """(token ids, label) of a row `expression<TAB>value`; round brackets are dropped.

    Raises ValueError if it is not a whole expression with the value it really has.
    """
    fields = line.split(b"\t")
    if len(fields) != 2:
        raise ValueError(f"{len(fields)} fields, expected an expression, a tab and its value")
    if fields[1] not in LABELS:
        raise ValueError(f"value {_shown(fields[1])}: expected a digit")
    tokens = fields[0].replace(b"(", b" ").replace(b")", b" ").split()
    try:
        ids = bytes([IDS[token] for token in tokens])
    except KeyError as error:
        expected = " ".join(listops.TOKENS[1:])
        raise ValueError(
            f"unknown token {_shown(error.args[0])}: expected one of {expected}"
        ) from None
    value = listops.evaluate(ids)
    if value != LABELS[fields[1]]:
        raise ValueError(f"value {LABELS[fields[1]]}, but the expression's is {value}")
    return ids, value


def read_rows(file: BinaryIO, path: str, notes: dict | None = None) -> Iterator[tuple[bytes, int]]:
    """Yields (token ids, label) of a release TSV; `path` is named in errors.

    A byte-order mark is left out and counted in `notes`.

    Raises ValueError with file and line for whatever is not as it should be.
    """
    lines = release.read_lines(file, path)
    _, header = next(lines, (1, b""))
    header = release.without_mark(header, path, notes)
    if header != HEADER:
        raise ValueError(f"{path}, line 1: {_shown(header)}, expected the header {_shown(HEADER)}")
    for number, line in lines:
        if number > MAX_LINES:
            raise ValueError(f"{path}, line {number}: expected at most {MAX_LINES:,} lines")
        try:
            yield parse_row(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None


def _read_file(path: Path, notes: dict) -> Iterator[tuple[bytes, int]]:
    with naming_file(path), open(path, "rb") as file:
        yield from read_rows(file, str(path), notes)


def _read_archive(archive: Path, notes: dict | None = None) -> dict[str, list[tuple[bytes, int]]]:
    """Rows of all splits; read in one pass, as the files lie in the archive in any order."""
    found: dict[str, list[tuple[bytes, int]]] = {}
    splits = {f"{FOLDER}/{name}": split for split, name in FILES.items()}

    def split_of(member: str) -> str | None:
        return splits.get("/".join(member.split("/")[-2:]))

    for member, file in release.stream_archive(archive, lambda name: split_of(name) is not None):
        split = split_of(member)
        if split not in found:
            found[split] = list(read_rows(file, f"{archive}:{member}", notes))
        if len(found) == len(FILES):  # the rest of the archive is other tasks'
            return found
    missing = [f"{FOLDER}/{FILES[split]}" for split in FILES if split not in found]
    raise ValueError(f"{archive} does not hold {', '.join(missing)}")


def _select(split: str, rows: Callable[[], Iterable], config, notes: dict) -> Iterator[dict]:
    wanted = getattr(config, f"num_{split}")
    kept = left_out = 0
    for ids, label in rows():
        if not config.min_length < len(ids) < config.max_length:
            left_out += 1
            continue
        yield {"inputs": np.frombuffer(ids, np.uint8), "label": label}
        kept += 1
        if kept == wanted:
            break
    if kept < wanted or (left_out and not kept):
        lengths = f"min_length={config.min_length} and max_length={config.max_length}"
        asked = f"num_{split}={wanted}" if wanted else lengths
        raise ValueError(
            f"config.task.{asked}: {FILES[split]} has {kept} expressions of more than "
            f"{config.min_length} and less than {config.max_length} tokens"
        )
    notes.setdefault("sizes", {})[split] = kept
    if left_out:
        notes[f"{split}_left_out_by_length"] = left_out


def _shown(text: bytes) -> str:
    """A piece of an untrusted file, short and printable."""
    return repr(text[:40])[1:] + ("..." if len(text) > 40 else "")
