"""Image: CIFAR-10 in grey, pixel by pixel in raster order (Krizhevsky, 2009).

45,000 / 5,000 / 10,000 images: validation is the last tenth of the training batches.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lra_tasks import synthetic
from lra_tasks.archives import iter_members, locate
from lra_tasks.disk import naming_file, sha256_of_file

TITLE = "Image"
NUM_CLASSES = 10
VOCAB_SIZE = 256
NUM_DOCUMENTS = 1
ID_OFFSET = 0
FIRST_ID = 0
VERSION = "1.0.0"
SOURCES = ("release", "synthetic")
PICTURE_SHAPE = (32, 32)
LABEL_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

SIZES = {"train": 45_000, "validation": 5_000, "test": 10_000}
NUM_PIXELS = PICTURE_SHAPE[0] * PICTURE_SHAPE[1]
RECORD_BYTES = 1 + 3 * NUM_PIXELS  # label, then the red, green and blue planes in raster order
RECORDS_PER_FILE = 10_000
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
FILES = (*TRAIN_FILES, "test_batch.bin")

FOLDER = "cifar-10-batches-bin"
ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
MAX_FILE_BYTES = 2 * RECORDS_PER_FILE * RECORD_BYTES
MAX_UNPACKED_BYTES = 1 << 30
MEMBER = re.compile(rf"(?:{FOLDER}/)?({'|'.join(map(re.escape, FILES))})")


def check(config) -> list[str]:
    """Problems of the fields that only this task understands."""
    if config.max_length != NUM_PIXELS:
        return [
            f"config.task.max_length={config.max_length}: expected {NUM_PIXELS}, 32 x 32 pixels"
        ]
    return []


def set_name(config, source: str) -> str:
    """What distinguishes a set: sizes; the seed where examples are made from one."""
    sizes = "-".join(str(size) for size in num_examples(config, source).values())
    return f"{sizes}-seed{config.data_seed}" if source == "synthetic" else sizes


def num_examples(config, source: str) -> dict[str, int | None]:
    """Examples of each split."""
    if source == "synthetic":
        return synthetic.sizes(config)
    return {split: getattr(config, f"num_{split}") or size for split, size in SIZES.items()}


def why_not_comparable(config, source: str, notes: dict) -> str:
    """'' for the official images in LRA's splits; else the reason."""
    if source == "synthetic":
        return "synthetic examples, for smoke tests"
    if notes["different_archive"]:
        return notes["different_archive"]
    if notes["images"] != SIZES or num_examples(config, source) != SIZES:
        used = num_examples(config, source)
        return f"{used} of {notes['images']} images, LRA has {SIZES}"
    return ""


def find_files(config, source: str) -> list[Path]:
    """The archive or its six unpacked files; [] for synthetic."""
    if source != "release":
        return []
    layouts = [(ARCHIVE,), FILES, tuple(f"{FOLDER}/{name}" for name in FILES)]
    return locate(config.data_dir, layouts, f"CIFAR-10 in binary form ({ARCHIVE} from {URL})")


def download(folder: Path, progress: bool) -> None:
    """Fetches the official archive into `folder`; OSError if that fails."""
    from lra_tasks.download import fetch

    fetch(URL, ARCHIVE_BYTES, ARCHIVE_SHA256, folder, progress)


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split."""
    if source == "synthetic":
        return {split: functools.partial(synthetic_images, config, split) for split in SIZES}
    splits = functools.cache(lambda: release_splits(files, notes))  # read when first asked for

    def make(split):
        pixels, labels = splits()[split]
        size = getattr(config, f"num_{split}") or len(labels)
        if size > len(labels):
            raise ValueError(f"config.task.num_{split}={size}: the files have {len(labels)}")
        for image, label in zip(pixels[:size], labels[:size], strict=True):
            yield {"inputs": image, "label": int(label)}

    return {split: functools.partial(make, split) for split in SIZES}


def release_splits(files: list[Path], notes: dict) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Grey pixels, uint8 [n, 1024], and labels, uint8 [n], of each split.

    Args:
      files: the archive, or the six files in the order of FILES.
      notes: facts about the files are put here.

    Raises:
      ValueError: damaged archive, or a file that is missing, there twice, cut off, or has a label
        above 9.
    """
    notes["different_archive"] = ""
    batches = {}
    for where, name, data in _batch_files(files, notes):
        if name in batches:
            raise ValueError(f"{where}: is there twice")
        batches[name] = read_records(data, where)
    if missing := [name for name in FILES if name not in batches]:
        raise ValueError(f"{files[0]}: lacks {', '.join(f'{FOLDER}/{name}' for name in missing)}")
    parts = [batches[name] for name in TRAIN_FILES]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    cut = len(labels) - len(labels) // 10
    splits = {
        "train": (pixels[:cut], labels[:cut]),
        "validation": (pixels[cut:], labels[cut:]),
        "test": batches[FILES[-1]],
    }
    notes["images"] = {split: len(labels) for split, (_, labels) in splits.items()}
    return splits


def read_records(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Grey pixels, uint8 [n, 1024], and labels, uint8 [n], of a file of records.

    Raises ValueError if the file is not a whole number of records, or a label is above 9.
    """
    if not data or len(data) % RECORD_BYTES or len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"{where}: {len(data):,} bytes, expected records of {RECORD_BYTES:,} each, whole, and "
            f"at most {MAX_FILE_BYTES:,} bytes (the official files have {RECORDS_PER_FILE:,})"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0]
    if labels.max() >= NUM_CLASSES:
        record = int(np.argmax(labels >= NUM_CLASSES))
        raise ValueError(
            f"{where}: record {record} has the label {labels[record]}, expected 0 to 9"
        )
    planes = records[:, 1:].reshape(-1, 3, NUM_PIXELS)
    return grey(planes[:, 0], planes[:, 1], planes[:, 2]), labels


def grey(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Grey levels of colours, uint8 of any shape, as TensorFlow's rgb_to_grayscale on uint8.

    In float32: each channel divided by 255, weighted, summed, times 255.5, cut to an integer. (So
    white, whose weights sum to 0.9999, stays 255.) Equal to TensorFlow 2.21 on all 2^24 colours.
    """
    levels = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    weighted = [levels * np.float32(weight) for weight in (0.2989, 0.5870, 0.1140)]
    total = weighted[0][red] + weighted[1][green] + weighted[2][blue]
    return (total * np.float32(255.5)).astype(np.uint8)


def _batch_files(files: list[Path], notes: dict) -> Iterator[tuple[str, str, bytes]]:
    """(where it is, file name, contents) of the files of records."""
    if len(files) == 1:
        archive = files[0]
        digest = sha256_of_file(archive)
        if digest != ARCHIVE_SHA256:
            notes["different_archive"] = (
                f"{archive.name} has sha256 {digest}, the official {ARCHIVE} {ARCHIVE_SHA256}"
            )
        for name, file in iter_members(
            archive, MEMBER.fullmatch, MAX_FILE_BYTES, MAX_UNPACKED_BYTES
        ):
            yield f"{archive}: {name}", MEMBER.fullmatch(name)[1], file.read()
        return
    for path in files:
        with naming_file(path), open(path, "rb") as file:
            yield str(path), path.name, file.read(MAX_FILE_BYTES + 1)


def synthetic_images(config, split: str) -> Iterator[dict]:
    """Toy pictures: stripes whose direction tells the class, with a random phase and noise."""
    rng = synthetic.split_rng(config, split)
    rows, columns = np.mgrid[: PICTURE_SHAPE[0], : PICTURE_SHAPE[1]]
    for index in range(synthetic.sizes(config)[split]):
        label = index % NUM_CLASSES
        angle = np.pi * label / NUM_CLASSES
        along = rows * np.sin(angle) + columns * np.cos(angle)
        stripes = np.sin(2 * np.pi * (along / 8 + rng.random()))
        picture = 128 + 80 * stripes + rng.integers(-30, 31, size=PICTURE_SHAPE)
        yield {"inputs": picture.astype(np.uint8).ravel(), "label": label}
