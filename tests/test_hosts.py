"""Several processes: a run that moves between them, signals, deaths and refusals."""

import json
import signal
import socket
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lra_tasks
from configs import reading
from experiment import processes
from experiment.processes import ProcessError
from experiment.training import with_votes
from experiment.workdir import record_config, steps_saved
from tests import hosts
from tests.conftest import ROOT, start_train
from tests.test_resume import PowerCutError, cut_off, make_config
from train import train

NUM_TEST = 61  # no multiple of anything, so the last batch is padded


def test_a_run_that_moves_ends_as_one_that_never_did(tmp_path, cache_home, monkeypatch):
    monkeypatch.chdir(ROOT)
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    fields = (f"--config.task.num_test={NUM_TEST}",)
    config, _, _ = reading.read_config([*hosts.ARGUMENTS, *fields])
    task = lra_tasks.load(config.task, progress=False)

    def start(num_processes, num_devices):
        return hosts.start(num_processes, num_devices, *fields, f"--workdir={moved}")

    # The death of one of two processes ends the other, with an error.
    running = start(2, 2)
    hosts.wait_until(running, lambda: steps_saved(moved) and hosts.num_lines(moved) > 12)
    running[1].kill()
    ((status, _, err),) = hosts.finish(running[:1], hosts.PATIENCE)
    assert status not in (0, 143) and err
    running[1].communicate()
    died_at = steps_saved(moved)
    assert 0 < died_at < 30
    # One process of one device goes on, then four processes.
    with pytest.raises(PowerCutError):
        train(config, moved, cut_off(task, 11))
    assert died_at < steps_saved(moved) < 40
    assert all(status == 0 for status, _, _ in hosts.finish(start(4, 1)))

    undisturbed = train(config, whole, task)
    differences = hosts.loss_differences(moved, whole)
    assert differences["train"] < 1e-4 and differences["test"] < 1e-4, differences
    result = json.loads((moved / "result.json").read_text())
    assert result["hardware"]["num_processes"] == 4
    # Every example counts once: accuracies are whole numbers of them.
    count = result["test_accuracy"] * NUM_TEST
    assert count == pytest.approx(round(count), abs=1e-9)
    assert result["test_accuracy"] == undisturbed["test_accuracy"]


def test_sigterm_to_one_of_two_stops_both_at_the_same_step(tmp_path, cache_home):
    running = hosts.start(2, 2, f"--workdir={tmp_path}/{{index}}", "--profile=1:2")
    hosts.wait_until(running, lambda: hosts.num_lines(tmp_path / "0") >= 3)
    running[1].send_signal(signal.SIGTERM)
    assert 0 < hosts.stopped_by_a_signal(tmp_path / "0", hosts.finish(running)) < 40
    # The first alone writes, the trace too.
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert len(list(tmp_path.glob("0/plugins/profile/*/*.xplane.pb"))) == 1


def test_a_signal_to_one_of_two_interrupts_the_preparation_of_data_in_both(tmp_path):
    given = {"source": "generated", "num_train": 10_000_000}
    fields = [f"--config.task.{name}={value}" for name, value in given.items()]
    cache = tmp_path / "cache"
    fields += [f"--config.cache_dir={cache}", f"--workdir={tmp_path / 'run'}"]
    running = hosts.start(2, 1, *fields)
    hosts.wait_until(running, lambda: any(x.is_dir() for x in cache.glob("datasets/preparing/*")))
    running[0].send_signal(signal.SIGTERM)
    (first, _, err), (second, _, quiet) = hosts.finish(running, hosts.PATIENCE)
    assert (first, second) == (143, 143) and not quiet
    assert "will be prepared from its beginning" in err and "to go on: " in err


def test_ctrl_c_ends_a_process_that_waits_for_others_to_join(tmp_path):
    address = f"localhost:{hosts.free_port()}"
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    env |= {"JAX_COORDINATOR_ADDRESS": address}
    alone = start_train(*hosts.ARGUMENTS, f"--workdir={tmp_path}", env=env)
    assert alone.stderr.readline() == (
        f"waits five minutes for the run's other processes, of the same address, {address}, and "
        "JAX_NUM_PROCESSES; Ctrl-C ends this one\n"
    )
    alone.send_signal(signal.SIGINT)
    ((status, _, err),) = hosts.finish([alone], hosts.PATIENCE)
    assert (status, err) == (-signal.SIGINT, "")


def test_once_others_have_joined_ctrl_c_is_as_before_and_nothing_is_said():
    usual = signal.getsignal(signal.SIGINT)
    with processes._interruptible(), processes._saying_that_it_waits():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        (timer,) = (each for each in threading.enumerate() if isinstance(each, threading.Timer))
    assert signal.getsignal(signal.SIGINT) == usual and timer.finished.is_set()


def test_all_fail_alike_of_what_the_first_alone_can_see(tmp_path, cache_home):
    config, _, _ = reading.read_config(hosts.ARGUMENTS)
    record_config(tmp_path, config)
    refused = hosts.finish(hosts.start(2, 1, f"--workdir={tmp_path}", "--config.seed=1"))
    assert [status for status, _, _ in refused] == [1, 1]
    assert all("config.seed: 0 there, 1 now" in err for _, _, err in refused), refused


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
        ({"JAX_NUM_PROCESSES": ""}, False),
        ({"JAX_NUM_PROCESSES": " 2 "}, True),
        ({"SLURM_NTASKS": "4"}, False),  # of the whole job, as in a shell on one of its nodes
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "8"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, True),
    ],
)
def test_several_processes_are_found_by_their_variables(variables, several):
    assert processes.is_one_of_several(variables) == several


def test_an_address_that_cannot_be_listened_at_is_named(monkeypatch):
    """JAX would crash, and the others wait for five minutes."""
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    for address in ("localhost", "localhost:abc", "localhost:0", "localhost:65536", ":29500"):
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        with pytest.raises(ProcessError, match=f"ADDRESS={address}: expected HOST:PORT"):
            processes.start(True)
    with socket.create_server(("localhost", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        with pytest.raises(ProcessError, match=f"ADDRESS={address}: can't listen at port .*use"):
            processes.start(True)


def test_an_address_is_listened_at_by_the_first_alone_and_let_go_again(monkeypatch):
    with socket.create_server(("localhost", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        processes._check_address(is_host=False)
    processes._check_address(is_host=True)  # pytest tells of a socket that is left open


def test_variables_that_are_no_numbers_are_named(monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    processes.start(False)
    for asked in (True, None):  # or each of two would train the whole run
        with pytest.raises(ProcessError, match=r"JAX_NUM_PROCESSES='two': expected a number"):
            processes.start(asked)


@pytest.mark.parametrize(
    ("received", "named"), [*((s, s) for s in processes.STOPS), ("SIGHUP", "SIGTERM")]
)
def test_votes_name_the_signal_that_came(received, named, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    votes = processes.Votes(delay=0)
    batch = votes.cast({"label": np.zeros(3)}, received)
    _, totals = with_votes(lambda batch: ({}, {}))(batch)
    assert votes.count(totals, "") == named and not totals


def test_a_vote_counts_as_many_steps_later_as_asked_for(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    votes = processes.Votes(delay=2)
    found = [votes.count({"stop": (0, number)}, "") for number in (0, 1, 0, 0)]
    assert found == ["", "", "", "SIGINT"]


def test_a_process_on_its_own_agrees_with_itself_and_does_its_work_once():
    done = []
    for agree in (processes.first, processes.together, processes.in_turn):
        assert agree(lambda agree=agree: done.append(agree) or len(done)) == len(done)
    assert len(done) == 3
    votes = processes.Votes(delay=2)
    batch, totals = {"label": np.zeros(3)}, {}
    assert votes.cast(batch, "SIGINT") is batch and votes.count(totals, "SIGINT") == "SIGINT"


def test_arrays_of_the_first_process_are_told_to_the_bit():
    tree = {
        "half": jnp.asarray([1.5, -0.0, jnp.nan], jnp.bfloat16),
        "none": np.zeros((0, 2), np.float32),
        "step": np.int32(7),
        "wide": np.array([[-0.0, 1e-40], [np.inf, 3]], np.float32),
    }
    found = processes._broadcast(tree, jax.tree.map(np.zeros_like, tree))
    assert found.keys() == tree.keys()
    for name, array in tree.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == np.asarray(array).tobytes()


def test_processes_that_are_asked_for_different_runs_are_refused(tmp_path, cache_home):
    workdir = tmp_path / "run"
    refused = hosts.finish(hosts.start(2, 1, f"--workdir={workdir}", "--config.seed={index}"))
    assert [status for status, _, _ in refused] == [1, 1]
    said = "process 1 differs from process 0: seed 1, not 0. All are to have the same command"
    assert all(said in err for _, _, err in refused), refused
    assert not workdir.exists()
