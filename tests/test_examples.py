"""The scripts of examples/ do what they say."""

import os
import runpy
import subprocess
import sys

from tests.conftest import ROOT

SCRIPTS = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}


def test_there_are_four_of_under_fifty_lines():
    assert list(SCRIPTS) == ["bag_of_patches", "flax_model", "plain_function", "sharded_sequence"]
    assert all(len(path.read_text().splitlines()) < 50 for path in SCRIPTS.values())


def test_plain_function(capsys):
    runpy.run_path(str(SCRIPTS["plain_function"]))
    _, is_zero, *errors = capsys.readouterr().out.splitlines()
    assert is_zero.endswith("True")
    errors = [float(line.split()[-1]) for line in errors]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.1


def test_flax_model(capsys):
    runpy.run_path(str(SCRIPTS["flax_model"]))
    first, last = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert last < 0.5 < first


def test_bag_of_patches(capsys):
    runpy.run_path(str(SCRIPTS["bag_of_patches"]))
    apart = capsys.readouterr().out.split()[-2]
    assert float(apart) < 1e-5


def test_sharded_sequence():  # in a process of its own: it sets the number of devices
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPTS["sharded_sequence"])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-6
    assert "over 4 devices, each holds 4,096" in done.stdout
