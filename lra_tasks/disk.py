"""Files below the cache: locked, written for good, hashed; errors that name the setting or file."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lra_tasks import progress

ADDRESS = re.compile(r"\w+:/")  # gs://bucket/folder, as a path has it
OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextlib.contextmanager
def lock(path: Path, show: bool = False, wait: bool = True) -> Iterator[None]:
    """Holds an flock, which the system frees even after kill -9. BlockingIOError if not `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            progress.say(f"another process works on {path.stem}; waiting for it", show)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def sync(path: Path) -> None:
    """Makes sure that a file's or folder's contents are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def path_problem(path: str | Path) -> str:
    """Why there can't be checkpoints or data at a path, '' if nothing speaks against it."""
    if ADDRESS.match(str(path)):
        return "an address; expected a folder of a file system"
    try:
        os.stat(str(expand_user(path).absolute()).encode())
    except UnicodeEncodeError:
        return "its name is not UTF-8; expected one that is"
    except OSError as error:
        return "its name is too long" if error.errno == errno.ENAMETOOLONG else ""
    except ValueError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def naming_cache_dir(root: Path) -> Iterator[None]:
    """Says of an OSError in writing below `root` which setting chose that place."""
    try:
        yield
    except OSError as error:
        names = [name for name in (error.filename, error.filename2) if name]
        of_writing = all(_is_below(name, root) for name in names)
        if not (of_writing if names else error.errno in OF_WRITING):
            raise  # from what is read
        raise type(error)(
            f"config.cache_dir={str(root.parent)!r}: can't write there ({error}); make room, or "
            "set it to a folder that can be written"
        ) from error


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Says of an OSError in reading a file which one it was; a disk's own names none."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: can't be read: {error}") from error


def expand_user(path: str | os.PathLike) -> Path:
    """A path with a user's folder for ~ or ~name; ValueError if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: there is no such user; write ./~... for that name") from error


def is_writable(folder: Path) -> bool:
    """Whether files can be written in a folder, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _is_below(path: str | os.PathLike, folder: Path) -> bool:
    """Whether a path leads into a folder, or to what it lies in."""
    path = Path(path).absolute()
    return path.is_relative_to(folder.absolute()) or folder.absolute().is_relative_to(path)


def digest_of(record: dict) -> str:
    """sha256, hex, of a record without its own digest."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256_of_file(path: Path, show: bool = False) -> str:
    """sha256 of a file, hex."""
    digest = hashlib.sha256()
    block_size = 1 << 20
    total = -(-path.stat().st_size // block_size)
    with open(path, "rb") as file:
        blocks = iter(lambda: file.read(block_size), b"")
        for block in progress.track(blocks, f"sha256 of {path.name}", total, show, "MiB"):
            digest.update(block)
    return digest.hexdigest()
