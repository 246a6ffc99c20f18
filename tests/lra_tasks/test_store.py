"""Preparation: whole or not at all, once, and the same every time."""

import collections
import contextlib
import errno
import fcntl
import json
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

import lra_tasks
from lra_tasks import disk, listops, progress, store

PREPARE = """
import sys, types
import lra_tasks
from lra_tasks import listops

config = types.SimpleNamespace(
    name="listops", source="synthetic", data_dir="", max_length=100, min_length=10,
    bucket_boundaries=(), padded_length=128, num_train=40, num_validation=5, num_test=5,
    difficulty="", data_seed=0, tokenizer="", vocab_size=0, sop=False, augment=False,
)
draw_tree = listops.draw_tree
made = 0

def slow(rng, max_length):
    global made
    made += 1
    if made == 2100:  # in the second chunk: examples have been written
        print("under way", flush=True)
        sys.stdin.readline()
    return draw_tree(rng, max_length)

listops.draw_tree = slow
print(lra_tasks.load(config, sys.argv[1]).fingerprint)
"""


def start_preparing(cache):
    """A process that prepares a set, says when it is under way, and waits for a line then."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PREPARE, str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def small(make_config):
    return make_config(num_train=40, num_validation=5, num_test=5)


def contents(task):
    return {
        name: [(e["inputs"].tobytes(), e["label"]) for e in split.examples.__getitems__(range(5))]
        for name, split in task.splits.items()
    }


def left_over(cache):
    """Whatever of a preparation is on disk, lock files aside."""
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


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
    before = {path: path.stat().st_mtime_ns for path in left_over(tmp_path)}
    second = lra_tasks.load(small, tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in left_over(tmp_path)} == before
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


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("when", [0, 3, 47])
def test_an_exception_leaves_nothing(small, tmp_path, monkeypatch, capsys, error, when):
    generate, count = listops.generate, 0

    def failing(*args, **kwargs):
        nonlocal count
        for example in generate(*args, **kwargs):
            if count == when:
                raise error
            count += 1
            yield example

    with monkeypatch.context() as patch:
        patch.setattr(listops, "generate", failing)
        with pytest.raises(type(error)):
            lra_tasks.load(small, tmp_path, progress=True)
    said = "interrupted: listops-" in capsys.readouterr().err
    assert said == isinstance(error, KeyboardInterrupt)
    assert not left_over(tmp_path)
    assert len(lra_tasks.load(small, tmp_path, progress=False).splits["train"].examples) == 40


def test_an_exception_after_the_examples_leaves_nothing(small, tmp_path, monkeypatch):
    def failing(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", failing)
        with pytest.raises(OSError, match="disk full"):
            lra_tasks.load(small, tmp_path, progress=False)
    assert not left_over(tmp_path)
    lra_tasks.load(small, tmp_path, progress=False)


def test_kill_leaves_nothing_that_counts_and_the_next_start_succeeds(small, tmp_path):
    process = start_preparing(tmp_path)
    assert process.stdout.readline() == "under way\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert left_over(tmp_path), "killed before anything was written: the test shows nothing"
    assert not list(tmp_path.rglob("set.json"))
    task = lra_tasks.load(small, tmp_path, progress=False)
    assert len(task.splits["train"].examples) == 40
    assert not [path for path in left_over(tmp_path) if "preparing" in path.parts]


def test_the_next_start_of_another_set_removes_what_a_kill_left(small, make_config, tmp_path):
    process = start_preparing(tmp_path)
    assert process.stdout.readline() == "under way\n"
    process.kill()
    process.communicate()
    lra_tasks.load(make_config(num_train=7), tmp_path, progress=False)
    assert not [path for path in left_over(tmp_path) if "preparing" in path.parts]


def test_two_processes_prepare_one_set_once(tmp_path):
    slow = start_preparing(tmp_path)
    assert slow.stdout.readline() == "under way\n"
    other = start_preparing(tmp_path)
    said = ""
    while "another process works on" not in said:
        line = other.stderr.readline()
        assert line, f"{said}: it ended without waiting"
        said += line
    outputs = [process.communicate("\n", timeout=300) for process in (slow, other)]
    assert [process.returncode for process in (slow, other)] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]  # fingerprints; the other never was "under way"


def test_preparing_another_set_leaves_one_under_way_alone(small, make_config, tmp_path):
    slow = start_preparing(tmp_path)
    assert slow.stdout.readline() == "under way\n"
    lra_tasks.load(make_config(num_train=7), tmp_path, progress=False)
    assert slow.poll() is None, "it had ended before: the test shows nothing"
    output, errors = slow.communicate("\n", timeout=300)
    assert slow.returncode == 0, errors
    assert output.strip() == lra_tasks.load(small, tmp_path, progress=False).fingerprint


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


def test_a_cache_that_cannot_be_written_names_the_setting(small, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"config.cache_dir='.*file/below': can't write there .*set"):
        lra_tasks.load(small, tmp_path / "file" / "below", progress=False)
    assert not disk.is_writable(tmp_path / "file" / "below")
    assert disk.is_writable(tmp_path / "new") and not list((tmp_path / "new").iterdir())


def test_a_full_disk_names_the_setting(small, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))  # of any file, in bytes
        with pytest.raises(OSError, match=r"config.cache_dir='.*': can't write there .*make room"):
            lra_tasks.load(small, tmp_path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not left_over(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_set_can_be_read_from_a_cache_without_write_permission(small, tmp_path):
    lra_tasks.load(small, tmp_path, progress=False)
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        lra_tasks.load(small, tmp_path, progress=False)
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_default_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store.datasets_dir(None) == store.datasets_dir("") == tmp_path / "nystrom" / "datasets"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(store.datasets_dir(None)) == "/home/somebody/.cache/nystrom/datasets"
    assert str(store.datasets_dir("~/x")) == "/home/somebody/x/datasets"


def test_plain_progress_lines_and_silence(make_config, tmp_path, capsys):
    lra_tasks.load(make_config(num_train=9), tmp_path)
    captured = capsys.readouterr()
    assert "train: 9 examples in" in captured.err and not captured.out
    lra_tasks.load(make_config(num_train=10), tmp_path, progress=False)
    captured = capsys.readouterr()
    assert not captured.err and not captured.out


def test_a_bar_on_a_terminal(monkeypatch):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert list(progress.track("abc", "drawing", 3)) == ["a", "b", "c"]
    parts = []  # one read may give but a part of it, and EIO is the end on Linux
    with open(master, "rb", buffering=0) as screen, contextlib.suppress(OSError):
        while part := screen.read(10_000):
            parts.append(part)
    shown = b"".join(parts).decode()
    assert "drawing: 100%" in shown and "3/3" in shown


def test_import_is_cheap_and_nothing_ever_needs_tensorflow_or_jax(tmp_path):
    code = PREPARE + (
        "loaded = {m for m in ('tensorflow', 'jax', 'torch') if m in sys.modules}\n"
        "assert not loaded, loaded\n"
    )
    code = code.replace(
        "from lra_tasks import listops",
        "from lra_tasks import listops\n"
        "heavy = ('tensorflow_datasets', 'ml_collections', 'array_record', 'PIL', 'jax')\n"
        "assert not [m for m in heavy if m in sys.modules]",
        1,
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "0"], check=True)


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


def test_what_the_system_refuses_to_read_is_not_called_damage(tmp_path):
    refused = store.unreadable(tmp_path, f"train: open() failed: {os.strerror(errno.EACCES)}; file")
    assert isinstance(refused, PermissionError) and str(tmp_path) in str(refused)
    assert isinstance(store.unreadable(tmp_path, "train: a bad record"), ValueError)
