"""What a sweep says of its runs before it starts them and meanwhile, without any being started."""

import json
import subprocess
import time

import pytest

from configs.reading import read_config
from experiment.grid import make_runs
from experiment.jobs import Job, start, steps_done, stop
from experiment.workdir import WorkdirError, claim, record_config
from sweep import Sweep, find_problems, main
from tests.conftest import ROOT
from tests.written_runs import RESULT

LISTOPS = f"--config={ROOT}/configs/lra_listops.py"


@pytest.fixture
def one_cpu(monkeypatch):
    """JAX's devices, without a process that is asked for them."""
    monkeypatch.setattr("sweep.ask_devices", lambda: ("cpu", 1))


def finish(run):
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "result.json").write_text(json.dumps(RESULT))


def begin(run, saved, reported):
    """Leaves a run's folder as it is while it runs."""
    (run.workdir / "checkpoints" / f"{saved}" / "record").mkdir(parents=True)
    (run.workdir / "metrics.jsonl").write_text(f'{{"step": {reported}}}\n')


def test_the_time_left_is_by_the_steps_that_this_sweep_took(tmp_path, monkeypatch, capsys):
    runs = finished, under_way, new = make_runs([LISTOPS, "--config.seed=0,1,2"], tmp_path)
    finish(finished)
    begin(under_way, saved=1_000, reported=1_000)
    whole = Sweep(list(runs), [under_way, new], 1)
    (under_way.workdir / "metrics.jsonl").write_text('{"step": 4000}\n')
    whole.start -= 300
    whole.show()
    assert not capsys.readouterr().err  # only now and then
    whole.last_line -= 61
    whole.show()
    whole.show()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("[1/3 runs] 40% of 10,000 steps, about 10:0")  # 6000 at 10 a second
    finish(under_way)
    monkeypatch.setattr("sweep.LINE_SECONDS", 0)
    whole.show()
    assert "[2/3 runs] 50% of 10,000 steps" in capsys.readouterr().err


def test_a_signal_at_its_very_end_leaves_no_rest(tmp_path, capsys):
    runs = make_runs([LISTOPS, "--config.seed=0,1"], tmp_path)
    finish(runs[0])
    whole = Sweep(list(runs), runs[1:], 1)
    assert whole.end("SIGINT") == 130
    assert "SIGINT: the same command goes on with the rest" in capsys.readouterr().err
    finish(runs[1])
    assert whole.end("SIGINT") == 0
    assert capsys.readouterr().err == "2 of 2 runs finished\n"


def test_no_more_runs_than_jobs_are_begun(tmp_path, monkeypatch):
    runs = make_runs([LISTOPS, "--config.seed=0,1,2"], tmp_path)
    monkeypatch.setattr("sweep.start", lambda run: run)
    whole = Sweep(runs, runs, 2)
    whole.begin_more()
    assert (whole.jobs, whole.waiting) == (runs[:2], runs[2:])


def test_a_config_file_that_is_edited_meanwhile_is_not_what_the_rest_gets(tmp_path, monkeypatch):
    own, program = tmp_path / "own.py", tmp_path / "train.py"
    text = "from configs import lra_listops\n\ndef get_config():\n"
    text += (
        "    config = lra_listops.get_config()\n    config.learning_rate = {}\n    return config\n"
    )
    own.write_text(text.format(0.25))
    program.write_text("pass")
    monkeypatch.setattr("experiment.jobs.TRAIN", program)
    (run,) = make_runs([f"--config={own}"], tmp_path / "runs")
    own.write_text(text.format(0.5))
    start(run).process.wait()
    edited, *_ = read_config(run.arguments)
    with pytest.raises(WorkdirError, match=r"config\.learning_rate: 0\.25 there, 0\.5 now$"):
        claim(run.workdir, edited)


def test_a_dry_run_says_what_is_finished_and_what_is_left_out(tmp_path, one_cpu, capsys):
    fields = ["--config.model.attention=softmax", "--config.model.num_landmarks=32,64"]
    arguments = [LISTOPS, *fields, "--config.seed=0,1"]
    first, _, repeat, _ = make_runs(arguments, tmp_path)
    finish(first)
    assert main([*arguments, f"--runs_dir={tmp_path}", "--dry_run"]) == 0
    said = capsys.readouterr()
    assert [line.startswith("# finished: python ") for line in said.out.splitlines()] == [
        True,
        False,
    ]
    assert f"left out: {repeat.label}, which would be {first.label} again" in said.err
    assert "2 runs: 1 finished, 0 to go on with, 1 new" in said.err


def test_no_jobs_at_a_time_are_refused(tmp_path, one_cpu, capsys):
    with pytest.raises(SystemExit):
        main([LISTOPS, f"--runs_dir={tmp_path}", "--jobs=0", "--dry_run"])
    assert "--jobs=0: expected 1 or more" in capsys.readouterr().err


def test_a_folder_with_a_run_of_another_config_is_named_before_any_starts(tmp_path, one_cpu):
    run, other = make_runs([LISTOPS, "--config.model.num_landmarks=32,64"], tmp_path)
    record_config(run.workdir, other.config)
    (problem,) = find_problems([run, other])
    assert "num_landmarks" in problem and "in 1 of 2 runs" in problem


def test_steps_done_are_those_of_the_last_whole_report(tmp_path):
    (run,) = make_runs([LISTOPS], tmp_path)
    assert steps_done(run) == 0
    run.workdir.mkdir()
    reports = "".join(f'{{"step": {step}, "split": "train"}}\n' for step in range(0, 5_000, 10))
    (run.workdir / "metrics.jsonl").write_text(reports + '[1]\n{"loss": 1.0}\n{"step": 5')
    assert steps_done(run) == 4_990


def test_a_run_that_has_ended_can_be_stopped(tmp_path):
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    stop([Job(None, process, 0, time.monotonic())])
    assert process.returncode == 0
