"""Every task trains, evaluates and gives a result, from its config and tiny data."""

import functools
import importlib
import subprocess

import jax
import numpy as np
import pytest
from flax import nnx

import lra_tasks
import nystrom
from experiment import provenance
from experiment.config_checks import check_config
from experiment.model import make_model
from train import train


def small(name, source="synthetic", variant="", **overrides):
    """A task's config with a small batch and model, two steps, no buckets; all else as it is."""
    config = importlib.import_module(f"configs.lra_{name}").get_config(variant)
    config.update_from_flattened_dict(
        {
            "batch_size": 4,
            "num_train_steps": 2,
            "warmup_steps": 1,
            "eval_every": 2,
            "accumulate_steps": min(max(config.accumulate_steps, 1), 2),
            "model.num_layers": 1,
            "model.pinv_iterations": 2,
            "model.width": 16,
            "model.mlp_width": 16,
            "task.source": source,
            "task.bucket_boundaries": (),  # one length: fewer programs to compile
            "task.num_train": 8,
            "task.num_validation": 4,
            "task.num_test": 4,
            **overrides,
        }
    )
    return config


def run(config, tmp_path):
    assert check_config(config) == []
    task = lra_tasks.load(config.task, progress=False)
    result = train(config, tmp_path / "run", task)
    why = provenance.why_not_comparable(config, task)
    return task, result | provenance.describe(config, task, why)


@pytest.mark.parametrize("name", lra_tasks.NAMES)
def test_every_task_trains_two_steps_and_is_scored(name, tmp_path):
    task, result = run(small(name), tmp_path)
    assert result["source"] == "synthetic"
    assert result["comparable_to_lra"] is False and "synthetic" in result["why_not_comparable"]
    assert result["best_step"] == result["num_train_steps"] == 2
    assert np.isfinite(result["test_loss"])
    scored = result["test_accuracy"] * result["split_sizes"]["test"]
    assert scored == pytest.approx(round(scored))
    assert task.num_documents == (2 if name == "retrieval" else 1)


def test_text_trains_from_the_package(tmp_path):
    config = small("text", source="package", variant="1k")
    task, result = run(config, tmp_path)
    assert result["source"] == "package" and result["comparable_to_lra"] is False
    assert result["split_sizes"] == {"train": 8, "validation": 4, "test": 4}
    example = task.splits["train"].examples.__getitems__([0])[0]
    assert len(bytes(example["inputs"]).decode(errors="replace").split()) > 10


@pytest.mark.parametrize("attention", nystrom.ATTENTIONS)
def test_every_attention_trains_listops_two_steps(attention, tmp_path):
    config = small(
        "listops",
        **{
            "model.attention": attention,
            "task.min_length": 20,
            "task.max_length": 200,
            "task.padded_length": 256,
            "task.bucket_boundaries": (256,),
        },
    )
    _, result = run(config, tmp_path)
    assert np.isfinite(result["test_loss"])


@pytest.mark.parametrize("pooling", [p for p in nystrom.POOLINGS if p != "mean_padded"])
def test_buckets_change_no_examples_logits(pooling):
    config = small("listops", **{"model.pooling": pooling})
    logits = []
    for boundaries in ((768, 1_024, 1_408, 2_048), ()):
        config.task.bucket_boundaries = boundaries
        task = lra_tasks.load(config.task, progress=False)
        graph, params = nnx.split(make_model(config.model, task, seed=0))
        apply = jax.jit(lambda params, x, mask, graph=graph: nnx.merge(graph, params)(x, mask))
        batches = lra_tasks.Batches(task, "train", 4, seed=0)
        found = {}
        for step in range(len(batches)):
            rows = apply(params, batches[step]["inputs"], batches[step]["mask"])
            found |= dict(zip(batches.indices(step)[0].tolist(), np.asarray(rows), strict=False))
        logits.append(np.stack([found[i] for i in range(8)]))
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-6)


def test_settings_that_bear_on_a_result_are_in_it(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert "settings" not in provenance.start()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    with jax.default_matmul_precision("high"):
        assert provenance.start()["settings"] == {
            "jax_default_matmul_precision": "high",
            "XLA_FLAGS": "--xla_cpu_enable_fast_math=true",
        }


def git_in(folder, *words):
    who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    return subprocess.check_output(["git", *who, *words], cwd=folder, text=True).strip()


def test_a_commit_with_changes_is_marked_unless_they_are_results(tmp_path, monkeypatch):
    for name in ("experiment/provenance.py", "results/table.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1")

    git = functools.partial(git_in, tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "experiment/provenance.py"))
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "results/table.csv").write_text("2")
    assert provenance.code_version() == commit
    (tmp_path / "experiment/notes.txt").touch()
    (tmp_path / "mine.py").touch()
    assert provenance.code_version() == commit
    (tmp_path / "experiment/own.py").touch()
    assert provenance.code_version() == f"{commit}+changes"
    (tmp_path / "experiment/own.py").unlink()
    (tmp_path / "experiment/provenance.py").write_text("2")
    assert provenance.code_version() == f"{commit}+changes"
    # Unpacked inside another project's repository, the code has no commit.
    git("rm", "-q", "-r", "--cached", "experiment")
    git("commit", "-q", "-m", "another project")
    assert provenance.code_version() == "unknown"


def test_a_start_names_the_version_of_every_package_that_the_code_needs():
    found = provenance.start()["versions"]
    for name in ("jax", "jaxlib", "flax", "optax", "numpy"):
        assert found[name] == importlib.import_module(name).__version__


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_default_prng_impl", "rbg"),
        ("jax_enable_x64", True),
        ("jax_threefry_partitionable", False),
    ],
)
def test_a_start_names_each_setting_that_is_unusual(setting, value):
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        assert provenance.start()["settings"][setting] == value
    finally:
        jax.config.update(setting, before)


@pytest.mark.parametrize("folder", ["nystrom/language", "lra_tasks", "experiment"])
def test_a_file_that_git_does_not_know_is_a_change_wherever_code_is_imported_from(
    folder, tmp_path, monkeypatch
):
    git = functools.partial(git_in, tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/provenance.py").write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "experiment/provenance.py"))
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert provenance.code_version() == git("rev-parse", "HEAD")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "own.py").touch()
    assert provenance.code_version().endswith("+changes")
