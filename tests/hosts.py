"""Runs of several processes on this machine, as on many hosts; and how often a signal stops them.

    python -m tests.hosts [--tries=20]
    python -m tests.hosts --moves
    python -m tests.hosts --quick

Each try starts two processes of two devices, sends SIGTERM to one of them at a random moment, and
expects both to save the same step and to exit with 143. With --moves, a run on four devices that is
stopped half way goes on on others; the largest difference of its losses from the run that stayed.
With --quick, ListOps `:quick` begins in two processes of two devices, one of which is killed, goes
on as one process of one device, and ends in four; its last losses beside those of the run that one
process of one device did alone.
"""

import argparse
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiment.workdir import steps_saved
from tests.conftest import SMALL_ONE_LENGTH, start_train

# Enough steps to be stopped in.
FIELDS = {"num_train_steps": 40, "eval_every": 40, "log_every": 1, "checkpoint_every": 10}
ARGUMENTS = (*SMALL_ONE_LENGTH, *(f"--config.{name}={value}" for name, value in FIELDS.items()))
PATIENCE = 60  # seconds in which a run that is to end does


def start(num_processes: int, num_devices: int, *arguments) -> list[subprocess.Popen]:
    """Starts a small run in so many processes of so many CPU devices each."""
    compile_fast = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return start_run(num_processes, num_devices, *ARGUMENTS, *arguments, env=compile_fast)


def start_run(num_processes, num_devices, *arguments, env) -> list[subprocess.Popen]:
    """Starts train.py in so many processes of so many CPU devices each; {index} is its number."""
    env = env | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(num_devices),
        "JAX_NUM_PROCESSES": str(num_processes),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
    }
    return [
        start_train(
            *(argument.replace("{index}", str(index)) for argument in arguments),
            env=env | {"JAX_PROCESS_ID": str(index)},
        )
        for index in range(num_processes)
    ]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def finish(processes, patience=300) -> list[tuple[int, str, str]]:
    """Exit status, stdout and stderr of each; what has not ended after `patience` s is killed."""
    end = time.monotonic() + patience
    try:
        return [
            (p.returncode, out, err)
            for p in processes
            for out, err in [p.communicate(timeout=max(end - time.monotonic(), 1))]
        ]
    finally:
        for process in processes:
            process.kill()


def wait_until(processes, happened) -> None:
    """Until `happened()`, in five minutes; none of the processes is to end before."""
    deadline = time.monotonic() + 300
    while not happened():
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < deadline, finish(processes, 0)
        time.sleep(0.01)


def num_lines(workdir: Path) -> int:
    """Lines of metrics.jsonl: one a step, as `FIELDS` has it."""
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def reports(workdir: Path) -> dict[tuple[str, int], dict]:
    """The lines of metrics.jsonl by split and step, each of which there is one of."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = {(line["split"], line["step"]): line for line in lines}
    assert len(found) == len(lines)
    return found


def loss_differences(workdir: Path, whole: Path) -> dict[str, float]:
    """By split, the largest difference of losses from another run's, step by step."""
    here, there = reports(workdir), reports(whole)
    assert here.keys() == there.keys()
    found = {}
    for split, step in here:
        difference = abs(here[split, step]["loss"] - there[split, step]["loss"])
        found[split] = max(found.get(split, 0), difference)
    return found


def stopped_by_a_signal(workdir: Path, results) -> int:
    """The step at which all stopped, as one of them was told by SIGTERM; asserts that they did."""
    assert [status for status, _, _ in results] == [143] * len(results), results
    step = steps_saved(workdir)
    assert f"SIGTERM: stopped at step {step}, which is saved" in results[0][2]
    assert not any(err for _, _, err in results[1:]), results
    return step


def one_try(workdir: Path) -> str:
    """Starts or goes on with a run and signals one process; returns what came of it."""
    processes = start(2, 2, f"--workdir={workdir}")
    while not (workdir / "config.json").exists():  # all have joined
        time.sleep(0.01)
    if random.random() < 0.3:
        time.sleep(random.uniform(0, 12))  # as a rule, before the first step
    else:
        lines = random.randint(1, FIELDS["num_train_steps"])
        wait_until(processes, lambda: num_lines(workdir) >= lines)
        time.sleep(random.uniform(0, 0.2))
    if any(process.poll() is not None for process in processes):
        assert [status for status, _, _ in finish(processes)] == [0, 0]
        return "finished before"
    chosen = random.randrange(2)
    processes[chosen].send_signal(signal.SIGTERM)
    start_time = time.monotonic()
    results = finish(processes, PATIENCE)
    if (workdir / "result.json").exists():
        assert [status for status, _, _ in results] == [0, 0], results
        return f"process {chosen}: in its last steps, and finished"
    if not steps_saved(workdir) and all(status == 143 for status, _, _ in results):
        return f"process {chosen}: while data were loaded"
    step = stopped_by_a_signal(workdir, results)
    return f"process {chosen}: stopped at step {step} in {time.monotonic() - start_time:.1f} s"


def move(folder: Path) -> None:
    """Prints how far losses are from those of the run that never moved."""
    whole, half = folder / "whole", folder / "half"
    finish(start(1, 4, f"--workdir={whole}"))
    running = start(1, 4, f"--workdir={half}")
    wait_until(running, lambda: num_lines(half) >= FIELDS["num_train_steps"] // 2 - 4)
    running[0].send_signal(signal.SIGTERM)
    step = stopped_by_a_signal(half, finish(running))
    for num_processes, num_devices in ((1, 4), (1, 1), (1, 2), (1, 8), (2, 2), (4, 1)):
        moved = shutil.copytree(half, folder / f"{num_processes}x{num_devices}")
        results = finish(start(num_processes, num_devices, f"--workdir={moved}"))
        assert [status for status, _, _ in results] == [0] * num_processes, results
        print(
            f"from step {step} in {num_processes} processes of {num_devices} devices:",
            {split: f"{x:.1e}" for split, x in loss_differences(moved, whole).items()},
            flush=True,
        )


def move_quick(folder: Path) -> None:
    """Prints the last losses and accuracies of `:quick`, moved twice and never moved."""

    def start_quick(num_processes, num_devices, workdir):
        arguments = "--config=configs/lra_listops.py:quick", f"--workdir={folder / workdir}"
        return start_run(num_processes, num_devices, *arguments, env={"XLA_FLAGS": ""})

    def told(workdir):
        result = json.loads((folder / workdir / "result.json").read_text())
        return {name: result[name] for name in result if name.startswith(("test_", "validation_"))}

    running = start_quick(2, 2, "moved")
    wait_until(running, lambda: steps_saved(folder / "moved"))
    running[1].kill()
    print("killed after step", steps_saved(folder / "moved"), "and exited", end=" ")
    print([status for status, _, _ in finish(running, PATIENCE)], flush=True)
    running = start_quick(1, 1, "moved")
    first = steps_saved(folder / "moved")
    wait_until(running, lambda: steps_saved(folder / "moved") > first)
    running[0].send_signal(signal.SIGTERM)
    print("one process stopped at step", stopped_by_a_signal(folder / "moved", finish(running)))
    print("four end with", [status for status, _, _ in finish(start_quick(4, 1, "moved"), 900)])
    print(told("moved"), flush=True)
    finish(start_quick(1, 1, "stayed"), 900)
    print(told("stayed"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--moves", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.moves:
            move(Path(folder))
            return
        if arguments.quick:
            move_quick(Path(folder))
            return
        for number in range(arguments.tries):
            print(number + 1, one_try(Path(folder) / str(number)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
