"""sweep.py: what keeps runs from starting, and a sweep that fails, is interrupted and goes on."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest

import report
from benchmarks.campaign import Campaign
from experiment.grid import make_runs
from experiment.jobs import Job, is_finished, log_path, start, stop
from experiment.read_runs import read_runs
from experiment.signals import StopSignals
from experiment.workdir import claim, record_config
from lra_tasks import listops
from lra_tasks.documents import tokenizer
from sweep import Sweep, find_problems, main
from tests.conftest import ROOT, SMALL, SMALL_ONE_LENGTH
from tests.written_runs import RESULT

LISTOPS = f"--config={ROOT}/configs/lra_listops.py"


def sweep(*arguments, cwd=ROOT):
    """Runs `python sweep.py` to its end."""
    return subprocess.run(
        [sys.executable, str(ROOT / "sweep.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "[" * 100_000, '{"test_accuracy": 0.'])
def test_a_result_that_is_not_whole_finishes_no_run(text, tmp_path):
    (run,) = make_runs([LISTOPS], tmp_path)
    run.workdir.mkdir()
    result = run.workdir / "result.json"
    result.write_text(text)
    assert not is_finished(run)
    for name in RESULT:
        result.write_text(json.dumps(RESULT | {name: None}))
        assert is_finished(run) == (name != "config")
        result.write_text(json.dumps({k: v for k, v in RESULT.items() if k != name}))
        assert not is_finished(run)
    result.write_text(json.dumps(RESULT))
    assert is_finished(run)


@pytest.mark.parametrize(("version", "same"), [("0.9.0", False), (listops.VERSION, True)])
def test_a_result_of_examples_of_another_version_finishes_no_run(version, same, tmp_path):
    (run,) = make_runs([LISTOPS], tmp_path)
    run.workdir.mkdir()
    config = {"task": {"name": "listops"}}
    result = json.dumps(RESULT | {"config": config, "data_version": version})
    (run.workdir / "result.json").write_text(result)
    assert is_finished(run) == same


def test_a_run_that_is_refused_for_its_result_of_another_version_has_failed(tmp_path, capsys):
    (run,) = make_runs([LISTOPS], tmp_path)
    record_config(run.workdir, run.config)
    config = json.loads((run.workdir / "config.json").read_text())
    result = json.dumps(RESULT | {"config": config, "data_version": "0.9.0"})
    (run.workdir / "result.json").write_text(result)
    assert main([LISTOPS, f"--runs_dir={tmp_path}"]) == 1
    assert "FAILED" in (said := capsys.readouterr().err) and "choose another --workdir" in said
    failed = Campaign([run], time.monotonic() + 600, 60.0, StopSignals()).run()
    assert "choose another --workdir" in failed[run.workdir.name]


def test_a_run_that_another_process_runs_waits_for_it(tmp_path, monkeypatch, capsys):
    first, second = make_runs([LISTOPS, "--config.seed=0,1"], tmp_path)
    started = []
    monkeypatch.setattr("sweep.start", lambda run: started.append(run) or run)
    whole = Sweep([first, second], [first, second], 2)
    lock = claim(first.workdir, first.config)
    whole.begin_more()
    whole.begin_more()
    assert started == [second] and whole.waiting == [first]
    assert capsys.readouterr().err.count("seed=0: waits, as another process runs it") == 1
    lock.close()
    whole.begin_more()
    assert started == [second, first] and not whole.waiting


def test_a_run_that_another_process_began_first_is_waited_for(tmp_path, monkeypatch, capsys):
    (run,) = make_runs([LISTOPS], tmp_path)
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait()
    log_path(run).write_text("another process is running in it\n")
    whole = Sweep([run], [run], 1)
    whole.jobs, whole.waiting = [Job(run, process, 0, 0.0)], []
    with claim(run.workdir, run.config):
        whole.reap()
        assert (whole.waiting, whole.jobs, whole.failed) == ([run], [], [])
        (run.workdir / "result.json").write_text(json.dumps(RESULT))
    whole.begin_more()
    assert not whole.waiting and whole.end("") == 0
    assert "finished by another process" in capsys.readouterr().err
    whole.jobs = [Job(run, process, 0, 0.0)]
    (run.workdir / "result.json").unlink()
    whole.reap()
    assert whole.end("") == 1


def test_a_run_goes_on_after_its_last_checkpoint_not_its_last_report(tmp_path, monkeypatch, capsys):
    (run,) = make_runs([LISTOPS], tmp_path)
    (run.workdir / "checkpoints" / "100" / "record").mkdir(parents=True)
    (run.workdir / "checkpoints" / "120.tmp").mkdir()
    (run.workdir / "metrics.jsonl").write_text('{"step": 150}\n')
    monkeypatch.setattr("sweep.start", lambda run: run)
    whole = Sweep([run], [run], 1)
    whole.begin_more()
    assert "goes on after step 100" in capsys.readouterr().err
    (run.workdir / "metrics.jsonl").write_text("")  # as the run that goes on does
    monkeypatch.setattr("sweep.LINE_SECONDS", 0)
    whole.show()
    assert capsys.readouterr().err.endswith("0% of 5,000 steps\n")


def test_configs_of_all_runs_are_checked_before_the_first_starts(tmp_path):
    refused = sweep(
        *SMALL,
        "--config.seed=0,1",
        "--config.model.num_heads=2,3",
        "--config.model.attention=nystrom,nix",
        f"--runs_dir={tmp_path / 'runs'}",
    )
    assert refused.returncode == 1
    assert "config.model.num_heads=3: expected a divisor" in refused.stderr
    assert "config.model.attention='nix': expected one of" in refused.stderr
    assert "in 4 of 8 runs, the first of them seed=0 model.num_heads=2" in refused.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_under_way_needs_no_more_the_run_that_it_began_with(tmp_path):
    gone = tmp_path / "gone"
    arguments = [f"--config={ROOT}/configs/finetune_imdb.py", f"--config.init_from={gone}"]
    arguments += [f"--config.task.tokenizer={gone}", "--config.seed=0,1"]
    begun, new = make_runs(arguments, tmp_path)
    record_config(begun.workdir, begun.config)
    texts = [f"words of review number {n}" for n in range(500)]
    (begun.workdir / "tokenizer.model").write_bytes(tokenizer.train(texts, 320))
    (begun.workdir / "checkpoints" / "100" / "record").mkdir(parents=True)
    assert find_problems([begun]) == []
    problems = find_problems([begun, new])
    assert len(problems) == 2 and all(
        "in 1 of 2 runs, the first of them seed=1" in p for p in problems
    )


def test_a_runs_dir_whose_checkpoints_could_not_be_read_again_is_refused(tmp_path):
    problems = find_problems(make_runs([LISTOPS], tmp_path / "runs [1]"))
    assert len(problems) == 1 and "could not be read again, for its [brackets]" in problems[0]


def test_a_dry_run_prints_commands_that_a_shell_reads_back(tmp_path):
    arguments = [LISTOPS, "--config.task.bucket_boundaries=(2048,),()", "--config.seed=3"]
    dry = sweep(*arguments, "--dry_run", "--runs_dir=my runs", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert len(lines) == 2
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\0" {lines[0]}'], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert words[0] == "python" and (tmp_path / words[1]).samefile(ROOT / "train.py")
    assert words[2:5] == [LISTOPS, "--config.task.bucket_boundaries=(2048,)", "--config.seed=3"]
    assert words[5].startswith("--workdir=my runs/lra_listops,seed=3,task.bucket")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("exit 143", "stopped, no output"),
        ("exit 130", "stopped, no output"),
        ("kill -TERM $$", "stopped, no output"),
        ("exit 1", "FAILED, exit status 1: no output"),
        ("kill -KILL $$", "FAILED, exit status -9: no output"),
    ],
)
def test_runs_that_others_stopped_are_not_failures(ending, expected, tmp_path, capsys):
    (run,) = make_runs([LISTOPS], tmp_path)
    log_path(run).write_bytes(b"")
    whole = Sweep([run], [], 1)
    whole.jobs = [Job(run, subprocess.Popen(["sh", "-c", ending]), 0, time.monotonic())]
    while whole.jobs:
        whole.reap()
        time.sleep(0.01)
    assert whole.end("") == 1
    assert f"lra_listops: {expected}" in capsys.readouterr().err


def test_a_run_s_last_words_are_its_error_s_own(tmp_path):
    (run,) = make_runs([LISTOPS], tmp_path)
    footer = "For simplicity, JAX has removed its internal frames from the traceback."
    log_path(run).write_text(f"ValueError: sizes differ\n--------------------\n{footer}\n")
    assert Job(run, None, 0, 0.0).last_words() == "ValueError: sizes differ"


def test_devices_that_are_not_there_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "nix")
    assert main([LISTOPS, f"--runs_dir={tmp_path}"]) == 1
    first, line = capsys.readouterr().err.splitlines()
    assert first == "Nothing was started:"
    assert "no devices, JAX_PLATFORMS='nix': RuntimeError: Unable to initialize backend" in line


def test_a_runs_dir_that_is_a_file_is_refused_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sweep.ask_devices", lambda: ("cpu", 1))
    (tmp_path / "file").write_text("")
    assert main([LISTOPS, f"--runs_dir={tmp_path / 'file'}"]) == 1
    assert f"--runs_dir={tmp_path / 'file'}: " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("argument", ["--runs_dir", "--out"])
def test_a_folder_of_no_user_is_refused_in_a_line(argument, capsys):
    program = {"--runs_dir": main, "--out": report.main}[argument]
    with pytest.raises(SystemExit):
        program([".", f"{argument}=~no-such-user/runs"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {argument}: ~no-such-user/runs: there is no such user" in line


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_sweep_that_is_interrupted_says_so_to_the_shell(name, status, tmp_path):
    assert Sweep(make_runs([LISTOPS], tmp_path), [], 1).end(name) == status


def test_a_second_signal_kills_a_run_that_does_not_save(tmp_path):
    code = "import signal; signal.signal(2, signal.SIG_IGN); print(1); signal.pause()"
    command = [sys.executable, "-u", "-c", code]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    run.stdout.readline()
    job = Job(None, run, 0, 0.0)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with StopSignals(interrupting=True), run.stdout:
        os.kill(os.getpid(), signal.SIGTERM)
        stop([job], "to save and stop")
    assert run.returncode == -signal.SIGKILL


def test_an_interrupted_sweep_started_again_completes_what_is_missing(tmp_path):
    # accumulate_steps as most users leave it, to be what suits the device.
    left_alone = [a for a in SMALL_ONE_LENGTH if "accumulate_steps" not in a]
    fast_to_compile = (*left_alone, "--config.model.attention=none")
    arguments = (*fast_to_compile, "--config.seed=0,1,2", f"--runs_dir={tmp_path}")
    failing, first, second = (run.workdir for run in make_runs(list(arguments[:-1]), tmp_path))
    failing.mkdir()
    (failing / "notes.txt").write_text("not a run's folder")
    process = subprocess.Popen(
        [sys.executable, "sweep.py", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group, as the shell makes one
    )
    try:
        deadline = time.monotonic() + 500
        while not (first / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
        _, err = process.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130
    assert "seed=0: FAILED, exit status 1" in err and "notes.txt" in err
    command = shlex.join([sys.executable, "sweep.py", *arguments])
    assert f"SIGINT: the same command goes on with the rest: {command}" in err
    assert "Traceback" not in err
    log = first.with_name(first.name + ".log").read_text()
    assert "SIGINT: stopped at step" in log or (first / "result.json").exists()
    assert not second.exists()
    done_before = (first / "result.json").exists()

    (failing / "notes.txt").unlink()
    again = sweep(*arguments, "--jobs=2")
    assert again.returncode == 0, again.stderr
    assert f"3 runs: {int(done_before)} finished, {int(not done_before)} to go on" in again.stderr
    assert "3 of 3 runs finished" in again.stderr
    for seed, workdir in enumerate((failing, first, second)):
        result = json.loads((workdir / "result.json").read_text())
        assert (result["seed"], result["num_train_steps"]) == (seed, 12)
    (group,) = read_runs([tmp_path]).groups
    assert [run.folder for run in group.runs] == [failing, first, second]

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    third = sweep(*arguments)
    assert third.returncode == 0
    assert "3 runs: 3 finished" in third.stderr and "started" not in third.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_s_last_words_are_of_its_last_start_and_its_log_of_all(tmp_path, monkeypatch):
    (run,) = make_runs([LISTOPS], tmp_path)
    monkeypatch.setattr("experiment.jobs.command", lambda run: ["python", "-c", "print('second')"])
    log_path(run).write_text("first\n")
    job = start(run)
    job.process.wait()
    assert job.last_words() == "second" and log_path(run).read_text() == "first\nsecond\n"
    assert Job(run, None, len("first\nsecond\n"), 0.0).last_words() == "no output"


def test_a_run_is_out_of_the_terminals_reach_and_stops_when_asked_to(tmp_path, monkeypatch):
    (run,) = make_runs([LISTOPS], tmp_path)
    code = "import signal; signal.signal(2, signal.SIG_DFL); print(1, flush=True)"
    code += "; signal.alarm(30); signal.pause()"
    monkeypatch.setattr("experiment.jobs.command", lambda run: ["python", "-c", code])
    job = start(run)
    while job.last_words() != "1":
        assert job.process.poll() is None
    assert os.getpgid(job.process.pid) != os.getpgid(0)
    stop([job])
    assert job.process.returncode == -signal.SIGINT
