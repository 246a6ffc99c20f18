"""Runs on hidden tokens, and runs that begin with the encoder of one."""

import json
import math
import shutil
import types

import numpy as np
import pytest
from flax import nnx

import lra_tasks
import sweep
from configs import lra_retrieval
from experiment import evaluate, metrics
from experiment import pretrained as pretrained_runs
from experiment.grid import make_runs
from experiment.load import load_run
from experiment.model import head_of, make_model
from experiment.pretrained import (
    _shapes,
    begins_with,
    check_fit,
    read_source,
    source_problems,
    start_from,
    weights_by_name,
)
from experiment.workdir import WorkdirError, record_config, recorded
from tests.test_masked import SHORT, masked
from tests.test_resume import PowerCutError, cut_off
from tests.test_tasks_train import run, small
from tests.written_runs import RESULT
from train import train


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, cache_home):
    """A run on hidden tokens: its folder and result."""
    folder = tmp_path_factory.mktemp("runs")
    rates = {"learning_rate": 0.1, "warmup_steps": 1}  # so high that step 3 is the best
    config = masked("text", num_train_steps=6, eval_every=1, **rates)
    _, result = run(config, folder)
    return folder / "run", result


def test_a_masked_run_reports_nats_bits_and_accuracy_and_keeps_the_least_loss(pretrained, capsys):
    workdir, result = pretrained
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if line["split"] == "validation"}
    assert result["validation_loss"] == min(losses.values()) == losses[result["best_step"]]
    assert result["test_bits_per_token"] == pytest.approx(result["test_loss"] / math.log(2))
    assert result["best_step"] < 6 and 0 <= result["test_accuracy"] < 0.5
    assert result["comparable_to_lra"] is False
    assert "objective='masked' (recipe 'classify')" in result["why_not_comparable"]
    assert "nats a hidden token (by frequencies alone" in metrics.result_line(result)
    texts = {name: [] for name in ("train", "test")}
    for name, bytes_of in texts.items():
        split = load_run(workdir).task.splits[name]
        for example in split.examples.__getitems__(range(len(split.lengths))):
            bytes_of.extend(example["inputs"].tolist())
    share = {b: (texts["train"].count(b) + 1) / (len(texts["train"]) + 256) for b in range(256)}
    expected = -np.mean([math.log(share[b]) for b in texts["test"]])
    assert result["unigram_nats"] == pytest.approx(expected)
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    assert f"loss {result['test_loss']:.4f}" in capsys.readouterr().out
    assert evaluate.main([f"--workdir={workdir}", "--text=a film"]) == 1
    assert "knows no labels" in capsys.readouterr().err


def finetune(workdir, **fields):
    return small("text", **SHORT | {"init_from": str(workdir)} | fields)


def test_a_run_begins_with_the_best_encoder_and_goes_on_without_it(pretrained, tmp_path):
    workdir, result = pretrained
    source = shutil.copytree(workdir, tmp_path / "source")
    config = finetune(source, checkpoint_every=1)
    task = lra_tasks.load(config.task, progress=False)
    fresh = nnx.state(make_model(config.model, task, config.seed))
    params, record = start_from(config, task, fresh)
    assert record["step"] == result["best_step"] and record["num_train_steps"] == 6
    assert record["fingerprint"] == result["fingerprint"] == task.fingerprint
    assert record["objective"] == "masked" and record["finished"] is False
    theirs = weights_by_name(load_run(source, with_data=False).model)
    ours = weights_by_name(params)
    assert ours.keys() == theirs.keys() and len(ours) > 10
    embeddings = "encoder/token_embed/embedding"
    assert theirs[embeddings].shape == (258, 16)
    for name, array in ours.items():
        np.testing.assert_array_equal(
            array, theirs[name][:257] if name == embeddings else theirs[name]
        )
    np.testing.assert_array_equal(params["logits"]["kernel"][...], fresh["logits"]["kernel"][...])

    with pytest.raises(PowerCutError):
        train(config, tmp_path / "run", cut_off(task, 1))
    shutil.rmtree(source)
    assert source_problems(config, tmp_path / "run", True) == []
    assert "no such folder" in source_problems(config, tmp_path / "new", True)[0]
    result = train(config, tmp_path / "run", task)
    assert result["init_from"] == record and np.isfinite(result["test_loss"])


def test_a_run_says_what_it_begins_with_and_where_that_is_another_seed_or_model(
    pretrained, tmp_path, capsys
):
    config = finetune(pretrained[0], seed=3, num_train_steps=1, **{"model.dropout_rate": 0.25})
    train(config, tmp_path, lra_tasks.load(config.task, progress=False))
    said = capsys.readouterr().err.splitlines()
    begun = said.index(
        f"begins with the encoder of {pretrained[0]}, step {pretrained[1]['best_step']}"
    )
    assert said[begun + 1 : begun + 4] == [
        f"  config.seed={masked('text').seed} there, 3 here",
        f"  config.model.dropout_rate={masked('text').model.dropout_rate} there, 0.25 here",
        "  warning: that run is not finished; of its 6 steps this is the best yet",
    ]
    assert not said[begun + 4].startswith("  ")


def test_a_masked_run_may_begin_with_another_and_takes_its_row_of_hidden_tokens(pretrained):
    config = masked("text", init_from=str(pretrained[0]))
    task = lra_tasks.without_data(config.task)
    fresh = nnx.state(make_model(config.model, task, 1, head=head_of(config)))
    params, _ = start_from(config, task, fresh)
    theirs = load_run(pretrained[0], with_data=False).model.encoder.token_embed.embedding[...]
    np.testing.assert_array_equal(params["encoder"]["token_embed"]["embedding"][...], theirs)


def test_what_a_run_begins_with_may_be_finished_in_ones_home_and_pool_otherwise(
    pretrained, tmp_path, monkeypatch
):
    folder = shutil.copytree(pretrained[0], tmp_path / "run")
    (folder / "result.json").write_text(json.dumps(RESULT | {"best_step": 3}))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = finetune("~/run", **{"model.pooling": "max"})
    assert source_problems(config, tmp_path / "new", True) == []
    task = lra_tasks.without_data(config.task)
    _, record = start_from(config, task, nnx.state(make_model(config.model, task, 0)))
    assert record["finished"] is True
    assert begins_with(config, record).splitlines() == [
        "begins with the encoder of ~/run, step 3",
        "  config.model.pooling=mean there, max here",
    ]


def test_large_numbers_of_what_a_run_begins_with_are_grouped():
    config = finetune("source")
    record = {"workdir": "source", "step": 12_000, "num_train_steps": 30_000, "finished": False}
    record |= {"config": recorded(config), "positions": (1024, 4096)}
    assert begins_with(config, record).splitlines() == [
        "begins with the encoder of source, step 12,000",
        "  warning: that run is not finished; of its 30,000 steps this is the best yet",
        "  its 1,024 positions, repeated to 4,096",
    ]


def test_a_longer_model_begins_with_the_positions_of_a_shorter_one_repeated(pretrained):
    config = finetune(pretrained[0], **{"task.max_length": 128, "task.padded_length": 128})
    task = lra_tasks.without_data(config.task)
    params, record = start_from(config, task, nnx.state(make_model(config.model, task, 0)))
    theirs = load_run(pretrained[0], with_data=False).model.encoder.position_embed[...]
    ours = params["encoder"]["position_embed"][...]
    np.testing.assert_array_equal(ours, np.concatenate([theirs, theirs]))
    assert "its 64 positions, repeated to 128" in begins_with(config, record)


def test_places_of_longer_models_are_repeated_behind_that_of_a_token_put_first(tmp_path):
    both = {"model.pooling": "cls", "task.max_length": 16, "task.padded_length": 16}
    run(masked("text", num_train_steps=1, **both), tmp_path)
    for length, fits in ((32, True), (33, False)):
        both |= {"task.max_length": length, "task.padded_length": length}
        config = finetune(tmp_path / "run", **both)
        task = lra_tasks.without_data(config.task)
        params = nnx.state(make_model(config.model, task, 0))
        if not fits:
            with pytest.raises(WorkdirError, match=r"position_embed: \(17, 16\) there, \(34, 16\)"):
                start_from(config, task, params)
            continue
        params, record = start_from(config, task, params)
        theirs = load_run(tmp_path / "run", with_data=False).model.encoder.position_embed[...]
        ours = params["encoder"]["position_embed"][...]
        np.testing.assert_array_equal(ours, np.concatenate([theirs, theirs[1:]]))
        assert record["positions"] == (16, 32)


def test_a_run_whose_config_was_changed_since_is_no_source(pretrained, tmp_path):
    folder = shutil.copytree(pretrained[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["norm"] = "post"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match=r"init_from=.*which has config\.model\.norm='pre'; put"):
        read_source(str(folder))


def test_weights_that_do_not_fit_are_named_one_by_one(pretrained, tmp_path):
    other = {"model.attention": "nystrom", "model.norm": "post", "model.num_heads": 4}
    other |= {"task.max_length": 100, "task.padded_length": 100}
    config = finetune(pretrained[0], **other)
    task = lra_tasks.without_data(config.task)
    params = nnx.state(make_model(config.model, task, 0))
    with pytest.raises(WorkdirError) as caught:
        start_from(config, task, params)
    _, *lines, advice = str(caught.value).splitlines()
    assert [line.strip() for line in lines] == [
        "config.model.num_heads: 2 there, 4 here",
        "config.model.norm: 'pre' there, 'post' here",
        "encoder/blocks/0/attention/filters: not there",
        "encoder/norm/bias: there alone",
        "encoder/norm/scale: there alone",
        "encoder/position_embed: (64, 16) there, (100, 16) here",
    ]
    assert "the same config.model" in advice
    assert source_problems(config, tmp_path, True) == [str(caught.value)]  # before data are touched
    assert source_problems(config, tmp_path, False) == []

    # Rows of another width are no more taken than other arrays.
    narrow = finetune(pretrained[0], **{"model.width": 8})
    (problem,) = source_problems(narrow, tmp_path, True)
    assert "encoder/token_embed/embedding: (258, 16) there, (257, 8) here\n" in problem
    assert "encoder/position_embed: (64, 16) there, (64, 8) here\n" in problem

    # Of equal shapes, where the row of hidden tokens would become that of the token put first.
    config = finetune(pretrained[0], **{"model.pooling": "cls", "task.padded_length": 63})
    task = lra_tasks.without_data(config.task)
    with pytest.raises(WorkdirError, match="'mean' there, 'cls' here"):
        start_from(config, task, nnx.state(make_model(config.model, task, 0)))


def test_embeddings_of_other_tokens_are_not_taken_though_their_number_is_the_same(monkeypatch):
    """256 shades and the hidden one's, for 257 bytes and padding."""
    source, config = masked("image"), small("text", **SHORT | {"init_from": "source"})
    for each in (source, config):
        each.model.position = "none"
    there = lra_tasks.without_data(source.task)
    model = make_model(source.model, there, 0, head=head_of(source))
    found = source, types.SimpleNamespace(records={0: {"progress": {}}}), 0
    monkeypatch.setattr(pretrained_runs, "read_source", lambda init_from: found)
    monkeypatch.setattr(pretrained_runs, "best_model", lambda *run: model)
    task = lra_tasks.without_data(config.task)
    params = nnx.state(make_model(config.model, task, 0))
    assert weights_by_name(params)["encoder/token_embed/embedding"].shape == (257, 16)
    with pytest.raises(WorkdirError, match=r"embedding: of other tokens, \(256 ids, 256 stands .*"):
        start_from(config, task, params)


def test_a_source_whose_best_checkpoint_is_damaged_is_named(pretrained, tmp_path):
    source = shutil.copytree(pretrained[0], tmp_path / "damaged")
    for array in (source / "checkpoints").glob("*/state/manifest.ocdbt"):
        array.unlink()
    config = finetune(source)
    with pytest.raises(WorkdirError, match=r"config\.init_from='.*damaged': .*is damaged \("):
        start_from(config, lra_tasks.without_data(config.task), None)


def test_a_source_that_is_none_is_refused_before_anything_is_touched(tmp_path, run_train):
    begun = tmp_path / "begun"
    record_config(begun, finetune(""))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    expected = {
        tmp_path / "gone": "no such folder",
        foreign: "no config.json there",
        begun: "no checkpoint there",
    }
    for source, why in expected.items():
        (problem,) = source_problems(finetune(source), tmp_path / "run", True)
        assert problem.startswith(f"config.init_from='{source}': ") and why in problem
    workdir = tmp_path / "run"
    failed = run_train("--config=configs/lra_text.py:finetune", f"--workdir={workdir}", check=False)
    assert failed.returncode == 1 and not workdir.exists()
    assert "config.init_from='runs/lra_text-pretrain': no such folder" in failed.stderr
    given = ["--config=configs/lra_text.py:finetune", "--config.seed=0,1"]
    (problem,) = sweep.find_problems(make_runs(given, tmp_path / "sweep"))
    assert "no such folder" in problem and "in 2 of 2 runs" in problem


def test_the_published_sizes_train_and_their_encoder_is_taken(tmp_path):
    tiny = {"batch_size": 4, "num_train_steps": 2, "warmup_steps": 1, "eval_every": 2}
    tiny |= {f"task.num_{split}": 4 for split in ("train", "validation", "test")}
    tiny |= SHORT | {"task.source": "synthetic", "task.bucket_boundaries": ()}
    pretrain, finetune = map(lra_retrieval.get_config, ("spt_large", "spt_large_finetune"))
    pretrain.update_from_flattened_dict(tiny)
    task, result = run(pretrain, tmp_path)
    assert result["num_parameters"] > 500_000 and np.isfinite(result["test_loss"])
    finetune.update_from_flattened_dict(tiny | {"init_from": str(tmp_path / "run")})
    params = nnx.state(make_model(finetune.model, task, 0))
    params, record = start_from(finetune, task, params)
    assert record["step"] == 2 and params["logits"]["kernel"].shape == (256, 2)


@pytest.mark.parametrize(
    ("field", "there", "here"), [("position", "rotary", "none"), ("num_heads", 2, 4)]
)
def test_weights_of_equal_shapes_are_not_taken_into_a_model_that_reads_them_otherwise(
    field, there, here
):
    source, config = (small("text", **SHORT | {f"model.{field}": x}) for x in (there, here))
    task = lra_tasks.without_data(config.task)
    shapes = _shapes(source, task), _shapes(config, task)
    assert {k: x.shape for k, x in shapes[0].items()} == {k: x.shape for k, x in shapes[1].items()}
    with pytest.raises(WorkdirError, match=f"model.{field}: {there!r} there, {here!r} here"):
        check_fit(config, task, source, task, *shapes)
