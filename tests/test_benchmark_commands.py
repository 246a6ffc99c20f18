"""The benchmarks' command lines: their help, and wrong values before anything is measured."""

import importlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lra_tasks
from benchmarks import command_line
from configs import base

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if " = make_parser(" in path.read_text() or "make_parser(__doc__).parse" in path.read_text()
] + ["gpu_aot"]  # which has tpu_aot's


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{name}").main()
    return ended.value.code


def test_every_command_is_tried():
    assert len(COMMANDS) == 19


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns(name, monkeypatch, capsys):
    assert run(monkeypatch, name, "--help") == 0
    said = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in said
    assert max(map(len, said.splitlines())) < 80


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("attention --lengths=1024,1k", "'1k': expected a whole number of at least 1"),
        ("attention --quick --lengths=16384", "--quick has lengths up to 4,096, given 16384"),
        ("attention --lengths=100", "--lengths and --landmarks: 64 does not divide 100"),
        ("authors_curves -- --config.seed=1", "other fields need an --output of their own"),
        ("attention_versions /nowhere", "no nystrom/__init__.py there"),
        (f"attention_versions {ROOT} --cases=1024", "--cases: '1024': expected tokens/landmarks"),
        ("compile_time /nowhere", "no train.py there"),
        ("convolution --sizes=1x64x2x32x34", "'1x64x2x32x34': expected BxNxHxDxK with K odd"),
        ("data_loading --num_train=-3", "'-3': expected a whole number of at least 0"),
        ("forms --sizes=1x2", "'1x2': expected BxNxHxDxL"),
        ("data_loading --task=listop", "'listop': expected one of image, listops"),
        ("data_loading --steps=0", "'0': expected a whole number of at least 1"),
        ("gpu --minutes=nan", "'nan': expected a number above 0"),
        ("self_pretraining --seeds=0,x", "'x': expected a whole number of at least 0"),
        ("train_step --tasks=text,tex", "'tex': expected one of image, listops"),
    ],
)
def test_wrong_values_are_named(command, problem, monkeypatch, capsys):
    assert run(monkeypatch, *command.split()) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def restored_sigint():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def lacks_a_peer():
    importlib.import_module("no_such_peer")


def is_given_no_task():
    lra_tasks.load(base.get_config().task)


@pytest.mark.parametrize(
    ("main", "end"),
    [
        (lacks_a_peer, "error: No module named 'no_such_peer': are this benchmark's requirements"),
        (is_given_no_task, "error: config.task.name=''"),
    ],
)
def test_what_users_can_mend_ends_one_without_a_traceback(main, end, restored_sigint):
    with pytest.raises(SystemExit) as ended:
        command_line.run(main)
    assert str(ended.value.code).startswith(end)


def test_a_fault_of_a_benchmark_is_shown_where_it_is(restored_sigint):
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda: 1 // 0)


def test_ctrl_c_ends_one_at_once_and_silently():
    code = (
        "import os, signal, time\n"
        "from benchmarks import command_line\n"
        "def main():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
        "command_line.run(main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


WRITERS = (
    "attention_versions", "authors_curves", "compile_time", "convolution", "forms", "gpu",
    "gpu_aot", "language_length", "language_parity", "listops_floor", "tpu_aot", "train_step",
)  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_outputs_that_can_not_be_written_are_refused_at_once(name, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, name, f"--output={tmp_path}") == 2
    assert f"'{tmp_path}': is no file" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "file").touch()
    assert run(monkeypatch, name, f"--output={tmp_path}/file/new/a.csv") == 2
    assert f"can't write in {tmp_path}/file: Not a dir" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["attention", "sharding"])
@pytest.mark.parametrize("option", ["output_dir", "plots_dir"])
def test_folders_that_can_not_be_written_are_refused(name, option, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert run(monkeypatch, name, f"--{option}={tmp_path}/file") == 2
    assert f"can't write in {tmp_path}/file: Not a dir" in capsys.readouterr().err


def test_outputs_that_can_be_written_are_paths_and_left_alone(tmp_path):
    (tmp_path / "old.csv").write_text("old")
    for path in (tmp_path / "old.csv", tmp_path / "new" / "er" / "a.csv"):
        assert command_line.writable_file(str(path)) == path
    assert (tmp_path / "old.csv").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_long_commands_go_on_in_a_line_of_their_own(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = "Prose that\nis long enough for two lines of these.\n\n"
    text += "    python -m it --one=1 --two=222222222"
    parser = command_line.make_parser(text)
    assert parser.description.splitlines() == [
        "Prose that is long enough for two",
        "lines of these.",
        "",
        "    python -m it --one=1",
        "        --two=222222222",
    ]
