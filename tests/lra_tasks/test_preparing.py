"""Preparing a set: interrupted, killed, by two at once, where nothing can be written; its bar."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from array_record.python import array_record_module

import lra_tasks
from lra_tasks import builder, disk, listops, progress, writing

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


def left_over(cache):
    """Whatever of a preparation is on disk, lock files aside."""
    return [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


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


@pytest.mark.parametrize("made", [0, 3])
def test_a_task_that_makes_too_few_examples_is_told(small, tmp_path, monkeypatch, capsys, made):
    generate = listops.generate

    def too_few(split, size, **keywords):
        examples = generate(split, size, **keywords)
        return itertools.islice(examples, made if split == "validation" else size)

    monkeypatch.setattr(listops, "generate", too_few)
    if made:
        lra_tasks.load(small, tmp_path)
        assert ": 3 validation examples, not 5" in capsys.readouterr().err
    else:
        why = "the validation split: lra_tasks.listops made none, see config.task.num_validation$"
        with pytest.raises(ValueError, match=why):
            lra_tasks.load(small, tmp_path, progress=False)


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


def test_files_of_examples_are_read_one_by_one_and_say_how_much_they_hold(small, tmp_path):
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    [records] = directory.glob("lra-train.array_record*")
    reader = array_record_module.ArrayRecordReader(str(records))
    assert "group_size:1," in reader.writer_options_string()
    sizes = [len(record) for record in reader.read_all()]
    reader.close()
    [info] = [
        split
        for split in json.loads((directory / "dataset_info.json").read_text())["splits"]
        if split["name"] == "train"
    ]
    assert int(info["numBytes"]) == sum(sizes) and info["shardLengths"] == ["40"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_writer_s_error_has_its_number(number):
    def write():
        raise RuntimeError(f"write() failed: {os.strerror(number)}; the writer is closed")

    with pytest.raises(OSError, match=r"write\(\) failed: [^;]*: 'examples'$") as caught:
        builder._to_disk(write, "examples")
    assert caught.value.errno == number


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


def test_a_set_is_on_the_disk_before_it_has_its_name(small, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(writing, "sync", lambda path: (synced.append(path), disk.sync(path)))
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    *files, parent = synced
    assert parent == directory.parent
    assert {path.name for path in files} == {path.name for path in directory.iterdir()}
    assert all("preparing" in path.parts for path in files)
