"""Checkpoints of a run: the latest two, to resume from, and the best on validation.

A step's folder holds `state`, written by orbax, and `record`, JSON: step, score on validation
(`accuracy`; of hidden tokens exp(-loss)), progress, the best step so far, and digests. What was not
saved so is never used.
"""

import contextlib
import functools
import json
import os
import tempfile
from pathlib import Path

import orbax.checkpoint as ocp

from experiment.digests import Damaged, layout_digest, read_record, state_digest
from experiment.quiet import orbax_quiet
from lra_tasks import progress as terminal
from lra_tasks.disk import digest_of
from lra_tasks.errors import first_line

# Of many processes the first alone reads and writes: see shared_checkpoints.py.
ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
NOT_EVALUATED = -1.0  # score of a checkpoint saved between evaluations: never the best


class CheckpointError(ValueError):
    """The run can't go on with the checkpoints there are; the message says why and what to do."""


class Checkpoints:
    """Keeps the latest two checkpoints and that of the highest score on validation, the earliest of
    equals; should the latest be damaged, the run goes on from the one before.

    A checkpoint holds the state (a pytree of arrays: params, opt_state, step) and `progress` (a
    dict that JSON can hold). It is written in the background and appears whole or not at all,
    also when the process is killed. Whatever is restored is compared with the digests saved.
    Steps that are not whole are moved to `broken-<step>`, with a line to `say`; none is deleted.
    """

    def __init__(self, directory: Path, say=terminal.say):
        self.directory = Path(directory).absolute()
        self.say = say
        self.records, self.broken = {}, {}  # by step: records of whole steps; what ails the others
        self._quiet = contextlib.ExitStack()
        for folder in self._folders():
            if folder.name.isdecimal() and folder.name == str(int(folder.name)):
                try:
                    self.records[int(folder.name)] = read_record(folder)
                except Damaged as error:
                    self.broken[int(folder.name)] = str(error)

    def _folders(self):
        """What the directory holds: nothing where there is none."""
        try:
            return [self.directory / name for name in os.listdir(self.directory)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.directory} can't be read ({error})") from error

    @functools.cached_property
    def manager(self) -> ocp.CheckpointManager:
        """What writes and deletes steps. Made when first needed: broken steps would stop it."""
        self._set_broken_aside()
        self._quiet.enter_context(orbax_quiet())  # until closed: it writes in the background
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Kept(self),
                cleanup_tmp_directories=True,
                create=False,
                multiprocessing_options=ALONE,
            ),
        )

    def save(self, step: int, state, progress: dict, score: float = NOT_EVALUATED) -> None:
        """Saves the state after `step` steps, once; `score` is that on validation.

        Raises:
          CheckpointError: this or the checkpoint before can't be written, say on a full disk.
        """
        if step in self.records:
            return
        record = {
            "step": step,
            "accuracy": score,
            "progress": json.loads(json.dumps(progress)),  # the caller's goes on changing
            "layout": layout_digest(state),
            "state": state_digest(state),
        }
        best = _best([*self.records.values(), record])
        record["best_step"] = best and best["step"]
        record["digest"] = digest_of(record)
        self._check_writable()
        manager = self.manager
        self.records[step] = record
        with self._writing():
            manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
            )
        kept = self.kept_steps()
        self.records = {s: record for s, record in self.records.items() if s in kept}

    def kept_steps(self) -> set[int]:
        """The steps worth keeping: the latest and the best, and what these were a step before."""
        steps = sorted(self.records)
        bests = (_best(self.records[s] for s in known) for known in (steps, steps[:-1]))
        return {*steps[-2:], *(best["step"] for best in bests if best)}

    def latest_step(self) -> int | None:
        """The newest step that is there; None in a new workdir."""
        return max(self.records, default=None)

    def best(self) -> tuple[int, float] | None:
        """Step and score on validation of the best checkpoint; None before any evaluation."""
        best = _best(self.records.values())
        return best and (best["step"], best["accuracy"])

    def resume(self, like) -> tuple[int, dict, dict] | None:
        """Step, state and progress of the newest step that is whole; None if the run is new.

        `like` is a state of the same structure: arrays, or shapes with shardings.

        Raises:
          CheckpointError: there were steps but none is whole, or the best one isn't, so the run
            would end with another result; the state is of another structure; or none can be saved.
        """
        self._check_writable()
        found = None
        for step in sorted(self.records, reverse=True):
            try:
                found = step, self._read_state(step, like), self.records[step]["progress"]
                break
            except Damaged as error:
                self.broken[step] = str(error)
        # Folders without a file are what is left of a deletion, and say nothing of a run.
        written = [s for s in self.broken if not _is_empty(self._folder(s))]
        if found is None and written:
            problems = "; ".join(f"{step}: {self.broken[step]}" for step in sorted(written))
            raise CheckpointError(
                f"{self.directory}: no step there is whole ({problems}). Put intact copies of the "
                "steps back, or delete that folder to train again from the start."
            )
        for step in self.broken.keys() & self.records.keys():
            del self.records[step]
        if found:
            best = self.records[found[0]]["best_step"]
            if best not in (None, found[0]):
                self.restore(best, like)
        self._set_broken_aside()
        return found

    def restore(self, step: int, like) -> tuple[dict, dict]:
        """State and progress saved at `step`; `like` as for `resume`.

        Raises:
          CheckpointError: the step isn't there, isn't whole, or is of another structure.
        """
        self.wait()
        try:
            if step not in self.records:
                raise Damaged(self.broken.get(step, "it is gone"))
            return self._read_state(step, like), self.records[step]["progress"]
        except Damaged as error:
            raise CheckpointError(
                f"{self._folder(step)}: the checkpoint is damaged ({error}), and the run needs it "
                "for its result: it is the best on validation. If the run is still going on, ask "
                f"again. Else put an intact copy back, or delete {self.directory} to train again "
                "from the start."
            ) from error

    def close(self) -> None:
        """Waits for what is being written; closed too where that can't be."""
        with self._quiet:
            if "manager" in self.__dict__:
                try:
                    self.wait()
                finally:
                    with self._writing():  # some errors come here alone
                        self.manager.close()

    def _read_state(self, step, like):
        record = self.records[step]
        if record["layout"] not in (None, layout_digest(like)):
            raise CheckpointError(
                f"{self._folder(step)}: saved by a program with other parameters or another "
                "optimiser state. Go back to that version of the code and its packages, or choose "
                "another --workdir."
            )
        try:
            with orbax_quiet(), ocp.StandardCheckpointer(multiprocessing_options=ALONE) as reader:
                state = reader.restore(self._folder(step) / "state", like)
            found = state_digest(state)
        except Exception as error:  # orbax raises many kinds
            raise Damaged(first_line(error)) from error
        if record["state"] not in (None, found):
            raise Damaged("its numbers are not those that were saved")
        return state

    def _check_writable(self):
        """Raises unless a folder can be made: where not, orbax's threads wait for five minutes."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".try-", dir=self.directory):
                pass
        except FileExistsError as error:
            raise CheckpointError(
                f"{self.directory}: a file or a link to nothing, where a folder was to be; bring "
                "that back, or choose another --workdir"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"{self.directory}: can't write there ({error}); make room there, or see to its "
                "permissions"
            ) from error

    def _set_broken_aside(self):
        for step in [step for step in self.broken if self._folder(step).exists()]:
            self._set_aside(step)
        if "manager" in self.__dict__:
            self.manager.reload()

    def _set_aside(self, step):
        names = (f"broken-{step}" + (f"-{n}" if n else "") for n in range(1_000_000))
        target = next(self.directory / n for n in names if not (self.directory / n).exists())
        try:
            os.rename(self._folder(step), target)
        except OSError as error:
            raise CheckpointError(
                f"{self._folder(step)}: damaged ({self.broken[step]}), and can't be renamed to "
                f"{target.name} ({error}); delete it"
            ) from error
        self.say(
            f"{self._folder(step)}: not a whole checkpoint ({self.broken[step]}), so not used; "
            f"renamed to {target.name}, which can be deleted"
        )

    def _folder(self, step):
        return self.directory / str(step)

    def check(self) -> None:
        """CheckpointError if what is being written can't be, as far as that is known."""
        if "manager" in self.__dict__ and not self.manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Until all that was saved is written; CheckpointError if it can't be."""
        if "manager" in self.__dict__:
            with self._writing():
                self.manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        """CheckpointError for what orbax raises where a checkpoint can't be written."""
        try:
            yield
        except Exception as error:  # of many kinds
            raise CheckpointError(
                f"{self.directory}: a checkpoint can't be written ({first_line(error)}). Those "
                "before are kept; make room there, or see to its permissions, and start again to "
                "go on."
            ) from error


class _Kept:
    """orbax's policy of what to keep, by our own records, which are checked."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def should_preserve(self, infos, *, context) -> list[bool]:
        kept = self.checkpoints.kept_steps()
        return [info.step in kept for info in infos]


def _best(records):
    """The record of highest score, the earliest of equals; None before any evaluation."""
    evaluated = [record for record in records if record["accuracy"] != NOT_EVALUATED]
    return max(evaluated, key=lambda r: (r["accuracy"], -r["step"]), default=None)


def _is_empty(folder):
    return folder.is_dir() and not any(path.is_file() for path in folder.rglob("*"))
