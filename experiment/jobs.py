"""A sweep's runs as processes of train.py, each with its output in a log beside its workdir."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tqdm

from experiment.grid import Run
from experiment.workdir import WorkdirError, is_of_other_data, read_result, record_config

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
JAX_FOOTER = "--------------------"  # between an error's words and a line of JAX on all errors


def command(run: Run) -> list[str]:
    """The command line that starts a run or goes on with it."""
    return ["python", os.path.relpath(TRAIN), *run.arguments, f"--workdir={run.workdir}"]


def finished_result(run: Run) -> dict | None:
    """The result of a finished run, on the examples that its task makes now; else None."""
    result = read_result(run.workdir)
    return None if result is None or is_of_other_data(result) else result


def is_finished(run: Run) -> bool:
    """Whether train.py has nothing to do for it."""
    return finished_result(run) is not None


def log_path(run: Run) -> Path:
    """Where the output of a run goes: beside its workdir, which is train.py's own."""
    return run.workdir.with_name(run.workdir.name + ".log")


def latest_reports(run: Run) -> list[dict]:
    """The last whole lines of a run's metrics.jsonl, a few."""
    try:
        with (run.workdir / "metrics.jsonl").open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().rpartition(b"\n")[0].splitlines()
    except OSError:
        return []
    reports = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the first may be cut off
            reports.append(json.loads(line))
    return [report for report in reports if isinstance(report, dict) and "step" in report]


def steps_done(run: Run) -> int:
    """Steps of a run so far, by its last report."""
    return max([report["step"] for report in latest_reports(run)[-1:]], default=0)


@dataclasses.dataclass
class Job:
    """A run that is being run."""

    run: Run
    process: subprocess.Popen
    log_start: int  # bytes in its log from earlier starts
    start: float

    def last_words(self) -> str:
        """The last line that the run wrote, of an error its own."""
        with log_path(self.run).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, self.log_start))
            lines = file.read().decode(errors="replace").strip().splitlines()
        if lines[-2:-1] == [JAX_FOOTER]:
            del lines[-2:]
        return lines[-1].strip() if lines else "no output"


def start(run: Run) -> Job:
    """Starts a run in a process group of its own, which the terminal's Ctrl-C can't reach.

    Its config is recorded first: should the file be edited meanwhile, train.py refuses the other.
    """
    path = log_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(WorkdirError):  # train.py says that itself
        record_config(run.workdir, run.config)
    with path.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            [sys.executable, *command(run)[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Job(run, process, log_start, time.monotonic())


def stop(jobs: list[Job], notice: str = "") -> None:
    """Has what runs save and stop; kills it where KeyboardInterrupt comes meanwhile."""
    try:
        _signal_groups(jobs, signal.SIGINT)  # as Ctrl-C in a terminal does
        if notice:
            tqdm.tqdm.write(notice, file=sys.stderr)
        for job in jobs:
            job.process.wait()
    except KeyboardInterrupt:
        _signal_groups(jobs, signal.SIGKILL)
        for job in jobs:
            job.process.wait()


def _signal_groups(jobs, number):
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, number)
