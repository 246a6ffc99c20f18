"""The paper's recipes on one machine with one GPU and little time: whole results first.

    python -m benchmarks.campaign --minutes=25 --out=DIR [--data_dir=OFFICIAL_FILES]

For each task Nyström, then softmax, by train.py. Official files in --data_dir are used where they
are there, and Image and Retrieval run only then. Else a prepared release is, or ListOps and
Pathfinder are generated, and Text's archive is fetched or, without a network, taken from its
package: each result.json names the source. Tasks are taken from the shortest recipe to the
longest. A run that would not end in time, by the speed that it reports, makes room for those not
yet begun and those that need less; what time remains goes to the unfinished ones, those that need
least first; each saves when it stops. The same command goes on.

A line of JSON a minute says how far it is. DIR/results gets config.json, metrics.jsonl and
result.json of each run, and campaign.json: ready to be put under results/. --scale=0.001 takes that
share of steps, and of 16,000, 2,000 and 2,000 examples, at least 32, to try it out. Other
arguments, --config.field=value, go to every run.
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence

from benchmarks.command_line import make_parser, positive
from experiment.config_checks import check_config
from experiment.grid import GridError, Run, make_runs
from experiment.jobs import (
    finished_result,
    is_finished,
    latest_reports,
    log_path,
    start,
    steps_done,
    stop,
)
from experiment.signals import StopSignals, exit_status
from experiment.workdir import folder_argument
from sweep import ask_devices, num_devices

TASKS = ("listops", "text", "image", "retrieval", "pathfinder")  # by the work of their recipes
NEED_FILES = ("image", "retrieval")
ATTENTIONS = "nystrom,softmax"
POLL_SECONDS = 0.5
SAVE_SECONDS = 30  # kept of the time, for a run to save and stop


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, allow_abbrev=False)
    parser.add_argument("--minutes", type=positive, default=25.0)
    parser.add_argument("--out", type=folder_argument, required=True)
    parser.add_argument("--data_dir", type=folder_argument, help="where official files lie")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", choices=TASKS, default=TASKS)
    parser.add_argument("--scale", type=positive, default=1.0)
    parser.add_argument("--line_seconds", type=positive, default=60.0)
    options, more = parser.parse_known_args(argv)
    if options.scale > 1:
        parser.error(f"--scale={options.scale}: expected at most 1")
    if options.data_dir and not options.data_dir.is_dir():
        parser.error(f"--data_dir={options.data_dir}: no such folder")
    deadline = time.monotonic() + 60 * options.minutes
    try:
        runs, why = plan(options, more)
        with StopSignals(interrupting=True) as signals:
            failed = Campaign(runs, deadline, options.line_seconds, signals).run()
        collect(runs, why, failed, options)
    except GridError as error:
        parser.error(str(error))
    except (RuntimeError, OSError) as error:  # no such devices; an --out that can't be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    if signals.received:
        return exit_status(signals.received)
    return 1 if failed or not runs else 0


def plan(options, more: list[str]) -> tuple[list[Run], dict[str, dict[str, str]]]:
    """The runs in order, and why tasks are left out or don't read --data_dir."""
    runs, asked = [], ask_devices()
    why = {"left_out": {}, "not_from_data_dir": {}}
    for task in options.tasks:
        arguments = [f"--config=configs/lra_{task}.py", f"--config.model.attention={ATTENTIONS}"]
        folders = [options.data_dir] if options.data_dir else []
        if task not in NEED_FILES:
            folders.append(None)  # without official files
        problems = ["it needs official files: give --data_dir"]
        for folder in folders:
            without = "; ".join(problems) if options.data_dir else "no --data_dir is given"
            extra = [f"--config.task.data_dir={folder.resolve()}"] if folder else []
            found = make_runs([*arguments, *extra, *more], options.out / "runs")
            if options.scale < 1:
                given = {argument.partition("=")[0] for argument in more}
                scaled = [
                    argument
                    for argument in scaling(found[0].config, options.scale)
                    if argument.partition("=")[0] not in given
                ]
                found = make_runs([*arguments, *extra, *scaled, *more], options.out / "runs")
            problems = check_config(found[0].config, num_devices(found[0].config, *asked))
            if not problems:
                runs += found
                if folder is None:
                    why["not_from_data_dir"][task] = without
                    say(task=task, not_from_data_dir=without)
                break
        if problems:
            why["left_out"][task] = "; ".join(problems)
            say(task=task, left_out=why["left_out"][task])
    return runs, why


def scaling(config, scale: float) -> list[str]:
    """Arguments that take this share of a recipe's steps and examples."""
    fields = {
        name: max(least, round(scale * getattr(config, name)))
        for name, least in (("num_train_steps", 4), ("warmup_steps", 1), ("eval_every", 2))
    }
    fields["log_every"] = 1
    for split, full in (("train", 16_000), ("validation", 2_000), ("test", 2_000)):
        fields[f"task.num_{split}"] = max(32, round(scale * full))  # of what every task has
    return [f"--config.{name}={value}" for name, value in fields.items()]


class Campaign:
    """Runs, one at a time, until all are finished or the time is up."""

    def __init__(self, runs: list[Run], deadline: float, line_seconds: float, signals: StopSignals):
        self.runs, self.deadline, self.signals = runs, deadline, signals
        self.end = deadline - SAVE_SECONDS
        self.line_seconds, self.last_line = line_seconds, time.monotonic()
        self.begun, self.failed = set(), {}

    def run(self) -> dict[str, str]:
        """To the end; returns what runs that failed said last."""
        unfinished = [run for run in self.runs if not is_finished(run)]
        for run in unfinished:
            self.train(run, unfinished)
        for run in sorted(unfinished, key=self.seconds_left):
            self.train(run, ())
        return self.failed

    def over(self) -> bool:
        return bool(self.signals.received) or time.monotonic() > self.end

    def can_go_on(self, run: Run) -> bool:
        failed = run.workdir.name in self.failed
        return not (self.over() or failed or is_finished(run))

    def seconds_left(self, run: Run) -> float:
        """What a run needs for the rest of its steps, if it can go on; nothing is known before."""
        needed = speed(run)[2] if run.workdir.name in self.begun else 0.0
        return needed if self.can_go_on(run) else math.inf

    def train(self, run: Run, others: Sequence[Run]) -> None:
        """A run to its end, until the time is up, or until it can't end and others need less."""
        if not self.can_go_on(run):
            return
        job = start(run)
        self.begun.add(run.workdir.name)
        reported, end, why = speed(run)[0], None, ""
        others = [other for other in others if other is not run]
        try:
            while job.process.poll() is None and not why:
                time.sleep(POLL_SECONDS)
                step, rate, left = speed(run)
                now = time.monotonic()
                if step > reported:  # between reports nothing is known
                    reported, end = step, now + left
                if now > self.last_line + self.line_seconds:
                    self.last_line = now
                    self.tell(run, rate, end and max(end - now, 0.0))
                late = end is not None and end > self.end
                late = late and any(self.seconds_left(other) < left for other in others)
                if self.over() or late:
                    reason = "makes room for others" if late else "time is up"
                    why = self.signals.received or reason
        finally:  # also where a second signal or a broken pipe ends the campaign
            if job.process.poll() is None:
                stop([job])
        if result := finished_result(run):
            say(run=run.workdir.name, test_accuracy=result["test_accuracy"])
        elif why:
            say(run=run.workdir.name, stopped=why, step=steps_done(run))
        else:
            words = self.failed[run.workdir.name] = job.last_words()
            say(run=run.workdir.name, failed=words, log=str(log_path(run)))

    def tell(self, run: Run, rate: float, left: float | None) -> None:
        say(
            run=run.workdir.name,
            step=steps_done(run),
            num_train_steps=run.config.num_train_steps,
            steps_per_second=round(rate, 2),
            seconds_left_of_run=None if left is None else round(left),
            seconds_left=round(self.deadline - time.monotonic()),
            finished=sum(map(is_finished, self.runs)),
            runs=len(self.runs),
        )


def speed(run: Run) -> tuple[int, float, float]:
    """Step and steps a second of a run's last report on training, and seconds of its steps left.

    The report's speed is free of compiling and evaluating.
    """
    for report in reversed(latest_reports(run)):
        if report.get("split") == "train" and report.get("examples_per_second"):
            rate = report["examples_per_second"] / run.config.batch_size
            return report["step"], rate, (run.config.num_train_steps - report["step"]) / rate
    return 0, 0.0, math.inf


def say(**what) -> None:
    print(json.dumps(what), flush=True)


def collect(runs: list[Run], why: dict[str, dict], failed: dict[str, str], options) -> None:
    """DIR/results: what of each run is small, and what became of all of them."""
    folder = options.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    states = {}
    for run in runs:
        state = "finished" if is_finished(run) else f"at step {steps_done(run)}"
        states[run.workdir.name] = failed.get(run.workdir.name, state)
        for name in ("config.json", "metrics.jsonl", "result.json"):
            if (run.workdir / name).exists():
                (folder / run.workdir.name).mkdir(exist_ok=True)
                temporary = folder / run.workdir.name / f".{name}.tmp"
                shutil.copy2(run.workdir / name, temporary)
                os.replace(temporary, temporary.with_name(name))
    summary = {"minutes": options.minutes, "scale": options.scale, "runs": states}
    (folder / "campaign.json").write_text(json.dumps(summary | why, indent=2))
    finished = sum(map(is_finished, runs))
    say(results=str(folder), finished=finished, runs=len(runs))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(exit_status("SIGINT"))
