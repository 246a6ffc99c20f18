"""Trains and evaluates a model on a task of the Long Range Arena.

    python train.py --config=configs/lra_listops.py [--workdir=DIR] [--config.field=value ...]

The run's folder gets config.json, metrics.jsonl, TensorBoard files, checkpoints/ and, at the
end, result.json. Started again with the same folder, an unfinished run goes on where its last
checkpoint is, to the same bits as if it had never stopped.
"""

import contextlib
import math
import os
import shlex
import sys
import textwrap
import time
from pathlib import Path

import jax
from absl import app, flags, logging
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import config_flags

import lra_tasks
from configs import base, reading
from experiment import metrics, provenance
from experiment.checkpoints import NOT_EVALUATED, Checkpoints
from experiment.config_checks import CHOICES, check_config, choose_accumulate_steps
from experiment.mesh import make_mesh, put_batch, sequence_axis
from experiment.model import head_of, make_model
from experiment.objectives import checkpoint_score, make_objective, unigram_nats
from experiment.pretrained import source_problems, start_from
from experiment.profiling import Profiler, parse_steps
from experiment.signals import StopSignals, exit_status
from experiment.training import (
    STEPS_AHEAD,
    evaluate,
    initial_state,
    make_optimizer,
    make_schedule,
    not_finite,
    train_step,
)
from experiment.workdir import (
    WorkdirError,
    claim,
    default_workdir,
    read_result,
    record_config,
    recorded_accumulate_steps,
)
from lra_tasks.progress import plain_warnings

HELP = """usage: python train.py --config=FILE[:VARIANT] [--config.FIELD=VALUE ...]
                       [--workdir=DIR]

Trains and evaluates a model on a task of the Long Range Arena. The same
command again goes on with a run that was stopped.

  --config=FILE[:VARIANT]  any Python file with a get_config(). There are:
{files}
  --config.FIELD=VALUE     another value of a field, e.g. --config.seed=1 or
                           --config.model.attention=softmax
  --workdir=DIR            the run's folder, else runs/<config>,<overrides>
  --profile=START:STOP     a trace of the steps after START up to STOP, in the
                           run's folder, for tensorboard --logdir=DIR or xprof
  --help_config            every field: what it is, and its value in the config
                           given, else the default
  --helpfull               the libraries' flags too
"""

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The config, configs/lra_<task>.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; the default is in runs/.")
PROFILE = flags.DEFINE_string("profile", None, "START:STOP: a trace of the steps between.")


class Stop(Exception):
    """The run can't go on; the message says why and what to do."""


class Stopped(Exception):
    """A signal ended the run early; what it had is saved."""

    def __init__(self, signal_name: str):
        super().__init__(signal_name)
        self.signal = signal_name


def train(
    config, workdir: str | Path, task: lra_tasks.Task, profile: tuple[int, int] = (0, 0)
) -> dict:
    """Trains to the end and returns the result; the steps that `profile` is between are traced.

    Signals are heeded in the main thread alone.

    Raises:
      ValueError: the config can't be run, the workdir is another run's, or no checkpoint is whole.
      Stop: a loss or gradient was not finite, or the run began with other data.
      Stopped: SIGINT or SIGTERM came.
    """
    workdir = Path(workdir)
    problems = check_config(config, jax.device_count())
    if problems:
        raise ValueError("The config can't be run:\n" + "\n".join(problems))
    record_config(workdir, config)
    mesh = make_mesh(config)
    model = make_model(config.model, task, config.seed, sequence_axis(mesh), head_of(config))
    objective = make_objective(config, task)
    graph, params = nnx.split(model)
    learning_rate = make_schedule(config)
    optimizer = make_optimizer(config)
    on_all = NamedSharding(mesh, PartitionSpec())
    state = jax.device_put(initial_state(optimizer, params), on_all)
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), 1)

    batches = lra_tasks.Batches(task, "train", config.batch_size, seed=config.seed)
    checkpoints = Checkpoints(workdir / "checkpoints")
    # Kept in checkpoints, for reports after a restart to be those of a run that never stopped.
    progress = {"fingerprint": task.fingerprint, "seconds": 0.0, "since_report": {}}
    progress |= {"step_seconds": 0.0, "wait_seconds": 0.0, "compile_seconds": 0.0}
    start_step = 0
    if resumed := checkpoints.resume(state):
        start_step, state, saved = resumed
        progress |= saved
        if progress["fingerprint"] != task.fingerprint:
            raise Stop(
                f"--workdir={workdir}: the run began with other data (fingerprint "
                f"{progress['fingerprint']}, now {task.fingerprint}); bring that data back, or "
                "choose another --workdir"
            )
    elif config.init_from:
        params, progress["init_from"] = start_from(config, task, params)
        state["params"] = jax.device_put(params, on_all)
    parts = choose_accumulate_steps(
        config,
        mesh.shape["data"],
        jax.default_backend(),
        progress.get("accumulate_steps", recorded_accumulate_steps(workdir)),
    )
    progress["accumulate_steps"] = parts
    validation = lra_tasks.Batches(task, "validation", config.batch_size // parts)
    test = lra_tasks.Batches(task, "test", config.batch_size // parts)
    clock = time.monotonic() - progress["seconds"]
    compiled = progress["compile_seconds"]
    waiting = []  # (step, metrics) still on the device

    def collect():
        """Fetches the waiting metrics and stops the run if one is not finite."""
        for step, totals in jax.device_get(waiting):
            if problem := not_finite(step, totals, checkpoints.latest_step(), config):
                raise Stop(problem)
            progress["since_report"] = metrics.merge(progress["since_report"], totals)
        waiting.clear()

    def save(step, score=NOT_EVALUATED):
        progress["seconds"] = time.monotonic() - clock
        progress["compile_seconds"] = compiled + log.compile_seconds
        checkpoints.save(step, state, progress, score)

    def evaluated(params, batches):
        return evaluate(graph, params, batches, log, mesh, config.num_workers, objective)

    with (
        contextlib.closing(checkpoints),
        contextlib.closing(metrics.Reporter(workdir, start_step, config.num_train_steps)) as log,
        contextlib.closing(Profiler(workdir, profile, log.say)) as profiler,
        StopSignals() as stop_signals,
    ):
        report_step, report_time = start_step, log.seconds()
        ahead = lra_tasks.prefetch(batches, start_step, config.num_train_steps, config.num_workers)
        for step, batch in log.waiting(ahead):
            with log.compiling("training", batch), profiler.step(step):
                batch = put_batch(mesh, batch)
                state, totals = train_step(
                    graph, optimizer, state, batch, dropout_key, parts, mesh, objective
                )
            step += 1  # steps taken so far
            waiting.append((step, totals))
            profiler.taken(step, totals)
            # The device is kept busy, but no further ahead of what is shown and saved.
            jax.block_until_ready(waiting[-1 - STEPS_AHEAD :][0][1])
            log.progress(step)
            evaluating = step % config.eval_every == 0 or step == config.num_train_steps
            if evaluating or step % config.log_every == 0:
                collect()
                seconds = log.seconds() - report_time
                rate = (step - report_step) * config.batch_size / seconds
                values = metrics.means(progress["since_report"]) | {
                    "learning_rate": float(learning_rate(step - 1)),
                    "examples_per_second": rate,
                }
                log.report(step, "train", values)
                progress["since_report"] = {}
                progress["step_seconds"] += seconds
                progress["wait_seconds"] += log.wait_seconds
                log.wait_seconds = 0.0
                report_step, report_time = step, log.seconds()
            if evaluating:
                values = evaluated(state["params"], validation)
                if not math.isfinite(values["loss"]):
                    raise Stop(f"step {step}: the validation loss is {values['loss']}")
                log.report(step, "validation", values)
                progress["validation"] = metrics.without_speed(values)
                save(step, checkpoint_score(config.objective, values))
                report_time = log.seconds()
            elif stop_signals.received or step % (config.checkpoint_every or math.inf) == 0:
                collect()
                save(step)
            if stop_signals.received and step < config.num_train_steps:
                log.say(f"{stop_signals.received}: stopped at step {step}, which is saved")
                raise Stopped(stop_signals.received)

        best_step, best_score = checkpoints.best()
        best_state, then = checkpoints.restore(best_step, state)
        tested = evaluated(best_state["params"], test)
        if not math.isfinite(tested["loss"]):
            raise Stop(f"step {best_step}, the best on validation: test loss {tested['loss']}")
        log.report(config.num_train_steps, "test", tested)
    validated = then.get("validation", {"accuracy": best_score})  # of older runs that alone
    return {
        **{f"test_{name}": value for name, value in metrics.without_speed(tested).items()},
        **{f"validation_{name}": value for name, value in validated.items()},
        **({"unigram_nats": unigram_nats(batches, test)} if config.objective == "masked" else {}),
        **({"init_from": progress["init_from"]} if config.init_from else {}),
        "best_step": best_step,
        "num_train_steps": config.num_train_steps,
        "accumulate_steps": parts,
        "wall_seconds": time.monotonic() - clock,
        "compile_seconds": compiled + log.compile_seconds,
        "data_wait_share": progress["wait_seconds"] / (progress["step_seconds"] or 1),
        "examples_per_second": metrics.median_rate(workdir / "metrics.jsonl"),
        "num_parameters": sum(p.size for p in jax.tree.leaves(params)),
    }


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line, with help and errors that are ours; returns what is no flag."""
    given = set(argv[1:])
    try:
        if given & {"--help", "-help", "-h", "--helpshort"}:
            print(HELP.format(files=textwrap.indent(reading.list_files(), "    ")), end="")
            sys.exit(0)
        if given & {"--help_config", "-help_config"}:
            config = reading.last_config(argv) or base.get_config()
            print(reading.explain_fields(config, CHOICES))
            sys.exit(0)
        if "--helpfull" in given:
            return FLAGS(argv)
        rest = reading.parse(argv, FLAGS)
        if rest[1:]:
            surplus = " ".join(rest[1:])
            raise reading.ArgumentError(f"unexpected {surplus}; overrides are --config.field=value")
    except reading.ArgumentError as error:
        fail(str(error))
    return rest


def main(_):
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax says much
    config = CONFIG.value
    problems = check_config(config, jax.device_count())
    holder = FLAGS["config"]
    workdir = Path(WORKDIR.value or default_workdir(holder.config_filename, holder.override_values))
    problems += source_problems(config, workdir)
    profile = (0, 0)
    try:
        if PROFILE.value:
            profile = parse_steps(PROFILE.value, config.num_train_steps)
    except ValueError as error:
        fail(str(error))
    if problems:
        fail("The config can't be run:\n" + "\n".join(f"  {problem}" for problem in problems))
    recipe = reading.load_recipe(holder.config_filename)
    cache = lra_tasks.store.datasets_dir(config.cache_dir or None).parent
    if lra_tasks.disk.is_writable(cache / "compiled"):  # else JAX warns of each program
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        lock = claim(workdir, config)
        result_path = workdir / "result.json"
        if finished := read_result(workdir):
            show_result(finished, result_path)
            print(f"{workdir} is finished; choose another --workdir to run again", file=sys.stderr)
            return
        with plain_warnings():
            task = lra_tasks.load(config.task, config.cache_dir or None)
        result = train(config, workdir, task, profile) | provenance.describe(config, task, recipe)
        temporary = workdir / ".result.tmp"
        temporary.write_text(metrics.strict_json(result, indent=2) + "\n")
        os.replace(temporary, result_path)
        show_result(result, result_path)
        lock.close()
    except Stopped as stopped:
        leave(stopped.signal)
    except KeyboardInterrupt:
        leave("SIGINT")
    except (WorkdirError, Stop, ValueError, OSError) as error:
        fail(str(error))


def show_result(result: dict, path: Path) -> None:
    """The end of a run in one line."""
    print(f"{metrics.result_line(result)}, result in {path}")


def leave(signal_name: str):
    """Says how to go on with a run that a signal ended, and exits as the signal would have."""
    print(f"to go on: {shlex.join(sys.orig_argv)}", file=sys.stderr)
    sys.exit(exit_status(signal_name))


def fail(message: str):
    print(message, file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
