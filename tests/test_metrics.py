"""What a run shows and writes: the bar at any width, the lines above it, strict JSON."""

import contextlib
import fcntl
import json
import math
import pty
import re
import resource
import struct
import sys
import termios
import threading
import types

import numpy as np
import pytest

from experiment.metrics import (
    Reporter,
    drop_reports_after,
    median_rate,
    report_line,
    result_line,
    strict_json,
)

VALUES = {
    "loss": 2.34159,
    "accuracy": 0.125,
    "gradient_norm": 0.51,
    "learning_rate": 9.98e-05,
    "examples_per_second": 1321.4,
}


def batch(length):
    return {"inputs": np.zeros((8, length), np.int32)}


def drive(reporter):
    """Two steps, the second of another length, a report of each split."""
    with reporter.compiling("training", batch(256)):
        pass
    reporter.progress(1)
    with reporter.compiling("training", batch(512)):
        pass
    with reporter.compiling("training", batch(256)):
        pass
    reporter.progress(2)
    reporter.report(2, "train", VALUES)
    reporter.doing("evaluating")
    with reporter.compiling("evaluation", batch(256)):
        pass
    reporter.report(2, "validation", {"loss": 2.3, "accuracy": 0.25, "examples_per_second": 9.0})
    reporter.close()


def screen(workdir, columns, monkeypatch):
    """What appears on a terminal of so many columns: the texts between line ends."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        drive(Reporter(workdir, 0, 5_000))
    parts = []
    with open(master, "rb", buffering=0) as file, contextlib.suppress(OSError):
        while part := file.read(10_000):
            parts.append(part)
    return [line.rstrip() for line in re.split(r"[\r\n]+", b"".join(parts).decode())]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_step_loss_and_time_left_come_first_at_any_width(columns, tmp_path, monkeypatch):
    shown = screen(tmp_path, columns, monkeypatch)
    assert any(re.match(r"step 2/5,000  loss 2\.342  \d+:\d\d(:\d\d)? left", x) for x in shown)
    assert max(map(len, shown)) <= max(columns, 80)


def test_compilations_and_reports_are_lines_above_the_bar(tmp_path, monkeypatch):
    shown = screen(tmp_path, 80, monkeypatch)
    assert any(x.startswith("step 0/5,000  compiling for length 256 (training) ...") for x in shown)
    took = [x for x in shown if " took " in x]
    assert [re.sub(r"\d+\.\d s", "T s", x) for x in took] == [
        "compiling for length 256 (training) took T s",
        "compiling for length 512 (training) took T s",
        "compiling for length 256 (evaluation) took T s",
    ]
    assert "step 2  train  loss 2.342  accuracy 0.125  lr 9.98e-05  1,321 examples/s" in shown
    assert "step 2  validation  loss 2.3  accuracy 0.25  9 examples/s" in shown
    assert any(re.match(r"step 2/5,000  loss 2.342  \S+ left  evaluating ", x) for x in shown)


def test_without_a_terminal_there_are_plain_lines(tmp_path, capsys):
    drive(Reporter(tmp_path, 0, 5_000))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "compiling for length 256 (training) ..."
    assert re.fullmatch(r"compiling for length 256 \(training\) took \d+\.\d s", lines[1])
    (train,) = [line for line in lines if "  train  " in line]
    assert train.startswith("step 2/5000  train  loss 2.342  accuracy 0.125  gradient_norm 0.51")
    assert "learning_rate 9.98e-05" in train and train.endswith(" left")
    assert not any("\r" in line for line in lines)


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the seconds that the reporter's clock shows."""
    seconds = [0.0]
    clock = types.SimpleNamespace(monotonic=lambda: seconds[0])
    monkeypatch.setattr("experiment.metrics.time", clock)
    return seconds


def test_time_spent_on_compiling_is_not_training(tmp_path, capsys, clock):
    reporter = Reporter(tmp_path, 0, 10)
    before = reporter.seconds()
    with reporter.compiling("training", batch(64)):
        clock[0] += 5
    clock[0] += 1
    assert reporter.seconds() - before == 1
    assert reporter.compile_seconds == 5
    reporter.close()


def test_the_time_left_of_a_run_that_goes_on_is_by_the_steps_since(tmp_path, clock):
    reporter = Reporter(tmp_path, 90, 100)
    clock[0] += 10
    reporter.progress(95)
    assert reporter._status() == "step 95/100  00:10 left"
    reporter.close()


def test_the_loss_of_hidden_tokens_is_without_that_of_swapped_halves():
    result = {"test_accuracy": 0.5, "test_loss": 3.0, "unigram_nats": 2.5}
    assert "test loss 3.0000 nats" in result_line(result)
    assert "test loss 2.4000 nats" in result_line(result | {"test_token_loss": 2.4})


def test_a_line_for_a_narrow_terminal_begins_with_what_matters():
    line = report_line(2, 5_000, "train", VALUES, width=40)
    assert line.startswith("step 2  train  loss 2.342") and len(line) <= 40
    whole = report_line(2, 5_000, "train", VALUES, width=1_000)
    assert report_line(2, 5_000, "train", VALUES, width=len(whole)) == whole


def test_json_has_no_nan(tmp_path, caplog):
    values = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": -math.inf, "e": 3}, "f": True}
    assert json.loads(strict_json(values), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": None, "e": 3},
        "f": True,
    }
    reporter = Reporter(tmp_path, 0, 10)
    reporter.report(1, "validation", {"loss": math.nan, "accuracy": 0.5})
    reporter.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
    assert not caplog.records  # TensorBoard's, which wants numbers


def test_waiting_for_batches_is_timed_and_ends_what_it_waits_for(tmp_path, clock):
    ended = []

    def slow():
        try:
            for number in range(3):
                clock[0] += 1
                yield number, {}
        finally:
            ended.append(True)

    with contextlib.closing(Reporter(tmp_path, 0, 3)) as reporter:
        for number, _ in reporter.waiting(slow()):
            clock[0] += 10  # a step, which is no waiting
            if number == 1:
                break
        assert reporter.wait_seconds == 2
    assert ended


def test_a_run_goes_on_where_tensorboards_files_cannot_be_written(tmp_path, capfd):
    hook = threading.excepthook
    reporter = Reporter(tmp_path, 0, 100)
    events = reporter.writer.file_writer.event_writer

    def full():
        raise OSError("no space left")

    events._ev_writer.flush, events._worker._next_flush_time = full, 0
    reporter.report(1, "train", VALUES)
    events._worker.join(10)

    def more():
        for step in range(2, 20):
            reporter.report(step, "train", VALUES)
        reporter.close()

    thread = threading.Thread(target=more, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 19
    said = capfd.readouterr().err
    assert said.count("TensorBoard's files can't be written any more") == 1
    assert "Traceback" not in said and threading.excepthook is hook


def test_damaged_reports_do_not_keep_a_run_from_going_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 2, "split": "train", "examples_per_second": 7.0}\n'
    path.write_bytes(whole.encode() + b"\xff\xfe\x00\n" + whole.replace("2", "4", 1).encode())
    drop_reports_after(path, 3)
    assert path.read_text() == whole and median_rate(path) == 7
    for text in ("", '{"step": 2, "split": "train"}\n'):
        path.write_text(text)
        assert median_rate(path) is None


def test_a_full_disk_is_named_by_the_file_and_ends_the_reports_without_tracebacks(tmp_path, capsys):
    log = Reporter(tmp_path, 0, 10)
    log.report(1, "train", {"loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, limits[1]))  # of any file, in bytes
        for write in (
            lambda: log.report(2, "train", {"loss": 1.0}),
            lambda: Reporter(tmp_path, 1, 10),
        ):
            with pytest.raises(OSError, match=r"metrics\.jsonl: can't write there .*make room"):
                write()
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Traceback" not in capsys.readouterr().err
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1]


def test_only_whole_lines_up_to_a_step_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = '{"step": 2, "split": "train"}\n'
    path.write_text(kept + '{"step": 2, "split": "test"}\n{"step": 1, "split": "train"}')
    drop_reports_after(path, 2)
    assert path.read_text() == kept


def test_the_rate_of_a_run_is_that_of_training(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rates = (("train", 7), ("validation", 90), ("validation", 90))
    lines = (json.dumps({"split": split, "examples_per_second": rate}) for split, rate in rates)
    path.write_text("".join(line + "\n" for line in lines))
    assert median_rate(path) == 7
