"""The kinds of results that are never mixed in a table, by how a run departs from the paper's."""

import functools
from pathlib import Path

import lra_tasks
from configs import base, reading
from experiment.workdir import MAY_CHANGE, differing_fields, recorded

# Name -> (title, what belongs there), in the order of reports.
TRACKS = {
    "recipe": (
        "Paper's recipe on other data",
        "The recipe of the paper, but not LRA's data: each row says how they differ.",
    ),
    "tuned": (
        "Tuned at the same size",
        "Models of the paper's size trained on labels alone, by another recipe.",
    ),
    "free": ("Free size", "Models of another size or for other tasks, trained on labels alone."),
    "self-pretrained": (
        "Self-pretrained",
        "Begun with an encoder that was trained to guess hidden tokens of the same data.",
    ),
    "pretrained": (
        "Begun with another run's encoder",
        "Begun with an encoder that saw labels or other data, or of which no record is left.",
    ),
    "masked": (
        "Hidden tokens",
        "Test loss, bits and accuracy of guessing hidden tokens: no score of the task.",
    ),
}

# Fields in which runs of one recipe differ: what is compared, where things lie, how they are cut.
FREE_FIELDS = (
    *MAY_CHANGE,
    "name",
    "seed",
    "eval_every",
    "model.attention",
    "model.num_landmarks",
    "task.data_seed",
    "task.bucket_boundaries",
    "task.padded_length",
    "cache_dir",
)
SIZE_FIELDS = (
    "model.num_layers",
    "model.width",
    "model.mlp_width",
    "model.head_width",
)


# Fields of config.task by which examples of the same files fall into splits.
SPLIT_FIELDS = ("name", "difficulty", "data_seed", "num_train", "num_validation", "num_test")


def track_of(config: dict, fingerprint: str = "", source: dict | None = None) -> str:
    """The track, of TRACKS, of a run.

    Args:
      config: all its fields, as recorded.
      fingerprint: of its data.
      source: what its result records of the run that it began with, if it did.
    """
    if config["objective"] == "masked":
        return "masked"
    if config["init_from"]:
        same = source and source.get("objective") == "masked"
        same = same and source.get("fingerprint") == fingerprint
        same = same and all(
            source["config"]["task"].get(field) == config["task"].get(field)
            for field in SPLIT_FIELDS
        )
        return "self-pretrained" if same else "pretrained"
    if config["task"]["name"] not in lra_tasks.NAMES:
        return "free"
    of_data = ("task.", "masked.")
    changed = [
        f for f in changed_fields(config) if f == "task.augment" or not f.startswith(of_data)
    ]
    if any(field in SIZE_FIELDS for field in changed):
        return "free"
    return "tuned" if changed else "recipe"


def changed_fields(config: dict, recipe: dict | None = None) -> dict[str, tuple]:
    """Fields that depart from a recipe, None: that of configs/lra_<task>.py -> (recipe's, new).

    The name, which attention, its number of landmarks, the seed and what can't change a result are
    free.
    """
    different = differing_fields(recipe or lra_recipe(config["task"]["name"]), config)
    return {name: values for name, values in different.items() if name not in FREE_FIELDS}


@functools.cache
def lra_recipe(task: str) -> dict:
    """The fields of configs/lra_<task>.py without a variant, or of base.py, as recorded."""
    file = reading.lra_file(task)
    return recorded(reading.load_recipe(file) if Path(file).exists() else base.get_config())
