"""python -m lra_tasks.prepare: what it prints, and its exit status."""

import dataclasses
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import lra_tasks
from lra_tasks import listops, prepare

ROOT = Path(lra_tasks.__file__).parent.parent


def test_command_prepares_and_shows_what_was_made(tmp_path):
    arguments = ["listops:quick", "--source=synthetic", f"--cache_dir={tmp_path}"]
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "lra_tasks.prepare", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "synthetic" in lines[1] and len(lines[2].split()[1]) == 64
    assert lines[3].startswith("comparable   no: synthetic")
    assert [line.split()[0] for line in lines[4:7]] == ["train", "validation", "test"]
    shown = [line for line in lines if line.startswith("    [")]
    assert len(shown) == 3 and sum(line.startswith("train ") for line in lines[7:]) == 3


def test_problems_go_to_stderr_with_status_1(tmp_path, capsys):
    arguments = ["listops", "--data_dir=/nowhere", f"--cache_dir={tmp_path}"]
    assert prepare.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: config.task.data_dir='/nowhere'") and not captured.out


def test_an_unknown_variant_is_an_error_without_traceback(tmp_path, capsys):
    assert prepare.main(["listops:huge", f"--cache_dir={tmp_path}"]) == 1
    assert "no variant 'huge'" in capsys.readouterr().err


def test_help_names_the_variants_that_there_are(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "listops :quick :tuned" in shown and "text :1k :tuned" in shown
    assert "small" not in shown and "--config.FIELD=VALUE" in shown


SIZES = [f"--config.task.num_{split}=4" for split in ("train", "validation", "test")]


@pytest.mark.parametrize(
    "given",
    [
        ["listops:quick"],
        [f"{ROOT}/configs/lra_listops.py:quick"],
    ],
)
def test_variants_and_overrides_are_train_pys(given, tmp_path, capsys):
    arguments = [*given, *SIZES, "--source=generated", f"--cache_dir={tmp_path}"]
    assert prepare.main([*arguments, "--config.task.data_seed=5"]) == 0
    shown = capsys.readouterr().out
    assert "train        4 examples" in shown
    assert "listops-generated-4-4-4-over20-under128-seed5" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["listops:quik"], "no variant 'quik'; did you mean :quick?"),
        (["listops", "--config.task.num_trian=3"], "did you mean --config.task.num_train?"),
        (["listops", "--surce=release"], "surce"),
        (["nothing.py"], "--config=nothing.py: no such file"),
        (["listops", "--cache_dir=gs://bucket/x"], "cache_dir='gs://bucket/x': an address; expec"),
        (["retrieval"], "https://storage.googleapis.com/long-range-arena/lra_release.gz"),
        (
            ["pathfinder", "--source=release"],
            "https://storage.googleapis.com/long-range-arena/lra_release.gz",
        ),
    ],
)
def test_what_is_refused_is_one_line(arguments, expected, tmp_path, capsys):
    assert prepare.main([f"--cache_dir={tmp_path}", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and expected in err and len(err.splitlines()) == 1


def test_configs_in_the_current_folder_are_not_ours(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('a foreign package')")
    arguments = ["listops:quick", *SIZES, "--source=synthetic", f"--cache_dir={tmp_path}/cache"]
    result = subprocess.run(
        [sys.executable, "-m", "lra_tasks.prepare", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # found as an installed package is
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "train        4 examples" in result.stdout


def test_warnings_are_one_plain_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(listops, "FULL_SIZES", {"train": 4, "validation": 2, "test": 2})
    assert prepare.main(["listops", f"--cache_dir={tmp_path}"]) == 0
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert ".py" not in captured.err and "UserWarning" not in captured.err
    assert len(errors) == 1 and "using source 'generated'" in errors[0]
    assert "train        4 examples" in captured.out


def test_pictures_are_written_as_they_are(listops_task, tmp_path, monkeypatch, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), dtype=np.uint8)

    class Pictures:
        def __len__(self):
            return 3

        def __getitems__(self, indices):
            return [{"inputs": pixels[i].ravel(), "label": 7} for i in indices]

    split = lra_tasks.Split(Pictures(), np.full((3, 1), 20, np.int32))
    task = dataclasses.replace(listops_task, splits={"train": split})
    monkeypatch.setattr(lra_tasks.task_module("listops"), "PICTURE_SHAPE", (4, 5), raising=False)
    prepare._preview(task, str(tmp_path / "new" / "folder"))
    paths = sorted((tmp_path / "new" / "folder").glob("*.png"))
    assert len(paths) == 3 and all(str(path) in capsys.readouterr().out for path in paths[:1])
    for path, expected in zip(paths, pixels, strict=True):
        with PIL.Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)
    prepare._preview(task, None)
    assert "--preview_dir" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [("listop", "did you mean listops?"), ("documents", "give a config file, such as configs/mlm")],
)
def test_unknown_task_is_refused(name, said, capsys):
    with pytest.raises(SystemExit):
        prepare.main([name])
    assert said in capsys.readouterr().err


def test_on_a_terminal_warnings_are_broken_between_words():
    """Elsewhere they are one line, which a search finds."""
    code = (
        "import warnings; from lra_tasks.progress import plain_warnings\n"
        "with plain_warnings(): warnings.warn('no data: ' + 'synthetic ' * 20)"
    )
    command = [sys.executable, "-c", code]
    whole = "warning: no data: " + " ".join(["synthetic"] * 20)
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert piped.stderr.rstrip() == whole
    outer, inner = os.openpty()
    termios.tcsetwinsize(inner, (24, 80))
    subprocess.run(command, cwd=ROOT, stderr=inner, check=True)
    os.close(inner)
    lines = os.read(outer, 4096).decode().splitlines()
    os.close(outer)
    assert len(lines) == 3 and all(len(line) <= 80 for line in lines)
    assert " ".join(lines) == whole


def test_a_cache_given_goes_before_that_of_the_config(tmp_path, capsys):
    arguments = ["listops:quick", *SIZES, "--source=synthetic", f"--cache_dir={tmp_path / 'given'}"]
    assert prepare.main([*arguments, f"--config.cache_dir={tmp_path / 'other'}"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_ctrl_c_ends_it_as_shells_have_it(tmp_path, monkeypatch):
    def interrupted(*_):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(lra_tasks, "prepare_set", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert prepare.main(["listops:quick", f"--cache_dir={tmp_path}"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
