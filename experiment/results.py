"""Runs and their results, grouped by all but the seed; the paper's numbers."""

import dataclasses
import json
import math
import statistics
from pathlib import Path

import lra_tasks
from configs import base
from configs.reading import fields
from experiment.config_checks import OWN_FIELDS
from experiment.tracks import lra_recipe, track_of
from experiment.workdir import MAY_CHANGE, differing_fields, recorded

LRA_TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
TASKS = (*LRA_TASKS, *sorted({*lra_tasks.NAMES, *lra_tasks.LANGUAGE_NAMES} - {*LRA_TASKS}))
MODULES = {task: lra_tasks.task_module(task) for task in TASKS}
TITLES = {task: module.TITLE for task, module in MODULES.items()}
# Accuracies in % that the paper gives (Xiong et al. 2021, arXiv 2102.03902 v3), in TASKS' order.
PAPER = {
    "softmax": (37.10, 65.02, 79.35, 38.20, 74.16),
    "reformer": (19.05, 64.88, 78.64, 43.29, 69.36),
    "linformer": (37.25, 55.91, 79.37, 37.84, 67.60),
    "performer": (18.80, 63.81, 78.62, 37.07, 69.87),
    "nystrom": (37.15, 65.52, 79.56, 41.58, 70.94),
}
# Fields that tell a reader most about how runs differ, the first most of all: what the model is,
# lest its effect look like that of steps or landmarks.
TELLING = (
    "objective",
    "init_from",
    "model.pooling",
    "model.num_heads",
    "model.dropout_rate",
    "num_train_steps",
    "learning_rate",
    "batch_size",
    "warmup_steps",
    "model.num_landmarks",
)
# Of a start, what runs must have in common to be of one code.
MADE_BY = ("commit", "versions", "settings")
# Where runs may differ and still be runs of one thing: the seed, and what may change when a run
# goes on, but for what changes its speed and memory.
NOT_THE_RECIPE = ("seed", "cache_dir", *(name for name in MAY_CHANGE if name != "model.remat"))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder: its result (None while unfinished), its config and its reports."""

    folder: Path
    result: dict | None
    config: dict
    reports: list[dict]  # lines of metrics.jsonl

    @property
    def task(self) -> str:
        return self.config["task"]["name"]

    @property
    def attention(self) -> str:
        return self.config["model"]["attention"]

    @property
    def starts(self) -> list[dict]:
        """Commit, versions and hardware of every time that a finished run began or went on."""
        return [*(self.result.get("earlier_starts") or []), self.result]

    @property
    def step(self) -> int:
        """Steps taken so far, by the reports."""
        return max((report["step"] for report in self.reports), default=0)

    def curve(self, split: str, value: str):
        """Steps and values of the reports of a split: two lists."""
        points = [(r["step"], r[value]) for r in self.reports if r["split"] == split and value in r]
        return [step for step, _ in points], [v for _, v in points]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed (and where files lie)."""

    runs: tuple[Run, ...]
    label: str = ""

    @property
    def first(self) -> dict:
        """The result of the first run; what it says of data and recipe holds for all."""
        return self.runs[0].result

    @property
    def config(self) -> dict:
        return self.runs[0].config

    @property
    def task(self) -> str:
        return self.runs[0].task

    @property
    def attention(self) -> str:
        return self.runs[0].attention

    @property
    def track(self) -> str:
        """What it may stand in a table with: a name of `tracks.TRACKS`."""
        return track_of(self.config, self.first["fingerprint"], self.first.get("init_from"))

    @property
    def data(self) -> tuple[str, str]:
        """Which data it is of: the source, and the fingerprint of the examples."""
        return self.first["source"], self.first["fingerprint"]

    @property
    def num_landmarks(self) -> int:
        return self.config["model"]["num_landmarks"]

    @property
    def of_one_code(self) -> bool:
        """Whether one known commit, one set of package versions and one of settings made all."""
        starts = [start for run in self.runs for start in run.starts]
        commit = self.first["commit"]
        known = commit != "unknown" and not commit.endswith("+changes")
        made_by = (json.dumps([s.get(name) for name in MADE_BY]) for s in starts)
        return known and len(set(made_by)) == 1

    def mean(self, name: str) -> float:
        """The mean over runs of a field of their results; NaN where none has it."""
        return statistics.fmean(self.values(name) or [math.nan])

    def values(self, name: str) -> list:
        """A field of every run's result, where the result has it."""
        return [run.result[name] for run in self.runs if run.result.get(name) is not None]

    @property
    def token_loss(self) -> float:
        """Mean test loss of hidden tokens, in nats, without that of swapped halves."""
        return self.mean("test_token_loss" if self.values("test_token_loss") else "test_loss")

    @property
    def accuracy(self) -> float:
        """Mean test accuracy over seeds, in %."""
        return 100 * self.mean("test_accuracy")

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the test accuracy over seeds, in %; NaN for one run."""
        values = self.values("test_accuracy")
        return 100 * statistics.stdev(values) if len(values) > 1 else math.nan


@dataclasses.dataclass(frozen=True)
class Found:
    """What the folders held."""

    groups: list[Group]
    unfinished: list[Run]
    skipped: list[tuple[Path, str]]  # files that are not ours or broken, and why


def fields_read(config: dict) -> dict[str, object]:
    """A config's fields by dotted name without those that only other attentions read."""
    attention = config["model"]["attention"]
    return {
        name: value
        for name, value in fields(config).items()
        if attention in OWN_FIELDS.get(name, (attention,))
    }


def key_of(config: dict, without: tuple[str, ...] = ()) -> str:
    """A text that is equal for configs of one thing, whatever they have of fields in `without`."""
    left_out = (*NOT_THE_RECIPE, *without)
    kept = {name: value for name, value in fields_read(config).items() if name not in left_out}
    return json.dumps(kept, sort_keys=True)


def unfinished_label(run: Run) -> str:
    """What a run without a result is called: the attention, and the folder, that has the rest."""
    return f"{run.attention}, unfinished, in {run.folder.name}"


def label_apart(groups: list[Group]) -> list[Group]:
    """The groups with labels that tell them apart: the attention and a few fields that vary.

    Of results that compare with LRA, those on its own files, then those nearest to its recipe, have
    the shortest labels, whatever other runs there are. Other comparable results are told from
    these, the rest from all. Further fields, the data and the folder are named only where these
    tell nothing.
    """
    comparable = [group for group in groups if group.first["comparable_to_lra"]]
    others = [group for group in groups if not group.first["comparable_to_lra"]]
    usual = recorded(base.get_config())
    recipe = lra_recipe(groups[0].task) if groups[0].task in LRA_TASKS else usual

    def departs(group):
        different = differing_fields(recipe, group.config).keys() - NOT_THE_RECIPE
        return group.first["source"] != "release", len(different)

    firsts = {}
    for group in sorted(comparable, key=departs):
        firsts.setdefault(_label(group, set(), 0, fields(recipe)), group)
    labels = {id(group): label for label, group in firsts.items()}
    rest = [group for group in comparable if id(group) not in labels]
    labels |= _distinct_labels(rest, comparable, labels.values(), fields(recipe))
    labels |= _distinct_labels(others, groups, labels.values(), fields(usual))
    return [dataclasses.replace(group, label=labels[id(group)]) for group in groups]


def _distinct_labels(groups, among, taken, defaults):
    """id of group -> label; `taken` are not used again, and values of `defaults` not named."""
    varying = {
        field for group in among for field in differing_fields(among[0].config, group.config)
    }
    varying -= {"model.attention", *NOT_THE_RECIPE}
    telling = _telling_fields(among, varying, defaults)
    detail = {id(group): 0 for group in groups}
    while True:
        labels = {
            id(group): _label(
                group, varying if detail[id(group)] else telling, detail[id(group)], defaults
            )
            for group in groups
        }
        used = [*taken, *labels.values()]
        same = [
            name for name, label in labels.items() if used.count(label) > 1 and detail[name] < 3
        ]
        if not same:
            return labels
        for name in same:
            detail[name] += 1


def _telling_fields(groups, varying, defaults) -> set[str]:
    """A few of the varying fields that tell groups of one attention apart.

    First of all options that are gone: whoever sees such a run wants to know of them.
    """
    rows = [(group.attention, fields_read(group.config)) for group in groups]

    def num_kinds(names):
        return len({(a, *(str(_telling(name, f, defaults)) for name in names)) for a, f in rows})

    telling = set()
    gone = sorted(name for name in varying if name not in defaults)
    for name in (*gone, *TELLING, *sorted(varying)):
        if name in varying and num_kinds([*telling, name]) > num_kinds(telling):
            telling.add(name)
    return telling


def _telling(name, read, defaults):
    """A field's value; None where it is the default, or where the option is gone and was off."""
    value = read.get(name)
    off = value == defaults[name] if name in defaults else not value
    return None if off else value


def _label(group, named, detail, defaults):
    read = fields_read(group.config)
    always = {"model.num_landmarks"} if group.attention == "nystrom" else set()
    shown = [
        f"{name.rpartition('.')[2]}={read.get(name, 'absent')}"
        for name in sorted(named | always)
        if name in always
        or _telling(name, read, defaults) is not None
        or (detail and name in read and name not in defaults)
    ]
    if detail >= 2:
        shown.append(f"{group.first['source']} data {group.first['fingerprint'][:8]}")
    if detail >= 3:
        shown.append(f"in {group.runs[0].folder.name}")
    return ", ".join([group.attention, *shown])


def group_runs(runs: list[Run], skipped: list[tuple[Path, str]]) -> list[Group]:
    """Groups of finished runs, labelled, in a fixed order: task, attention, landmarks.

    A run with another's config, data and seed is not counted twice: it goes to `skipped`.
    """
    members = {}
    for run in runs:
        result = run.result
        key = (
            key_of(run.config),
            result["source"],
            result["fingerprint"],
            result["comparable_to_lra"],
            result["why_not_comparable"],
        )
        seeds = members.setdefault(key, {})
        if result["seed"] in seeds:
            other = seeds[result["seed"]].folder
            why = f"the same config and seed as {other}, which is the one that counts"
            skipped.append((run.folder / "result.json", why))
        else:
            seeds[result["seed"]] = run
    groups = [Group(tuple(seeds[seed] for seed in sorted(seeds))) for seeds in members.values()]
    groups.sort(key=lambda g: (TASKS.index(g.task), g.attention, g.num_landmarks, key_of(g.config)))
    return [
        labelled
        for task in TASKS
        if (of_task := [group for group in groups if group.task == task])
        for labelled in label_apart(of_task)
    ]
