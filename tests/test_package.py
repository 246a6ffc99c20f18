"""What is installed: the ranges, the extras, and what each names where it is not there."""

import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.conftest import ROOT


def requirements(lines):
    lines = (re.sub(r"\s*#.*", "", line).strip() for line in lines)
    return sorted(line for line in lines if line)


def test_the_core_and_its_extra_are_requirements_txt():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["lra"]
    assert requirements(listed) == requirements(
        (ROOT / "requirements.txt").read_text().splitlines()
    )


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "tqdm"])
def test_lra_tasks_without_its_extra_names_it(missing):
    hide = f"""
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == {missing!r} else find(name)
import lra_tasks
"""
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"ImportError: lra_tasks needs {missing}, ")
    assert error.endswith("pip install '.[lra]' in the folder of the repository")


def test_prepare_without_the_repositorys_configs_says_so(tmp_path):
    shutil.copytree(ROOT / "lra_tasks", tmp_path / "lra_tasks")
    command = [sys.executable, "-m", "lra_tasks.prepare", "listops"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the configs")
    assert len(done.stderr.splitlines()) == 1
