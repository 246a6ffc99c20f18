"""A run's folder: whose it is, with which config, and what can't be one."""

import json
from pathlib import Path

import pytest

from configs import lra_listops
from experiment.config_checks import check_config
from experiment.pretrained import source_problems
from experiment.workdir import (
    WorkdirError,
    check_same_config,
    claim,
    keep_tokenizer,
    read_result,
    record_config,
    recorded_accumulate_steps,
    steps_saved,
    tokenizer_of,
    write_result,
)


def make_config(**fields):
    config = lra_listops.get_config()
    config.update_from_flattened_dict(fields)
    return config


def test_a_workdir_in_use_is_refused(tmp_path):
    lock = claim(tmp_path, make_config())
    with pytest.raises(WorkdirError, match="another process is running in it"):
        claim(tmp_path, make_config())
    lock.close()
    claim(tmp_path, make_config()).close()


@pytest.mark.parametrize("name", ["runs [old]/a", "a[!b]c", "[1-3]"])
def test_a_workdir_whose_checkpoints_could_not_be_read_again_is_refused(name, tmp_path):
    with pytest.raises(WorkdirError, match=r"could not be read again, for its \[brackets\]"):
        claim(tmp_path / name, make_config())
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_is_an_address_is_refused():
    with pytest.raises(
        WorkdirError, match=r"--workdir=gs:/bucket/run: an address; expected a fold"
    ):
        claim(Path("gs://bucket/run"), make_config())
    (problem,) = check_config(make_config(cache_dir="gs://bucket/cache"))
    assert "config.cache_dir='gs://bucket/cache': an address; expected a folder" in problem


def test_a_path_that_is_not_utf_8_is_refused(tmp_path):
    """Checkpoints could not be written there."""
    with pytest.raises(WorkdirError, match="its name is not UTF-8"):
        claim(tmp_path / "a\udcff", make_config())
    assert not list(tmp_path.iterdir())
    (problem,) = check_config(make_config(cache_dir="/a\udcff"))
    assert problem.startswith("config.cache_dir=") and "not UTF-8" in problem


@pytest.mark.parametrize("field", ["cache_dir", "init_from", "task.data_dir", "task.tokenizer"])
@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("~no-such-user/x", "there is no such user"),
        ("/" + "x" * 5000, "its name is too long"),
        ("gs://bucket/x", "an address; expected a folder"),
        ("x\0y", "embedded null character"),
    ],
)
def test_a_field_whose_path_can_not_be_is_named(field, path, what, tmp_path):
    """Before anything asks the system for it, which would raise."""
    config = make_config(**{field: path})
    assert tokenizer_of(config, tmp_path) == config.task.tokenizer
    problems = check_config(config) + source_problems(config, tmp_path, is_sound=False)
    (problem,) = [each for each in problems if each.startswith(f"config.{field}=")]
    assert what in problem


def test_a_finished_runs_config_is_its_results(tmp_path):
    """config.json may be another's, put there by hand."""
    edited = make_config(**{"model.pooling": "max"})
    record_config(tmp_path, edited)
    result = {"test_accuracy": 0.5, "fingerprint": "f", "config": make_config().to_dict()}
    write_result(tmp_path, result)
    for config in (edited, make_config()):
        with pytest.raises(WorkdirError, match=r"config\.model\.pooling: '\w+' there, '\w+' now"):
            check_same_config(tmp_path, config)
    record_config(tmp_path / "intact", make_config())
    write_result(tmp_path / "intact", result)
    check_same_config(tmp_path / "intact", make_config())


def test_a_folder_that_is_no_checkpoint_is_no_step(tmp_path):
    (tmp_path / "checkpoints/99999").mkdir(parents=True)
    assert steps_saved(tmp_path) == 0
    (tmp_path / "checkpoints/4/record").mkdir(parents=True)
    assert steps_saved(tmp_path) == 4


def test_what_does_not_change_the_recipe_makes_no_other_config(tmp_path):
    # As runs recorded it before: resolved, for the devices that they began on.
    record_config(tmp_path / "run", make_config(accumulate_steps=8))
    assert recorded_accumulate_steps(tmp_path / "run") == 8
    changed = {
        "accumulate_steps": 0,
        "log_every": 3,
        "checkpoint_every": 1,
        "model.remat": True,
        "task.data_dir": "/elsewhere",
    }
    check_same_config(tmp_path / "run", make_config(**changed))
    with pytest.raises(WorkdirError, match=r"config.eval_every: 250 there, 3 now") as caught:
        check_same_config(tmp_path / "run", make_config(eval_every=3, **changed))
    assert "accumulate_steps" not in str(caught.value)


def test_what_to_do_about_another_runs_folder_is_said(tmp_path):
    record_config(tmp_path, make_config())
    other = make_config(eval_every=3)
    with pytest.raises(WorkdirError, match="That run took no step: delete its folder, or choose"):
        check_same_config(tmp_path, other)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(WorkdirError, match="took no step"):
        check_same_config(tmp_path, other)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(WorkdirError, match="Give the same config to resume that run"):
        check_same_config(tmp_path, other)


def test_a_run_from_before_a_field_goes_on(tmp_path):
    """With what the field's default is, and no other value; it had recorded where its cache was."""
    record_config(tmp_path, make_config())
    saved = json.loads((tmp_path / "config.json").read_text()) | {"cache_dir": "/elsewhere"}
    del saved["adam_b1_cycle"], saved["task"]["augment"], saved["masked"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    check_same_config(tmp_path, make_config())
    with pytest.raises(WorkdirError, match=r"config\.task\.augment: False there, True now"):
        check_same_config(tmp_path, make_config(**{"task.augment": True}))


def test_a_result_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WorkdirError, match=r"gone/result\.json: can't be written"):
        write_result(tmp_path / "gone", {})


def test_a_checkpoint_that_was_set_aside_is_no_step(tmp_path):
    for name in ("4", "broken-8"):
        (tmp_path / "checkpoints" / name / "record").mkdir(parents=True)
    assert steps_saved(tmp_path) == 4


def test_a_run_has_its_own_vocabulary_from_its_first_step_on(tmp_path):
    """Before, its data may be others by now."""
    config = make_config(**{"task.tokenizer": str(tmp_path / "given")})
    (tmp_path / "tokenizer.model").write_bytes(b"kept")
    assert tokenizer_of(config, tmp_path) == str(tmp_path / "given")
    (tmp_path / "checkpoints" / "1" / "record").mkdir(parents=True)
    assert tokenizer_of(config, tmp_path) == str(tmp_path / "tokenizer.model")


def test_a_vocabulary_is_kept_anew_until_a_step_is_saved(tmp_path):
    run, given = tmp_path / "run", tmp_path / "given" / "tokenizer.model"
    for folder in (run, given.parent):
        folder.mkdir()
    for content, kept in ((b"one", b"one"), (b"two", b"two"), (b"three", b"two")):
        given.write_bytes(content)
        if content == b"three":
            (run / "checkpoints" / "1" / "record").mkdir(parents=True)
        keep_tokenizer(run, given)
        assert (run / "tokenizer.model").read_bytes() == kept


@pytest.mark.parametrize("saved", ["8", True, None])
def test_a_number_of_parts_that_is_none_is_not_gone_on_with(saved, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"accumulate_steps": saved}))
    assert recorded_accumulate_steps(tmp_path) == 0


def test_a_result_is_whole_or_none(tmp_path):
    result = {"test_accuracy": 0.5, "fingerprint": "f", "config": {"task": {}}}
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    for name in result:
        write_result(tmp_path, {other: x for other, x in result.items() if other != name})
        assert read_result(tmp_path) is None
