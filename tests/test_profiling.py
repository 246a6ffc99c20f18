"""A profile of some steps, and what becomes of a run that can't write it."""

import contextlib

import jax
import pytest

from experiment.profiling import Profiler, parse_steps


@pytest.mark.parametrize("text", ["3", "4:4", "5:4", "2:7", "-1:3", "a:b", "1:2:3"])
def test_steps_to_profile_that_are_not_the_runs_are_refused(text):
    assert parse_steps("0:6", 6) == (0, 6)
    with pytest.raises(ValueError, match=rf"--profile={text}: expected START:STOP, .*=6$"):
        parse_steps(text, 6)


def test_a_profile_that_was_cut_short_or_never_begun_says_so(tmp_path):
    said = []
    profiler = Profiler(tmp_path, (1, 9), said.append)
    with profiler.step(1):
        pass
    profiler.taken(2, ())
    profiler.close()
    late = Profiler(tmp_path, (1, 9), said.append)
    with late.step(5):
        pass
    late.close()
    Profiler(tmp_path, (0, 0), said.append).close()  # of a run without
    assert len(said) == 2
    assert said[0].startswith("profile of 1 steps: tensorboard --logdir=")
    assert "step 1 was past or not reached" in said[1]
    assert len(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == 1


def test_a_trace_ends_when_the_results_of_its_last_step_are_there(tmp_path, monkeypatch):
    events = []

    class Result:
        def block_until_ready(self):
            events.append("there")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: events.append("begun"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: events.append("ended"))
    profiler = Profiler(tmp_path, (1, 3), lambda line: None)
    for step in range(5):
        with profiler.step(step):
            events.append(step)
        profiler.taken(step + 1, Result())
    assert events == [0, "begun", 1, 2, "there", "ended", 3, 4]


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    (tmp_path / "plugins").write_text("in its place")
    said = []
    profiler = Profiler(tmp_path, (1, 2), said.append)
    with profiler.step(1):
        pass
    profiler.taken(2, ())
    assert said[0].startswith(f"--profile: {tmp_path}: the trace can't be written (")
    (tmp_path / "plugins").unlink()
    with contextlib.suppress(RuntimeError):  # from JAX 0.12 on it has ended
        jax.profiler.stop_trace()  # for other tests
