"""Prepares a task's data ahead of training, and shows what was made.

python -m lra_tasks.prepare listops:quick --config.task.num_train=1000
python -m lra_tasks.prepare image --data_dir=~/lra_release --preview_dir=preview
"""

import argparse
import contextlib
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lra_tasks
from lra_tasks.disk import expand_user
from lra_tasks.errors import is_worded
from lra_tasks.progress import plain_warnings

NUM_SHOWN = 3
SHOWN_CHARACTERS = 300


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 after an error in config or data."""
    try:
        reading = _own_reading()
    except ImportError:
        print(
            "error: the configs, which say what a task's data are, are not installed with "
            "lra_tasks: run this in a checkout of the repository",
            file=sys.stderr,
        )
        return 1
    flags, overrides = _parser(reading).parse_known_args(arguments)
    try:
        config, cache_dir = _task_config(flags, overrides, reading)
        with plain_warnings():
            directory = lra_tasks.prepare_set(config, cache_dir)
        task = lra_tasks.open_set(config, directory)
        _report(task, directory)
        _preview(task, flags.preview_dir)
    except (ValueError, OSError) as error:
        if not is_worded(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _own_reading():
    """`configs.reading` of this repository, whatever `configs` the current folder may have."""
    root = str(Path(__file__).resolve().parent.parent)
    if sys.path[0] != root:
        sys.path.insert(0, root)
    from configs import reading

    return reading


def _parser(reading) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lra_tasks.prepare",
        usage="%(prog)s TASK[:VARIANT] [options]\n       [--config.FIELD=VALUE ...]",
        description="Prepares a Long Range Arena task's data and shows what was made. Fields are "
        "changed as for train.py, e.g. --config.task.num_train=1000.",
        allow_abbrev=False,
    )
    variants = {name: reading.variants(reading.lra_file(name)) for name in lra_tasks.NAMES}
    known = ", ".join(name + "".join(f" :{v}" for v in variants[name]) for name in variants)
    parser.add_argument(
        "task",
        type=_task_or_file,
        metavar="TASK[:VARIANT]",
        help=f"a config file, or a task and its variant: {known}",
    )
    parser.add_argument("--data_dir", help="where the official files lie: archive or folder")
    parser.add_argument("--source", choices=("auto", *lra_tasks.SOURCES))
    parser.add_argument("--cache_dir", help="where sets are kept; default ~/.cache/nystrom")
    parser.add_argument("--preview_dir", help="where pictures shown are written, as PNG files")
    return parser


def _task_or_file(text: str) -> str:
    """The argument, if it begins with a task's name or a config file's."""
    name = text.partition(":")[0]
    if name in lra_tasks.NAMES or name.endswith(".py"):
        return text
    if name in lra_tasks.LANGUAGE_NAMES:
        raise argparse.ArgumentTypeError(
            f"{name} has no recipe of its own; give a config file, such as configs/mlm.py"
        )
    close = difflib.get_close_matches(name, lra_tasks.NAMES, 1)
    meant = f"did you mean {close[0]}? There" if close else "there"
    raise argparse.ArgumentTypeError(
        f"no task {name!r}; {meant} are {', '.join(lra_tasks.NAMES)}; or give a config file"
    )


def _task_config(flags: argparse.Namespace, overrides: list[str], reading):
    """`config.task` of a task's config or a config file, with the changes, and the cache_dir."""
    name, colon, variant = flags.task.partition(":")
    file = reading.lra_file(name) if name in lra_tasks.NAMES else name
    config, _, _ = reading.read_config([f"--config={file}{colon}{variant}", *overrides])
    for field in ("data_dir", "source"):
        if getattr(flags, field) is not None:
            setattr(config.task, field, getattr(flags, field))
    return config.task, flags.cache_dir or config.cache_dir


def _report(task: lra_tasks.Task, directory: Path) -> None:
    print(f"{task.name} in {directory}")
    print(f"source       {task.source}")
    print(f"fingerprint  {task.fingerprint}")
    comparable = "yes" if task.comparable_to_lra else f"no: {task.why_not_comparable}"
    print(f"comparable   {comparable}")
    for name, split in task.splits.items():
        low, *quartiles, high = np.percentile(split.lengths, [0, 25, 50, 75, 100]).astype(int)
        print(
            f"{name:<12} {len(split.examples):,} examples, lengths {low:,} to {high:,}, quartiles "
            + " / ".join(f"{q:,}" for q in quartiles)
        )
    for note, value in json.loads((directory / "set.json").read_text())["notes"].items():
        print(f"note         {note}: {value}")


def _preview(task: lra_tasks.Task, preview_dir: str | None) -> None:
    """Prints the first examples of train, or writes them as PNG files."""
    module = lra_tasks.task_module(task.name)
    shape = getattr(module, "PICTURE_SHAPE", None)
    vocabulary = [task.tokenizer] if task.tokenizer else []
    count = min(NUM_SHOWN, len(task.splits["train"].examples))
    for index, example in enumerate(task.splits["train"].examples.__getitems__(range(count))):
        print(f"train {index}, label {example['label']}")
        documents = [example[name] for name in ("inputs", "inputs2") if name in example]
        for document in documents:
            if shape is None:
                text = module.decode(document.astype(np.int32) + task.id_offset, *vocabulary)
                if not isinstance(text, str):
                    raise ValueError(f"{module.__name__}.decode gave {text!r}, expected a text")
                print("    " + text[:SHOWN_CHARACTERS] + ("..." if text[SHOWN_CHARACTERS:] else ""))
            elif preview_dir is not None:
                folder = expand_user(preview_dir)
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{task.name}-{index}-label{example['label']}.png"
                _write_picture(document.reshape(shape), path)
                print(f"    {path}")
            else:
                print(f"    picture of {shape[0]} x {shape[1]}; --preview_dir=DIR writes it")


def _write_picture(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    with contextlib.closing(Image.fromarray(pixels)) as picture:
        picture.save(path)


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # texts may have more letters than it
    sys.exit(main())
