"""Metrics as sums and weights, and where they are written."""

import contextlib
import json
import math
import os
import statistics
import sys
import threading
import time
from pathlib import Path

import tensorboardX
import tqdm

from experiment import processes
from experiment.workdir import strict_json
from lra_tasks.disk import sync
from lra_tasks.progress import terminal_width

# A metric is a (sum, weight) pair; a set of them is a dict. Sums are Python floats (float64) once
# off the device, so that adding them up step by step gives the same bits however a run was cut.


def merge(total: dict, part: dict) -> dict:
    """The sums and weights of two sets of metrics; `{}` is the empty set."""
    if not total:
        return {name: (float(s), float(w)) for name, (s, w) in part.items()}
    return {
        name: (total[name][0] + float(s), total[name][1] + float(w))
        for name, (s, w) in part.items()
    }


def means(total: dict) -> dict[str, float]:
    """Each metric's sum over its weight; NaN where nothing was weighed."""
    return {name: s / w if w else math.nan for name, (s, w) in total.items()}


def without_speed(values: dict[str, float]) -> dict[str, float]:
    """The values that do not depend on the clock."""
    return {name: value for name, value in values.items() if name != "examples_per_second"}


class Reporter:
    """Writes reports to `metrics.jsonl`, TensorBoard files and the screen (stderr).

    On a terminal the screen has a bar with a line above it for each report, elsewhere the lines
    alone. Reports of steps after `start_step`, left by a run that died past its last checkpoint,
    are dropped: the resumed run makes them again.
    """

    def __init__(self, workdir: Path, start_step: int, num_steps: int):
        self.path = workdir / "metrics.jsonl"
        drop_reports_after(self.path, start_step)
        self.writer = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)
        self.tensorboard = True
        self.hook, threading.excepthook = threading.excepthook, self._print_of_others
        self.start_step, self.num_steps = start_step, num_steps
        self.step, self.loss = start_step, None
        self.compiled, self.compile_seconds, self.wait_seconds = set(), 0.0, 0.0
        self.start_time = time.monotonic()
        # The text comes first and the bar gets what room is left, so that a narrow terminal cuts
        # off the bar. disable=None: no bar where stderr is not a terminal.
        self.bar = tqdm.tqdm(
            total=num_steps,
            initial=start_step,
            disable=None,
            dynamic_ncols=True,
            bar_format="{desc}  {percentage:3.0f}% |{bar}|",
            desc=self._status(),
        )

    def report(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes a line of metrics.jsonl: step, split and the values by name."""
        with naming(self.path), self.path.open("a") as file:
            file.write(strict_json({"step": step, "split": split, **values}) + "\n")
        if self._tensorboard_writes():
            for name, value in values.items():
                if math.isfinite(value):  # of others it warns on the terminal
                    self.writer.add_scalar(f"{split}/{name}", value, step)
        self.step = step
        if split == "train":
            self.loss = values["loss"]
        left = f"{self._time_left()} left" if split == "train" else ""
        width = None if self.bar.disable else terminal_width()
        self.bar.set_description_str(self._status(), refresh=False)
        self.say(report_line(step, self.num_steps, split, values, left, width))

    def sync(self) -> None:
        """Has what is reported on the disk, as a checkpoint is once it is saved."""
        if self.path.exists():
            with naming(self.path):
                sync(self.path)

    def progress(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self.step = step
        self.bar.set_description_str(self._status(), refresh=False)
        self.bar.update(step - self.bar.n)

    @contextlib.contextmanager
    def compiling(self, what: str, batch: dict):
        """Entered for a call on a batch: the first of a shape compiles, which is said and timed.

        Yields whether it is the first.
        """
        shape = batch["inputs"].shape
        if (what, shape) in self.compiled:
            yield False
            return
        text = f"compiling for length {shape[-1]:,} ({what})"
        if self.bar.disable:
            self.say(f"{text} ...")
        self.bar.set_description_str(f"step {self.step:,}/{self.num_steps:,}  {text} ...")
        start = time.monotonic()
        yield True
        seconds = time.monotonic() - start
        self.compile_seconds += seconds
        self.compiled.add((what, shape))
        self.bar.set_description_str(self._status(), refresh=False)
        self.say(f"{text} took {seconds:.1f} s")

    def waiting(self, batches):
        """Yields what `batches` does; how long it is waited for adds up in `wait_seconds`."""
        with contextlib.closing(iter(batches)) as batches:
            while True:
                start = time.monotonic()
                found = next(batches, None)
                self.wait_seconds += time.monotonic() - start
                if found is None:
                    return
                yield found

    def doing(self, text: str) -> None:
        """Says on the bar what takes time until the next step or report."""
        self.bar.set_description_str(f"{self._status()}  {text}")

    def say(self, text: str) -> None:
        """Prints a line without disturbing the progress bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Ends the progress bar and the TensorBoard file, whose end may be lost on a full disk."""
        events = self.writer.file_writer.event_writer
        try:
            if self._tensorboard_writes():
                self.writer.close()
        except OSError as error:
            self.say(f"TensorBoard's last reports can't be written ({error})")
            events._worker.stop()
        events._closed = True  # or it would try, and fail, again when Python ends
        threading.excepthook = self.hook
        self.bar.close()

    def _print_of_others(self, args):
        """Of the thread that writes TensorBoard's files, `_tensorboard_writes` says the end."""
        if args.thread is not self.writer.file_writer.event_writer._worker:
            self.hook(args)

    def _tensorboard_writes(self):
        """Whether the thread that writes its files lives; if not, what it is given would pile up.

        It ends at the first error, say of a disk that was full for a moment.
        """
        lives = self.writer.file_writer.event_writer._worker.is_alive()
        if self.tensorboard and not lives:
            self.say(f"TensorBoard's files can't be written any more; {self.path} goes on")
        self.tensorboard = lives
        return lives

    def seconds(self) -> float:
        """Since the start, without what was spent on compiling."""
        return time.monotonic() - self.start_time - self.compile_seconds

    def _status(self):
        parts = [f"step {self.step:,}/{self.num_steps:,}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.step > self.start_step:
            parts.append(f"{self._time_left()} left")
        return "  ".join(parts)

    def _time_left(self):
        rate = self.seconds() / max(self.step - self.start_step, 1)
        return tqdm.tqdm.format_interval(rate * (self.num_steps - self.step))


class Silence:
    """A Reporter that writes and says nothing: of all processes but the first, say."""

    compile_seconds = wait_seconds = 0.0

    def __init__(self):
        self.start_time = time.monotonic()
        self.compiled = set()

    @contextlib.contextmanager
    def compiling(self, what: str, batch: dict):
        """Entered for a call on a batch; yields whether it is the first of a shape."""
        shape = batch["inputs"].shape
        yield (what, shape) not in self.compiled
        self.compiled.add((what, shape))

    def waiting(self, batches):
        """The batches."""
        return batches

    def _nothing(self, *_):
        """Says nothing."""

    report = progress = doing = say = sync = close = _nothing

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start_time


# Names of metrics where room is short; what has none is shown where there is room for all.
SHORT_NAMES = {
    "loss": "loss {:.4g}",
    "accuracy": "accuracy {:.4g}",
    "bits_per_token": "{:.4g} bits a token",
    "learning_rate": "lr {:.3g}",
    "examples_per_second": "{:,.4g} examples/s",
}


def open_log(workdir: Path, start_step: int, num_steps: int) -> "Reporter | Silence":
    """The log of a run, which of several processes the first alone has."""
    return Reporter(workdir, start_step, num_steps) if processes.is_first() else Silence()


def report_line(step, num_steps, split, values, left="", width=None) -> str:
    """A report as a line; with a width, that of a terminal whose bar has all steps and the time."""
    if width is None:
        shown = [f"{name} {value:,.4g}" for name, value in values.items()]
        return "  ".join([f"step {step}/{num_steps}", split, *shown, *([left] if left else [])])
    line = f"step {step:,}  {split}"
    for name, form in SHORT_NAMES.items():
        part = f"  {form.format(values[name])}" if name in values else ""
        line += part if len(line + part) <= width else ""
    return line


def result_line(result: dict) -> str:
    """The scores of a result: of labels, or of hidden tokens."""
    accuracy = f"accuracy {result['test_accuracy']:.2%}"
    if "unigram_nats" not in result:
        return f"test {accuracy}"
    known = f"by frequencies alone {result['unigram_nats']:.4f}"
    loss = result.get("test_token_loss", result["test_loss"])  # without that of swapped halves
    return f"test loss {loss:.4f} nats a hidden token ({known}), {accuracy}"


def median_rate(path: Path) -> float | None:
    """Training examples per second: the median over the reports of a metrics.jsonl; None: of none.

    A median, since what else a machine does now and then is no property of the run.
    """
    reports = map(json.loads, path.read_text().splitlines())
    rates = [r.get("examples_per_second") for r in reports if r["split"] == "train"]
    rates = [rate for rate in rates if rate]
    return statistics.median(rates) if rates else None


def drop_reports_after(path: Path, step: int) -> None:
    """Keeps the whole lines of a metrics.jsonl up to `step`; the last may have been cut off.

    None of the test split: it is scored at the end, again if that was reached but not recorded.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            report = json.loads(line)
            if line.endswith("\n") and report["step"] <= step and report["split"] != "test":
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    with naming(path):
        temporary.write_text("".join(kept))
        os.replace(temporary, path)


@contextlib.contextmanager
def naming(path: Path):
    """Says of an OSError in writing a file which it is."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: can't write there ({error}); make room") from error
