"""config.init_from: a run that begins with the encoder of another's best checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

import lra_tasks
from experiment.checkpoints import CheckpointError, Checkpoints
from experiment.load import (
    best_model,
    best_step,
    check_trained_with,
    own_vocabulary,
    read_config,
)
from experiment.model import head_of, make_model
from experiment.objectives import mask_token
from experiment.workdir import WorkdirError, read_result, recorded, steps_saved

# Fields that give an encoder's weights their meaning, whatever their shapes.
OF_THE_WEIGHTS = ("num_heads", "position", "norm")
EMBEDDINGS = "encoder/token_embed/embedding"
POSITIONS = "encoder/position_embed"


def source_problems(config: ml_collections.ConfigDict, workdir: Path, is_sound: bool) -> list[str]:
    """Why a run in `workdir` can't begin as config.init_from says; a run begun needs it no more.

    Whether the weights fit is asked of a config that `is_sound`, of which a model can be made.
    """
    if not config.init_from or steps_saved(workdir):
        return []
    try:
        source = read_source(config.init_from)[0]
        if is_sound:
            there, here = (lra_tasks.without_data(each.task) for each in (source, config))
            check_fit(config, here, source, there, _shapes(source, there), _shapes(config, here))
    except ValueError as error:
        return [str(error)]
    return []


def read_source(init_from: str) -> tuple[ml_collections.ConfigDict, Checkpoints, int]:
    """The config of the run in a folder, its checkpoints and which of them is the best.

    Raises:
      WorkdirError: no such folder, not a run's, or without a whole checkpoint.
    """
    if problem := lra_tasks.disk.path_problem(init_from):
        raise WorkdirError(f"config.init_from={init_from!r}: {problem}")
    folder = lra_tasks.disk.expand_user(init_from)
    try:
        if not folder.is_dir():
            raise WorkdirError("no such folder; train that run first, or give another's folder")
        config, checkpoints = read_config(folder), Checkpoints(folder / "checkpoints")
        step = best_step(checkpoints)  # says if there is none
        check_trained_with(folder, config, checkpoints)
        return config, checkpoints, step
    except (CheckpointError, WorkdirError) as error:
        raise WorkdirError(f"config.init_from={init_from!r}: {error}") from error


def start_from(config: ml_collections.ConfigDict, task: lra_tasks.Task, params):
    """`params` with the encoder of the run in config.init_from, and a record of that run.

    Weights are taken by name. Of the table of embeddings these are the rows that both have: the
    row of hidden tokens, the last, is left behind where there are none, and new where there was
    none. Of a length that is a multiple of that run's, the table of positions is its, repeated,
    but for the place of a token put first.

    Raises:
      WorkdirError: as `read_source`, or the weights don't fit, each named.
    """
    source, checkpoints, step = read_source(config.init_from)
    source_task = lra_tasks.without_data(source.task)
    folder = lra_tasks.disk.expand_user(config.init_from)
    try:
        kept = own_vocabulary(folder / lra_tasks.store.VOCABULARY, checkpoints)
        found = weights_by_name(best_model(source, source_task, checkpoints, step))
    except (CheckpointError, WorkdirError) as error:
        raise WorkdirError(f"config.init_from={config.init_from!r}: {error}") from error
    wanted = weights_by_name(params)
    check_fit(config, task, source, source_task, found, wanted)
    made_by = checkpoints.records[step]["progress"]
    its = made_by.get("vocabulary") or (kept and lra_tasks.disk.sha256_of_file(kept))
    if task.tokenizer and its and its != lra_tasks.disk.sha256_of_file(task.tokenizer):
        raise WorkdirError(
            f"config.task.tokenizer={config.task.tokenizer!r}: another vocabulary than that run's; "
            f"give {config.init_from!r}"
        )
    first = places_put_first(config)
    taken = {name: _begun(name, found[name], whole, first) for name, whole in wanted.items()}
    positions = tuple(len(each[POSITIONS]) - first for each in (found, wanted) if POSITIONS in each)
    record = {
        "workdir": config.init_from,
        "objective": source.objective,
        "fingerprint": made_by.get("fingerprint"),
        "step": step,
        # Rows of its table and of this, where they are repeated.
        "positions": positions if len(set(positions)) > 1 else None,
        "num_train_steps": source.num_train_steps,
        "finished": read_result(folder) is not None,
        "config": recorded(source),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: taken.get(name_of(path), leaf), params
    ), record


def check_fit(config, task, source, source_task, found: dict, wanted: dict) -> None:
    """Raises WorkdirError unless the encoder of `source`'s run can begin that of `config`'s.

    `found` and `wanted` are their arrays by name, or what has the shapes of these.
    """
    problems = [
        f"config.model.{name}: {source.model[name]!r} there, {config.model[name]!r} here"
        for name in OF_THE_WEIGHTS
        if source.model[name] != config.model[name]
    ]
    if (source.model.pooling == "cls") != (config.model.pooling == "cls"):
        problems.append(
            f"config.model.pooling: {source.model.pooling!r} there, {config.model.pooling!r} here, "
            "of which one has a token put first"
        )
    ids = common_ids(source, source_task), common_ids(config, task)
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            problems.append(f"{name}: {'not there' if name not in found else 'there alone'}")
        elif name == EMBEDDINGS and ids[0] != ids[1]:
            there, here = ("({} ids, {} stands for hidden ones)".format(*each) for each in ids)
            problems.append(f"{name}: of other tokens, {there} there, {here} here")
        elif not _fits(name, found[name].shape, wanted[name].shape, places_put_first(config)):
            problems.append(f"{name}: {found[name].shape} there, {wanted[name].shape} here")
    if problems:
        raise WorkdirError(
            f"config.init_from={config.init_from!r}: its encoder does not fit this run's:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nGive this run the same config.model and lengths, or another run to begin with."
        )


def places_put_first(config) -> int:
    """How many rows of a table of positions come before those of an example's own tokens."""
    return int(config.model.pooling == "cls")


def _fits(name, there, here, first):
    """Whether an array of the one shape can begin one of the other: see `start_from`."""
    if name in (EMBEDDINGS, POSITIONS) and there[1:] == here[1:]:
        return name == EMBEDDINGS or (here[0] - first) % (there[0] - first) == 0
    return there == here


def _begun(name, weights, whole, first):
    """An array that fits, in the shape of `whole`."""
    if name == EMBEDDINGS:
        rows = min(len(weights), len(whole))
        return whole.at[:rows].set(weights[:rows])
    if name == POSITIONS:
        times = (len(whole) - first) // (len(weights) - first)
        return jnp.concatenate([weights[:first], jnp.tile(weights[first:], (times, 1))])
    return weights


def _shapes(config, task):
    """What has the shapes of an encoder's arrays, by name."""
    return weights_by_name(
        nnx.eval_shape(lambda: make_model(config.model, task, 0, head=head_of(config)))
    )


def begins_with(config: ml_collections.ConfigDict, record: dict) -> str:
    """The run begun with, and where its seed or model is another than this one's."""
    there, here = (
        {"seed": fields["seed"]} | {f"model.{k}": v for k, v in fields["model"].items()}
        for fields in (record["config"], recorded(config))
    )
    differing = [
        f"\n  config.{name}={there[name]} there, {value} here"
        for name, value in here.items()
        if there[name] != value
    ]
    if not record["finished"]:
        steps = f"{record['num_train_steps']:,} steps"
        differing.append(
            f"\n  warning: that run is not finished; of its {steps} this is the best yet"
        )
    if rows := record["positions"]:
        differing.append(f"\n  its {rows[0]:,} positions, repeated to {rows[1]:,}")
    begun = f"begins with the encoder of {record['workdir']}, step {record['step']:,}"
    return begun + "".join(differing)


def common_ids(config, task) -> tuple[int, int]:
    """What must agree for rows of two tables of embeddings to be the same tokens': how many ids
    tokens have, and which stands for hidden ones."""
    return task.vocab_size, mask_token(task, config.model.pooling)


def weights_by_name(params) -> dict[str, jax.Array]:
    """The encoder's arrays in a model or its state."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {name_of(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if name.startswith("encoder/")}


def name_of(path) -> str:
    """What a leaf is called, of a model and of its state alike: encoder/blocks/0/mlp_in/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
