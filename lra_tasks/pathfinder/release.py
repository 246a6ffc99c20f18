"""Reader of Pathfinder images in the Long Range Arena's release, unpacked or in its archive.

A folder, say `pathfinder32/curv_contour_length_14`, has `imgs/<n>/*.png` and `metadata/<n>.npy`:
plain text despite the name, a line `imgs/<n> name.png index label ...` for each image. Some images
of the release are empty files; they are skipped and counted. Files come from anywhere, so names,
numbers and sizes are bounded, and every problem is a ValueError that names the file.
"""

import functools
import io
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from lra_tasks.release import (
    ARCHIVE_LINK,
    ARCHIVE_NAMES,
    count_note,
    is_apple_double,
    places,
    stream_archive,
    without_mark,
)
from lra_tasks.task import seeded_permutation

FOLDERS = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
MAX_PNG_BYTES = 1 << 17  # a 128x128 image has 16 KiB before compression
MAX_METADATA_BYTES = 1 << 24
MAX_IMAGES = 1_000_000
MAX_HELD_BYTES = 1 << 32  # of an archive's images, in memory while they are sorted into splits
IMAGE_PATH = re.compile(rb"imgs/[A-Za-z0-9_-]+/[A-Za-z0-9_-][A-Za-z0-9_.-]*\.png")
BALANCED_FROM = 1_000  # images; from here on the labels are checked to be balanced
FEW_EMPTY = 10  # images: a few of the release's are
MAX_EMPTY = 0.01  # further ones, of those listed


def find_files(data_dir: str, folder: str, difficulty: str) -> list[Path]:
    """The images' folder and the metadata files of a difficulty, or the release's archive.

    `data_dir` may be the `folder` (pathfinder32 or pathfinder128), hold it (also below lra_release/
    or lra_release/lra_release/), hold the archive, or be the archive.

    Raises ValueError that lists where it looked.
    """
    what = (
        f"{folder}/{FOLDERS[difficulty]} of the Long Range Arena's release (with imgs/ and "
        f"metadata/), or the archive {ARCHIVE_NAMES[0]} ({ARCHIVE_LINK})"
    )
    folders, archive = places(data_dir, folder, what, ", or use config.task.source='generated'")
    candidates = [place / FOLDERS[difficulty] for place in folders]
    problems = []  # of folders that are not whole, as where unpacking was interrupted
    for candidate in filter(Path.is_dir, candidates):
        lacking = [part for part in ("imgs", "metadata") if not (candidate / part).is_dir()]
        found = [f for f in (candidate / "metadata").glob("*.npy") if not is_apple_double(f)]
        if lacking:
            problems.append(f"{candidate} lacks the folder {lacking[0]}; expected {what}")
        elif not found:
            problems.append(f"{candidate / 'metadata'} has no .npy files; expected {what}")
        else:
            return [candidate / "imgs", *sorted(found, key=_metadata_order)]
    if archive:
        return [archive]
    if problems:
        raise ValueError(problems[0])
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise ValueError(f"expected {what}; found neither that nor {tried}")


def examples(
    files: list[Path],
    folder: str,
    side: int,
    sizes: dict[str, int | None],
    seed: int,
    notes: dict,
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of each split's examples, an 80/10/10 split of the images that are not empty.

    Args:
      files: what `find_files` returned.
      folder: as it is called in the archive, say "pathfinder32/curv_contour_length_14".
      side: height and width of the images.
      sizes: images to take of each split; None: all.
      seed: of the split.
      notes: gets images_listed, images_empty, share_of_label_1 and, where there are any, the
        number of macOS's own files among the metadata and of byte-order marks.

    Raises:
      ValueError: damaged or missing files, labels that are not balanced, too few images.
    """
    source = _Archive(files[0], folder) if files[0].is_file() else _Folder(files)
    paths, labels, empty = [], [], 0
    for where in filter(is_apple_double, source.metadata_names()):
        count_note(notes, "macos_files_skipped", where)
    for path, label in _listed(source, notes):
        if source.num_bytes(path):
            paths.append(path)
            labels.append(label)
        else:
            empty += 1
    count = len(paths)
    if not count:
        raise ValueError(f"{source.name}: its metadata lists no image that is not empty")
    if empty > FEW_EMPTY + MAX_EMPTY * (count + empty):
        raise ValueError(
            f"{source.name}: {empty:,} of {count + empty:,} images are empty files, the release "
            "has a few; unpack it again, with room on the disk"
        )
    share = sum(labels) / count
    notes.update(images_listed=count + empty, images_empty=empty, share_of_label_1=round(share, 4))
    if count >= BALANCED_FROM and not 0.4 < share < 0.6:
        raise ValueError(
            f"{source.name}: {share:.1%} of {count:,} labels are 1, the release has half; is this "
            "another data set, or is the metadata's fourth column not the label?"
        )
    order = seeded_permutation(count, seed)
    bounds = (0, count * 8 // 10, count * 9 // 10, count)
    makers = {}
    for (split, size), start, stop in zip(sizes.items(), bounds, bounds[1:], strict=False):
        if size is not None and size > stop - start:
            raise ValueError(
                f"config.task.num_{split}={size}: the 80/10/10 split of {count:,} images has "
                f"{stop - start:,}; lower it, or 0 for all"
            )
        chosen = order[start:stop][:size]
        makers[split] = functools.partial(_examples, chosen, paths, labels, source, side)
    return makers


def _examples(chosen, paths, labels, source, side) -> Iterator[dict]:
    for i in chosen.tolist():
        path = paths[i]
        pixels = decode_png(source.read(path), side, f"{source.name}: {path}")
        yield {"inputs": pixels.ravel(), "label": labels[i]}


def decode_png(data: bytes, side: int, where: str) -> np.ndarray:
    """Pixels, uint8 [side, side], of an 8-bit grey PNG of that size.

    Raises ValueError that begins with `where` for anything else. The size is read before any pixel
    is unpacked.
    """
    if data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or len(data) < 26:
        raise ValueError(f"{where}: not a PNG file, but begins with {data[:16]!r}")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    if (width, height, depth, colour) != (side, side, 8, 0):
        raise ValueError(
            f"{where}: {width}x{height} pixels, bit depth {depth}, colour type {colour}; expected "
            f"{side}x{side} pixels, bit depth 8, colour type 0 (grey)"
        )
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.array(image)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ValueError(f"{where}: a damaged PNG file ({error}); fetch it again") from error
    if pixels.shape != (side, side) or pixels.dtype != np.uint8:
        raise ValueError(f"{where}: read as {pixels.dtype}{list(pixels.shape)}")
    return pixels


def parse_metadata(data: bytes, where: str) -> Iterator[tuple[int, str, int]]:
    """Yields (number, path below the images' folder, label) of each line of a metadata file.

    Raises ValueError with file and line for a line of another form.
    """
    if data.startswith(b"\x93NUMPY"):
        raise ValueError(
            f"{where}: a NumPy file; the release's metadata is plain text despite the name, with "
            "a line 'imgs/<n> name.png index label ...' for each image"
        )
    for number, line in enumerate(data.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        path = b"/".join(fields[:2])
        if len(fields) < 4 or not IMAGE_PATH.fullmatch(path) or fields[3] not in (b"0", b"1"):
            raise ValueError(
                f"{where}, line {number}: {line[:80]!r}; expected 'imgs/<n> name.png index label "
                "...' with label 0 or 1"
            )
        yield number, path.decode(), int(fields[3])


def _listed(source, notes: dict) -> Iterator[tuple[str, int]]:
    """(path, label) of every image that the metadata lists, in the order of its files and lines."""
    seen = set()
    for where, data in source.metadata():
        for number, path, label in parse_metadata(without_mark(data, where, notes), where):
            if path in seen:
                raise ValueError(f"{where}, line {number}: lists {path} a second time")
            seen.add(path)
            if len(seen) > MAX_IMAGES:
                raise ValueError(f"{where}: more than {MAX_IMAGES:,} images listed")
            yield path, label


class _Folder:
    """The unpacked images and metadata of a difficulty."""

    def __init__(self, files: list[Path]):
        self.name = files[0].parent
        self.files = files[1:]

    def metadata(self) -> Iterator[tuple[str, bytes]]:
        for path in self.files:
            yield str(path), self._read(path, MAX_METADATA_BYTES)

    def metadata_names(self) -> list[str]:
        return [str(path) for path in sorted((self.name / "metadata").glob("*.npy"))]

    def num_bytes(self, path: str) -> int:
        try:
            return (self.name / path).stat().st_size
        except OSError as error:
            raise ValueError(
                f"{self.name / path}: listed in {self.name / 'metadata'}, but can't be read "
                f"({error.strerror}); is the folder unpacked in full?"
            ) from error

    def read(self, path: str) -> bytes:
        return self._read(self.name / path, MAX_PNG_BYTES)

    def _read(self, path: Path, limit: int) -> bytes:
        try:
            with open(path, "rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise ValueError(f"{path}: can't be read ({error.strerror})") from error
        if len(data) > limit:
            raise ValueError(f"{path}: more than {limit:,} bytes")
        return data


class _Archive:
    """The same in the release's archive, whose images are held in memory, packed, once read."""

    def __init__(self, archive: Path, folder: str):
        self.name = archive
        self.folder = folder
        self.images: dict[str, bytes] = {}
        self.tables: dict[str, bytes] = {}
        wanted = re.compile(
            rf"(?:lra_release/){{0,2}}{re.escape(folder)}/(?:imgs/[^/]+/[^/]+\.png|metadata/[^/]+\.npy)"
        )
        held = 0
        for name, file in stream_archive(archive, lambda name: bool(wanted.fullmatch(name))):
            path = name.split(f"{folder}/", 1)[1]
            is_image = path.startswith("imgs/")
            limit = MAX_PNG_BYTES if is_image else MAX_METADATA_BYTES
            data = file.read(limit + 1)
            held += len(data)
            if len(data) > limit or held > MAX_HELD_BYTES or len(self.images) > MAX_IMAGES:
                raise ValueError(
                    f"{archive}: {name}: more than {limit:,} bytes, or with those before it more "
                    f"than {MAX_HELD_BYTES:,} bytes or {MAX_IMAGES:,} images"
                )
            (self.images if is_image else self.tables)[path] = data
        if all(map(is_apple_double, self.tables)):
            raise ValueError(f"{archive}: has no {folder}/metadata/*.npy, so no Pathfinder images")

    def metadata(self) -> Iterator[tuple[str, bytes]]:
        for path in sorted(self.tables, key=_metadata_order):
            if not is_apple_double(path):
                yield f"{self.name}: {path}", self.tables[path]

    def metadata_names(self) -> list[str]:
        return [f"{self.name}: {path}" for path in sorted(self.tables)]

    def num_bytes(self, path: str) -> int:
        if path not in self.images:
            raise ValueError(f"{self.name}: {self.folder}/{path} is listed, but not in the archive")
        return len(self.images[path])

    def read(self, path: str) -> bytes:
        return self.images[path]


def _metadata_order(path: Path | str) -> tuple[int, str]:
    """By number: the release's files are 1.npy, 2.npy, ..."""
    name = Path(path).name
    return len(name), name
