"""A run read from its folder: which config, data and checkpoint, and what is said of no run."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

import lra_tasks
from experiment.checkpoints import Checkpoints
from experiment.load import best_step, load_run, read_config
from experiment.training import initial_state, make_optimizer
from experiment.workdir import WorkdirError
from tests.test_tasks_train import small
from tests.written_runs import write_untrained

SHORT = {"task.max_length": 60, "task.padded_length": 64, "model.attention": "performer"}
IDS = np.arange(1, 61, dtype=np.int32)[None]


@pytest.fixture
def untrained(tmp_path, cache_home):
    """A run of Text, of seed 3, as it begins: its folder and model."""
    folder = tmp_path / "run"
    return folder, write_untrained(folder, small("text", **SHORT | {"seed": 3}))


def logits(model):
    return np.asarray(model(IDS, np.ones(IDS.shape, bool)))


def change(folder, name=None, gone=(), **values):
    """Changes fields of a folder's config.json, or of a part of them."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    part = config[name] if name else config
    part.update(values)
    for each in gone:
        del part[each]
    path.write_text(json.dumps(config))


def test_a_run_in_ones_home_has_the_random_constants_of_its_seed(untrained, monkeypatch):
    folder, model = untrained
    monkeypatch.setenv("HOME", str(folder.parent))
    loaded = load_run("~/run", with_data=False)
    np.testing.assert_array_equal(logits(loaded.model), logits(model))
    assert loaded.config.is_locked and loaded.config.seed == 3


def test_a_run_that_goes_on_while_its_data_are_read_is_loaded_as_it_then_is(untrained, monkeypatch):
    folder, model = untrained
    load = lra_tasks.load

    def meanwhile(*given, **named):
        with contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
            params = jax.tree.map(lambda x: 2 * x + 1, nnx.state(model))
            state = initial_state(make_optimizer(read_config(folder)), params)
            checkpoints.save(9, state, checkpoints.records[3]["progress"], 0.9)
        return load(*given, **named)

    monkeypatch.setattr(lra_tasks, "load", meanwhile)
    assert not np.allclose(logits(load_run(folder).model), logits(model))


def test_nothing_is_prepared_for_a_run_without_a_whole_checkpoint(untrained, tmp_path):
    folder, _ = untrained
    (folder / "checkpoints" / "3" / "record" / "metadata").write_text("{")
    said = r"checkpoints: no checkpoint there; step 3 is not whole: its record can't be read"
    with pytest.raises(WorkdirError, match=said):
        load_run(folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_data_come_from_a_folder_in_ones_home_while_it_is_there(untrained, tmp_path, monkeypatch):
    folder, _ = untrained
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    change(folder, "task", source="release", data_dir="~/data")
    with pytest.raises(ValueError, match="data") as caught:  # no files of Text in there
        load_run(folder, tmp_path / "empty")
    assert "which is gone" not in str(caught.value)
    asked = []

    def load(config, *_, **__):
        asked.append(config.data_dir)
        return dataclasses.replace(lra_tasks.without_data(config), fingerprint="other")

    monkeypatch.setattr(lra_tasks, "load", load)
    for there in (True, False):
        with pytest.raises(WorkdirError, match="began with other data"):
            load_run(folder, tmp_path / "empty")
        if there:
            (tmp_path / "data").rmdir()
    assert asked == ["~/data", ""]


def test_every_wrong_field_of_a_config_is_told(untrained):
    folder, _ = untrained
    change(folder, batch_size=0, seed="one")
    with pytest.raises(WorkdirError, match=r"config\.seed='one': expected int") as caught:
        read_config(folder)
    change(folder, seed=3)
    change(folder, "model", num_layers=0)
    with pytest.raises(WorkdirError) as caught:
        read_config(folder)
    assert str(caught.value) == (
        f"{folder / 'config.json'}: not of this version of the code: "
        "config.batch_size=0: expected 1 or more; config.model.num_layers=0: expected 1 or more"
    )


def test_a_part_of_a_config_may_be_missing_and_is_no_list(untrained):
    folder, _ = untrained
    change(folder, gone=("masked",))
    assert read_config(folder).masked.share > 0
    change(folder, model=[])
    with pytest.raises(WorkdirError, match=r"config\.model=\[\]: expected fields"):
        read_config(folder)


def test_before_any_evaluation_the_latest_checkpoint_is_the_best(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        for step in (3, 5):
            checkpoints.save(step, {"x": np.zeros(2)}, {})
        assert best_step(checkpoints) == 5
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as again:
        assert best_step(again) == 5
