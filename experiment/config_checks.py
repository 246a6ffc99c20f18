"""Checks of a config, all of them made before any data or workdir is touched."""

import os

import ml_collections
import numpy as np

import lra_tasks
import nystrom
from configs import base, reading
from experiment.mesh import mesh_problems
from experiment.model import conv_field
from lra_tasks.disk import path_problem

# The least that a number may be.
AT_LEAST = {
    "seed": 0,
    "batch_size": 1,
    "mesh.data": 0,
    "mesh.sequence": 1,
    "accumulate_steps": 0,
    "num_train_steps": 1,
    "eval_every": 1,
    "log_every": 1,
    "checkpoint_every": 0,
    "num_workers": 1,
    "warmup_steps": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_eps": 0,
    "adam_b1": 0,
    "adam_b2": 0,
    "masked.share": 0,
    "masked.mask_share": 0,
    "masked.random_share": 0,
    "model.num_layers": 1,
    "model.width": 1,
    "model.num_heads": 1,
    "model.mlp_width": 1,
    "model.head_width": 1,
    "model.embedding_std": 0,
    "model.dropout_rate": 0,
}
BELOW_ONE = ("model.dropout_rate", "adam_b1", "adam_b2")
# Computed with in float32, where more than its largest number is infinite.
FINITE = ("learning_rate", "weight_decay", "adam_eps", "model.embedding_std")
MAX_FLOAT = float(np.finfo(np.float32).max)
# Random keys have 32 bits of seed, so larger seeds would be smaller ones again; steps are int32.
AT_MOST = {
    "seed": 2**32 - 1,
    "num_train_steps": 2**31 - 1,
    "num_workers": 1024,
    "batch_size": 2**20,
    "model.num_layers": 1024,
    "model.width": 2**20,
    "model.num_heads": 2**20,
    "model.mlp_width": 2**20,
    "model.head_width": 2**20,
    "model.pinv_iterations": 1000,  # which are written out
}
CHOICES = {
    "objective": ("classify", "masked"),
    "masked.head": ("tied", "own"),
    "model.attention": tuple(nystrom.ATTENTIONS),
    "model.position": nystrom.POSITIONS,
    "model.norm": nystrom.NORMS,
    "model.pooling": nystrom.POOLINGS,
    "model.dtype": ("float32", "bfloat16"),
}
# What every model reads, which so can't be an attention's own option.
EVERY_MODELS = {
    "attention",
    "dropout_rate",
    "dtype",
    "embedding_std",
    "head_width",
    "mlp_width",
    "norm",
    "num_heads",
    "num_layers",
    "pooling",
    "position",
    "remat",
    "width",
}


# Fields that not every attention reads, and which do. Their bounds join those above: what one of
# these attentions allows, the field may be.
OWN_FIELDS: dict[str, tuple[str, ...]] = {}
for _name, _entry in nystrom.ATTENTIONS.items():
    _bounds = {conv_field(_name): 0} | dict(_entry.allowed)
    for _option in (*(_entry.options.keys() - EVERY_MODELS), conv_field(_name)):
        _field, _allowed = f"model.{_option}", _bounds.get(_option)
        OWN_FIELDS[_field] = (*OWN_FIELDS.get(_field, ()), _name)
        if isinstance(_allowed, tuple):
            CHOICES[_field] = tuple(dict.fromkeys((*CHOICES.get(_field, ()), *_allowed)))
        elif _allowed is not None:
            AT_LEAST[_field] = min(AT_LEAST.get(_field, _allowed), _allowed)
            AT_MOST.setdefault(_field, 2**20)


def check_config(config: ml_collections.ConfigDict, num_devices: int = 1) -> list[str]:
    """Every problem of a config, each "config.<field>=<value>: what is allowed"."""
    problems = check_fields(config)
    if problems:
        return problems
    problem = path_problem(config.cache_dir) if config.cache_dir else ""
    if not problem and os.path.isfile(os.path.expanduser(config.cache_dir)):
        problem = "a file; expected a folder, or a name for one"
    problems = check_numbers(config) + _unless(not problem, config, "cache_dir", problem)
    problems += check_choices(config, CHOICES)
    if problems:  # what follows divides by these numbers
        cache_dir = None if problem else config.cache_dir or None
        return problems + lra_tasks.check(config.task, cache_dir)
    wrong = [*_in_training(config), *_in_model(config), *_in_cutting(config, num_devices)]
    of_task = lra_tasks.check(config.task, config.cache_dir or None)
    if not (of_task or config.objective != "classify" or lra_tasks.has_labels(config.task)):
        name = f"{config.task.name} have no labels (documents do with config.task.sop=True)"
        wrong.append(("objective", f"{name}; expected masked"))
    problems = [_problem(config, field, what) for field, what in wrong]
    return problems + mesh_problems(config, num_devices) + of_task


def _in_training(config):
    """What is wrong with the optimiser's fields and the objective's: field, what is expected."""
    cycle = tuple(config.adam_b1_cycle)
    numbers = all(isinstance(b1, int | float) and 0 <= b1 < 1 for b1 in cycle)
    if len(cycle) not in (0, 2) or not numbers:
        yield "adam_b1_cycle", "expected () or two numbers of at least 0 and less than 1"
    if config.warmup_steps > config.num_train_steps:
        steps = f"config.num_train_steps={config.num_train_steps}"
        yield "warmup_steps", f"expected at most {steps}"
    masked = config.masked
    if not 0 < masked.share <= 1:
        yield "masked.share", "expected more than 0 and at most 1"
    if not masked.mask_share + masked.random_share <= 1:
        with_masks = f"config.masked.mask_share={masked.mask_share}"
        yield "masked.random_share", f"expected at most 1 with {with_masks}"


def _in_model(config):
    """The same of the model's fields."""
    model = config.model
    entry = nystrom.ATTENTIONS[model.attention]
    if taken := sorted(entry.options.keys() & EVERY_MODELS):
        every = "is a field that every model reads; call it otherwise"
        yield "model.attention", f"its option {', '.join(taken)} {every}"
    for option, allowed in entry.allowed.items():
        value, named = model[option], isinstance(allowed, tuple)
        what = f"one of {', '.join(allowed)}" if named else f"{allowed} or more"
        if not (value in allowed if named else value >= allowed):
            yield f"model.{option}", f"expected {what}, of {model.attention}"
    width = f"config.model.width={model.width}"
    depth, remainder = divmod(model.width, model.num_heads)
    if remainder:
        yield "model.num_heads", f"expected a divisor of {width}"
    elif model.position == "rotary" and depth % 2:
        rotary = "as position='rotary' turns pairs of features"
        yield "model.num_heads", f"expected {width} over it to be even, {rotary}"
    for field in dict.fromkeys(f"model.{conv_field(name)}" for name in nystrom.ATTENTIONS):
        taps = _get(config, field)
        if taps and taps % 2 == 0:
            yield field, "expected 0 (none) or an odd number of taps"


def _in_cutting(config, num_devices):
    """The same of what is cut into parts and over devices: batches, and sequences."""
    model, batch, sequence = config.model, config.batch_size, config.mesh.sequence
    parts = max(config.accumulate_steps, 1)
    if model.padding != "inert":
        if model.pinv != "iterative" or config.accumulate_steps != 1:
            iterative = "config.model.pinv=iterative and config.accumulate_steps=1"
            yield "model.padding", f"needs {iterative}, a batch in one part"
        if not num_devices == sequence == 1:
            alone = "needs one device, as examples share eq. 8's scale"
            yield "model.padding", f"{alone}: there are {num_devices}"
    if batch % parts:
        yield "accumulate_steps", f"expected a divisor of config.batch_size={batch}"
    num_data = max(num_devices // sequence, 1)
    unit = parts * num_data
    if batch % unit:
        near = sorted({max(batch // unit * unit, unit), -(-batch // unit) * unit})
        cut_over = f"{num_data} devices" + (f" of {parts} parts each" if parts > 1 else "")
        say = " or ".join(map(str, near))
        yield "batch_size", f"expected a multiple of {unit}, for {cut_over}: {say}, say"
    if sequence == 1:
        return
    cuts = f"config.mesh.sequence={sequence} cuts sequences"
    able = [name for name, entry in nystrom.ATTENTIONS.items() if entry.cuts_sequences]
    if model.attention not in able:
        yield "model.attention", f"{cuts}, which {', '.join(able)} alone can"
    if model.pooling == "cls":
        yield "model.pooling", f"{cuts}, which then can't get a token more"
    if config.task.sop:
        yield "task.sop", f"{cuts}, whose first token is then elsewhere"
    for length in tuple(config.task.bucket_boundaries) or (config.task.padded_length,):
        if length % sequence:
            fields = "config.task.padded_length and bucket_boundaries must be multiples of it"
            yield "mesh.sequence", f"can't cut sequences padded to {length}; {fields}"


def check_fields(config: ml_collections.ConfigDict) -> list[str]:
    """Fields that are not those of configs/base.py, or whose values are of another type."""
    known, given = reading.fields(base.get_config()), reading.fields(config)
    wanted = known | OWN_FIELDS
    problems = [f"config.{f}: is missing; see configs/base.py" for f in wanted if f not in given]
    for field, value in given.items():
        if field not in known:
            meant = reading.nearest(field, known, field.rpartition(".")[2])
            hint = (
                f"did you mean config.{meant}?" if meant else "configs/base.py has those there are"
            )
            problems.append(f"config.{field}: no such field; {hint}")
            continue
        kind = type(known[field])
        # As on the command line: an integer will do for a float, and a list for a tuple.
        kinds = {float: (float, int), tuple: (tuple, list)}.get(kind, kind)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
            problems.append(f"config.{field}={value!r}: expected {kind.__name__}")
    return problems


def check_numbers(config: ml_collections.ConfigDict) -> list[str]:
    """Fields whose numbers are out of their bounds."""
    problems = []
    for field, least in AT_LEAST.items():
        good = _get(config, field) >= least  # not so of NaN
        problems += _unless(good, config, field, f"expected {least} or more")
    for field, value in reading.fields(config).items():  # those of attentions of one's own too
        good = value == value or field in AT_LEAST
        problems += _unless(good, config, field, "expected a number")
    for field in BELOW_ONE:
        problems += _unless(_get(config, field) < 1, config, field, "expected less than 1")
    for field in FINITE:
        what = "expected a finite number, in float32"
        problems += _unless(_get(config, field) <= MAX_FLOAT, config, field, what)
    for field, most in AT_MOST.items():
        what = f"expected {AT_LEAST[field]} to {most}"
        problems += _unless(_get(config, field) <= most, config, field, what)
    return problems


def _unless(good, config, field, what):
    """What is to be said of a field, unless it is good."""
    return [] if good else [_problem(config, field, what)]


def _problem(config, field, what):
    return f"config.{field}={_get(config, field)!r}: {what}"


def check_choices(config: ml_collections.ConfigDict, choices: dict[str, tuple]) -> list[str]:
    """Fields whose values are none of `choices`, field -> values."""
    return [
        _problem(config, field, f"expected one of {', '.join(allowed)}")
        for field, allowed in choices.items()
        if _get(config, field) not in allowed
    ]


def suitable_accumulate_steps(batch_size: int, num_devices: int, platform: str) -> int:
    """What `config.accumulate_steps=0` stands for: 1, but on a CPU parts of 4 examples a device.

    `num_devices` are those that examples are cut over.

    The arrays of 4 examples stay in a core's cache; benchmarks/train_step.py measures what that
    saves, with `--accumulate_steps=1` beside its default.
    """
    part = 4 * num_devices
    return batch_size // part if platform == "cpu" and batch_size % part == 0 else 1


def choose_accumulate_steps(
    config: ml_collections.ConfigDict, num_devices: int, platform: str, saved: int = 0
) -> int:
    """The number of parts of a batch: the config's or, where that is 0, one for these devices.

    `saved` is what the run was begun with, if it was; it goes on with that if that can be.
    """
    if config.accumulate_steps:
        return config.accumulate_steps
    if saved > 0 and config.batch_size % (saved * num_devices) == 0:
        return saved
    return suitable_accumulate_steps(config.batch_size, num_devices, platform)


def _get(config, field):
    for name in field.split("."):
        config = config[name]
    return config
