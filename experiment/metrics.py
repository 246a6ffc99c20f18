"""Metrics as sums and weights, and where they are written."""

import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import tensorboardX
import tqdm

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


class Reporter:
    """Writes reports to `metrics.jsonl`, TensorBoard files and the screen (stderr).

    Reports of steps after `start_step`, left by a run that died past its last checkpoint, are
    dropped: the resumed run makes them again.
    """

    def __init__(self, workdir: Path, start_step: int, num_steps: int):
        self.path = workdir / "metrics.jsonl"
        drop_reports_after(self.path, start_step)
        self.writer = tensorboardX.SummaryWriter(str(workdir), purge_step=start_step + 1)
        self.start_step, self.num_steps = start_step, num_steps
        self.start_time = time.monotonic()
        # disable=None: no bar where stderr is not a terminal; plain lines are printed there.
        self.bar = tqdm.tqdm(
            total=num_steps, initial=start_step, unit="step", disable=None, dynamic_ncols=True
        )

    def report(self, step: int, split: str, values: dict[str, float]) -> None:
        """Writes a line of metrics.jsonl: step, split and the values by name."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        except OSError as error:
            raise OSError(f"{self.path}: can't write there ({error}); make room") from error
        for name, value in values.items():
            self.writer.add_scalar(f"{split}/{name}", value, step)
        shown = "  ".join(f"{name} {value:,.4g}" for name, value in values.items())
        if self.bar.disable:
            left = f"  {self._time_left(step)}" if split == "train" else ""
            print(f"step {step}/{self.num_steps}  {split}  {shown}{left}", file=sys.stderr)
        elif split == "train":
            self.bar.set_postfix_str(shown, refresh=False)
        else:
            self.say(f"step {step}  {split}  {shown}")

    def progress(self, step: int) -> None:
        """Moves the progress bar to `step`."""
        self.bar.update(step - self.bar.n)

    def say(self, text: str) -> None:
        """Prints a line without disturbing the progress bar."""
        self.bar.write(text, file=sys.stderr)

    def _time_left(self, step):
        rate = (time.monotonic() - self.start_time) / max(step - self.start_step, 1)
        return f"{tqdm.tqdm.format_interval(rate * (self.num_steps - step))} left"

    def close(self) -> None:
        """Ends the progress bar and the TensorBoard file, whose end may be lost on a full disk."""
        try:
            self.writer.close()
        except OSError as error:
            self.say(f"TensorBoard's last reports can't be written ({error})")
            events = self.writer.file_writer.event_writer
            events._worker.stop()
            events._closed = True  # or it would try, and fail, again when Python ends
        self.bar.close()


def median_rate(path: Path) -> float:
    """Training examples per second: the median over the reports of a metrics.jsonl.

    A median, since the first report's time holds the compilation.
    """
    reports = map(json.loads, path.read_text().splitlines())
    return statistics.median(r["examples_per_second"] for r in reports if r["split"] == "train")


def drop_reports_after(path: Path, step: int) -> None:
    """Keeps the whole lines of a metrics.jsonl up to `step`; the last may have been cut off.

    None of the test split: it is scored at the end, again if that was reached but not recorded.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            report = json.loads(line)
            if line.endswith("\n") and report["step"] <= step and report["split"] != "test":
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)
