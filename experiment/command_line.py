"""train.py's command line: its help, and errors that are ours."""

import sys
import textwrap

from absl import flags

from configs import base, reading
from experiment.config_checks import CHOICES

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


def fail(message: str):
    """Ends the program with a message, as one that failed."""
    print(message, file=sys.stderr)
    sys.exit(1)
