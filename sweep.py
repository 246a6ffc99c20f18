"""Runs train.py for every combination of the values given: landmarks, seeds...

    python sweep.py --config=configs/lra_text.py --config.seed=0,1,2 \\
        --config.model.num_landmarks=32,64,128,256 \\
        [--runs_dir=runs] [--jobs=1] [--dry_run]

Arguments are train.py's --config=FILE and --config.field=value, with commas
between values or files. Commas in brackets or quotes don't separate:
"--config.task.bucket_boundaries=(512,1024),(768,2048)" has two.

Of runs that differ only in fields that their attention doesn't read, such as
the landmarks of softmax, the first is run.

Each run has the workdir that train.py would give it, in --runs_dir, and its
output in <workdir>.log. Finished runs are skipped and unfinished ones go on
where they were, so the same command completes a sweep that was interrupted;
one that another process runs is waited for. A run that fails is reported and
the rest go on. The exit status is 0 if every run is finished, 1 if one failed
or was stopped by other hands, 130 or 143 if the sweep itself was interrupted
(SIGINT, SIGTERM).
"""

import argparse
import contextlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

import tqdm

from experiment import metrics
from experiment.config_checks import check_config
from experiment.cores import cpu_devices
from experiment.grid import GridError, Run, make_runs, without_repeats
from experiment.jobs import command, finished_result, is_finished, log_path, start, steps_done, stop
from experiment.processes import no_devices
from experiment.signals import STOPPED, StopSignals, exit_status
from experiment.workdir import (
    WorkdirError,
    check_name,
    check_same_config,
    folder_argument,
    is_running,
    steps_saved,
    tokenizer_of,
)
from lra_tasks.progress import outlive_readers

POLL_SECONDS = 0.2
LINE_SECONDS = 60  # between lines of progress where there is no terminal for a bar


def main(argv: list[str] | None = None) -> int:
    """Runs the sweep of a command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "sweep.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs_dir", type=folder_argument, default=Path("runs"),
                        help="the runs' folder")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time; on one GPU give "
                        "each its share with XLA_PYTHON_CLIENT_MEM_FRACTION")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    options, arguments = parser.parse_known_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs={options.jobs}: expected 1 or more")
    try:
        runs = make_runs(arguments, options.runs_dir)
    except GridError as error:
        parser.error(str(error))
    try:
        problems = find_problems(runs)
    except RuntimeError as error:
        problems = [f"  {error}"]
    if problems:
        print("Nothing was started:\n" + "\n".join(problems), file=sys.stderr)
        return 1
    runs, repeats = without_repeats(runs)
    for run, first in repeats:
        print(
            f"left out: {run.label}, which would be {first.label} again: "
            f"{run.config.model.attention} doesn't read what they differ in",
            file=sys.stderr,
        )
    missing = [run for run in runs if not is_finished(run)]
    begun = sum((run.workdir / "config.json").exists() for run in missing)
    print(
        f"{len(runs)} runs: {len(runs) - len(missing)} finished, {begun} to go on with, "
        f"{len(missing) - begun} new",
        file=sys.stderr,
    )
    if options.dry_run:
        for run in runs:
            print(("# finished: " if is_finished(run) else "") + shlex.join(command(run)))
        return 0
    try:
        return Sweep(runs, missing, options.jobs).run()
    except OSError as error:
        print(f"--runs_dir={options.runs_dir}: {error}", file=sys.stderr)
        return 1


def find_problems(runs: list[Run]) -> list[str]:
    """What keeps runs from starting, found in all of them before any starts."""
    asked = ask_devices()
    problems = {}  # problem -> the first run that has it, and how many have
    for run in runs:
        run.config.task.tokenizer = tokenizer_of(run.config, run.workdir)
        found = check_config(run.config, num_devices(run.config, *asked))
        if run.config.init_from:
            from experiment.pretrained import source_problems  # takes seconds, for orbax

            found += source_problems(run.config, run.workdir, is_sound=not found)
        try:
            check_name(run.workdir)
            if (run.workdir / "config.json").exists():
                check_same_config(run.workdir, run.config)
        except WorkdirError as error:
            found.append(str(error))
        for problem in found:
            first, count = problems.get(problem, (run, 0))
            problems[problem] = (first, count + 1)
    return [
        f"  {problem}\n    in {count} of {len(runs)} runs, the first of them {first.label}"
        for problem, (first, count) in problems.items()
    ]


def ask_devices() -> tuple[str, int]:
    """A run's platform and number of devices, asked in a process that frees them again.

    Raises:
      RuntimeError: JAX finds none, say those of a JAX_PLATFORMS that isn't there.
    """
    code = "import jax; print(jax.default_backend(), jax.device_count())"
    told = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    if told.returncode:
        words = told.stderr.strip().splitlines() or [f"exit status {told.returncode}"]
        raise RuntimeError(no_devices(words[-1].removeprefix("AssertionError")))
    platform, number = told.stdout.split()
    return platform, int(number)


def num_devices(config, platform: str, number: int) -> int:
    """The devices of a run with this config, where `ask_devices` told of those."""
    return (cpu_devices(config) if platform == "cpu" else None) or number


class Sweep:
    """Runs the missing runs of a sweep, `num_jobs` at a time, and shows how far all of it is."""

    def __init__(self, runs: list[Run], missing: list[Run], num_jobs: int):
        self.runs, self.num_jobs = runs, num_jobs
        self.waiting, self.jobs, self.failed, self.stopped = list(missing), [], [], []
        self.before = {run.workdir: steps_saved(run.workdir) for run in missing}
        self.total = sum(run.config.num_train_steps for run in missing)
        self.bar = tqdm.tqdm(
            total=self.total,
            initial=sum(self.before.values()),
            unit="step",
            disable=None,
            dynamic_ncols=True,
        )
        self.start = self.last_line = time.monotonic()
        self.is_waiting = False

    def run(self) -> int:
        """Runs to the end or the first Ctrl-C; returns the exit status."""
        with contextlib.closing(self.bar), StopSignals(interrupting=True) as signals:
            try:
                while (self.waiting or self.jobs) and not signals.received:
                    self.begin_more()
                    self.reap()
                    self.show()
                    time.sleep(POLL_SECONDS)
            finally:
                self.stop_jobs(signals.received)
        return self.end(signals.received)

    def end(self, received: str) -> int:
        """Says how the sweep ended, by a signal if `received` names one; the exit status."""
        finished = sum(map(is_finished, self.runs))
        received = "" if finished == len(self.runs) else received
        say = f"{finished} of {len(self.runs)} runs finished"
        if self.stopped:
            say += f", {len(self.stopped)} stopped by other hands"
        if self.failed:
            say += f", {len(self.failed)} failed:" + "".join(
                f"\n  {job.run.label}: {words}\n    log: {log_path(job.run)}"
                for job, words in self.failed
            )
        if received or self.stopped:
            say += f"\n{received or 'stopped'}: the same command goes on with the rest: "
            say += shlex.join(sys.orig_argv)
        print(say, file=sys.stderr)
        if received:
            return exit_status(received)
        return 1 if self.failed or self.stopped else 0

    def begin_more(self) -> None:
        """Starts runs while there is room; one that another process runs waits for that."""
        while self.waiting and len(self.jobs) < self.num_jobs:
            run = next((run for run in self.waiting if not is_running(run.workdir)), None)
            if run is None:
                if not self.is_waiting:
                    self.is_waiting = True
                    self.say(f"{self.waiting[0].label}: waits, as another process runs it")
                return
            self.waiting.remove(run)
            if is_finished(run):
                self.say(f"{run.label}: finished by another process")
            else:
                self.begin(run)

    def begin(self, run: Run) -> None:
        """Starts a run, and says so."""
        self.jobs.append(start(run))
        done = steps_saved(run.workdir)
        self.say(f"{run.label}: " + (f"goes on after step {done}" if done else "started"))

    def reap(self) -> None:
        """Takes note of the runs that ended."""
        for job in [job for job in self.jobs if job.process.poll() is not None]:
            self.jobs.remove(job)
            if result := finished_result(job.run):
                time_taken = tqdm.tqdm.format_interval(time.monotonic() - job.start)
                scores = metrics.result_line(result)
                self.say(f"{job.run.label}: finished in {time_taken}, {scores}")
            elif job.process.returncode in STOPPED:
                self.stopped.append(job.run)
                self.say(f"{job.run.label}: stopped, {job.last_words()}")
            elif is_running(job.run.workdir):  # another process was sooner
                self.waiting.append(job.run)
            else:
                words = f"exit status {job.process.returncode}: {job.last_words()}"
                self.failed.append((job, words))
                self.say(f"{job.run.label}: FAILED, {words}")

    def stop_jobs(self, received: str) -> None:
        """Stops what runs, and says so."""
        if not self.jobs:
            return
        notice = f"{received or 'error'}: {len(self.jobs)} to save and stop; again to kill"
        stop(self.jobs, f"[{self.counts()}] {notice}")
        self.jobs.clear()

    def show(self) -> None:
        """Moves the bar; without a terminal, prints a line now and then."""
        done = sum(
            run.config.num_train_steps if is_finished(run) else steps_done(run)
            for run in self.runs
            if run.workdir in self.before
        )
        self.bar.n = done
        self.bar.set_postfix_str(self.counts(), refresh=False)
        self.bar.refresh()
        if self.bar.disable and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            taken = done - sum(self.before.values())
            seconds = (self.total - done) * (time.monotonic() - self.start) / max(taken, 1)
            left = f", about {tqdm.tqdm.format_interval(seconds)} left" if taken > 0 else ""
            self.say(f"{done / self.total:.0%} of {self.total:,} steps{left}")

    def counts(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        stopped = f", {len(self.stopped)} stopped" if self.stopped else ""
        return f"{sum(map(is_finished, self.runs))}/{len(self.runs)} runs{failed}{stopped}"

    def say(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        self.bar.write(f"[{self.counts()}] {text}", file=sys.stderr)


if __name__ == "__main__":
    outlive_readers()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(exit_status("SIGINT"))
