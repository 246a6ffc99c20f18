"""The loop: what its reports are of, what ends it, what is saved then."""

import resource
import signal
import statistics
import time

import pytest

import lra_tasks
import train as program
from experiment.checkpoints import CheckpointError, Checkpoints
from experiment.workdir import steps_saved
from tests.test_resume import make_config, reports
from train import train


@pytest.fixture(scope="module")
def task(cache_home):
    return lra_tasks.load(make_config().task, progress=False)


def test_a_report_is_of_the_steps_since_the_one_before(task, tmp_path):
    for log_every in (1, 2):
        train(make_config(log_every=log_every), tmp_path / f"{log_every}", task)
    one, two = (
        {line["step"]: line["loss"] for line in reports(folder) if line["split"] == "train"}
        for folder in (tmp_path / "1", tmp_path / "2")
    )
    assert len(one) == 6 and len(two) == 3
    for step, loss in two.items():
        assert loss == pytest.approx(statistics.fmean([one[step - 1], one[step]]))


def test_waits_for_batches_count_once(task, tmp_path, monkeypatch):
    prefetch = lra_tasks.prefetch

    def slow(*given):
        time.sleep(1)
        yield from prefetch(*given)

    monkeypatch.setattr(lra_tasks, "prefetch", slow)
    result = train(make_config(log_every=1), tmp_path, task)
    assert 0 < result["data_wait_share"] < 1


def test_a_signal_between_evaluations_saves_the_step_that_it_came_in(task, tmp_path, monkeypatch):
    step, steps = program.train_step, []
    usual = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # as under no nohup

    def interrupted(*given):
        result = step(*given)
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGHUP)
        return result

    config = make_config(num_train_steps=6, eval_every=6)
    with monkeypatch.context() as patch, pytest.raises(program.Stopped, match="SIGHUP"):
        patch.setattr(program, "train_step", interrupted)
        train(config, tmp_path, task)
    signal.signal(signal.SIGHUP, usual)
    assert steps_saved(tmp_path) == 3


def test_a_checkpoint_that_failed_ends_the_run_at_the_next_report(task, tmp_path, monkeypatch):
    save, limits = Checkpoints.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_a_full_disk(self, *given):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
            save(self, *given)
            while self.manager.is_saving_in_progress():
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Checkpoints, "save", on_a_full_disk)
    config = make_config(eval_every=6, checkpoint_every=2, log_every=1)
    with pytest.raises(CheckpointError, match="can't be written"):
        train(config, tmp_path, task)
    assert [line["step"] for line in reports(tmp_path)] == [1, 2]
