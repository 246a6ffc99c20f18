"""Where a run begins: at its last checkpoint, at another run's encoder, or anew."""

from pathlib import Path

import jax

import lra_tasks
from experiment import processes, provenance
from experiment.config_checks import choose_accumulate_steps
from experiment.load import check_same_data
from experiment.pretrained import start_from
from experiment.workdir import check_same_config, recorded, recorded_accumulate_steps


def resume_or_begin(
    config, workdir: Path, task: lra_tasks.Task, checkpoints, mesh: jax.sharding.Mesh, params, state
) -> tuple[int, dict, dict]:
    """The steps taken, the state after them, and the progress that checkpoints keep beside it.

    `params` are fresh ones of one process, `state` a fresh one on the mesh. By its progress the
    reports of a run that goes on are those of one that never stopped.

    Raises:
      ValueError: the workdir is another run's or of other data, no checkpoint is whole, or
        config.init_from doesn't fit.
    """
    progress = {
        "fingerprint": task.fingerprint,
        "source": task.source,
        "vocabulary": task.tokenizer and lra_tasks.disk.sha256_of_file(task.tokenizer),
        "config": recorded(config),
        "since_report": {},  # metrics
        "seconds": 0.0,
        "step_seconds": 0.0,
        "wait_seconds": 0.0,
        "compile_seconds": 0.0,
    }
    step = 0
    if resumed := checkpoints.resume(state):
        step, state, saved = resumed
        progress |= saved
        check_same_config(workdir, config, progress["config"])
        check_same_data(workdir, progress["fingerprint"], task)
    elif config.init_from:
        state["params"], progress["init_from"] = processes.arrays_of_first(
            lambda: start_from(config, task, params), mesh, params
        )
    now = provenance.start()
    progress["starts"] = [*(each for each in progress.get("starts", []) if each != now), now]
    progress["accumulate_steps"] = choose_accumulate_steps(
        config,
        mesh.shape["data"],
        jax.default_backend(),
        progress.get("accumulate_steps")
        or processes.first(lambda: recorded_accumulate_steps(workdir)),
    )
    return step, state, progress
