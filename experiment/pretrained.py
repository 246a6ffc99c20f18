"""config.init_from: a run that begins with the encoder of another's best checkpoint."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

import lra_tasks
from experiment.checkpoints import CheckpointError, Checkpoints
from experiment.load import best_model, best_step, own_vocabulary, read_config
from experiment.objectives import mask_token
from experiment.workdir import WorkdirError, read_result, recorded, steps_saved

# Fields that give an encoder's weights their meaning, whatever their shapes.
OF_THE_WEIGHTS = ("num_heads", "position", "norm")
EMBEDDINGS = "encoder/token_embed/embedding"
POSITIONS = "encoder/position_embed"


def source_problems(config: ml_collections.ConfigDict, workdir: Path) -> list[str]:
    """Why a run in `workdir` can't begin as config.init_from says; a run begun needs it no more."""
    if not config.init_from or steps_saved(workdir):
        return []
    try:
        read_source(config.init_from)
    except ValueError as error:
        return [str(error)]
    return []


def read_source(init_from: str) -> tuple[ml_collections.ConfigDict, Checkpoints, int]:
    """The config of the run in a folder, its checkpoints and which of them is the best.

    Raises:
      WorkdirError: no such folder, not a run's, or without a whole checkpoint.
    """
    folder = lra_tasks.disk.expand_user(init_from)
    try:
        if not folder.is_dir():
            raise WorkdirError("no such folder; train that run first, or give another's folder")
        checkpoints = Checkpoints(folder / "checkpoints")
        return read_config(folder), checkpoints, best_step(checkpoints)
    except (CheckpointError, WorkdirError) as error:
        raise WorkdirError(f"config.init_from={init_from!r}: {error}") from error


def start_from(config: ml_collections.ConfigDict, task: lra_tasks.Task, params):
    """`params` with the encoder of the run in config.init_from, and a record of that run.

    Weights are taken by name. Of the table of embeddings these are the rows that both have: the
    row of hidden tokens, the last, is left behind where there are none, and new where there was
    none. Of a length that is a multiple of that run's, the table of positions is its, repeated.

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
    digest = lra_tasks.disk.sha256_of_file
    made_by = checkpoints.records[step]["progress"]
    its = made_by.get("vocabulary") or (kept and digest(kept))
    if task.tokenizer and its and its != digest(task.tokenizer):
        problems.append(
            f"config.task.tokenizer={config.task.tokenizer!r}: another vocabulary than that run's; "
            f"give {config.init_from!r}"
        )
    taken, positions = dict(wanted), None
    ids = common_ids(source, source_task), common_ids(config, task)
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found or name not in wanted:
            problems.append(f"{name}: {'not there' if name not in found else 'there alone'}")
        elif name == EMBEDDINGS and ids[0] != ids[1]:
            there, here = ("({} ids, {} stands for hidden ones)".format(*each) for each in ids)
            problems.append(f"{name}: of other tokens, {there} there, {here} here")
        elif name == EMBEDDINGS and found[name].shape[1:] == wanted[name].shape[1:]:
            rows = min(len(found[name]), len(wanted[name]))
            taken[name] = wanted[name].at[:rows].set(found[name][:rows])
        elif name == POSITIONS and _is_longer(wanted[name], found[name]):
            positions = len(found[name]), len(wanted[name])
            taken[name] = jnp.tile(found[name], (positions[1] // positions[0], 1))
        elif found[name].shape != wanted[name].shape:
            problems.append(f"{name}: {found[name].shape} there, {wanted[name].shape} here")
        else:
            taken[name] = found[name]
    if problems:
        raise WorkdirError(
            f"config.init_from={config.init_from!r}: its encoder does not fit this run's:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nGive this run the same config.model and lengths, or another run to begin with."
        )
    record = {
        "workdir": config.init_from,
        "objective": source.objective,
        "fingerprint": made_by.get("fingerprint"),
        "step": step,
        "positions": positions,  # rows of its table and of this, where they are repeated
        "num_train_steps": source.num_train_steps,
        "finished": read_result(folder) is not None,
        "config": recorded(source),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: taken.get(name_of(path), leaf), params
    ), record


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
    if rows := record["positions"]:
        differing.append(f"\n  its {rows[0]:,} positions, repeated to {rows[1]:,}")
    begun = f"begins with the encoder of {record['workdir']}, step {record['step']:,}"
    return begun + "".join(differing)


def _is_longer(table, other):
    """Whether a table of positions can be another, repeated."""
    more = len(table) - len(other)
    return table.shape[1:] == other.shape[1:] and more > 0 and more % len(other) == 0


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
