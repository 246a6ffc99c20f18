"""Pathfinder: are two circles joined by a dashed contour? 32x32 grey pixels in raster order.

Path-X (`pathx`) is the same at 128x128. Sources: the Long Range Arena's release
(`release`), or images of our own after its procedure (`snakes`).
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

from lra_tasks import synthetic
from lra_tasks.pathfinder import release, snakes
from lra_tasks.pathfinder.snake_sprites import CONTOUR_LENGTHS, recipe

TITLE = "Pathfinder"
NUM_CLASSES = 2
VOCAB_SIZE = 256
NUM_DOCUMENTS = 1
ID_OFFSET = 0
FIRST_ID = 0
VERSION = "1.0.0"
SOURCES = ("release", "generated", "synthetic")
PICTURE_SHAPE = (32, 32)
LABEL_NAMES = ("the circles are on two contours", "the circles are on one contour")

SIDES = {"pathfinder": 32, "pathx": 128}
FULL_SIZES = {"train": 160_000, "validation": 20_000, "test": 20_000}


def check(config) -> list[str]:
    """Problems of the fields that only Pathfinder and Path-X understand."""
    problems = []
    allowed = tuple(CONTOUR_LENGTHS) if config.name == "pathfinder" else ("",)
    if config.difficulty not in allowed:
        expected = (
            f"one of {', '.join(allowed)}" if len(allowed) > 1 else "'' (Path-X has just one)"
        )
        problems.append(f"config.task.difficulty={config.difficulty!r}: expected {expected}")
    pixels = SIDES[config.name] ** 2
    if config.max_length != pixels:
        problems.append(
            f"config.task.max_length={config.max_length}: expected {pixels}, the pixels of an image"
        )
    return problems


def set_name(config, source: str) -> str:
    """What distinguishes a set: difficulty, sizes, seed of its images or its split."""
    sizes = "-".join(str(n or "all") for n in num_examples(config, source).values())
    return f"{_difficulty(config)}-{sizes}-seed{config.data_seed}"


def num_examples(config, source: str) -> dict[str, int | None]:
    """Images of each split; None: as many as the release has."""
    if source == "synthetic":
        return synthetic.sizes(config)
    full = FULL_SIZES if source == "generated" else {}
    return {split: getattr(config, f"num_{split}") or full.get(split) for split in FULL_SIZES}


def why_not_comparable(config, source: str, notes: dict) -> str:
    """'' for LRA's hard images in full number, the release's or our own; else the reason."""
    if source == "synthetic":
        return "synthetic examples, for smoke tests"
    if _difficulty(config) != "hard":
        return f"images of difficulty {config.difficulty!r}, LRA's are 'hard'"
    asked = num_examples(config, source)
    if any(asked[split] not in (None, full) for split, full in FULL_SIZES.items()):
        return f"{asked} images, LRA has {FULL_SIZES}"
    total = sum(FULL_SIZES.values())
    listed = notes.get("images_listed", total)
    if listed != total:
        return f"the release's folder lists {listed:,} images, LRA's has {total:,}"
    if (empty := notes.get("images_empty", 0)) > release.FEW_EMPTY:
        return f"{empty:,} of the release's images are empty files, of LRA's a few: unpack it again"
    return ""


def find_files(config, source: str) -> list[Path]:
    """The release's metadata files, or its archive; nothing for the other sources."""
    if source != "release":
        return []
    return release.find_files(
        config.data_dir, f"pathfinder{SIDES[config.name]}", _difficulty(config)
    )


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split."""
    side = SIDES[config.name]
    sizes = num_examples(config, source)
    if source == "release":
        folder = f"pathfinder{side}/{release.FOLDERS[_difficulty(config)]}"
        return release.examples(files, folder, side, sizes, config.data_seed, notes)
    # Path-X's long contours take too long for a smoke test.
    easy = source == "synthetic" and side == 128
    made = functools.partial(_generate, recipe(side, "easy" if easy else _difficulty(config)))
    num_workers = 0 if source == "synthetic" else None
    return {
        split: functools.partial(made, size, config.data_seed, index, num_workers)
        for index, (split, size) in enumerate(sizes.items())
    }


def _generate(images, size, seed, index, num_workers):
    for pixels, label in snakes.generate(images, size, seed, index, num_workers=num_workers):
        yield {"inputs": pixels, "label": label}


def _difficulty(config) -> str:
    return config.difficulty or "hard"
