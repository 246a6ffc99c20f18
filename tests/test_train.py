"""train.py as users run it: a run whole, killed, stopped, resumed, refused."""

import json
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import train
from experiment.checkpoints import Checkpoints
from lra_tasks import listops
from tests.conftest import ROOT, SMALL, SMALL_ONE_LENGTH, start_train


def reports(workdir):
    """Lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


def saved_arrays(workdir):
    """Every array of the last checkpoint, as saved, in a fixed order."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    step = checkpoints.latest_step()
    saved = checkpoints.manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=as_numpy(workdir, step))),
    )
    checkpoints.close()
    return step, jax.tree.leaves(saved.state)


def as_numpy(workdir, step):
    """Restores every array as NumPy's, whatever devices it was saved from."""
    metadata = ocp.PyTreeCheckpointHandler().metadata(workdir / "checkpoints" / str(step) / "state")
    return jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, cache_home):
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = start_train(*SMALL, f"--workdir={workdir}")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return workdir, out, err


def assert_same_run(workdir, whole):
    assert reports(workdir) == reports(whole)
    step, arrays = saved_arrays(workdir)
    whole_step, whole_arrays = saved_arrays(whole)
    assert step == whole_step == 12
    assert len(arrays) == len(whole_arrays) > 20
    for a, b in zip(arrays, whole_arrays, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    changing = {
        "wall_seconds",
        "examples_per_second",
        "peak_memory_bytes",
        "compile_seconds",
        "data_wait_share",
    }
    a = json.loads((workdir / "result.json").read_text())
    b = json.loads((whole / "result.json").read_text())
    assert {k: v for k, v in a.items() if k not in changing} == {
        k: v for k, v in b.items() if k not in changing
    }


def test_a_run_leaves_what_the_readme_says(whole_run):
    workdir, out, err = whole_run
    assert {"config.json", "metrics.jsonl", "checkpoints", "result.json"} <= {
        path.name for path in workdir.iterdir()
    }
    assert list(workdir.glob("events.out.tfevents.*"))
    result = json.loads((workdir / "result.json").read_text())
    assert out == f"test accuracy {result['test_accuracy']:.2%}, result in {workdir}/result.json\n"
    assert result["source"] == "synthetic"
    assert result["comparable_to_lra"] is False
    assert "synthetic" in result["why_not_comparable"]
    assert "learning_rate=0.003 (recipe 0.0001)" in result["why_not_comparable"]
    assert len(result["fingerprint"]) == 64
    assert result["num_parameters"] > 1000
    assert result["examples_per_second"] > 0
    assert result["peak_memory_bytes"] > 1e6
    assert 0 < result["compile_seconds"] < result["wall_seconds"]
    assert 0 < result["data_wait_share"] < 1
    assert result["peak_memory_of"] in ("device", "process")
    assert set(result["split_sizes"]) == {"train", "validation", "test"}
    assert {"seed", "commit", "versions", "hardware", "wall_seconds", "config"} <= set(result)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = {
        split: [x["step"] for x in lines if x["split"] == split]
        for split in ("train", "validation", "test")
    }
    assert steps == {"train": [2, 4, 6, 8, 10, 12], "validation": [4, 8, 12], "test": [12]}
    assert all({"loss", "accuracy", "examples_per_second"} <= set(line) for line in lines)
    rates = [line["learning_rate"] for line in lines if line["split"] == "train"]
    # Warm-up takes two steps from 1/25 of the peak, 0.003: step 2 is half way.
    assert rates[0] == pytest.approx(0.003 * (1 / 25 + 1) / 2)
    assert rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 1e-6
    for what in ("training", "evaluation"):
        for length in (32, 64):
            assert err.count(f"compiling for length {length} ({what}) ...") == 1
            assert err.count(f"compiling for length {length} ({what}) took ") == 1


def test_the_test_split_is_scored_with_the_best_checkpoint(whole_run):
    workdir, _, _ = whole_run
    result = json.loads((workdir / "result.json").read_text())
    scores = {x["step"]: x["accuracy"] for x in reports(workdir) if x["split"] == "validation"}
    assert result["validation_accuracy"] == max(scores.values()) == scores[result["best_step"]]


def test_killed_at_a_random_step_and_resumed_it_is_the_same_run(whole_run, tmp_path, run_train):
    whole, _, _ = whole_run
    workdir = tmp_path / "killed"
    rng = np.random.default_rng()  # a new moment each time: whichever it is, it must hold
    stop_after = int(rng.integers(1, 6))
    process = start_train(*SMALL, f"--workdir={workdir}")
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= stop_after):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(float(rng.uniform(0, 0.2)))
    process.kill()
    process.communicate()
    run_train(*SMALL, f"--workdir={workdir}")
    assert_same_run(workdir, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_command_it_prints_goes_on(number, whole_run, tmp_path):
    whole, _, _ = whole_run
    workdir = tmp_path / "stopped"
    # Slow enough to be caught between reports: the partial report must survive the restart too.
    process = start_train(*SMALL, f"--workdir={workdir}")
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert "Traceback" not in err
    if (workdir / "result.json").exists():
        assert process.returncode == 0
    else:
        assert process.returncode == 128 + number, err
        assert "stopped at step" in err
        assert "saves after this step or evaluation; again: ends at once, unsaved" in err
        (advice,) = [line for line in err.splitlines() if line.startswith("to go on: ")]
        command = advice.removeprefix("to go on: ")  # for a shell, wherever its words need quotes
        assert "'--config.task.bucket_boundaries=(32,64)'" in command
        subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True)
    assert_same_run(workdir, whole)


def test_a_finished_run_is_not_repeated(whole_run, tmp_path, run_train):
    workdir, out, _ = whole_run
    before = reports(workdir)
    config = json.loads((workdir / "config.json").read_text())
    # The cache's place is the machine's: it is not recorded, so another one is no other config.
    again = run_train(*SMALL, f"--workdir={workdir}", f"--config.cache_dir={tmp_path}")
    assert again.stdout == out
    assert "cache_dir" not in json.loads((workdir / "result.json").read_text())["config"]
    assert "cache_dir" not in config
    assert "is finished" in again.stderr
    assert reports(workdir) == before


def test_checkpoints_without_their_config_are_kept_for_it(tmp_path, run_train):
    (tmp_path / "checkpoints").mkdir()
    refused = run_train(*SMALL, f"--workdir={tmp_path}", check=False)
    assert refused.returncode == 1 and "config.json of their run is missing: put" in refused.stderr


def test_a_finished_run_that_cannot_be_written_to_is_shown(whole_run, tmp_path, run_train):
    workdir, out, _ = whole_run
    copy = shutil.copytree(workdir, tmp_path / "run")
    (copy / ".lock").unlink()
    (copy / ".lock").mkdir()  # as good as a folder without permission
    again = run_train(*SMALL, f"--workdir={copy}")
    assert again.stdout == out.replace(str(workdir), str(copy)) and "is finished" in again.stderr
    refused = run_train(*SMALL, f"--workdir={copy}", "--config.seed=1", check=False)
    assert refused.returncode == 1 and "config.seed: 0 there, 1 now" in refused.stderr
    (copy / "result.json").unlink()
    refused = run_train(*SMALL, f"--workdir={copy}", check=False)
    assert refused.returncode == 1 and "can't write there" in refused.stderr


def test_a_finished_run_does_not_answer_for_other_data(whole_run, tmp_path, run_train):
    workdir, _, _ = whole_run
    folder = tmp_path / "listops-1000"
    folder.mkdir()
    numbers = map("{:03}".format, range(256))
    rows = (f"[MAX {' '.join(digits)} ]\t{max(digits)}" for digits in numbers)
    release = "\n".join(["Source\tTarget", *rows])
    for split in ("train", "val", "test"):
        (folder / f"basic_{split}.tsv").write_text(release)
    other = ("--config.task.source=release", f"--config.task.data_dir={tmp_path}")
    cache = f"--config.cache_dir={tmp_path / 'cache'}"
    refused = run_train(*SMALL, *other, cache, f"--workdir={workdir}", check=False)
    assert refused.returncode == 1 and not refused.stdout
    assert f"--workdir={workdir}: the run began with other data" in refused.stderr
    assert "choose another --workdir" in refused.stderr and "Traceback" not in refused.stderr


def test_a_finished_run_does_not_answer_for_examples_of_another_version(
    whole_run, tmp_path, run_train
):
    copy = shutil.copytree(whole_run[0], tmp_path / "run")
    result = json.loads((copy / "result.json").read_text())
    assert result["data_version"] == listops.VERSION
    (copy / "result.json").write_text(json.dumps(result | {"data_version": "0.9.0"}))
    refused = run_train(*SMALL, f"--workdir={copy}", check=False)
    assert refused.returncode == 1 and not refused.stdout
    assert refused.stderr.endswith(f"--workdir={copy} {train.OTHER_EXAMPLES}\n")


def test_a_workdir_of_another_config_is_refused_with_the_fields(whole_run, run_train):
    workdir, _, _ = whole_run
    before = sorted(path.name for path in workdir.rglob("*"))
    refused = run_train(
        *SMALL, f"--workdir={workdir}", "--config.seed=1", "--config.model.num_heads=1", check=False
    )
    assert refused.returncode == 1
    assert "config.seed: 0 there, 1 now" in refused.stderr
    assert "config.model.num_heads: 2 there, 1 now" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(path.name for path in workdir.rglob("*")) == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, run_train):
    workdir = tmp_path / "diverged"
    stopped = run_train(
        *SMALL,
        f"--workdir={workdir}",
        "--config.learning_rate=1e30",
        "--config.warmup_steps=0",
        "--config.checkpoint_every=1",
        "--config.log_every=1",
        check=False,
    )
    assert stopped.returncode == 1
    assert "not finite" in stopped.stderr and "step " in stopped.stderr
    assert "Traceback" not in stopped.stderr
    step, arrays = saved_arrays(workdir)
    assert step >= 1
    assert all(np.isfinite(array).all() for array in arrays)
    assert not (workdir / "result.json").exists()


def test_four_devices_give_what_one_gives(whole_run, tmp_path, run_train):
    whole, _, _ = whole_run
    workdir = tmp_path / "four"
    run_train(
        *SMALL,
        f"--workdir={workdir}",
        env={"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"},
    )
    result = json.loads((workdir / "result.json").read_text())
    assert result["hardware"]["num_devices"] == 4
    for four, one in zip(reports(workdir), reports(whole), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)
    for four, one in zip(saved_arrays(workdir)[1], saved_arrays(whole)[1], strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-2, atol=1e-4)


def test_accumulated_steps_give_what_whole_batches_give(tmp_path, run_train):
    found = []
    for parts in (1, 4):
        workdir = tmp_path / str(parts)
        run_train(
            *SMALL_ONE_LENGTH,
            f"--workdir={workdir}",
            "--config.model.dropout_rate=0",
            f"--config.accumulate_steps={parts}",
            f"--config.model.remat={parts > 1}",
        )
        found.append([(x["step"], x["split"], x["loss"]) for x in reports(workdir)])
    whole, parts = found
    assert [x[:2] for x in parts] == [x[:2] for x in whole]
    np.testing.assert_allclose([x[2] for x in parts], [x[2] for x in whole], rtol=1e-4)


def test_a_config_of_ones_own_outside_the_repository_gives_a_result(tmp_path, run_train):
    fields = {a.split("=", 1)[0]: a.split("=", 1)[1] for a in SMALL_ONE_LENGTH}
    fields |= {"--config.model.attention": "none", "--config.task.source": "auto"}
    fields |= {f"--config.task.num_{split}": "16" for split in ("train", "validation", "test")}
    del fields["--config"]
    lines = [
        f"    {name[2:]} = {value if value[0] in '0123456789(' else repr(value)}"
        for name, value in fields.items()
    ]
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs import base, lra_listops\n\n\ndef get_config():\n"
        "    config = lra_listops.get_config()\n    config.name = 'mine'\n"
        + "\n".join(lines)
        + "\n    return config\n"
    )
    workdir = tmp_path / "run"
    arguments = [f"--config={config}", f"--workdir={workdir}", "--config.num_train_steps=4"]
    first = run_train(*arguments)
    # That other data are used is told in a line, without a place in the code.
    (warning,) = [line for line in first.stderr.splitlines() if "using source" in line]
    assert warning.startswith("warning: listops: ")
    assert "UserWarning" not in first.stderr and ".py:" not in first.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert "not the recipe: num_train_steps=4 (recipe 12);" in result["why_not_comparable"]
    assert "the recipe is not LRA's: " in result["why_not_comparable"]


def test_a_finished_run_does_not_answer_for_other_files(whole_run, tmp_path, run_train):
    copy = shutil.copytree(whole_run[0], tmp_path / "run")
    for name in ("config.json", "result.json"):
        saved = json.loads((copy / name).read_text())
        task = saved.get("config", saved)["task"]
        task |= {"source": "release", "data_dir": str(tmp_path / "those")}
        (copy / name).write_text(json.dumps(saved))
    folder = tmp_path / "these" / "listops-1000"
    folder.mkdir(parents=True)
    numbers = map("{:03}".format, range(256))
    rows = (f"[MAX {' '.join(digits)} ]\t{max(digits)}" for digits in numbers)
    release = "\n".join(["Source\tTarget", *rows])
    for split in ("train", "val", "test"):
        (folder / f"basic_{split}.tsv").write_text(release)
    other = ["--config.task.source=release", f"--config.task.data_dir={tmp_path / 'these'}"]
    cache = f"--config.cache_dir={tmp_path / 'cache'}"
    refused = run_train(*SMALL, *other, cache, f"--workdir={copy}", check=False)
    assert refused.returncode == 1 and not refused.stdout
    assert f"--workdir={copy}: the run began with other data" in refused.stderr
