"""A trained run, loaded and used: its score again, and labels of what is given."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from subprocess import PIPE, STDOUT

import jax
import numpy as np
import PIL.Image
import pytest

import lra_tasks
from experiment import evaluate
from experiment.checkpoints import Checkpoints
from experiment.evaluate import read_documents
from experiment.load import best_model, best_step, load_run
from experiment.signals import STOPPED
from experiment.workdir import WorkdirError
from tests.conftest import ROOT
from tests.test_tasks_train import run, small
from tests.written_runs import write_untrained

TEXT = "a wonderful film that is moving and superb"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache_home):
    """A run of two steps on Text: its folder and result."""
    folder = tmp_path_factory.mktemp("runs")
    lengths = {"task.max_length": 60, "task.padded_length": 64}
    config = small("text", **lengths, **{"model.attention": "linear"})  # compiles fast
    _, result = run(config, folder)
    return folder / "run", result


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Makes the folder of a run of some task with checkpoints of its initial parameters."""

    def make(name, accuracies=(0.5,), **fields):
        workdir = tmp_path_factory.mktemp(name)
        write_untrained(workdir, small(name, **fields), accuracies)
        return workdir

    return make


def test_a_split_is_scored_as_the_run_scored_it(trained, capsys):
    workdir, result = trained
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    shown, said = capsys.readouterr()
    assert "the run is unfinished" in said  # it has no result.json yet
    assert shown == (
        f"test: accuracy {result['test_accuracy']:.2%}, loss {result['test_loss']:.4f}, "
        "4 examples of text (synthetic)\n"
    )
    assert evaluate.main([f"--workdir={workdir}", "--split=validation"]) == 0
    assert f"accuracy {result['validation_accuracy']:.2%}" in capsys.readouterr().out


def test_load_run_gives_the_best_model_its_task_and_config(trained):
    workdir, _ = trained
    model, task, config = load_run(workdir)
    assert config.task.max_length == 60 and set(task.splits) == {"train", "validation", "test"}
    batch = lra_tasks.Batches(task, "test", 4)[0]
    logits = np.asarray(model(batch["inputs"], batch["mask"]))
    assert logits.shape == (4, 2) and np.isfinite(logits).all()
    without = load_run(workdir, with_data=False)
    np.testing.assert_array_equal(without.model(batch["inputs"], batch["mask"]), logits)
    assert without.task.splits == {}


def test_data_that_have_moved_since_are_taken_from_the_cache(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["task"]["data_dir"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(config))
    assert load_run(folder).task.fingerprint == trained[1]["fingerprint"]
    config["task"]["source"] = "release"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"were read from '.*/gone', which is gone, and are not"):
        load_run(folder, tmp_path / "empty")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": {"attention": "of_mine"}}, "config.model.attention='of_mine': expected one of "),
        ({"task": {"name": "of_mine"}}, "config.task.name='of_mine': expected one of "),
        ({"model": {"num_layers": 0}}, "config.model.num_layers=0: expected 1 or more"),
        ({"batch_size": 0}, "config.batch_size=0: expected 1 or more"),
        ({"model": {"width": 7}}, r"config\.json: not the config .*config\.model\.width=16; put"),
        ({"model": {"pooling": "max"}}, r"with, which has config\.model\.pooling='mean'; put it b"),
    ],
)
def test_a_config_of_another_version_is_refused_with_the_field(trained, tmp_path, fields, problem):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkdirError, match=problem):
        load_run(folder)


def test_a_config_that_makes_no_model_is_named(trained):
    """Of a run whose checkpoints are from before they had its config."""
    loaded = load_run(trained[0], with_data=False)
    with loaded.config.unlocked():
        loaded.config.model.width = 7
    checkpoints = Checkpoints(trained[0] / "checkpoints")
    with pytest.raises(WorkdirError, match=r"config\.json: width=7 can't be split among num_heads"):
        best_model(loaded.config, loaded.task, checkpoints, best_step(checkpoints))


def test_a_config_with_a_value_for_fields_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task": 3}))
    with pytest.raises(ValueError, match=r"config\.json: .*config\.task=3: expected fields"):
        load_run(folder)


def test_a_text_gets_the_probabilities_of_the_model(trained, tmp_path, capsys):
    workdir, _ = trained
    assert evaluate.main([f"--workdir={workdir}", f"--text={TEXT}"]) == 0
    given = capsys.readouterr().out
    (tmp_path / "review.txt").write_text(TEXT + "\n")
    assert evaluate.main([f"--workdir={workdir}", f"--file={tmp_path / 'review.txt'}"]) == 0
    assert capsys.readouterr().out == given
    model = load_run(workdir, with_data=False).model
    ids = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)[None] + 1
    expected = jax.nn.softmax(model(ids, np.ones(ids.shape, bool))[0])
    first, *rest = given.splitlines()
    best = int(expected.argmax())
    assert first == f"label {best} ({('negative', 'positive')[best]})"
    shown = [float(line.split()[1].rstrip("%")) / 100 for line in rest]
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    assert evaluate.main([f"--workdir={workdir}", f"--text={TEXT * 3}"]) == 0
    assert "126 tokens; the run reads the first 60" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["libraries", "a text"])
def test_ctrl_c_ends_it_without_a_word(moment, trained, tmp_path):
    """While it loads libraries, and while it waits for a text."""
    pipe = tmp_path / "text"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "experiment.evaluate", f"--workdir={trained[0]}"]
    command += [f"--file={pipe}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=PIPE, stderr=STDOUT) as process:
        if moment == "libraries":
            time.sleep(1)
            process.send_signal(signal.SIGINT)
        else:
            with opened_for_reader(pipe, process):
                process.send_signal(signal.SIGINT)
                process.wait(timeout=60)
        said, _ = process.communicate(timeout=60)
    assert process.returncode in STOPPED and said == b""


def opened_for_reader(pipe, process):
    """The end to write to of a pipe that the process has begun to read."""
    while process.poll() is None:
        with contextlib.suppress(OSError):  # nobody reads yet
            return open(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "w")
        time.sleep(0.05)
    raise AssertionError(process.communicate()[0])


def test_from_another_folder_as_a_file(trained, tmp_path):
    workdir, _ = trained
    command = [sys.executable, ROOT / "experiment" / "evaluate.py", f"--workdir={workdir}"]
    command += [f"--text={TEXT}", "--cache_dir=here"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("label ") and done.stderr == ""
    assert any((tmp_path / "here" / "compiled").iterdir())  # the next one need not compile


def test_the_other_tasks_documents(untrained, tmp_path, capsys):
    listops = untrained("listops", **{"model.attention": "none"})
    assert evaluate.main([f"--workdir={listops}", "--text=[MAX 2 9 [MIN 4 7 ] 0 ]"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    assert evaluate.main([f"--workdir={listops}", "--text=[MAX 2 x ]"]) == 1
    assert "unknown token 'x'" in capsys.readouterr().err
    assert evaluate.main([f"--workdir={listops}", f"--file={tmp_path}"]) == 1
    assert capsys.readouterr().err == f"error: --file={tmp_path}: Is a directory\n"

    retrieval = untrained("retrieval", **{"model.attention": "none"})
    assert evaluate.main([f"--workdir={retrieval}", "--text=one", "--text=two"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert evaluate.main([f"--workdir={retrieval}", "--text=one"]) == 1
    assert "2 document(s) at a time, 1 given" in capsys.readouterr().err

    image = untrained("image", **{"model.attention": "none"})
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    PIL.Image.fromarray(pixels[:30]).save(tmp_path / "small.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    PIL.Image.fromarray(np.full((32, 32), 700, np.uint16)).save(tmp_path / "deep.png")
    assert evaluate.main([f"--workdir={image}", f"--file={tmp_path / 'a.png'}"]) == 0
    assert "frog" in capsys.readouterr().out
    for argument, expected in (
        (f"--file={tmp_path / 'small.png'}", "32 x 30 pixels, expected 32 x 32"),
        (f"--file={tmp_path / 'no.png'}", "not a picture that can be read"),
        (f"--file={tmp_path / 'deep.png'}", "save it with 8 bits a channel"),
        (f"--file={tmp_path / 'gone.png'}", f"--file={tmp_path / 'gone.png'}: No such file"),
        ("--text=a frog", "classifies pictures"),
    ):
        assert evaluate.main([f"--workdir={image}", argument]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error
        assert len(error.splitlines()) == 1


def test_a_damaged_best_checkpoint_is_named(untrained, capsys):
    workdir = untrained("listops", accuracies=(0.9, 0.1, 0.2), **{"model.attention": "none"})
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    (workdir / "result.json").write_text("{}")
    capsys.readouterr()
    assert evaluate.main([f"--workdir={workdir}"]) == 0
    assert "unfinished" not in capsys.readouterr().err
    shutil.rmtree(workdir / "checkpoints" / "3" / "record")
    for more in ([], ["--text=[MAX 2 9 ]"]):
        capsys.readouterr()
        assert evaluate.main([f"--workdir={workdir}", *more]) == 1
        assert "checkpoints/3: the checkpoint is damaged" in capsys.readouterr().err


def test_what_is_no_run_is_refused_in_a_line(trained, tmp_path, capsys):
    workdir, _ = trained

    def error_of(folder, *arguments):
        assert evaluate.main([f"--workdir={folder}", *arguments]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert [line.startswith("error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
        return lines[-1]  # after what is said of data being prepared

    assert "no config.json there" in error_of(tmp_path / "nothing")
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("checkpoints"))
    assert "no checkpoint there" in error_of(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"gone": 1}))
    assert "config.gone: no such field" in error_of(copy)

    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    config["task"]["data_seed"] = 5
    (other / "config.json").write_text(json.dumps(config))
    assert "began with other data" in error_of(other)
    assert evaluate.main([f"--workdir={other}", f"--text={TEXT}"]) == 0


def test_a_run_of_any_source_is_loaded_with_the_one_it_began_with(trained, tmp_path):
    folder = shutil.copytree(trained[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["task"]["source"] = "auto"
    (folder / "config.json").write_text(json.dumps(config))
    assert load_run(folder).task.source == "synthetic"


def test_of_a_file_all_but_its_mark_and_last_lines_end_is_read(trained, tmp_path):
    task = load_run(trained[0], with_data=False).task
    (tmp_path / "a.txt").write_text("\ufeff  a film \n")
    (ids,) = read_documents([("file", str(tmp_path / "a.txt"))], task)
    assert bytes(ids.astype("uint8")) == b"  a film "
