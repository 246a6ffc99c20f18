"""Where a run begins, by what its last checkpoint says."""

import contextlib

import jax
import pytest
from flax import nnx

import lra_tasks
from experiment.checkpoints import Checkpoints
from experiment.config_checks import suitable_accumulate_steps
from experiment.mesh import make_mesh
from experiment.resume import resume_or_begin
from experiment.training import initial_state, make_optimizer
from experiment.workdir import WorkdirError
from tests.test_masked import SHORT
from tests.test_tasks_train import small
from tests.written_runs import write_untrained


def test_a_run_from_before_fields_of_progress_goes_on_with_the_parts_that_it_then_had(tmp_path):
    config = small("text", **SHORT | {"accumulate_steps": 0, "batch_size": 16})
    params = nnx.state(write_untrained(tmp_path, config))
    task, mesh = lra_tasks.load(config.task, progress=False), make_mesh(config)
    state = initial_state(make_optimizer(config), params)

    def begin(config, parts=None):
        with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
            step, _, progress = resume_or_begin(
                config, tmp_path, task, checkpoints, mesh, params, state
            )
            if parts:
                checkpoints.save(step + 1, state, progress | {"accumulate_steps": parts})
        return step, progress

    step, progress = begin(config, parts=8 // jax.device_count())
    assert step == 3 and progress["since_report"] == {}
    assert [x for name, x in progress.items() if name.endswith("seconds")] == [0, 0, 0, 0]
    assert progress["source"] == "synthetic" and len(progress["starts"]) == 1
    usual = suitable_accumulate_steps(16, jax.device_count(), "cpu")
    assert progress["accumulate_steps"] == usual != 8
    step, progress = begin(config)
    assert (step, progress["accumulate_steps"]) == (4, 8 // jax.device_count())
    assert len(progress["starts"]) == 1  # with the same code

    config.learning_rate = 0.5
    with pytest.raises(WorkdirError, match=r"config\.learning_rate: .* there, 0\.5 now"):
        begin(config)
