import numpy as np
import pytest
from pathfinder_files import config

import lra_tasks
from lra_tasks import pathfinder, pathx


@pytest.mark.parametrize("name", ["pathfinder", "pathx"])
def test_synthetic_set_has_the_shapes_of_the_real_one(name, tmp_path):
    task = lra_tasks.load(config(name), tmp_path, progress=False)
    side = pathfinder.SIDES[name]
    assert (task.num_classes, task.vocab_size, task.id_offset) == (2, 256, 0)
    assert (side, side) == lra_tasks.task_module(name).PICTURE_SHAPE
    assert not task.comparable_to_lra
    assert "synthetic" in task.why_not_comparable
    batch = lra_tasks.Batches(task, "train", 16, seed=0)[0]
    assert batch["inputs"].shape == (16, side * side)
    assert batch["mask"].all()
    assert (batch["inputs"].min(), batch["inputs"].max()) == (0, 255)
    labels = [example["label"] for example in task.splits["train"].examples.__getitems__(range(64))]
    assert set(labels) == {0, 1}


def test_generated_set_is_loaded_as_asked(tmp_path):
    asked = config(source="generated", num_train=300, num_validation=20, num_test=10)
    task = lra_tasks.load(asked, tmp_path, progress=False)
    assert [len(task.splits[s].examples) for s in ("train", "validation", "test")] == [300, 20, 10]
    assert task.source == "generated"
    assert "LRA has" in task.why_not_comparable
    first = {
        split: task.splits[split].examples.__getitems__([0])[0]["inputs"].tobytes()
        for split in task.splits
    }
    assert len(set(first.values())) == 3  # each split has a seed of its own


def test_a_set_that_the_disk_has_no_room_for_is_refused_before_it_is_made(tmp_path):
    asked = config("pathx", source="generated", num_train=2**31 - 1)  # 35 TB
    with pytest.raises(OSError, match=r"config\.cache_dir='.*35,\d{3}\.\d GB are needed.*free"):
        lra_tasks.load(asked, tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.array_record*"))


def test_other_settings_make_other_sets():
    settings = [
        config(),
        config(difficulty="easy"),
        config(difficulty="intermediate"),
        config(data_seed=1),
        config(num_train=7),
        config(num_test=7),
    ]
    names = [pathfinder.set_name(c, "generated") for c in settings]
    assert len(set(names)) == len(names)


def test_what_is_comparable():
    def why_not(source, notes=None, **fields):
        return pathfinder.why_not_comparable(config(**fields), source, notes or {})

    assert pathfinder.num_examples(config(), "generated") == {
        "train": 160_000,
        "validation": 20_000,
        "test": 20_000,
    }
    assert why_not("generated") == ""
    assert why_not("generated", num_train=160_000) == ""
    assert why_not("release", {"images_listed": 200_000, "images_empty": 10}) == ""
    assert "11 of" in why_not("release", {"images_listed": 200_000, "images_empty": 11})
    assert pathx.why_not_comparable(config("pathx"), "generated", {}) == ""
    assert "easy" in why_not("generated", difficulty="easy")
    assert "160000" in why_not("generated", num_train=1_000)
    assert "160000" in why_not("release", {"images_listed": 200_000}, num_test=5)
    assert "1,000" in why_not("release", {"images_listed": 1_000})
    assert "smoke" in why_not("synthetic")


def test_check_says_which_field_is_wrong():
    def problems(*args, **fields):
        return "\n".join(lra_tasks.check(config(*args, **fields)))

    assert problems() == ""
    assert problems("pathx") == ""
    assert "config.task.difficulty='harder'" in problems(difficulty="harder")
    assert "easy, intermediate, hard" in problems(difficulty="harder")
    assert "config.task.difficulty='hard'" in problems("pathx", difficulty="hard")
    assert "expected 1024" in problems(max_length=1000)
    assert "config.task.source='package'" in problems(source="package")
    missing = problems(source="release")
    assert "lra_release.gz" in missing
    assert "pathfinder32/curv_contour_length_14" in missing
    assert "pathfinder128" in problems("pathx", source="release")


def test_all_examples_come_from_the_config_seed():
    def images(seed):
        makers = pathfinder.examples(config(data_seed=seed), "synthetic", [], {})
        return np.stack([example["inputs"] for example in makers["test"]()])

    np.testing.assert_array_equal(images(3), images(3))
    assert (images(3) != images(4)).any()
