"""Several processes: a run that moves between them, signals, deaths and refusals."""

import json
import signal

import numpy as np
import pytest

import lra_tasks
from experiment import processes
from experiment.processes import ProcessError
from tests import hosts
from tests.test_resume import make_config

NUM_TEST = 61  # no multiple of anything, so the last batch is padded


def test_a_run_that_moves_ends_as_one_that_never_did(tmp_path, cache_home):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    fields = (f"--config.task.num_test={NUM_TEST}",)

    def start(num_processes, num_devices, workdir=moved, *more):
        return hosts.start(num_processes, num_devices, *fields, f"--workdir={workdir}", *more)

    undisturbed = start(1, 1, whole)
    # SIGTERM to one of two processes stops both at the same step.
    running = start(2, 2)
    hosts.wait_for_line(moved, running, 3)
    running[1].send_signal(signal.SIGTERM)
    first_stop = hosts.stopped_by_a_signal(moved, hosts.finish(running))
    ((status, _, _),) = hosts.finish(undisturbed)
    assert status == 0
    # The death of one ends the other, with an error.
    running = start(2, 2)
    hosts.wait_for_line(moved, running, first_stop + 3)
    running[1].kill()
    ((status, _, err),) = hosts.finish(running[:1], hosts.PATIENCE)
    assert status not in (0, 143) and err
    running[1].communicate()
    died_at = hosts.saved_step(moved)
    assert first_stop < died_at < 40
    # One process of one device goes on, then four processes.
    running = start(1, 1)
    hosts.wait_for_line(moved, running, died_at + 3)
    running[0].send_signal(signal.SIGTERM)
    assert died_at < hosts.stopped_by_a_signal(moved, hosts.finish(running)) < 40
    # What the first alone can see, all fail of, alike.
    refused = hosts.finish(start(2, 1, moved, "--config.seed=1"))
    assert [status for status, _, _ in refused] == [1, 1]
    assert all("config.seed: 0 there, 1 now" in err for _, _, err in refused), refused
    assert all(status == 0 for status, _, _ in hosts.finish(start(4, 1)))

    differences = hosts.loss_differences(moved, whole)
    assert differences["train"] < 1e-4 and differences["test"] < 1e-4, differences
    here, there = (json.loads((w / "result.json").read_text()) for w in (moved, whole))
    assert here["hardware"]["num_processes"] == 4
    # Every example counts once: accuracies are whole numbers of them.
    count = here["test_accuracy"] * NUM_TEST
    assert count == pytest.approx(round(count), abs=1e-9)
    assert here["test_accuracy"] == there["test_accuracy"]


def test_rows_of_batches_are_those_of_the_whole(cache_home):
    task = lra_tasks.load(make_config().task, progress=False)
    for seed, split in ((0, "train"), (None, "test")):
        whole = lra_tasks.Batches(task, split, 12, seed)
        pieces = [lra_tasks.Batches(task, split, 12, seed, rows) for rows in ([0, 1, 6], [9, 11])]
        for step in (0, len(whole) - 1):
            for piece, rows in zip(pieces, ([0, 1, 6], [9, 11]), strict=True):
                for name, array in piece[step].items():
                    np.testing.assert_array_equal(array, whole[step][name][rows])


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"JAX_NUM_PROCESSES": "2"}, True),
        ({"JAX_NUM_PROCESSES": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # of the whole job, as in a shell on one of its nodes
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, True),
    ],
)
def test_several_processes_are_found_by_their_variables(variables, several):
    assert processes.found(variables) == several


def test_variables_that_are_no_numbers_are_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    processes.start(False)
    with pytest.raises(ProcessError, match=r"JAX_NUM_PROCESSES='two': expected a number"):
        processes.start(True)
