"""A trace of some steps of a run, for TensorBoard or xprof."""

import contextlib
import re

import jax


def parse_steps(text: str, num_train_steps: int) -> tuple[int, int]:
    """START:STOP as numbers; ValueError if they are none, or not steps of the run."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    start, stop = map(int, found.groups()) if found else (0, 0)
    if not start < stop <= num_train_steps:
        raise ValueError(
            f"--profile={text}: expected START:STOP, two numbers of steps with START < STOP, at "
            f"most config.num_train_steps={num_train_steps}"
        )
    return start, stop


class Profiler:
    """Traces the steps after `start` up to `stop`, as reports count them; none of (0, 0).

    The trace lies in `<folder>/plugins/profile`, where TensorBoard looks for it.
    """

    def __init__(self, folder, steps: tuple[int, int], say):
        self.folder, (self.start, self.stop), self.say = folder, steps, say
        self.tracing, self.found = False, 0

    @contextlib.contextmanager
    def step(self, taken: int):
        """Entered for the step after `taken` ones."""
        if taken == self.start < self.stop:
            jax.profiler.start_trace(str(self.folder))
            self.tracing = True
        self.found += self.tracing
        with jax.profiler.StepTraceAnnotation("train", step_num=taken + 1):
            yield

    def taken(self, step: int, results) -> None:
        """Ends the trace after the last of its steps, when its results are there."""
        if self.tracing and step == self.stop:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends the trace; says how many steps it has, none if the run went on beyond its start."""
        if self.tracing:
            try:
                jax.profiler.stop_trace()
                self.say(f"profile of {self.found} steps: tensorboard --logdir={self.folder}")
            except (RuntimeError, OSError) as error:  # a trace is not worth a run
                self.say(f"--profile: {self.folder}: the trace can't be written ({error})")
        elif self.stop and not self.found:
            self.say(f"--profile: step {self.start} was past or not reached, so there is no trace")
        self.tracing, self.stop = False, 0
