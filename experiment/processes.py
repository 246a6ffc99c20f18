"""A run of several processes, on one host or many: how they join, agree and end.

Each runs the same command on devices of its own. What they must agree on goes through JAX's
coordination service, which has patience, where a collective of devices gives up after half a minute
(gloo's). The first process alone writes the run's folder. A process on its own agrees with itself.
"""

import collections
import contextlib
import faulthandler
import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import jax
import numpy as np
from jax._src import distributed  # for its client, which jax.distributed doesn't show
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from experiment.mesh import put_whole
from experiment.workdir import differing_fields
from lra_tasks.errors import first_line

# Variables with the number of processes of JAX itself, of srun and of mpirun.
COUNTS = ("JAX_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
DEATH_SECONDS = 30  # without a sign of a process, after which JAX ends the others
STOPS = ("", "SIGINT", "SIGTERM")  # by the number in a batch
SILENT_SECONDS = 5  # of waiting for the others to join
END_SECONDS = 20  # for which a process that ends waits for the others to end too

_turns = itertools.count()  # calls are the same in all processes, so this names them


class ProcessError(ValueError):
    """The processes can't run together, or one of them failed; the message says which and why."""


def is_one_of_several(environ=os.environ) -> bool:
    """Whether the environment says that this is one of several processes."""
    counts = [_number(name, environ) or 0 for name in COUNTS]
    return max(counts) > 1 or "," in environ.get("TPU_WORKER_HOSTNAMES", "")


def check_devices() -> None:
    """Raises ValueError where JAX finds no devices, say those of a JAX_PLATFORMS not installed."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(no_devices(str(error))) from error


def no_devices(why: str) -> str:
    """The message where JAX finds none; it gives no reason for a platform that isn't installed."""
    if os.environ.get("JAX_NUM_CPU_DEVICES") == "0":
        return "JAX_NUM_CPU_DEVICES=0: expected at least 1"
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return (
        f"JAX finds no devices, JAX_PLATFORMS={platforms!r}: "
        f"{why or 'that platform is not installed'}"
    )


def start(asked: bool | None = None) -> bool:
    """Joins the other processes if `asked`, or if None and `is_one_of_several`; whether it did.

    To be called before any device is touched. Address, number and own number are those of
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, else what JAX finds.

    Raises:
      ProcessError: they are not to be found, or the processes don't meet.
    """
    try:
        if not (is_one_of_several() if asked is None else asked):
            return False
        count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
        _check_address(is_host=index == 0)
        # Where others are gone JAX aborts, and its message is to be the last.
        faulthandler.disable()
        # JAX's own handler would take SIGTERM from ours, and knows no Ctrl-C: see Votes.
        jax.config.update("jax_enable_preemption_service", False)
        with _interruptible(), _saying_that_it_waits():
            jax.distributed.initialize(
                num_processes=count,
                process_id=index,
                heartbeat_timeout_seconds=DEATH_SECONDS,
                shutdown_timeout_seconds=END_SECONDS,
            )
    except (ValueError, RuntimeError) as error:
        raise ProcessError(
            f"--distributed: {error}\nGive each process JAX_COORDINATOR_ADDRESS=HOST:PORT (of the "
            "first), JAX_NUM_PROCESSES and JAX_PROCESS_ID (0, 1, ...), or start them by srun or "
            "mpirun; --nodistributed is for a process on its own. See docs/hosts.md."
        ) from error
    return True


def _check_address(is_host):
    """Raises ValueError for an address at which JAX, which would crash, can't listen."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if not address:
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ValueError(f"JAX_COORDINATOR_ADDRESS={address}: expected HOST:PORT")
    if not is_host:
        return
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS={address}: can't listen at port {port} here "
            f"({error.strerror}); choose another, in all processes"
        ) from error


@contextlib.contextmanager
def _interruptible():
    """Within it Ctrl-C ends the process, where Python's handler would wait for compiled code."""
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


@contextlib.contextmanager
def _saying_that_it_waits():
    address = os.environ.get("JAX_COORDINATOR_ADDRESS", "the address that was found")
    line = (
        f"waits five minutes for the run's other processes, of the same address, {address}, and "
        "JAX_NUM_PROCESSES; Ctrl-C ends this one"
    )
    timer = threading.Timer(SILENT_SECONDS, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first() -> bool:
    """Whether this process writes the run's folder."""
    return jax.process_index() == 0


def first(work: Callable):
    """What `work()` returns in the first process, and JSON can hold; all raise what it raises."""
    if jax.process_count() == 1:
        return work()
    key = f"nystrom/{next(_turns)}"
    return _tell(key, work) if is_first() else _hear(key)


def together(work: Callable):
    """What `work()` returns here, once all have done it; where one raises, all do."""
    if jax.process_count() == 1:
        return work()
    key = f"nystrom/{next(_turns)}"
    results = []
    _tell(f"{key}/{jax.process_index()}", lambda: results.append(work()))
    for index in range(jax.process_count()):
        _hear(f"{key}/{index}")
    return results[0]


def in_turn(work: Callable):
    """What `work()` returns here; done in the first process, then in the others at once."""
    results = []
    first(lambda: results.append(work()))
    return together(lambda: results[0] if results else work())


def arrays_of_first(work: Callable, mesh: Mesh, like):
    """Arrays, on all devices, and what JSON can hold: what `work()` returns in the first process.

    The arrays are as those of `like`, or None.
    """
    trees = []

    def tell():
        tree, told = work()
        trees.append(tree)
        return tree is None, told

    is_none, told = first(tell)
    if is_none:
        return None, told
    tree = trees[0] if jax.process_count() == 1 else _broadcast(trees[0] if trees else None, like)
    return put_whole(mesh, tree), told


def check_same(fields: dict) -> None:
    """ProcessError unless all processes give the same fields, which JSON can hold."""
    if jax.process_count() == 1:
        return
    fields = json.loads(json.dumps(fields))
    of_first = first(lambda: fields)

    def check():
        different = differing_fields(of_first, fields)
        if different:
            raise ProcessError(
                f"process {jax.process_index()} differs from process 0: "
                + ", ".join(f"{name} {b!r}, not {a!r}" for name, (a, b) in different.items())
                + ". All are to have the same command, code and data."
            )

    together(check)


def compile_together(step: Callable, *arguments) -> None:
    """Compiles a jitted step, ahead of its first call, in all processes before any goes on.

    They may take very different times, one of them from its cache, and gloo waits half a minute.
    """
    if jax.process_count() > 1:
        step.lower(*arguments).compile()  # the call that follows finds it
        together(lambda: None)


def out_of_memory(error: Exception) -> str:
    """What to do about an error of JAX's that is for want of memory; "" if it is another."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return ""
    return (
        f"out of memory ({first_line(error)}). A larger config.accumulate_steps, which takes a "
        "batch in parts, config.model.remat=True or a smaller model needs less; checkpoints are "
        "kept."
    )


def end_alone(error: Exception):
    """Ends this process where a collective failed: as a rule, another process is gone."""
    why = out_of_memory(error) or (
        "the others can't be reached, so the run ends here. One of them has ended, or the network "
        f"has ({first_line(error)}). Start all of them again to go on from the last checkpoint."
    )
    print(f"process {jax.process_index()}: {why}", file=sys.stderr, flush=True)
    os._exit(1)  # sys.exit would wait for the others


class Votes:
    """Which signal stops the run after a step, "" for none: the same in all processes.

    A signal comes to processes at different times, or to one alone. So each says with every batch
    which it has had, and the step adds that up with its metrics, in the same collective. It is read
    `delay` steps later, when it is there already.
    """

    def __init__(self, delay: int):
        self.delay, self.waiting = delay, collections.deque()

    def cast(self, batch: dict, received: str) -> dict:
        """The batch with this process's vote; as it is where there is no other process."""
        if jax.process_count() == 1:
            return batch
        number = STOPS.index("SIGTERM" if received == "SIGHUP" else received)
        return batch | {"stop": np.full(len(batch["label"]), number, np.int32)}

    def count(self, totals: dict, received: str) -> str:
        """The outcome, from the metrics of the step just taken, which the vote is taken out of."""
        if jax.process_count() == 1:
            return received
        self.waiting.append(totals.pop("stop"))
        if len(self.waiting) <= self.delay:
            return ""
        of_sigterm, of_any = jax.device_get(self.waiting.popleft())
        return STOPS[2 if of_sigterm else 1 if of_any else 0]


def _number(name, environ=os.environ):
    text = environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise ValueError(f"{name}={text!r}: expected a number")
    return int(text)


def _tell(key, work):
    """Does the work and lets all know how it went, also if it went wrong."""
    client = distributed.global_state.client
    try:
        value = work()
    except KeyboardInterrupt as error:
        client.key_value_set(key, json.dumps({"interrupt": error.args or ("SIGINT",)}))
        raise
    except BaseException as error:
        told = isinstance(error, ValueError | OSError)  # written for users
        problem = str(error) if told else f"process {jax.process_index()}: {error!r}"
        client.key_value_set(key, json.dumps({"problem": problem}))
        raise
    client.key_value_set(key, json.dumps({"value": value}))
    return value


def _hear(key):
    """What was told of it, however long that takes."""
    while True:
        try:
            told = distributed.global_state.client.blocking_key_value_get(key, 1_000)
            break
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):  # in between, Python looks for signals
                raise
    told = json.loads(told)
    if "interrupt" in told:
        raise KeyboardInterrupt(*told["interrupt"])
    if "problem" in told:
        raise ProcessError(told["problem"])
    return told["value"]


def _broadcast(tree, like):
    """The first process's arrays, as `like` is; the others' `tree` is not looked at."""
    leaves, structure = jax.tree.flatten(like)
    sizes = [x.size * x.dtype.itemsize for x in leaves]
    if is_first():
        mine = [np.asarray(x).reshape(-1).view(np.uint8) for x in jax.tree.leaves(tree)]
        whole = np.concatenate(mine)
    else:
        whole = np.zeros(sum(sizes), np.uint8)
    # As bytes: sums of numbers, which a broadcast is, would lose the sign of zeros.
    whole = np.asarray(multihost_utils.broadcast_one_to_all(whole))
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    arrays = [part.view(x.dtype).reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, arrays)
