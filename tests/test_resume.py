"""train() called from Python: cut off, damaged, gone on with; the result is the intact run's."""

import dataclasses
import importlib
import json
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lra_tasks
import train as program
from experiment import provenance
from experiment.checkpoints import Checkpoints
from experiment.config_checks import choose_accumulate_steps
from experiment.load import load_data
from experiment.training import not_finite
from experiment.workdir import (
    WorkdirError,
    read_result,
)
from train import Stop, train

FIELDS = {
    "batch_size": 8,
    "num_train_steps": 6,
    "eval_every": 2,
    "log_every": 2,
    "warmup_steps": 2,
    "learning_rate": 0.003,
    "model.num_layers": 1,
    "model.num_landmarks": 8,
    "model.pinv_iterations": 2,
    "model.width": 16,
    "model.mlp_width": 16,
    "task.source": "synthetic",
    "task.min_length": 4,
    "task.max_length": 60,
    "task.padded_length": 64,
    "task.bucket_boundaries": (),
}
CLOCK = ("wall_seconds", "examples_per_second", "compile_seconds", "data_wait_share")


def make_config(**fields):
    config = importlib.import_module("configs.lra_listops").get_config()
    config.update_from_flattened_dict(FIELDS | fields)
    return config


@pytest.fixture(autouse=True, scope="module")
def compile_once(cache_home):
    """The programs of the first run serve the others."""
    jax.config.update("jax_compilation_cache_dir", str(cache_home / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # it looks at the options once
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def task(cache_home):
    return lra_tasks.load(make_config().task, progress=False)


class PowerCutError(Exception):
    pass


class CutOff(lra_tasks.Split):
    """A split, until the power goes at the given batch."""

    def __init__(self, split, num_batches):
        vars(self).update(vars(split), left=num_batches)

    def packed(self, *arguments, **keywords):
        packed = super().packed(*arguments, **keywords)

        class Rows:
            labels = packed.labels

            def rows(_, chosen, width):
                vars(self)["left"] -= 1
                if self.left < 0:
                    raise PowerCutError
                return packed.rows(chosen, width)

        return Rows()


def cut_off(task, num_batches):
    """The task, whose training ends with PowerCutError after some batches."""
    split = CutOff(task.splits["train"], num_batches)
    return dataclasses.replace(task, splits=task.splits | {"train": split})


def without_clock(values):
    return {name: value for name, value in values.items() if name not in CLOCK}


def reports(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [without_clock(json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory, compile_once):
    """A whole run: its folder, given as text, and the result; off the main thread."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    results = []
    thread = threading.Thread(
        target=lambda: results.append(train(make_config(), str(workdir), task, profile=(2, 4)))
    )
    thread.start()
    thread.join()
    return workdir, without_clock(results[0])


def test_train_takes_a_config_as_it_is_and_a_folder_as_text_off_the_main_thread(whole):
    workdir, result = whole
    assert result["num_train_steps"] == 6 and np.isfinite(result["test_loss"])
    on_cpu = jax.default_backend() == "cpu"
    assert result["accumulate_steps"] == (2 if on_cpu else 1)
    # As asked, for another device to go on with.
    assert json.loads((workdir / "config.json").read_text())["accumulate_steps"] == 0


# Python 3.12 warns of jaxlib's own type; as an error that would end the process.
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_a_profile_is_of_the_steps_asked_for(whole):
    [trace] = whole[0].glob("plugins/profile/*/*.xplane.pb")
    events = [
        event
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    ]
    assert [dict(e.stats)["step_num"] for e in events if e.name == "train"] == [3, 4]


def test_the_test_line_stands_once_however_often_it_is_scored(whole, task, tmp_path):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    before = reports(workdir)
    assert [line["split"] for line in before].count("test") == 1
    assert without_clock(train(make_config(), workdir, task)) == whole[1]
    assert reports(workdir) == before


def test_with_its_latest_checkpoints_damaged_a_run_ends_as_the_intact_one(
    whole, task, tmp_path, capfd
):
    workdir = tmp_path / "run"
    config = make_config(checkpoint_every=1)
    with pytest.raises(PowerCutError):
        train(config, workdir, cut_off(task, 5))
    latest = workdir / "checkpoints" / "5"
    for path in latest.glob("state/**/d/*"):  # numbers lie in one or in several, as threads write
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    (workdir / "checkpoints" / "6").mkdir()  # the last step's, which is saved again
    capfd.readouterr()
    result = train(config, workdir, task)
    said = capfd.readouterr().err
    assert said.count("not a whole checkpoint") == 2 and "broken-5" in said and "broken-6" in said
    assert "Traceback" not in said
    assert without_clock(result) == whole[1]
    assert reports(workdir) == reports(whole[0])


def test_a_run_cut_between_two_reports_ends_as_the_intact_one(whole, task, tmp_path):
    config, workdir = make_config(checkpoint_every=1), tmp_path / "run"
    with pytest.raises(PowerCutError):
        train(config, workdir, cut_off(task, 5))
    assert (workdir / "checkpoints" / "5").is_dir()  # which the report of step 6 counts
    assert without_clock(train(config, workdir, task)) == whole[1]
    assert reports(workdir) == reports(whole[0])


def test_a_signal_in_the_last_validation_stops_before_the_test(whole, task, tmp_path, monkeypatch):
    evaluate = program.evaluate

    def interrupted(graph, params, batches, *more):
        assert batches.split is task.splits["validation"]
        seen.append(evaluate(graph, params, batches, *more))
        if len(seen) == 3:  # of six steps
            signal.raise_signal(signal.SIGTERM)
        return seen[-1]

    seen = []
    with monkeypatch.context() as patch, pytest.raises(program.Stopped, match="SIGTERM"):
        patch.setattr(program, "evaluate", interrupted)
        train(make_config(), tmp_path, task)
    assert without_clock(train(make_config(), tmp_path, task)) == whole[1]
    assert reports(tmp_path) == reports(whole[0])


def test_a_run_that_began_with_other_data_stops(task, tmp_path):
    with pytest.raises(PowerCutError):
        train(make_config(), tmp_path, cut_off(task, 5))
    others = dataclasses.replace(task, fingerprint="0" * 64)
    with pytest.raises(WorkdirError, match=rf"other data \(fingerprint {task.fingerprint}"):
        train(make_config(), tmp_path, others)


def test_a_run_does_not_go_on_by_a_recipe_put_into_its_config(task, tmp_path):
    with pytest.raises(PowerCutError):
        train(make_config(checkpoint_every=1), tmp_path, cut_off(task, 5))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"learning_rate": 0.5}))
    with pytest.raises(WorkdirError, match=r"config\.learning_rate: 0\.003 there, 0\.5 now"):
        train(make_config(learning_rate=0.5), tmp_path, task)


def test_a_loss_on_validation_or_test_that_is_no_number_stops(task, tmp_path, monkeypatch):
    def evaluate(graph, params, batches, *_):
        return {"loss": float("nan") if batches.split is bad else 2.0, "accuracy": 0.5}

    monkeypatch.setattr("train.evaluate", evaluate)
    for split, words in (("validation", "step 2: the validation loss is nan"), ("test", "best on")):
        bad = task.splits[split]
        with pytest.raises(Stop, match=words):
            train(make_config(), tmp_path / split, task)
        assert read_result(tmp_path / split) is None


def test_times_of_earlier_starts_count(task, tmp_path, monkeypatch):
    with pytest.raises(PowerCutError):
        train(make_config(), tmp_path, cut_off(task, 5))
    resume = Checkpoints.resume

    def later(self, like):
        step, state, progress = resume(self, like)
        return step, state, progress | {"seconds": 1_000.0, "compile_seconds": 100.0}

    monkeypatch.setattr(Checkpoints, "resume", later)
    result = train(make_config(), tmp_path, task)
    assert result["wall_seconds"] > 1_000 and result["compile_seconds"] >= 100


def test_the_seed_reaches_weights_batches_and_dropout(task, tmp_path, monkeypatch):
    seen, make, of, step = {}, program.make_model, lra_tasks.Batches, program.train_step

    def model(fields, task, seed, *more):
        seen["weights"] = seed
        return make(fields, task, seed, *more)

    def batches(task, split, size, seed=None, rows=None):
        seen[split] = seed
        return of(task, split, size, seed, rows)

    def taken(*given):
        seen["dropout"] = jax.random.key_data(given[4]).tolist()
        return step(*given)

    monkeypatch.setattr(program, "make_model", model)
    monkeypatch.setattr(lra_tasks, "Batches", batches)
    monkeypatch.setattr(program, "train_step", taken)
    train(make_config(seed=7), tmp_path, task)
    key = jax.random.fold_in(jax.random.key(7), 1)
    assert seen == {
        "weights": 7,
        "train": 7,
        "validation": None,
        "test": None,
        "dropout": jax.random.key_data(key).tolist(),
    }


def test_a_run_goes_on_with_the_data_that_it_began_with(whole, task, tmp_path, monkeypatch, capsys):
    def load(fields, cache, progress, wanted):
        return dataclasses.replace(task, source=fields.source, fingerprint=wanted)

    def found(source, workdir):
        config = make_config(**{"task.source": source})
        loaded = load_data(config, workdir)
        assert config.task.source == source  # as it is recorded
        return loaded.source, loaded.fingerprint

    monkeypatch.setattr(lra_tasks, "load", load)
    assert found("auto", whole[0]) == ("synthetic", task.fingerprint)
    assert found("auto", tmp_path / "new") == ("auto", "")
    assert not capsys.readouterr().err
    assert found("release", whole[0]) == ("release", task.fingerprint)
    assert "won't compare with LRA's: " + task.why_not_comparable in capsys.readouterr().err
    task = dataclasses.replace(task, why_not_comparable="")
    assert found("release", whole[0]) and not capsys.readouterr().err


def test_a_run_that_goes_on_with_other_code_names_both(whole, task, tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "code_version", lambda: "first")
    with pytest.raises(PowerCutError):
        train(make_config(), tmp_path, cut_off(task, 5))
    monkeypatch.setattr(provenance, "code_version", lambda: "second")
    result = train(make_config(), tmp_path, task)
    (earlier,) = result["earlier_starts"]
    assert (result["commit"], earlier["commit"]) == ("second", "first")
    assert earlier | {"commit": "second"} == {name: result[name] for name in earlier}
    assert earlier.keys() == {"commit", "versions", "hardware", "settings"}  # the tests' XLA_FLAGS
    assert "earlier_starts" not in whole[1]


def test_another_number_of_devices_goes_on_with_the_same_command(whole, task, tmp_path, run_train):
    workdir = tmp_path / "run"
    with pytest.raises(PowerCutError):  # in two parts, which eight devices can't have
        train(make_config(), workdir, cut_off(task, 5))
    run_train(
        "--config=configs/lra_listops.py",
        f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in FIELDS.items()),
        env={"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"},
    )
    result = read_result(workdir)
    assert result["accumulate_steps"] == 1 and result["hardware"]["num_devices"] == 8
    assert result["config"]["accumulate_steps"] == 0
    assert [(x["step"], x["split"]) for x in reports(workdir)] == [
        (x["step"], x["split"]) for x in reports(whole[0])
    ]
    # A result.json cut off in its writing is no result, and is made again.
    (workdir / "result.json").write_text("{")
    assert read_result(workdir) is None


@pytest.mark.parametrize(
    ("asked", "saved", "num_devices", "expected"),
    [
        (0, 0, 1, 8),  # a new run: what suits the devices
        (0, 2, 1, 2),  # begun on four devices
        (0, 8, 4, 8),  # begun on one
        (0, 8, 8, 1),  # 64 examples would be needed
        (4, 8, 1, 4),  # asked for
    ],
)
def test_the_saved_number_of_parts_goes_on_where_it_fits(asked, saved, num_devices, expected):
    config = make_config(batch_size=32, accumulate_steps=asked)
    assert choose_accumulate_steps(config, num_devices, "cpu", saved) == expected


def test_train_checks_config_and_workdir_before_the_first_step(whole, task, tmp_path):
    with pytest.raises(ValueError, match=r"config.weight_decay=inf: .*finite"):
        train(make_config(weight_decay=float("inf")), tmp_path / "run", task)
    assert not (tmp_path / "run").exists()
    with pytest.raises(WorkdirError, match=r"config.seed: 0 there, 1 now"):
        train(make_config(seed=1), whole[0], task)


def test_a_run_that_diverges_before_any_checkpoint_does_not_speak_of_one():
    totals = {"loss": (float("nan"), 8.0), "accuracy": (1.0, 8.0)}
    assert "loss nan" in not_finite(3, totals, None, make_config())
    assert "None was saved" in not_finite(3, totals, None, make_config())
    assert "checkpoint of step 2 is kept" in not_finite(3, totals, 2, make_config())
    assert not_finite(3, {"loss": (1.0, 8.0)}, None, make_config()) == ""
