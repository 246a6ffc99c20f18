"""Text: is a film review positive? IMDB reviews as UTF-8 bytes (Maas et al., 2011).

imdb.py says how validation is held out of train.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from lra_tasks import synthetic
from lra_tasks.archives import locate
from lra_tasks.store import SPLITS
from lra_tasks.text import imdb

TITLE = "Text"
NUM_CLASSES = 2
VOCAB_SIZE = 257
NUM_DOCUMENTS = 1
ID_OFFSET = 1
FIRST_ID = 1
VERSION = "1.0.0"
SOURCES = ("release", "package", "synthetic")
LABEL_NAMES = ("negative", "positive")

MAX_LENGTH = 4_000  # bytes of a review that LRA reads

URL = f"https://ai.stanford.edu/~amaas/data/sentiment/{imdb.ARCHIVE}"


def check(config) -> list[str]:
    """Problems of the fields that only this task understands: there are none."""
    return []


def set_name(config, source: str) -> str:
    """What distinguishes a set: sizes, length; the seed where examples are made from one."""
    sizes = "-".join(str(getattr(config, f"num_{split}") or "all") for split in SPLITS)
    seed = f"-seed{config.data_seed}" if source == "synthetic" else ""
    return f"{sizes}-length{config.max_length}{seed}"


def num_examples(config, source: str) -> dict[str, int | None]:
    """Examples of each split; None: what the source has."""
    if source == "synthetic":
        return synthetic.sizes(config)
    return {split: getattr(config, f"num_{split}") or None for split in SPLITS}


def why_not_comparable(config, source: str, notes: dict) -> str:
    """'' for the official reviews, all of the test set, at LRA's length; else the reason."""
    if source == "synthetic":
        return "synthetic examples, for smoke tests"
    if source == "package":
        return (
            f"the package {imdb.PACKAGE} has half of the IMDB reviews: LRA's test set, 25,000 "
            "reviews, is not in it, and train is smaller"
        )
    if config.max_length != MAX_LENGTH:
        return f"the first {config.max_length:,} bytes of each review, LRA reads {MAX_LENGTH:,}"
    if notes["different_archive"]:
        return notes["different_archive"]
    if notes["reviews"] != imdb.OFFICIAL_REVIEWS:
        return f"reviews: {notes['reviews']}, the official ones are {imdb.OFFICIAL_REVIEWS}"
    if config.num_train or config.num_test:
        return "config.task.num_train or num_test leaves out a part of the reviews"
    return ""


def find_files(config, source: str) -> list[Path]:
    """The archive or its four unpacked folders; the package's CSV; [] for synthetic."""
    if source == "release":
        unpacked = tuple(f"aclImdb/{folder}" for folder in imdb.FOLDERS)
        layouts = [(imdb.ARCHIVE,), imdb.FOLDERS, unpacked]
        return locate(config.data_dir, layouts, f"the IMDB reviews ({imdb.ARCHIVE} from {URL})")
    if source == "package":
        package = importlib.util.find_spec(imdb.PACKAGE)  # found without running any of its code
        places = package.submodule_search_locations if package else None
        path = Path(places[0]) / imdb.PACKAGE_CSV if places else None
        if path is None or not path.is_file():
            raise ValueError(
                f"the Python package {imdb.PACKAGE} with {imdb.PACKAGE_CSV} is not installed: "
                f"{imdb.PACKAGE_COMMAND}"
            )
        return [path]
    return []


def download(folder: Path, progress: bool) -> None:
    """Fetches the official archive into `folder`; OSError if that fails."""
    from lra_tasks.download import fetch

    fetch(URL, imdb.ARCHIVE_BYTES, imdb.ARCHIVE_SHA256, folder, progress)


def encode(text: str) -> np.ndarray:
    """The UTF-8 bytes of a text, uint8."""
    return np.frombuffer(text.encode(), np.uint8)


def decode(ids: np.ndarray) -> str:
    """The text of token ids; padding is dropped."""
    ids = np.asarray(ids)
    return (ids[ids > 0] - ID_OFFSET).astype(np.uint8).tobytes().decode(errors="replace")


def examples(
    config, source: str, files: list[Path], notes: dict
) -> dict[str, Callable[[], Iterable[dict]]]:
    """Makers of the examples of each split."""
    if source == "synthetic":
        return {split: functools.partial(synthetic_reviews, config, split) for split in SPLITS}
    read = {"release": imdb.release_splits, "package": imdb.package_splits}[source]
    splits = functools.cache(lambda: read(files, notes))  # read when first asked for

    def make(split):
        reviews = splits()[split]
        size = getattr(config, f"num_{split}") or len(reviews)
        if size > len(reviews):
            raise ValueError(f"config.task.num_{split}={size}: {source} has {len(reviews)}")
        for review, label in reviews[:size]:
            yield {"inputs": np.frombuffer(review[: config.max_length], np.uint8), "label": label}

    return {split: functools.partial(make, split) for split in SPLITS}


BAD = ("awful", "dull", "clumsy", "boring", "terrible")
GOOD = ("wonderful", "moving", "superb", "charming", "brilliant")
OTHER = ("the film", "this story", "the cast", "a scene", "and then", "is", "was", "<br /><br />")


def synthetic_reviews(config, split: str) -> Iterator[dict]:
    """Toy reviews: every fourth phrase judges, always the way the label says."""
    rng = synthetic.split_rng(config, split)
    for index in range(synthetic.sizes(config)[split]):
        label = index % 2
        length = max(32, synthetic.document_length(rng, config.max_length))
        judging = rng.integers(len(GOOD), size=length // 8 + 1)
        filling = rng.integers(len(OTHER), size=(len(judging), 3))
        phrases = [
            " ".join([(BAD, GOOD)[label][judge], *(OTHER[i] for i in others)])
            for judge, others in zip(judging, filling, strict=True)
        ]
        text = " ".join(phrases).encode()[: min(length, config.max_length)]
        yield {"inputs": np.frombuffer(text, np.uint8), "label": label}
