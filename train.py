"""Trains and evaluates a model on a task of the Long Range Arena.

    python train.py --config=configs/lra_listops.py [--workdir=DIR] [--config.field=value ...]

The run's folder gets config.json, metrics.jsonl, TensorBoard files, checkpoints/ and, at the
end, result.json. Started again with the same folder, an unfinished run goes on where its last
checkpoint is, to the same bits as if it had never stopped.
"""

import contextlib
import math
import sys
import time
from pathlib import Path

import jax
from absl import app, flags, logging
from flax import nnx
from ml_collections import config_flags

import lra_tasks
from configs import reading
from experiment import metrics, processes, provenance
from experiment.checkpoints import NOT_EVALUATED
from experiment.command_line import (
    check_command,
    fail,
    leave,
    leave_at_once,
    parse_flags,
    show_result,
)
from experiment.compiled import keep_compiled
from experiment.config_checks import check_config
from experiment.cores import use_every_core
from experiment.load import check_same_data, load_data
from experiment.mesh import make_mesh, own_rows, put_batch, put_whole, sequence_axis
from experiment.model import head_of, make_model
from experiment.objectives import check_hidden, checkpoint_score, make_objective, unigram_nats
from experiment.pretrained import begins_with
from experiment.profiling import Profiler
from experiment.resume import resume_or_begin
from experiment.shared_checkpoints import open_checkpoints
from experiment.signals import StopSignals
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
    claim,
    default_workdir,
    is_of_other_data,
    keep_tokenizer,
    read_result,
    record_config,
    recorded,
    tokenizer_of,
    write_result,
)
from lra_tasks.errors import is_worded

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The config, configs/lra_<task>.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; the default is in runs/.")
PROFILE = flags.DEFINE_string("profile", None, "START:STOP: a trace of the steps between.")
DISTRIBUTED = flags.DEFINE_boolean("distributed", None, "One of several processes of a run.")

# Fields that a finished run may be asked for with other values of, if the data are the same.
OF_THE_DATA = ("source", "data_dir", "tokenizer")

# Of a finished run whose task has raised its VERSION since.
OTHER_EXAMPLES = "is finished, on examples that its task made otherwise; choose another --workdir"

# Said when a signal comes, which is heeded between steps alone.
SAVING = "saves after this step or evaluation; again: ends at once, unsaved"


class Stop(Exception):
    """The run can't go on; the message says why and what to do."""


class Stopped(Exception):
    """A signal ended the run early; what it had is saved."""

    def __init__(self, signal_name: str):
        super().__init__(signal_name)
        self.signal = signal_name


def train(
    config,
    workdir: str | Path,
    task: lra_tasks.Task,
    profile: tuple[int, int] = (0, 0),
    signals: StopSignals | None = None,
) -> dict:
    """Trains to the end and returns the result; the steps that `profile` is between are traced.

    Signals are heeded in the main thread alone; `signals` has those that came before. In a run of
    several processes (jax.distributed) all call this; the first writes into the workdir.

    Raises:
      ValueError: the config can't be run, the workdir is another run's or of other data, or no
        checkpoint is whole.
      Stop: a loss or gradient was not finite.
      Stopped: SIGINT or SIGTERM came.
    """
    workdir = Path(workdir)
    problems = check_config(config, jax.device_count())
    if problems:
        raise ValueError("The config can't be run:\n" + "\n".join(problems))
    processes.first(lambda: record_config(workdir, config))
    mesh = make_mesh(config)
    model = make_model(config.model, task, config.seed, sequence_axis(mesh), head_of(config))
    objective = make_objective(config, task)
    check_hidden(objective, task, ("validation", "test"))
    graph, params = nnx.split(model)
    learning_rate = make_schedule(config)
    optimizer = make_optimizer(config)
    state = put_whole(mesh, initial_state(optimizer, params))
    dropout_key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def batches_of(split, size, seed=None):
        return lra_tasks.Batches(task, split, size, seed, own_rows(mesh, size))

    checkpoints = open_checkpoints(workdir / "checkpoints")
    start_step, state, progress = resume_or_begin(
        config, workdir, task, checkpoints, mesh, params, state
    )
    parts = progress["accumulate_steps"]
    batches = batches_of("train", config.batch_size, config.seed)
    validation = batches_of("validation", config.batch_size // parts)
    test = batches_of("test", config.batch_size // parts)
    profile = profile if processes.is_first() else (0, 0)
    votes = processes.Votes(STEPS_AHEAD)
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
        log.sync()
        checkpoints.save(step, state, progress, score)

    def evaluated(params, batches):
        return evaluate(graph, params, batches, log, mesh, config.num_workers, objective)

    with (
        contextlib.closing(checkpoints),
        contextlib.closing(metrics.open_log(workdir, start_step, config.num_train_steps)) as log,
        contextlib.closing(Profiler(workdir, profile, log.say)) as profiler,
        StopSignals(signals, SAVING if processes.is_first() else "") as stop_signals,
    ):
        if start_step == 0 and config.init_from:
            log.say(begins_with(config, progress["init_from"]))
        report_step, report_time = start_step, log.seconds()
        ahead = lra_tasks.prefetch(batches, start_step, config.num_train_steps, config.num_workers)
        for step, batch in log.waiting(ahead):
            batch = votes.cast(batch, stop_signals.received)
            with log.compiling("training", batch) as is_new, profiler.step(step):
                batch = put_batch(mesh, batch)
                given = graph, optimizer, state, batch, dropout_key, parts, mesh, objective
                if is_new:
                    processes.compile_together(train_step, *given)
                state, totals = train_step(*given)
            step += 1  # steps taken so far
            stop = votes.count(totals, stop_signals.received)
            waiting.append((step, totals))
            profiler.taken(step, totals)
            # The device is kept busy, but no further ahead of what is shown and saved.
            jax.block_until_ready(waiting[-1 - STEPS_AHEAD :][0][1])
            log.progress(step)
            if len(waiting) == 1_000:  # of a run that seldom reports
                collect()
            evaluating = step % config.eval_every == 0 or step == config.num_train_steps
            if evaluating or step % config.log_every == 0:
                collect()
                checkpoints.check()
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
                if jax.process_count() == 1:
                    stop = stop_signals.received  # one may have come while it evaluated
            elif stop or step % (config.checkpoint_every or math.inf) == 0:
                collect()
                save(step)
            if stop:
                checkpoints.wait()
                log.say(f"{stop}: stopped at step {step}, which is saved")
                raise Stopped(stop)

        best_step, best_score = checkpoints.best()
        best_state, then = checkpoints.restore(best_step, state)
        tested = evaluated(best_state["params"], test)
        if not math.isfinite(tested["loss"]):
            raise Stop(f"step {best_step}, the best on validation: test loss {tested['loss']}")
        log.report(config.num_train_steps, "test", tested)
    *earlier, now = progress["starts"]
    validated = then.get("validation", {"accuracy": best_score})  # of older runs that alone
    return {
        **{f"test_{name}": value for name, value in metrics.without_speed(tested).items()},
        **{f"validation_{name}": value for name, value in validated.items()},
        **({"unigram_nats": unigram_nats(batches, test)} if config.objective == "masked" else {}),
        **({"init_from": progress["init_from"]} if config.init_from else {}),
        **({"earlier_starts": earlier} if earlier else {}),
        **now,
        "best_step": best_step,
        "num_train_steps": config.num_train_steps,
        "accumulate_steps": parts,
        "wall_seconds": time.monotonic() - clock,
        "compile_seconds": compiled + log.compile_seconds,
        "data_wait_share": progress["wait_seconds"] / (progress["step_seconds"] or 1),
        "examples_per_second": processes.first(
            lambda: metrics.median_rate(workdir / "metrics.jsonl")
        ),
        "num_parameters": sum(p.size for p in jax.tree.leaves(params)),
    }


def main(_):
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # orbax says much
    try:
        if not processes.start(DISTRIBUTED.value):  # several may share this machine
            use_every_core(CONFIG.value)
        processes.check_devices()
        # Before the first step one ends a process on its own at once; several stop at a step.
        with StopSignals(ending=leave_at_once if jax.process_count() == 1 else None) as signals:
            run(CONFIG.value, signals)
    except Stopped as stopped:
        leave(stopped.signal)
    except KeyboardInterrupt as error:
        leave(*error.args or ("SIGINT",))
    except (Stop, ValueError, OSError) as error:
        if not is_worded(error):
            raise
        fail(str(error))
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() > 1:
            processes.end_alone(error)
        if why := processes.out_of_memory(error):
            fail(why)
        raise


def run(config, signals: StopSignals):
    """Makes the run that the flags ask for, unless it is finished, and shows its result."""
    holder = FLAGS["config"]
    workdir = Path(WORKDIR.value or default_workdir(holder.config_filename, holder.override_values))
    workdir = lra_tasks.disk.expand_user(workdir)
    config.task.tokenizer = processes.first(lambda: tokenizer_of(config, workdir))
    profile = processes.together(lambda: check_command(config, workdir, PROFILE.value))
    processes.check_same(recorded(config) | {"devices": jax.local_device_count()})
    recipe = reading.load_recipe(holder.config_filename)
    keep_compiled(config.cache_dir)
    locks = []  # held while the run lasts
    processes.first(lambda: locks.append(claim(workdir, config)))
    if finished := processes.first(lambda: read_result(workdir)):
        named = finished["config"]["task"]
        if is_of_other_data(finished):
            raise ValueError(f"--workdir={workdir} {OTHER_EXAMPLES}")
        if any(config.task[field] != named.get(field) for field in OF_THE_DATA):
            check_same_data(workdir, finished["fingerprint"], load_data(config, workdir))
        show_result(finished, workdir)
        if processes.is_first():
            said = f"{workdir} is finished; choose another --workdir to run again"
            print(said, file=sys.stderr)
        return
    task = load_data(config, workdir, signals)
    processes.check_same({"fingerprint of the data": task.fingerprint})
    processes.first(lambda: keep_tokenizer(workdir, task.tokenizer))
    why = provenance.why_not_comparable(config, task, recipe)
    result = train(config, workdir, task, profile, signals)
    processes.first(lambda: write_result(workdir, result | provenance.describe(config, task, why)))
    show_result(result, workdir)


if __name__ == "__main__":
    lra_tasks.progress.outlive_readers()
    app.run(main, flags_parser=parse_flags)
