"""check(config.task): problems found before any data is touched."""

import types

import pytest

import lra_tasks
from lra_tasks import listops


def test_a_good_config_has_no_problems(make_config, tmp_path):
    assert lra_tasks.check(make_config(bucket_boundaries=(50, 100)), tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("name", "listop", "image, listops, pathfinder"),
        ("source", "official", "auto, release, generated, synthetic"),
        ("source", "package", "auto, release, generated, synthetic"),
        ("data_dir", "/nowhere/at/all", "'release' or 'auto'"),
        ("max_length", 0, "1 or more"),
        ("max_length", 11, "exclusive"),
        ("min_length", -1, "0 to 2147483647"),
        ("padded_length", 99, "max_length=100 or more"),
        ("bucket_boundaries", (64, 32, 128), "ascending"),
        ("bucket_boundaries", (64, 64, 128), "ascending"),
        ("bucket_boundaries", (0, 128), "positive"),
        ("bucket_boundaries", (32, 64), "max_length=100 or more"),
        ("bucket_boundaries", (128, 10**20), "at most 16777216"),
        ("num_train", -1, "0 to 2147483647"),
        ("num_train", 10**20, "0 to 2147483647"),
        ("num_validation", -5, "0 to 2147483647"),
        ("num_test", -5, "0 to 2147483647"),
        ("data_seed", -1, "0 to 4294967295"),
    ],
)
def test_each_problem_names_field_value_and_remedy(make_config, tmp_path, field, value, expected):
    config = make_config(**{field: value})
    problems = lra_tasks.check(config, tmp_path)
    assert problems and all(problem.startswith("config.task.") for problem in problems)
    text = "\n".join(problems)
    assert expected in text
    if (field, value) != ("max_length", 11):  # told under min_length
        assert f"config.task.{field}={value!r}: " in text
    with pytest.raises(ValueError) as caught:
        lra_tasks.load(config, tmp_path)
    assert str(caught.value) == text
    assert not list(tmp_path.iterdir())


def test_a_least_length_is_of_listops_alone(make_config, tmp_path):
    problems = lra_tasks.check(make_config("text", min_length=300), tmp_path)
    assert "config.task.min_length=300: expected 0: only listops has one" in problems


def test_all_problems_at_once(make_config):
    config = make_config(padded_length=1, num_test=-1, bucket_boundaries=(2, 1))
    assert len(lra_tasks.check(config)) == 3


def test_data_dir_that_does_not_exist(make_config):
    [problem] = lra_tasks.check(make_config(source="release", data_dir="/nowhere"))
    assert problem == "config.task.data_dir='/nowhere': there is no such folder or file"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_length", "100"),
        ("max_length", 100.0),
        ("num_train", True),
        ("source", 3),
        ("bucket_boundaries", 100),
        ("bucket_boundaries", (1.5, 100)),
        ("data_dir", None),
    ],
)
def test_wrong_types(make_config, field, value):
    config = types.SimpleNamespace(**{**make_config().to_dict(), field: value})
    [problem] = lra_tasks.check(config)
    assert problem.startswith(f"config.task.{field}={value!r}: expected ")


def test_missing_field(make_config):
    fields = make_config().to_dict()
    del fields["padded_length"]
    [problem] = lra_tasks.check(types.SimpleNamespace(**fields))
    assert problem.startswith("config.task.padded_length is missing")


def test_what_a_task_of_ones_own_lacks_is_named(make_config, monkeypatch):
    monkeypatch.setattr(listops, "LABEL_NAMES", ("zero", "one"))
    monkeypatch.setattr(listops, "SOURCES", ("generated", "sintetic"))
    monkeypatch.setattr(listops, "FIRST_ID", listops.VOCAB_SIZE)
    assert lra_tasks.check(make_config()) == [
        "lra_tasks.listops: SOURCES has ['sintetic'], expected some of release, generated, "
        "package, synthetic",
        "lra_tasks.listops: FIRST_ID=16, expected one of VOCAB_SIZE=16 ids",
        "lra_tasks.listops: 2 LABEL_NAMES, expected NUM_CLASSES=10",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(listops, "VERSION", "1")
    [problem] = lra_tasks.check(make_config())
    assert problem == "lra_tasks.listops: VERSION='1', expected three numbers, as 1.0.0"
    monkeypatch.setattr(listops, "VERSION", 2)
    monkeypatch.setattr(listops, "LABEL_NAMES", "0123456789")
    assert lra_tasks.check(make_config()) == [
        "lra_tasks.listops: VERSION=2, expected str",
        "lra_tasks.listops: LABEL_NAMES='0123456789', expected tuple | list",
    ]
    monkeypatch.undo()
    monkeypatch.setattr(listops, "check", lambda config: None)
    [problem] = lra_tasks.check(make_config())
    assert problem == "lra_tasks.listops.check gave None, expected a list of problems"
    monkeypatch.delattr(listops, "FIRST_ID")
    monkeypatch.delattr(listops, "check")
    monkeypatch.delattr(listops, "decode")
    [problem] = lra_tasks.check(make_config())
    assert problem == "lra_tasks.listops has no FIRST_ID, check, decode: see lra_tasks/store.py"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("find_files", None, "find_files gave None, expected a list of files"),
        ("examples", None, "examples gave None, expected a function for each split"),
        ("examples", {"train": iter(())}, "examples gave {.*}, expected a function for each split"),
    ],
)
def test_what_a_function_of_a_task_of_ones_own_gives_wrongly_is_named(
    make_config, tmp_path, monkeypatch, name, given, said
):
    monkeypatch.setattr(listops, name, lambda *given_to: given)
    with pytest.raises(ValueError, match=f"lra_tasks.listops.{said}"):
        lra_tasks.prepare_set(make_config(), tmp_path, progress=False)


def test_sets_without_a_name_are_refused_not_mixed(make_config, monkeypatch):
    monkeypatch.setattr(listops, "set_name", lambda config, source: None)
    with pytest.raises(ValueError, match="set_name gave None, expected a string"):
        lra_tasks.prepare_set(make_config())


def test_plain_objects_and_lists_do(make_config, tmp_path):
    fields = make_config(num_train=3).to_dict() | {"bucket_boundaries": [50, 100]}
    task = lra_tasks.load(types.SimpleNamespace(**fields), tmp_path, progress=False)
    assert task.bucket_boundaries == (50, 100)


def test_a_task_that_gives_no_reason_is_no_comparable_one(small, tmp_path, monkeypatch):
    monkeypatch.setattr(listops, "why_not_comparable", lambda *_: None)
    with pytest.raises(ValueError, match=r"why_not_comparable gave None, expected a reason"):
        lra_tasks.load(small, tmp_path, progress=False)
