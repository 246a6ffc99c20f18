"""Preparation: whole or not at all, once, and the same every time."""

import collections
import errno
import hashlib
import json
import os
import re
import shutil
import types

import numpy as np
import pytest

import lra_tasks
from lra_tasks import listops, store, writing


def contents(task):
    return {
        name: [(e["inputs"].tobytes(), e["label"]) for e in split.examples.__getitems__(range(5))]
        for name, split in task.splits.items()
    }


def test_lengths_and_set_json_describe_the_examples(listops_task, cache_dir):
    for split in listops_task.splits.values():
        examples = split.examples.__getitems__(range(len(split.examples)))
        assert [[len(e["inputs"])] for e in examples] == split.lengths.tolist()
        assert split.lengths.dtype == np.int32
        assert all(listops.evaluate(e["inputs"]) == e["label"] for e in examples)
        assert all(e["inputs"].dtype == np.uint8 for e in examples)
    [description] = [
        json.loads(path.read_text()) for path in cache_dir.rglob("*-over10-under100-*/*/set.json")
    ]
    assert description["fingerprint"] == listops_task.fingerprint
    assert description["num_examples"] == {"train": 256, "validation": 64, "test": 64}


BITS = np.ones(3, np.uint8)


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"inputs": [1, 2], "label": 0}, ": inputs is list, expected a non-empty uint8 vector"),
        ({"inputs": 7, "label": 0}, ": inputs is int, expected"),
        ({"inputs": BITS.astype(int), "label": 0}, ": inputs is int64[3], expected"),
        ({"inputs": BITS[None], "label": 0}, ": inputs is uint8[1, 3], expected"),
        ({"inputs": np.array(7, np.uint8), "label": 0}, ": inputs is uint8[], expected"),
        ({"inputs": BITS[:0], "label": 0}, ": inputs is uint8[0], expected"),
        ({"input": BITS, "label": 0}, " has input, label, expected inputs, label"),
        ({"inputs": BITS}, " has inputs, expected inputs, label"),
        ({"inputs": BITS, "label": 0, "index": 7}, " has inputs, label, index, expected inputs"),
        ({"inputs": BITS.repeat(99), "label": 0}, ": inputs has 297 tokens, more than config.task"),
        ({"inputs": BITS[:1].repeat(101), "label": 0}, ": inputs has 101 tokens, more than con"),
        ((BITS, 0), " is tuple, expected a dict"),
        ({"inputs": BITS, "label": 10}, ": label 10, expected an integer, 0 to 9"),
        ({"inputs": BITS, "label": 0.9}, ": label 0.9, expected an integer"),
        ({"inputs": BITS, "label": "2"}, ": label '2', expected an integer"),
        ({"inputs": BITS, "label": BITS[:1]}, ": label array([1], dtype=uint8), expected an"),
    ],
)
def test_an_example_that_a_reader_made_wrongly_is_named(
    small, tmp_path, monkeypatch, example, said
):
    def examples(config, source, files, notes):
        return dict.fromkeys(store.SPLITS, lambda: [{"inputs": BITS, "label": 0}, example])

    monkeypatch.setattr(listops, "examples", examples)
    with pytest.raises(ValueError, match=f"train example 1{re.escape(said)}"):
        lra_tasks.load(small, tmp_path, progress=False)


def test_the_fingerprint_is_of_labels_and_of_where_documents_end():
    task = types.SimpleNamespace(NUM_DOCUMENTS=2, VOCAB_SIZE=257, ID_OFFSET=1, NUM_CLASSES=2)
    config, found = types.SimpleNamespace(max_length=9), set()
    for cut, label in ((1, 0), (2, 0), (2, 1)):
        digest = hashlib.sha256()
        example = {"inputs": BITS[:cut], "inputs2": BITS[cut:], "label": label}
        writing._measure(example, task, config, "train", 0, digest)
        found.add(digest.hexdigest())
    assert len(found) == 3


def test_what_a_task_of_ones_own_says_of_its_set_is_told_and_kept(
    small, tmp_path, monkeypatch, capsys
):
    def examples(config, source, files, notes):
        notes["mean"] = np.float32(0.5)
        return dict.fromkeys(store.SPLITS, lambda: [{"inputs": BITS, "label": np.int8(1)}] * 3)

    monkeypatch.setattr(listops, "examples", examples)
    monkeypatch.setattr(listops, "num_examples", lambda *_: {"train": 4, "test": 3})
    lra_tasks.load(small, tmp_path)
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1 and said[0].endswith(": 3 train examples, not 4")
    [path] = tmp_path.rglob("set.json")
    assert json.loads(path.read_text())["notes"]["mean"] == 0.5
    monkeypatch.setattr(listops, "why_not_comparable", lambda *_: None)
    with pytest.raises(ValueError, match="why_not_comparable gave None, expected a reason"):
        lra_tasks.load(small, tmp_path, progress=False)


def test_second_load_opens_what_the_first_made(small, tmp_path):
    first = lra_tasks.load(small, tmp_path, progress=False)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    second = lra_tasks.load(small, tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    assert contents(first) == contents(second)


def test_prepared_anew_it_is_the_same_to_the_byte(small, tmp_path):
    tasks = [lra_tasks.load(small, tmp_path / name, progress=False) for name in "ab"]
    assert tasks[0].fingerprint == tasks[1].fingerprint
    assert contents(tasks[0]) == contents(tasks[1])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("data_seed", 1),
        ("num_train", 41),
        ("num_validation", 6),
        ("num_test", 6),
        ("max_length", 99),
        ("min_length", 9),
        ("source", "generated"),
    ],
)
def test_other_settings_have_another_directory(small, tmp_path, field, value):
    first = lra_tasks.prepare_set(small, tmp_path, progress=False)
    small[field] = value
    second = lra_tasks.prepare_set(small, tmp_path, progress=False)
    assert first != second
    assert first.is_dir() and second.is_dir()


def test_settings_of_batches_share_the_directory(small, tmp_path):
    first = lra_tasks.prepare_set(small, tmp_path, progress=False)
    small.padded_length, small.bucket_boundaries = 256, (64, 256)
    assert lra_tasks.prepare_set(small, tmp_path, progress=False) == first


def test_a_set_in_the_place_of_another_is_refused(small, make_config, tmp_path):
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    other = make_config(num_train=40, num_validation=5, num_test=5, data_seed=1)
    others = lra_tasks.prepare_set(other, tmp_path, progress=False)
    shutil.rmtree(directory)
    shutil.copytree(others, directory)
    with pytest.raises(ValueError, match=rf"it is the set {others.parent.name}, renamed"):
        lra_tasks.load(small, tmp_path, progress=False)


@pytest.mark.parametrize("damage", ["cut", "gone", "lengths", "json"])
def test_damage_after_preparation_is_named(small, tmp_path, damage):
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    [records] = directory.glob("lra-train.array_record*")
    if damage == "cut":
        os.truncate(records, records.stat().st_size // 2)
    elif damage == "gone":
        records.unlink()
    elif damage == "json":
        (directory / "set.json").write_text("{}")
    else:
        np.save(directory / "lengths-train.npy", np.zeros((40, 1), np.int16))
    with pytest.raises(ValueError, match=r"damaged.*Delete that folder") as caught:
        lra_tasks.load(small, tmp_path, progress=False)
    assert str(directory) in str(caught.value)


def test_a_flipped_bit_anywhere_gives_the_same_examples_or_is_named(small, tmp_path):
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    whole = lra_tasks.open_set(small, directory)
    expected = contents(whole)
    rng = np.random.default_rng(0)
    named = collections.Counter()
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        # Of the examples' files most is padding.
        used = np.flatnonzero(np.frombuffer(data, np.uint8))
        for position in rng.choice(used, 6):
            damaged = bytearray(data)
            damaged[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            try:
                task = lra_tasks.open_set(small, directory)
                assert contents(task) == expected and task.fingerprint == whole.fingerprint
                for name, split in task.splits.items():
                    assert (split.lengths == whole.splits[name].lengths).all()
            except ValueError as error:
                assert re.search("damaged.*Delete that folder", str(error))
                named[path.name.partition(".")[0]] += 1
        path.write_bytes(data)
    small_files = ("set", "dataset_info", "features", "lengths-train", "sums-test")
    assert all(named[name] == 6 for name in small_files) and named["lra-train"] > 0


def test_examples_of_another_set_in_files_of_equal_size_are_refused(small, make_config, tmp_path):
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    other = make_config(num_train=40, num_validation=5, num_test=5, data_seed=1)
    [theirs] = lra_tasks.prepare_set(other, tmp_path, progress=False).glob("lra-train.array_rec*")
    [ours] = directory.glob("lra-train.array_record*")
    assert ours.stat().st_size == theirs.stat().st_size
    ours.write_bytes(theirs.read_bytes())
    task = lra_tasks.open_set(small, directory)
    with pytest.raises(ValueError, match=r"damaged \(train: example 3 is not as it was written"):
        task.splits["train"].examples.__getitems__([3])


def test_a_set_of_the_version_without_digests_is_opened(small, tmp_path):
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    expected = contents(lra_tasks.open_set(small, directory))
    for path in directory.glob("sums-*"):
        path.unlink()
    description = json.loads((directory / "set.json").read_text())
    del description["digest"], description["file_digests"]
    sizes = description["file_sizes"]
    description["file_sizes"] = {n: size for n, size in sizes.items() if not n.startswith("sums-")}
    (directory / "set.json").write_text(json.dumps(description))
    assert contents(lra_tasks.open_set(small, directory)) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": np.array([1, 15, 200], np.uint8)}, "inputs has the token id 200 at position 2"),
        ({"label": 10}, "label 10, expected an integer, 0 to 9"),
    ],
)
def test_foreign_ids_and_labels_are_refused_when_a_set_is_prepared(
    change, message, small, tmp_path, monkeypatch
):
    make = listops.examples

    def examples(*args):
        makers = make(*args)
        return makers | {"test": lambda: (row | change for row in makers["test"]())}

    monkeypatch.setattr(listops, "examples", examples)
    with pytest.raises(ValueError, match=f"test example 0: {message}"):
        lra_tasks.load(small, tmp_path, progress=False)


def test_default_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.datasets_dir(None) == store.datasets_dir("") == tmp_path / "nystrom" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(store.datasets_dir(None)) == "/home/somebody/.cache/nystrom/datasets"
    assert str(store.datasets_dir("~/x")) == "/home/somebody/x/datasets"


def test_a_changed_file_in_an_official_folder_makes_another_set(tmp_path):
    file = tmp_path / "images" / "1" / "a.png"
    file.parent.mkdir(parents=True)
    keys = set()
    for content in (b"", b"whole"):
        file.write_bytes(content)
        (file.parent / ".DS_Store").write_bytes(content)  # a hidden one counts for nothing
        os.utime(tmp_path / "images", (0, 0))
        keys.add(store._files_key([tmp_path / "images"]))
    assert len(keys) == 2
    (file.parent / ".DS_Store").unlink()
    os.utime(file.parent, (0, 0))
    assert store._files_key([tmp_path / "images"]) in keys
    os.close(os.open(os.fsencode(tmp_path / "images") + b"/caf\xe9.png", os.O_CREAT))
    assert store._files_key([tmp_path / "images"]) not in keys
    keys.add(store._files_key([tmp_path / "images"]))
    os.utime(file, (9, 9))  # other contents of the same size
    assert store._files_key([tmp_path / "images"]) not in keys


def test_what_the_system_refuses_to_read_is_not_called_damage(tmp_path):
    for code in (errno.EACCES, errno.EMFILE, errno.ENFILE):
        refused = store.unreadable(tmp_path, f"train: open() failed: {os.strerror(code)}; file")
        assert isinstance(refused, OSError) and refused.errno == code
        assert str(tmp_path) in str(refused)
    assert isinstance(store.unreadable(tmp_path, "train: a bad record"), ValueError)


def test_of_prepared_sets_the_newest_is_found_first(tmp_path):
    for when, name in ((3, "set-a"), (9, "set-b"), (5, "set-c")):
        folder = tmp_path / "lra" / name / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "set.json").touch()
        os.utime(folder, (when, when))
    found = store.find_prepared(tmp_path, "set-*", "1.0.0")
    assert [path.parent.name for path in found] == ["set-b", "set-c", "set-a"]
