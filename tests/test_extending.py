"""docs/extending.md, followed in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from experiment.config_checks import check_config
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COPIED = ("nystrom", "configs", "lra_tasks", "experiment", "tests/nystrom", "tests/data")
FILES = ("train.py", "report.py", "pyproject.toml", "tests/conftest.py")


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The repository with the page's attention and task, each put where the page says."""
    copy = tmp_path_factory.mktemp("extended")
    for name in COPIED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    attention, entry, field, task, config, _ = BLOCKS
    (copy / "nystrom/baselines/sharp.py").write_text(attention)
    before = "from nystrom.checks import"
    put(copy / "nystrom/registry.py", before, "from nystrom.baselines.sharp import sharp_attention")
    put(copy / "nystrom/registry.py", '    "softmax": Attention', entry)
    put(copy / "configs/base.py", "    config.model.pinv =", field)
    (copy / "lra_tasks/parity").mkdir()
    (copy / "lra_tasks/parity/__init__.py").write_text(task)
    names = copy / "lra_tasks/check_config.py"
    names.write_text(
        names.read_text().replace('NAMES = ("image",', 'NAMES = ("parity", "image",', 1)
    )
    (copy / "configs/lra_parity.py").write_text(config)
    return copy


def put(file, before, text):
    """Puts text on the lines before the only one that begins so."""
    source = file.read_text()
    assert source.count(f"\n{before}") == 1
    file.write_text(source.replace(f"\n{before}", f"\n{text.rstrip()}\n{before}"))


def run(copy, *command, status=0):
    """What a command of the copy prints."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_attention_passes_the_contract(copy):
    files = [f"tests/nystrom/test_{name}.py" for name in ("baselines", "registry")]
    chosen = "sharp and (padding or empty or grouped or dtype or parameters)"
    out = run(
        copy, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", *files, "-k", chosen
    )
    assert int(re.search(r"(\d+) passed", out)[1]) >= 20


def test_an_option_that_base_does_not_declare_is_named(copy):
    base = copy / "configs/base.py"
    declared = base.read_text()
    try:
        base.write_text(declared.replace(BLOCKS[2], ""))
        said = run(copy, "train.py", "--config=configs/lra_parity.py", status=1)
    finally:
        base.write_text(declared)
    assert "config.model.strength: is missing; see configs/base.py" in said


def test_faults_of_ones_own_code_are_shown_where_they_are(copy, tmp_path):
    sizes = [f"--config.task.num_{split}=40" for split in ("train", "validation", "test")]
    given = [*sizes, f"--config.cache_dir={tmp_path}"]
    attention, task = copy / "nystrom/baselines/sharp.py", copy / "lra_tasks/parity/__init__.py"
    was = attention.read_text(), task.read_text()
    training = ["train.py", "--config=configs/lra_parity.py", "--config.model.attention=sharp"]
    try:
        attention.write_text(was[0].replace("where(k_mask,", "where(k_mask[1:],"))
        said = run(copy, *training, f"--workdir={tmp_path / 'run'}", *given, status=1)
        assert 'sharp.py", line' in said and "\nValueError: Incompatible shapes" in said
        task.write_text(was[1].replace("in counts.items()", "in counts"))
        said = run(
            copy, "-m", "lra_tasks.prepare", "parity", *given, "--config.task.data_seed=5", status=1
        )
        assert 'parity/__init__.py", line' in said and "\nValueError: too many" in said
    finally:
        attention.write_text(was[0])
        task.write_text(was[1])


def test_task_and_attention_train_and_are_reported(copy, tmp_path):
    cache = f"--config.cache_dir={tmp_path / 'cache'}"
    sizes = [f"--config.task.num_{split}=40" for split in ("train", "validation", "test")]
    shown = run(copy, "-m", "lra_tasks.prepare", "parity", *sizes, cache)
    assert "parity-generated-40-40-40" in shown and "train        40 examples" in shown
    short = ["--config.num_train_steps=4", "--config.warmup_steps=1", "--config.eval_every=2"]
    small = [
        "--config.model.attention=sharp",
        "--config.model.width=16",
        "--config.model.num_layers=1",
    ]
    workdir = tmp_path / "runs" / "parity"
    config = "--config=configs/lra_parity.py"
    said = run(copy, "train.py", config, *sizes, cache, *short, *small, f"--workdir={workdir}")
    assert "data_dir" not in said, "there is no release that one could bring"
    run(copy, "report.py", str(workdir.parent), f"--out={tmp_path / 'report'}")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| Parity | sharp" in report and "not a task of LRA's" in report


def test_the_page_s_config_has_its_variants_and_no_other():
    names = {}
    exec(BLOCKS[-1], names)
    short, long = (names["get_config"](variant) for variant in ("", "long"))
    assert (short.num_train_steps, long.num_train_steps) != (20_000, short.num_train_steps)
    assert check_config(short) == check_config(long) == []
    with pytest.raises(ValueError, match=r"did you mean :long\?"):
        names["get_config"]("lang")
