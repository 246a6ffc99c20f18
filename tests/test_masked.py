"""Hidden tokens: which are hidden, what is measured, runs that begin with such a run's encoder."""

import json
import math
import shutil
import types

import jax
import numpy as np
import pytest
from flax import nnx

import lra_tasks
import sweep
from configs import lra_retrieval
from experiment import evaluate, metrics, training
from experiment import pretrained as pretrained_runs
from experiment.grid import make_runs
from experiment.load import load_run
from experiment.model import head_of, make_model
from experiment.objectives import (
    Masked,
    check_hidden,
    checkpoint_score,
    content_keys,
    make_objective,
)
from experiment.pretrained import begins_with, source_problems, start_from, weights_by_name
from experiment.workdir import WorkdirError, record_config
from tests.test_resume import PowerCutError, cut_off
from tests.test_tasks_train import run, small
from train import train

BYTES = Masked(0.15, 0.8, 0.1, first_id=1, vocab_size=257, mask_id=257)
hide = jax.jit(BYTES.hide)
KEYS = jax.random.split(jax.random.key(5), 8)
SHORT = {"task.max_length": 60, "task.padded_length": 64, "model.attention": "linear"}


def some_tokens(rows=8, length=3_000):
    return np.random.default_rng(0).integers(1, 257, (rows, length), np.int32)


def test_the_shares_of_hidden_tokens_are_those_asked_for():
    tokens = some_tokens()
    inputs, places, counts = hide(tokens, np.ones(tokens.shape, bool), KEYS)
    number = int(counts.sum())
    assert number / tokens.size == pytest.approx(0.15, abs=0.01)
    hidden = np.take_along_axis(np.asarray(inputs), np.asarray(places), -1)[counts]
    right = np.take_along_axis(np.asarray(tokens), np.asarray(places), -1)[counts]
    assert np.mean(hidden == 257) == pytest.approx(0.8, abs=0.03)
    assert np.mean(hidden == right) == pytest.approx(0.1, abs=0.03)
    others = hidden[(hidden != 257) & (hidden != right)]
    assert len(others) / number == pytest.approx(0.1, abs=0.03)
    assert others.min() >= 1 and others.max() <= 256 and len(set(others.tolist())) > 100
    elsewhere = np.ones(tokens.shape, bool)
    np.put_along_axis(elsewhere, np.asarray(places), ~np.asarray(counts), -1)
    np.testing.assert_array_equal(np.asarray(inputs)[elsewhere], np.asarray(tokens)[elsewhere])


def test_neither_padding_nor_special_tokens_are_hidden_and_padding_changes_nothing():
    tokens = some_tokens(length=200)
    tokens[:, ::3] = 0
    mask = np.arange(200) < np.array([[200], [150], [1], [0]] * 2)
    hide_all = jax.jit(Masked(1.0, 1.0, 0.0, 1, 257, 257).hide)
    inputs, places, counts = hide_all(tokens, mask, KEYS)
    np.testing.assert_array_equal(inputs == 257, mask & (tokens > 0))
    assert counts.sum() == (mask & (tokens > 0)).sum()

    inputs, places, counts = hide(tokens, mask, KEYS)
    wider = [np.pad(x, ((0, 0), (0, 56))) for x in (tokens, mask)]
    inputs2, places2, counts2 = hide(*wider, KEYS)
    np.testing.assert_array_equal(inputs2[:, :200], inputs)
    for row in range(8):
        np.testing.assert_array_equal(places2[row][counts2[row]], places[row][counts[row]])
    one = np.asarray([1])  # without the others
    inputs1, _, _ = hide(tokens[one], mask[one], KEYS[one])
    np.testing.assert_array_equal(inputs1, inputs[one])


def test_in_training_other_tokens_are_hidden_with_another_key():
    config = masked("text", **{"model.dropout_rate": 0.0})
    task = lra_tasks.load(config.task, progress=False)
    graph, params = nnx.split(make_model(config.model, task, 0, head=head_of(config)))
    objective = make_objective(config, task)
    batch = lra_tasks.Batches(task, "train", 4, seed=0)[0]

    @jax.jit
    def loss(keys):
        return objective(nnx.merge(graph, params), batch, keys)["loss"][0]

    one, again, other = (float(loss(jax.random.split(jax.random.key(i), 4))) for i in (0, 0, 1))
    assert one == again != other


def test_in_evaluations_hidden_tokens_follow_from_the_tokens_alone():
    tokens = some_tokens(length=64)
    mask = np.arange(64) < np.array([[64], [50], [50], [3]] * 2)

    def keys(*given):
        return jax.random.key_data(jax.jit(content_keys)(*given)).tolist()

    found = keys(tokens, mask)
    assert len({tuple(key) for key in found}) == 8
    longer = [np.pad(x, ((0, 0), (0, 9))) for x in (np.where(mask, tokens, 7), mask)]
    assert keys(*longer) == found
    assert keys(tokens[:, ::-1], mask)[0] != found[0]


def masked(name, **fields):
    return small(name, **SHORT | {"objective": "masked", "masked.share": 0.3} | fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("retrieval", {}), ("text", {"masked.head": "own", "model.pooling": "cls"})],
)
def test_what_is_measured_is_the_loss_at_all_places_that_were_hidden(name, fields):
    config = masked(name, **fields)
    task = lra_tasks.load(config.task, progress=False)
    model = make_model(config.model, task, 0, head=head_of(config))
    objective = make_objective(config, task)
    batch = lra_tasks.Batches(task, "validation", 3)[1]  # one example, and two of padding
    graph, params = nnx.split(model)
    found = jax.device_get(training.eval_step(graph, params, batch, None, objective))
    tokens, mask = batch["inputs"], batch["mask"]
    keys = jax.jit(content_keys)(tokens, mask)
    inputs, places, counts = jax.jit(objective.hide)(tokens, mask, keys)
    assert objective.mask_id in np.asarray(inputs)
    everywhere = np.broadcast_to(np.arange(tokens.shape[-1]), tokens.shape)
    apply = jax.jit(lambda params, *given: nnx.merge(graph, params)(*given))
    logits = np.asarray(apply(params, inputs, mask, everywhere), np.float64)
    losses = np.log(np.exp(logits).sum(-1))
    losses -= np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    was_hidden = np.zeros(tokens.shape, bool)
    np.put_along_axis(was_hidden, np.asarray(places), np.asarray(counts), -1)
    was_hidden[1:] = False
    right = (logits.argmax(-1) == tokens)[was_hidden].sum()
    assert found["loss"][1] == was_hidden.sum() > 3
    assert found["loss"][0] == pytest.approx(losses[was_hidden].sum(), rel=1e-5)
    assert found["bits_per_token"][0] == pytest.approx(found["loss"][0] / math.log(2), rel=1e-6)
    assert tuple(found["accuracy"]) == (right, was_hidden.sum())


def test_a_split_of_which_no_token_is_hidden_is_refused_before_the_first_step(tmp_path):
    config = masked("text", **{"masked.share": 1e-3, "task.num_validation": 500})
    task = lra_tasks.load(config.task, progress=False)
    with pytest.raises(ValueError, match=r"text test: no token is hidden of its 4 examples.*share"):
        train(config, tmp_path, task)
    assert not list(tmp_path.glob("checkpoints/*"))
    check_hidden(make_objective(config, task), task, ("validation",))


def test_a_split_of_which_no_token_is_hidden_is_refused_with_what_helps():
    config = masked("text", **{"masked.share": 1e-9})
    task = lra_tasks.load(config.task, progress=False)
    graph, params = nnx.split(make_model(config.model, task, 0, head=head_of(config)))
    batches = lra_tasks.Batches(task, "validation", 4)
    with pytest.raises(ValueError, match=r"text validation: no token is hidden.*masked\.share"):
        training.evaluate(graph, params, batches, objective=make_objective(config, task))


def test_the_best_checkpoint_of_a_masked_run_is_that_of_least_loss():
    good, bad = {"loss": 1.5, "accuracy": 0.1}, {"loss": 1.6, "accuracy": 0.9}
    assert checkpoint_score("masked", good) > checkpoint_score("masked", bad) > 0
    assert checkpoint_score("classify", good) < checkpoint_score("classify", bad)


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
    assert said[begun + 1 : begun + 3] == [
        f"  config.seed={masked('text').seed} there, 3 here",
        f"  config.model.dropout_rate={masked('text').model.dropout_rate} there, 0.25 here",
    ]
    assert not said[begun + 3].startswith("  ")


def test_a_masked_run_may_begin_with_another_and_takes_its_row_of_hidden_tokens(pretrained):
    config = masked("text", init_from=str(pretrained[0]))
    task = lra_tasks.without_data(config.task)
    fresh = nnx.state(make_model(config.model, task, 1, head=head_of(config)))
    params, _ = start_from(config, task, fresh)
    theirs = load_run(pretrained[0], with_data=False).model.encoder.token_embed.embedding[...]
    np.testing.assert_array_equal(params["encoder"]["token_embed"]["embedding"][...], theirs)


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
