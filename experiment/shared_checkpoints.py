"""Checkpoints of a run of several processes, of which the first writes and reads them for all."""

import jax
import numpy as np

from experiment import processes
from experiment.checkpoints import NOT_EVALUATED, Checkpoints


def open_checkpoints(directory):
    """The run's checkpoints, for however many processes there are."""
    return Checkpoints(directory) if jax.process_count() == 1 else SharedCheckpoints(directory)


class SharedCheckpoints:
    """Checkpoints for a run of several processes: the first writes and reads them for all.

    Every device has the whole state, so nothing is gained by writing from many; the others need not
    see the folder, and fail as the first does. Arguments, results and errors are Checkpoints'.
    """

    def __init__(self, directory):
        owns = []
        self.latest = processes.first(
            lambda: owns.append(Checkpoints(directory)) or owns[0].latest_step()
        )
        self.own = owns[0] if owns else None

    def save(self, step: int, state, progress: dict, score: float = NOT_EVALUATED) -> None:
        processes.first(lambda: self.own.save(step, _on_host(state), progress, score))
        self.latest = step

    def latest_step(self) -> int | None:
        return self.latest

    def best(self) -> tuple[int, float] | None:
        return processes.first(lambda: self.own.best())

    def resume(self, like) -> tuple[int, dict, dict] | None:
        def read():
            step, state, progress = self.own.resume(_on_host(like)) or (None, None, None)
            return state, (step, progress)

        state, (step, progress) = processes.arrays_of_first(read, _mesh_of(like), like)
        self.latest = self.latest if step is None else step
        return None if step is None else (step, state, progress)

    def restore(self, step: int, like) -> tuple[dict, dict]:
        def read():
            return self.own.restore(step, _on_host(like))

        return processes.arrays_of_first(read, _mesh_of(like), like)

    def check(self) -> None:
        pass  # all are to fail at one point: the next save

    def wait(self) -> None:
        processes.first(lambda: self.own.wait())

    def close(self) -> None:
        if self.own:
            self.own.close()


def _mesh_of(state):
    return jax.tree.leaves(state)[0].sharding.mesh


def _on_host(state):
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), state)
