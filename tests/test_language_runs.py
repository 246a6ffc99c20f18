"""Pretraining on documents and fine-tuning on reviews, from folder to label."""

import contextlib
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import lra_tasks
from configs import finetune_imdb, mlm
from experiment import evaluate, tracks
from experiment import pretrained as pretrained_runs
from experiment.config_checks import check_config
from experiment.load import load_run
from experiment.model import make_model
from experiment.pretrained import read_source, start_from
from experiment.read_runs import read_runs
from experiment.workdir import WorkdirError, keep_tokenizer
from lra_tasks.documents import tokenizer
from tests.test_tasks_train import run

pytest.importorskip("sentencepiece")

SMALL = {
    "batch_size": 4,
    "num_train_steps": 2,
    "warmup_steps": 1,
    "eval_every": 2,
    "model.attention": "linear",
    "model.num_layers": 1,
    "model.width": 16,
    "model.mlp_width": 16,
    "model.num_heads": 2,
    "task.source": "synthetic",
    "task.vocab_size": 320,
    "task.max_length": 48,
    "task.padded_length": 48,
    "task.bucket_boundaries": (),
    "task.num_train": 16,
    "task.num_validation": 4,
    "task.num_test": 4,
}


def small(module, variant="", **fields):
    config = module.get_config(variant)
    config.update_from_flattened_dict(SMALL | fields)
    return config


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, cache_home):
    """A run with hidden tokens and swapped halves, and its vocabulary: folder and result."""
    folder = tmp_path_factory.mktemp("mlm")
    config = small(mlm, "imdb", **{"task.sop": True})
    task, result = run(config, folder)
    keep_tokenizer(folder / "run", task.tokenizer)
    (folder / "run" / "result.json").write_text(json.dumps(result))
    return folder / "run", result


def test_the_loss_is_that_of_tokens_and_of_order(pretrained, capsys):
    workdir, result = pretrained
    both = result["test_token_loss"] + result["test_order_loss"]
    assert result["test_loss"] == pytest.approx(both, rel=1e-5)
    assert result["test_order_loss"] == pytest.approx(np.log(2), abs=0.3)
    assert result["test_token_loss"] == pytest.approx(np.log(320), abs=0.5)
    assert 0 < result["unigram_nats"] < np.log(320)
    task, counts = load_run(workdir).task, {}
    for name in ("train", "test"):  # of what can be hidden: no [CLS], no [SEP]
        examples = task.splits[name].examples
        ids = [example["inputs"] for example in examples.__getitems__(range(len(examples)))]
        counts[name] = np.bincount(np.concatenate(ids), minlength=320)[5:]
    known = (counts["train"] + 1) / (counts["train"] + 1).sum()
    expected = -np.sum(counts["test"] * np.log(known)) / counts["test"].sum()
    assert result["unigram_nats"] == pytest.approx(expected)
    right = result["test_order_accuracy"] * len(task.splits["test"].lengths)
    assert right == pytest.approx(round(right), abs=1e-3)  # of examples, however many are hidden
    assert "no task of LRA's" in result["why_not_comparable"]
    assert (workdir / "tokenizer.model").stat().st_size > 1_000
    (group,) = read_runs([workdir]).groups
    assert group.track == "masked"
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    shown = f"loss {result['test_token_loss']:.4f} nats a hidden token"
    assert shown in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main([f"--workdir={workdir}", "--split=test", "--text=x"])
    assert "--split scores a split" in capsys.readouterr().err


def test_fine_tuning_begins_with_it_and_classifies_text(pretrained, tmp_path, capsys):
    workdir, pretraining = pretrained
    given = {"init_from": str(workdir), "task.tokenizer": str(workdir)}
    task, result = run(small(finetune_imdb, **given), tmp_path)
    assert task.name == "reviews" and task.vocab_size == 320
    assert result["init_from"]["fingerprint"] == pretraining["fingerprint"]
    assert tracks.track_of(result["config"], task.fingerprint, result["init_from"]) == "pretrained"
    keep_tokenizer(tmp_path / "run", task.tokenizer)
    assert evaluate.main([f"--workdir={tmp_path / 'run'}", "--text=a superb film"]) == 0
    assert capsys.readouterr().out.startswith("label ")
    loaded, batch = load_run(tmp_path / "run"), lra_tasks.Batches(task, "test", 4)[0]
    expected = jax.nn.softmax(loaded.model(batch["inputs"], batch["mask"]))
    examples = loaded.task.splits["test"].examples.__getitems__(range(4))
    for each, its in zip(examples, expected, strict=True):
        assert each["inputs"].max() > 255
        found = evaluate.classify(loaded.model, task, [each["inputs"]])
        np.testing.assert_allclose(found, its, rtol=1e-5)
    (ids,) = evaluate.read_documents([("text", "a superb film " * 99)], task)
    assert len(ids) == task.max_length and ids[-1] == tokenizer.SEP

    def error_of(*arguments):
        assert evaluate.main([f"--workdir={tmp_path / 'run'}", *arguments]) == 1
        (line,) = capsys.readouterr().err.splitlines()[-1:]
        return line

    text = "--text=a superb film"

    assert "no text in this locale" in error_of(
        "--text=caf\udce9"
    )  # as Python has a byte that is none
    kept = tmp_path / "run" / "tokenizer.model"
    kept.write_bytes(kept.read_bytes() + b"\n")
    for asked in ((text,), ()):
        assert f"{kept}: not the vocabulary that the run was trained with" in error_of(*asked)
    kept.unlink()
    assert "its tokenizer.model is missing" in error_of(text)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["task"]["tokenizer"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert "tokenizer.model is missing, the vocabulary that the run was trained" in error_of()


def test_another_vocabulary_than_the_encoders_is_refused(pretrained, tmp_path):
    other = tmp_path / "tokenizer.model"
    texts = [f"another text of other words, number {n}" for n in range(500)]
    other.write_bytes(tokenizer.train(texts, 320))
    given = {"init_from": str(pretrained[0]), "task.tokenizer": str(other)}
    said = f"task.tokenizer='{other}': another vocabulary than that run's; give '{pretrained[0]}'"
    with pytest.raises(WorkdirError, match=re.escape(said)):
        run(small(finetune_imdb, **given), tmp_path)
    # Nor is it taken for that run's own.
    copy = shutil.copytree(pretrained[0], tmp_path / "copy")
    keep_tokenizer(copy, other)
    assert (copy / "tokenizer.model").read_bytes() != other.read_bytes()
    shutil.copy(other, copy)
    given |= {"init_from": str(copy)}
    with pytest.raises(WorkdirError, match="not the vocabulary that the run was trained with"):
        run(small(finetune_imdb, **given), tmp_path / "second")
    (copy / "tokenizer.model").unlink()  # its checkpoints know which it was
    with pytest.raises(WorkdirError, match=r"task\.tokenizer=.*another vocabulary than that run's"):
        run(small(finetune_imdb, **given), tmp_path / "third")
    its = {"task.tokenizer": str(pretrained[0])}
    run(small(finetune_imdb, **given | its), tmp_path / "fourth")


def test_a_vocabulary_that_checkpoints_do_not_know_is_that_of_the_folder(
    pretrained, tmp_path, monkeypatch
):
    """As of runs from before checkpoints had it."""
    found = read_source(str(pretrained[0]))
    for record in found[1].records.values():
        del record["progress"]["vocabulary"]
    monkeypatch.setattr(pretrained_runs, "read_source", lambda init_from: found)
    other = tmp_path / "tokenizer.model"
    other.write_bytes(b"of other words")
    config = small(finetune_imdb, **{"init_from": str(pretrained[0])})
    for given, fits in ((other, False), (pretrained[0] / "tokenizer.model", True)):
        task = dataclasses.replace(lra_tasks.without_data(config.task), tokenizer=given)
        params = nnx.state(make_model(config.model, task, 0))
        with contextlib.nullcontext() if fits else pytest.raises(WorkdirError, match="another voc"):
            start_from(config, task, params)


def test_a_finished_run_does_not_answer_for_another_vocabulary(pretrained, tmp_path, run_train):
    begun_with = shutil.copytree(pretrained[0], tmp_path / "mlm")
    fields = SMALL | {"init_from": str(begun_with), "task.tokenizer": str(begun_with)}
    command = ["--config=configs/finetune_imdb.py", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    run_train(*command)
    other = tmp_path / "tokenizer.model"
    other.write_bytes(tokenizer.train([f"other words, number {n}" for n in range(500)], 320))
    refused = run_train(*command, f"--config.task.tokenizer={other}", check=False)
    assert refused.returncode == 1 and "the run began with other data" in refused.stderr
    # Unfinished, it goes on without the run that it began with, whose vocabulary it has kept.
    result = tmp_path / "run/result.json"
    before = json.loads(result.read_text())["test_loss"]
    result.unlink()
    shutil.rmtree(begun_with)
    run_train(*command)
    assert json.loads(result.read_text())["test_loss"] == before


def write_documents(folder):
    """Six texts of sixty lines in a new folder."""
    folder.mkdir()
    for number in range(6):
        lines = (f"document {number} has line {n} of {number * n}\n" for n in range(60))
        (folder / f"{number}.txt").write_text("".join(lines))


def test_documents_that_changed_since_are_taken_from_the_cache(tmp_path, monkeypatch):
    """With the vocabulary learnt from them, which the run has kept, and whichever cache it is."""
    folder = tmp_path / "documents"
    write_documents(folder)
    given = {"task.source": "release", "task.data_dir": str(folder)}
    given |= {f"task.num_{split}": 0 for split in ("train", "validation", "test")}
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        task, result = run(small(mlm, "imdb", **given), tmp_path)
    keep_tokenizer(tmp_path / "run", task.tokenizer)
    (folder / "new.txt").write_text("one more\n")
    loaded = load_run(tmp_path / "run", tmp_path / "nystrom")
    assert loaded.task.fingerprint == result["fingerprint"]
    assert loaded.config.task.tokenizer == ""


def test_documents_of_before_are_named_and_none_of_a_vocabulary_that_is_not_asked_for(
    pretrained, tmp_path, capsys
):
    folder, cache = tmp_path / "documents", tmp_path / "cache"
    write_documents(folder)
    fields = {"task.source": "release", "task.vocab_size": 320}
    fields |= {f"task.num_{split}": 0 for split in ("train", "validation", "test")}

    def prepare(**given):
        config = small(mlm, "imdb", **fields | {f"task.{k}": str(v) for k, v in given.items()})
        return lra_tasks.load(config.task, cache)

    of_given = prepare(data_dir=folder, tokenizer=pretrained[0])
    with pytest.raises(ValueError, match=r"data_dir is empty.* set config\.task\.data_dir to"):
        prepare()
    assert prepare(tokenizer=pretrained[0]).fingerprint == of_given.fingerprint
    learnt = prepare(data_dir=folder)
    assert learnt.fingerprint != of_given.fingerprint
    capsys.readouterr()
    assert prepare().fingerprint == learnt.fingerprint
    assert "using the prepared set" in capsys.readouterr().err
    config = small(mlm, "imdb", **fields)
    again = lra_tasks.load(config.task, cache, fingerprint=of_given.fingerprint)
    assert again.fingerprint == of_given.fingerprint and not capsys.readouterr().err


def test_the_vocabulary_kept_is_that_of_the_data_trained_on(tmp_path):
    """A run that ended before its first checkpoint may begin again with other data."""
    given = tmp_path / "tokenizer.model"
    for content in (b"first", b"second"):
        given.write_bytes(content)
        (tmp_path / "run").mkdir(exist_ok=True)
        keep_tokenizer(tmp_path / "run", given)
        assert (tmp_path / "run" / "tokenizer.model").read_bytes() == content


def test_documents_without_labels_are_for_hidden_tokens_alone():
    fields = {"objective": "classify", "task.sop": False}
    (problem,) = check_config(small(mlm, "imdb", **fields))
    assert problem == (
        "config.objective='classify': documents have no labels (documents do with "
        "config.task.sop=True); expected masked"
    )
    assert check_config(small(mlm, "imdb", **(fields | {"task.sop": True}))) == []


@pytest.mark.parametrize("variant", [(mlm, ""), (mlm, "small"), (mlm, "imdb"), (finetune_imdb, "")])
def test_the_configs_pass_their_checks(variant, pretrained):
    config = variant[0].get_config(variant[1])
    config.task.source = "synthetic"
    if config.task.name == "reviews":
        config.task.tokenizer = str(pretrained[0])
        assert config.model == mlm.get_config("imdb").model
    assert check_config(config.lock()) == []
