"""Which results may be laid side by side, for what alone makes them differ."""

from configs.reading import fields
from experiment.model import conv_field
from experiment.results import OWN_FIELDS, TELLING, Group, fields_read, key_of
from experiment.tracks import TRACKS
from experiment.workdir import differing_fields

# In what attentions by one recipe differ; what an encoder began with is compared by its own config.
NOT_SHARED = {"model.attention", "init_from", *OWN_FIELDS}


def landmark_series(groups: list[Group]) -> list[list[Group]]:
    """Nyström groups that differ in the number of landmarks alone, ascending; two or more each."""
    series = {}
    for group in groups:
        if group.attention == "nystrom" and group.track != "masked":
            key = (key_of(group.config, ("model.num_landmarks",)), *group.data)
            series.setdefault(key, []).append(group)
    return [sorted(s, key=lambda g: g.num_landmarks) for s in series.values() if len(s) > 1]


def same_but_attention(group: Group, groups: list[Group]) -> list[Group]:
    """Groups of softmax attention that differ from `group` in nothing else that they read."""
    without = ("model.attention", *OWN_FIELDS)
    key = (key_of(group.config, without), *group.data)
    return [
        other
        for other in groups
        if other.attention == "softmax" and (key_of(other.config, without), *other.data) == key
    ]


def attention_series(groups: list[Group]) -> list[list[Group]]:
    """Groups that differ in the attention and its options alone, of two attentions or more each.

    Where they began with other runs' encoders, those are alike in the same way.
    """
    series = {}
    for group in groups:
        begun = group.first.get("init_from") or {}
        of_encoder = key_of(begun["config"], NOT_SHARED) if begun.get("config") else None
        if group.track != "masked" and (of_encoder or not begun):
            key = (key_of(group.config, NOT_SHARED), *group.data)
            series.setdefault((*key, of_encoder, begun.get("fingerprint")), []).append(group)
    return [alike for alike in series.values() if len({g.attention for g in alike}) > 1]


def recipe_names(all_series: list[list[Group]]) -> list[str]:
    """What the groups of each series have in common, in a few words that tell it from others."""
    firsts = [series[0] for series in all_series]
    names = [
        f"{TRACKS[group.track][0].lower()}, {group.config['num_train_steps']:,} steps"
        for group in firsts
    ]
    told = []
    for group, name in zip(firsts, names, strict=True):
        others = [
            other.config
            for other, its in zip(firsts, names, strict=True)
            if (its, other.task) == (name, group.task)
        ]
        varying = {field for other in others for field in differing_fields(group.config, other)}
        tells = next((field for field in TELLING if field in varying - NOT_SHARED), "")
        value = f", {tells.rpartition('.')[2]}={fields(group.config)[tells]}" if tells else ""
        told.append((name + value, group.task))
    return [
        f"{name}, as in {group.runs[0].folder.name}" if told.count((name, task)) > 1 else name
        for (name, task), group in zip(told, firsts, strict=True)
    ]


def attention_names(series: list[Group]) -> list[str]:
    """Of each group the attention, with its own options where the series has several."""
    options = [
        {
            name: value
            for name, value in fields_read(group.config).items()
            if name in OWN_FIELDS and name != f"model.{conv_field(group.attention)}"
        }
        for group in series
    ]

    def varies(name, attention):
        values = [o[name] for o, g in zip(options, series, strict=True) if g.attention == attention]
        return len({str(value) for value in values}) > 1

    return [
        ", ".join(
            [group.attention]
            + [
                f"{name.rpartition('.')[2]}={value}"
                for name, value in own.items()
                if varies(name, group.attention)
            ]
        )
        for group, own in zip(series, options, strict=True)
    ]


def taps(group: Group) -> int:
    """Taps of the convolution of the values that its attention has, 0: none."""
    return group.config["model"][conv_field(group.attention)]
