"""Notebooks run in their short mode; the stored ones are whole and in step with their sources."""

import ast
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py"))


def stored(name):
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())


def outputs(notebook):
    return [output for cell in notebook["cells"] for output in cell.get("outputs", ())]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run_without_error_output(name, cache_home):
    command = [sys.executable, "notebooks/run.py", "--short", name]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""


def test_a_folder_of_runs_that_is_not_there_is_named(tmp_path):
    command = [sys.executable, "notebooks/run.py", "03_lra_results", f"--runs={tmp_path / 'nix'}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 2
    assert process.stderr.endswith(f"error: --runs={tmp_path / 'nix'}: no such folder\n")


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebooks_have_outputs_and_no_errors(name):
    found = outputs(stored(name))
    assert any("image/png" in output.get("data", {}) for output in found)
    assert not [o for o in found if o["output_type"] == "error" or o.get("name") == "stderr"]
    text = json.dumps(found)
    for path in ("/home/", "/root/", "/tmp/", "/usr/"):
        assert path not in text, f"{path} in an output"


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebooks_are_in_step_with_their_sources(name):
    command = [sys.executable, "-m", "jupytext", "--to=ipynb", "--output=-", f"{name}.py"]
    made = subprocess.run(command, cwd=ROOT / "notebooks", capture_output=True, check=True)
    cells = [
        [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
        for notebook in (json.loads(made.stdout), stored(name))
    ]
    assert cells[0] == cells[1], "run: python notebooks/run.py"


def test_what_falls_and_rises_has_no_exponent():
    source = (ROOT / "notebooks" / "02_scaling.py").read_text()
    found = [x for x in ast.parse(source).body if getattr(x, "name", "") == "exponent"]
    names = {"np": np}
    exec(compile(ast.Module(found, []), "02_scaling.py", "exec"), names)
    lengths = np.array([1024, 2048, 4096, 8192])
    assert names["exponent"](lengths, lengths**2.0) == pytest.approx(2)
    assert names["exponent"](lengths, np.array([1.17, 2.30, 1.34, 1.34])) is None
    assert names["exponent"](lengths[:1], lengths[:1]) is None
