"""train.py's command line: its help, errors that are ours, and what a run ends with."""

import os
import shlex
import sys
import textwrap
from pathlib import Path

import jax
from absl import flags

from configs import base, reading
from experiment import metrics, processes
from experiment.config_checks import CHOICES, check_config
from experiment.pretrained import source_problems
from experiment.profiling import parse_steps
from experiment.signals import exit_status, write

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
  --distributed            one of several processes of a run (docs/hosts.md), as
                           it is where JAX_NUM_PROCESSES, srun, mpirun or
                           TPU_WORKER_HOSTNAMES say so; else --nodistributed
  --help_config            every field: what it is, and its value in the config
                           given, else the default
  --helpfull               the libraries' flags too
"""


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line, or shows its help or what is wrong; returns what is no flag."""
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
            return flags.FLAGS(argv)
        rest = reading.parse(argv, flags.FLAGS)
        if rest[1:]:
            surplus = " ".join(rest[1:])
            raise reading.ArgumentError(f"unexpected {surplus}; overrides are --config.field=value")
    except reading.ArgumentError as error:
        fail(str(error))
    return rest


def check_command(config, workdir: Path, profile: str | None) -> tuple[int, int]:
    """The steps to profile; ValueError if they or the config are wrong."""
    steps = parse_steps(profile, config.num_train_steps) if profile else (0, 0)
    problems = check_config(config, jax.device_count())
    if processes.is_first():  # the others may not see these folders
        problems += source_problems(config, workdir, is_sound=not problems)
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ValueError(f"The config can't be run:\n{listed}")
    return steps


def show_result(result: dict, workdir: Path) -> None:
    """The end of a run in one line."""
    if processes.is_first():
        print(f"{metrics.result_line(result)}, result in {workdir / 'result.json'}")


def leave(signal_name: str):
    """Says how to go on with a run that a signal ended, and exits as the signal would have."""
    if processes.is_first():
        print(_how_to_go_on(), file=sys.stderr)
    sys.exit(exit_status(signal_name))


def leave_at_once(signal_name: str):
    """`leave`, as a signal's handler can: not by print, which may be what it interrupts."""
    write(f"\n{_how_to_go_on()}\n")
    os._exit(exit_status(signal_name))


def _how_to_go_on():
    return f"to go on: {shlex.join(sys.orig_argv)}"


def fail(message: str):
    """Ends the program with a message, as one that failed."""
    print(message, file=sys.stderr)
    sys.exit(1)
