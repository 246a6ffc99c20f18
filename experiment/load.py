"""A trained run from its folder: model, task and config, as a notebook or a program needs them."""

import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import NamedTuple

import ml_collections
from flax import nnx

import lra_tasks
from configs import base
from experiment import processes
from experiment.checkpoints import Checkpoints
from experiment.config_checks import CHOICES, check_choices, check_fields, check_numbers
from experiment.model import head_of, make_model
from experiment.signals import StopSignals
from experiment.training import initial_state, make_optimizer
from experiment.workdir import (
    WorkdirError,
    differing_recipe,
    read_result,
    recorded,
    saved_config,
)
from lra_tasks.progress import plain_warnings


class Loaded(NamedTuple):
    """`model(inputs, mask)` -> logits [batch, classes]; `task` has the data; `config` made both.

    A run with hidden tokens has a `nystrom.TokenPredictor` instead.
    """

    model: nnx.Module
    task: lra_tasks.Task
    config: ml_collections.ConfigDict


def load_run(workdir: str | Path, cache_dir: str | Path = "", with_data: bool = True) -> Loaded:
    """The run in `workdir` with the parameters that were best on validation.

    Args:
      workdir: a run's folder, finished or not.
      cache_dir: where prepared data are, if not in ~/.cache/nystrom. What isn't there is prepared
        as train.py does.
      with_data: False leaves the data alone: the task is without splits.

    Raises:
      ValueError: not a run's folder, of another version of the code, without a whole checkpoint,
        or the data are not those that it was trained on.
    """
    workdir = lra_tasks.disk.expand_user(workdir)
    config = read_config(workdir)
    config.cache_dir = str(cache_dir)
    kept = workdir / lra_tasks.store.VOCABULARY
    checkpoints = Checkpoints(workdir / "checkpoints")
    best_step(checkpoints)  # says if there is none
    vocabulary = own_vocabulary(kept, checkpoints)
    if config.task.tokenizer and vocabulary:
        config.task.tokenizer = str(vocabulary)
    check_trained_with(workdir, config, checkpoints)
    source, trained_on = data_so_far(checkpoints)
    if config.task.source == "auto":
        config.task.source = source
    data_dir = config.task.data_dir
    if data_dir and (
        not lra_tasks.disk.expand_user(data_dir).exists()
        or lra_tasks.is_prepared(config.task, cache_dir or None, trained_on)
    ):
        config.task.data_dir = ""  # what was prepared from it then: it may have changed, or be gone
    if with_data:
        try:
            task = lra_tasks.load(config.task, cache_dir or None, fingerprint=trained_on)
        except ValueError as error:
            if config.task.tokenizer and not vocabulary:
                raise WorkdirError(f"{without_vocabulary(workdir)}. ({error})") from error
            if data_dir and not config.task.data_dir:
                raise WorkdirError(
                    f"{workdir}: its data were read from {data_dir!r}, which is gone, and are not "
                    "prepared here. Bring the folder back, or prepare them from where they are "
                    f"now: python -m lra_tasks.prepare --help. ({error})"
                ) from error
            raise
        checkpoints = Checkpoints(workdir / "checkpoints")  # a run that is under way has gone on
        check_same_data(workdir, trained_on, task)
    else:
        task = lra_tasks.without_data(config.task)
        task = dataclasses.replace(task, tokenizer=vocabulary)
    return Loaded(best_model(config, task, checkpoints, best_step(checkpoints)), task, config)


def check_same_data(workdir: Path, began_with: str, task: lra_tasks.Task) -> None:
    """Raises WorkdirError unless the run in `workdir` began with data of the task's fingerprint."""
    if task.fingerprint != began_with:
        raise WorkdirError(
            f"--workdir={workdir}: the run began with other data (fingerprint {began_with}, now "
            f"{task.fingerprint}); bring that data back, or choose another --workdir"
        )


def check_trained_with(workdir: Path, config, checkpoints: Checkpoints) -> None:
    """Raises WorkdirError unless a run's config.json is of the recipe that its checkpoints have.

    Fields of the task may differ: data have a fingerprint.
    """
    began_with = progress_so_far(checkpoints).get("config", recorded(config))
    different = differing_recipe(began_with, config)
    if different := {n: v for n, v in different.items() if not n.startswith("task.")}:
        fields = ", ".join(f"config.{name}={old!r}" for name, (old, _) in different.items())
        raise WorkdirError(
            f"{workdir / 'config.json'}: not the config that the run was trained with, which has "
            f"{fields}; put it back"
        )


def without_vocabulary(workdir: str | Path) -> str:
    """What is wrong with the folder of a run whose vocabulary is gone."""
    return (
        f"--workdir={workdir}: its {lra_tasks.store.VOCABULARY} is missing, the vocabulary "
        "that the run was trained with; put it back"
    )


def own_vocabulary(kept: Path, checkpoints: Checkpoints) -> Path | None:
    """The vocabulary in a run's folder, None if there is none.

    Raises:
      WorkdirError: it is not the one that the run was trained with.
    """
    if not kept.exists():
        return None
    expected = progress_so_far(checkpoints).get("vocabulary")
    if expected and lra_tasks.disk.sha256_of_file(kept) != expected:
        raise WorkdirError(f"{kept}: not the vocabulary that the run was trained with; put it back")
    return kept


def load_data(
    config: ml_collections.ConfigDict, workdir: Path, signals: StopSignals | None = None
) -> lra_tasks.Task:
    """The data of a run, from the source that it began with; of several processes each in turn.

    Preparing them may take hours: a signal that `signals` notes interrupts it, in all processes.
    """
    first, fields = processes.is_first(), config.task.copy_and_resolve_references()
    source, began_with = processes.first(lambda: data_so_far(Checkpoints(workdir / "checkpoints")))
    if fields.source == "auto":
        fields.source = source

    def load():
        with signals.raising() if signals else contextlib.nullcontext():
            return lra_tasks.load(fields, config.cache_dir or None, first, began_with)

    with plain_warnings(first):
        task = processes.in_turn(load)
        if task.name in lra_tasks.NAMES and task.source == "release" and task.why_not_comparable:
            why = f"these results won't compare with LRA's: {task.why_not_comparable}"
            warnings.warn(why, stacklevel=2)
    return task


def data_so_far(checkpoints: Checkpoints) -> tuple[str, str]:
    """Source and fingerprint of what a run began with, or ("auto", "") if it has not.

    What "auto" was then it may not be by now.
    """
    progress = progress_so_far(checkpoints)
    return progress.get("source", "auto"), progress.get("fingerprint", "")


def progress_so_far(checkpoints: Checkpoints) -> dict:
    """The progress of a run's latest checkpoint, empty before there is one."""
    latest = checkpoints.latest_step()
    return {} if latest is None else checkpoints.records[latest]["progress"]


def best_model(
    config: ml_collections.ConfigDict, task: lra_tasks.Task, checkpoints: Checkpoints, step: int
) -> nnx.Module:
    """The model of a run as it was after `step` steps.

    Raises:
      WorkdirError: its config makes no model.
      CheckpointError: the checkpoint can't be read, or is another model's.
    """
    try:
        model = make_model(config.model, task, config.seed, head=head_of(config))
    except (TypeError, ValueError) as error:
        raise WorkdirError(f"{checkpoints.directory.parent / 'config.json'}: {error}") from error
    graph, params = nnx.split(model)
    state, _ = checkpoints.restore(step, initial_state(make_optimizer(config), params))
    return nnx.merge(graph, state["params"])


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The config of a run; fields that came later have their defaults.

    Raises:
      WorkdirError: no config.json that can be read, or fields that this version doesn't have.
    """
    config, saved = base.get_config(), saved_config(workdir)
    problems = [
        f"config.{name}={saved[name]!r}: expected fields"
        for name, part in config.items()
        if isinstance(part, ml_collections.ConfigDict) and not isinstance(saved.get(name, {}), dict)
    ]
    if not problems:
        with config.unlocked(), config.ignore_type():
            config.update(saved)
        problems = check_fields(config)
    if not problems:
        names = {"task.name": lra_tasks.NAMES + lra_tasks.LANGUAGE_NAMES}
        problems = check_numbers(config) + check_choices(config, CHOICES | names)
    if problems:
        raise WorkdirError(
            f"{workdir / 'config.json'}: not of this version of the code: {'; '.join(problems)}"
        )
    return config.lock()


def best_step(checkpoints: Checkpoints) -> int:
    """The step of the best checkpoint on validation or, before any evaluation, the latest.

    Raises:
      WorkdirError: there is no whole checkpoint, or not that of a finished run's result.
    """
    latest = checkpoints.latest_step()
    if latest is None:
        broken = checkpoints.broken.items()
        problems = "".join(f"; step {step} is not whole: {why}" for step, why in broken)
        raise WorkdirError(
            f"{checkpoints.directory}: no checkpoint there{problems}. The same train.py command as "
            "before trains the run, and saves some."
        )
    scored = (read_result(checkpoints.directory.parent) or {}).get("best_step")
    if scored not in (None, *checkpoints.records):
        why = checkpoints.broken.get(scored, "it is gone")
        raise WorkdirError(
            f"{checkpoints.directory / str(scored)}: the run's best checkpoint, which its result "
            f"is of: {why}; put an intact copy back"
        )
    # Records of the version without digests don't say which is best.
    recorded, best = checkpoints.records[latest]["best_step"], checkpoints.best()
    return recorded or (best[0] if best else latest)
