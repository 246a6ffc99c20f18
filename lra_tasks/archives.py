"""Official files that come from anywhere: found in data_dir, and tar archives read safely.

Nothing is ever unpacked to disk, so no member can be written anywhere; sizes are bounded, links and
devices refused. Every problem is a plain ValueError that names the file.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from lra_tasks.disk import naming_file

MAX_RATIO = 200  # unpacked over packed size; the official archives stay below 10
RATIO_FREE_BYTES = 4 << 30  # below this the ratio doesn't matter
MAX_TRAILING_BYTES = 64 << 20  # read after the last member
MAX_HEADER_BYTES = 1 << 20  # of one member: its header with extended names and attributes
GZIP_MAGIC = b"\x1f\x8b"


def iter_members(
    path: Path, wanted: Callable[[str], bool], max_member_bytes: int, max_total_bytes: int
) -> Iterator[tuple[str, BinaryIO]]:
    """Yields (name, file) of the regular members of a tar archive that are wanted, in its order.

    The archive, gzip-compressed or not, is read once from front to back; a file must be read
    before the next is asked for. Closing the iterator early is fine (and checks no more of it).

    Args:
      path: the archive.
      wanted: called with the name, "/"-separated, without a leading "./".
      max_member_bytes: largest size that a wanted member may have.
      max_total_bytes: most bytes that are unpacked before giving up.

    Raises:
      ValueError: not a tar archive, damaged, truncated, unpacks to more than the bounds, or has a
        member that is absolute, climbs out with "..", or is a link or device. Reading from a
        yielded file raises the same.
    """
    path = Path(path)
    with naming_file(path), open(path, "rb") as file:
        limit = min(max_total_bytes, max(RATIO_FREE_BYTES, MAX_RATIO * path.stat().st_size))
        packed = file.peek(2)[:2] == GZIP_MAGIC
        stream = _BoundedStream(gzip.GzipFile(fileobj=file) if packed else file, path, limit)
        yield from _members(stream, path, wanted, max_member_bytes)


def locate(data_dir: str, layouts: list[tuple[str, ...]], what: str) -> list[Path]:
    """The official files in data_dir: those of the first layout that is there in full.

    Args:
      data_dir: config.task.data_dir: a folder, or the archive itself.
      layouts: alternatives; each is the paths, relative to data_dir, that belong together.
      what: what they are and where to get them, for the error.

    Raises:
      ValueError: none is there in full; the message says what was looked for and what is missing.
    """
    if not data_dir:
        raise ValueError(f"needs {what}; set config.task.data_dir to the folder that has them")
    root = Path(data_dir)
    if root.is_file():
        return [root]
    for layout in layouts:
        if all((root / name).exists() for name in layout) and (
            len(layout) > 1 or (root / layout[0]).is_file()  # no folder that has its archive's name
        ):
            return [root / name for name in layout]
    for layout in layouts:
        missing = [name for name in layout if not (root / name).exists()]
        if len(missing) < len(layout):
            raise ValueError(f"{root} lacks {', '.join(missing)}; expected {what}")
    looked_for = "; or ".join(", ".join(layout) for layout in layouts)
    raise ValueError(f"{root} has none of: {looked_for}; expected {what}")


def _members(stream: "_BoundedStream", path: Path, wanted, max_member_bytes: int):
    complete = False

    class Header(tarfile.TarInfo):
        """Tells a proper end of the archive, a block of zeros, from a broken header."""

        @classmethod
        def frombuf(cls, buf, encoding, errors):
            nonlocal complete
            complete = len(buf) == tarfile.BLOCKSIZE and not buf.strip(b"\0")
            return super().frombuf(buf, encoding, errors)

    def damaged(error) -> ValueError:
        return ValueError(
            f"{path}: truncated or damaged, or not a tar archive: {error} (near byte "
            f"{stream.count:,} unpacked). Fetch it again."
        )

    tar = None
    while True:
        stream.begin_header()
        try:
            if tar is None:  # holds nothing to close: the stream is the caller's
                tar = tarfile.open(fileobj=stream, mode="r|", tarinfo=Header)  # noqa: SIM115
            info = tar.next()
        except (tarfile.TarError, RecursionError, ArithmeticError, LookupError) as error:
            raise damaged(error) from error
        except ValueError as error:
            raise (error if stream.failed else damaged(error)) from error
        stream.end_header()
        if info is None:
            if not complete:
                raise damaged("broken header")
            stream.finish()
            return
        tar.members.clear()  # it keeps every header it has seen: gigabytes for millions of images
        tar.pax_headers.clear()
        name = _checked_name(info, path, stream.limit)
        if info.isfile() and wanted(name):
            if info.size > max_member_bytes:
                raise ValueError(
                    f"{path}: member {name!r} has {info.size:,} bytes, expected at most "
                    f"{max_member_bytes:,}"
                )
            yield name, io.BufferedReader(_Member(tar.extractfile(info), damaged), 1 << 16)
        tar.fileobj.seek(tar.offset)  # skips what is left of the member


def _checked_name(info: tarfile.TarInfo, path: Path, limit: int) -> str:
    """The member's normalised name; ValueError for a member that no official archive has."""
    parts = [part for part in info.name.replace("\\", "/").split("/") if part not in ("", ".")]
    problem = ""
    if info.name.startswith(("/", "\\")) or ".." in parts or "\0" in info.name:
        problem = "its name leads out of the archive's folder"
    elif info.islnk() or info.issym():
        problem = f"it is a link (to {info.linkname!r})"
    elif info.issparse() or not (info.isfile() or info.isdir()):
        problem = f"it is neither a file nor a folder (type {info.type!r})"
    elif not 0 <= info.size <= limit:
        problem = f"it claims {info.size:,} bytes, expected at most {limit:,}"
    if problem:
        raise ValueError(f"{path}: member {info.name!r} refused: {problem}")
    return "/".join(parts)


class _BoundedStream:
    """The unpacked bytes of an archive; reading beyond the limits or the end is a ValueError."""

    def __init__(self, stream: BinaryIO, path: Path, limit: int):
        self.stream, self.path, self.limit = stream, path, limit
        self.count = 0
        self.header_limit = None
        self.failed = False  # the error raised was ours, and says all there is to say

    def begin_header(self) -> None:
        self.header_limit = self.count + MAX_HEADER_BYTES

    def end_header(self) -> None:
        self.header_limit = None

    def read(self, size: int) -> bytes:
        data = self._read(size)
        if not data:
            what = "truncated or damaged, or not a tar archive, gzipped or not"
            raise self._failure(f"{what}: ends after {self.count:,} bytes")
        self.count += len(data)
        if self.header_limit and self.count > self.header_limit:
            raise self._failure(f"a member's header is longer than {MAX_HEADER_BYTES:,} bytes")
        if self.count > self.limit:
            raise self._failure(f"unpacks to more than {self.limit:,} bytes: not the official file")
        return data

    def finish(self) -> None:
        """Reads what follows the last member, so that gzip compares its checksum."""
        end = self.count + MAX_TRAILING_BYTES
        while self.count < end and (data := self._read(1 << 16)):
            self.count += len(data)

    def _read(self, size: int) -> bytes:
        try:
            return self.stream.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise self._failure(f"truncated or damaged: {error}") from error

    def _failure(self, problem: str) -> ValueError:
        self.failed = True
        return ValueError(f"{self.path}: {problem}. Fetch it again.")


class _Member(io.RawIOBase):
    """A member's contents; whatever goes wrong in reading becomes a ValueError."""

    def __init__(self, file: BinaryIO, damaged):
        self.file, self.damaged = file, damaged

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self.file.read(len(buffer))
        except tarfile.TarError as error:
            raise self.damaged(error) from error
        buffer[: len(data)] = data
        return len(data)
