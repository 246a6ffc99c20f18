"""Finding and streaming the official LRA release: its unpacked folders or the archive itself."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lra_tasks.archives import iter_members

ARCHIVE_NAMES = ("lra_release.gz", "lra_release.tar.gz", "lra_release.tgz", "lra_release.tar")
ARCHIVE_LINK = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
# The archive unpacks to lra_release/<folder>; some copies nest that once more.
NESTING = ("", "lra_release", "lra_release/lra_release")
MAX_LINE = 1 << 24
MAX_UNPACKED_BYTES = 100 << 30
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some programs begin text files in UTF-8 with it
APPLE_DOUBLE = "._"  # begins names of files that macOS puts beside others, on foreign disks


def find_release(data_dir: str, folder: str, names: tuple[str, ...]) -> list[Path]:
    """The files `names` of the release's `folder`, or the archive that should hold them.

    `data_dir` may be that folder, hold it (also below lra_release/ or lra_release/lra_release/),
    hold the archive, or be the archive.

    Raises ValueError that lists where it looked.
    """
    looked = (
        f"the {folder} files of the Long Range Arena release ({', '.join(names)}), or the archive "
        f"{ARCHIVE_NAMES[0]} ({ARCHIVE_LINK})"
    )
    folders, archive = places(data_dir, folder, looked)
    missing = {}
    for candidate in folders:
        absent = [name for name in names if not (candidate / name).is_file()]
        if not absent:
            return [candidate / name for name in names]
        if len(absent) < len(names):
            missing[candidate] = absent
    if archive:
        return [archive]
    for candidate, absent in missing.items():
        raise ValueError(f"{candidate} lacks {', '.join(absent)}")
    raise ValueError(f"found none of {looked}; looked in {', '.join(map(str, folders))}")


def places(
    data_dir: str, folder: str, what: str, instead: str = ""
) -> tuple[list[Path], Path | None]:
    """The folders that may be the release's `folder`, and the archive if it is there.

    Raises ValueError, which says `what` is needed and what may be had `instead`, where `data_dir`
    is not given, or neither a folder nor the archive.
    """
    if not data_dir:
        raise ValueError(
            f"needs {what}: fetch {ARCHIVE_NAMES[0]} and "
            "set config.task.data_dir to the folder that holds it or its unpacked contents"
            + instead
        )
    root = Path(data_dir)
    if root.is_file():
        if root.name in ARCHIVE_NAMES:
            return [], root
        raise ValueError(f"{root} is not a folder, nor one of {', '.join(ARCHIVE_NAMES)}")
    archives = (root / name for name in ARCHIVE_NAMES)
    archive = next((path for path in archives if path.is_file()), None)
    return [root, *(root / nesting / folder for nesting in NESTING)], archive


def stream_archive(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, BinaryIO]]:
    """Yields (member name, file) for the wanted regular files of a tar, unpacking nothing.

    Each file must be read before the next is asked for.

    Raises ValueError as `archives.iter_members` does.
    """
    return iter_members(archive, wanted, MAX_UNPACKED_BYTES, MAX_UNPACKED_BYTES)


def without_mark(text: bytes, where: str, notes: dict | None = None) -> bytes:
    """The beginning of a text file without its byte-order mark, which is counted in `notes`."""
    if not text.startswith(BYTE_ORDER_MARK):
        return text
    count_note(notes, "byte_order_marks", where)
    return text[len(BYTE_ORDER_MARK) :]


def is_apple_double(path: str | Path) -> bool:
    """Whether a file is one of macOS's own, a `._<name>` that isn't a `<name>`."""
    return Path(path).name.startswith(APPLE_DOUBLE)


def count_note(notes: dict | None, what: str, where: str) -> None:
    """Adds 1 to notes[what][where], if there are notes."""
    if notes is not None:
        counts = notes.setdefault(what, {})
        counts[where] = counts.get(where, 0) + 1


def read_lines(file: BinaryIO, path: str) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line without its end).

    Raises ValueError for a line of more than 16 MiB.
    """
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ValueError(f"{path}, line {number}: longer than {MAX_LINE:,} bytes")
        yield number, line.rstrip(b"\r\n")
