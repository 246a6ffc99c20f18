"""Scores a split with a trained run, or classifies what is given.

    python -m experiment.evaluate --workdir=runs/lra_text [--split=test]
    python -m experiment.evaluate --workdir=runs/lra_text --text="A film to remember."
    python -m experiment.evaluate --workdir=runs/lra_image --file=frog.png

--text and --file may be mixed; a task of two documents takes two of them. A
file holds a text or, for tasks of pixels, a picture of the task's size. From
another folder: python REPOSITORY/experiment/evaluate.py.
"""

import argparse
import dataclasses
import os
import signal
import sys
import types
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status, 1 after an error."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.split and flags.documents:
        parser.error("--split scores a split, --text and --file classify: give one of them")
    flags.split = flags.split or "test"
    try:
        _run(flags)
    except (ValueError, OSError, ImportError) as error:
        from lra_tasks.errors import is_worded  # here, after the flags are known to be right

        if not isinstance(error, ImportError) and not is_worded(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        from experiment.signals import exit_status

        return exit_status(*error.args or ("SIGINT",))
    return 0


def _run(flags):
    from experiment import load, processes
    from experiment.compiled import keep_compiled
    from experiment.signals import StopSignals

    processes.check_devices()
    keep_compiled(flags.cache_dir)
    with StopSignals() as signals, signals.raising():  # it may prepare data
        loaded = load.load_run(flags.workdir, flags.cache_dir, with_data=not flags.documents)
    if not flags.documents:
        print_score(loaded, flags)
        return
    if loaded.config.objective != "classify":
        raise ValueError(
            f"--workdir={flags.workdir}: a run with hidden tokens knows no labels; give "
            "that of a run begun with it, by config.init_from"
        )
    if loaded.config.task.vocab_size and not loaded.task.tokenizer:
        raise ValueError(load.without_vocabulary(flags.workdir))
    print_label(*loaded[:2], read_documents(flags.documents, loaded.task))


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m experiment.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, help="a run's folder")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="default: test")
    parser.add_argument("--cache_dir", default="", help="of prepared data, else ~/.cache/nystrom")
    for kind, help_text in (("text", "a document"), ("file", "a document, or a picture")):
        parser.add_argument(
            f"--{kind}",
            dest="documents",
            action="append",
            default=[],
            type=lambda value, kind=kind: (kind, value),
            metavar=kind.upper(),
            help=f"{help_text} to classify",
        )
    return parser


def print_score(loaded, flags) -> None:
    """Prints loss and accuracy over a split."""
    import jax
    from flax import nnx

    import lra_tasks
    from experiment import config_checks, objectives, training

    # In the parts that train.py takes on one device; with others sums differ by rounding.
    parts = config_checks.choose_accumulate_steps(loaded.config, 1, jax.default_backend())
    batches = lra_tasks.Batches(loaded.task, flags.split, loaded.config.batch_size // parts)
    objective = objectives.make_objective(loaded.config, loaded.task)
    values = training.evaluate(*nnx.split(loaded.model), batches, objective=objective)
    count = len(loaded.task.splits[flags.split].lengths)
    if not (lra_tasks.disk.expand_user(flags.workdir) / "result.json").exists():
        print("the run is unfinished; its best checkpoint so far is scored", file=sys.stderr)
    loss = f"loss {values.get('token_loss', values['loss']):.4f}"  # without that of swapped halves
    if loaded.config.objective == "masked":
        loss += " nats a hidden token"
    print(
        f"{flags.split}: accuracy {values['accuracy']:.2%}, {loss}, "
        f"{count:,} examples of {loaded.task.name} ({loaded.task.source})"
    )


def print_label(model, task, documents) -> None:
    """Prints the likeliest label of an example, then the probability of each."""
    import lra_tasks

    names = lra_tasks.task_module(task.name).LABEL_NAMES
    probabilities = classify(model, task, documents)
    best = int(probabilities.argmax())
    print(f"label {best} ({names[best]})")
    for label, (name, probability) in enumerate(zip(names, probabilities, strict=True)):
        print(f"{label:>3}  {probability:7.2%}  {name}")


def classify(model, task, documents):
    """Probabilities [classes] of one example, given as its documents, uint8 or uint16 [n] each."""
    import jax
    import numpy as np

    import lra_tasks

    lengths = np.array([[len(document) for document in documents]], np.int32)
    example = dict(zip(("inputs", "inputs2"), documents, strict=False)) | {"label": 0}
    examples = types.SimpleNamespace(__getitems__=lambda indices: [example for _ in indices])
    given = {"given": lra_tasks.Split(examples, lengths, dtype=documents[0].dtype)}
    batch = lra_tasks.Batches(dataclasses.replace(task, splits=given), "given", 1)[0]
    return np.asarray(jax.nn.softmax(model(batch["inputs"], batch["mask"])[0]))


def read_documents(given: list[tuple[str, str]], task) -> list:
    """What is stored of the documents given as ("text", TEXT) or ("file", PATH)."""
    import lra_tasks

    module = lra_tasks.task_module(task.name)
    if len(given) != task.num_documents:
        raise ValueError(
            f"{task.name} classifies {task.num_documents} document(s) at a time, {len(given)} given"
        )
    try:
        return [_read_document(kind, value, task, module) for kind, value in given]
    except OSError as error:
        raise ValueError(f"--file={error.filename}: {error.strerror}") from error


def _read_document(kind, value, task, module):
    from lra_tasks.disk import expand_user
    from lra_tasks.pictures import read_picture

    if hasattr(module, "PICTURE_SHAPE"):
        if kind == "text":
            raise ValueError(f"--text: {task.name} classifies pictures; give one by --file=PATH")
        return read_picture(expand_user(value), module.PICTURE_SHAPE).ravel()
    text = value
    if kind == "text" and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("--text: holds bytes that are no text in this locale; give a --file=PATH")
    if kind == "file":
        path = expand_user(value)
        try:
            text = path.read_bytes().decode().strip("\ufeff\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"--file={value}: not a text in UTF-8 ({error})") from error
    try:
        ids = module.encode(text, *([task.tokenizer] if task.tokenizer else []))
    except ValueError as error:
        raise ValueError(f"--{kind}={value[:80]}: {error}") from error
    if not len(ids):
        raise ValueError(f"--{kind}={value}: empty, expected a document")
    if len(ids) > task.max_length:
        if task.tokenizer:
            ids[task.max_length - 1] = ids[-1]  # a row ends with [SEP]
        print(
            f"--{kind}: {len(ids):,} tokens; the run reads the first {task.max_length:,}",
            file=sys.stderr,
        )
    return ids[: task.max_length]


if __name__ == "__main__":
    if not __package__:  # run as a file: what it imports lies beside its folder
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Ctrl-C ends it at once but while it prepares data: what Python raises while a library is
    # loaded or XLA compiles may be dropped, or crash.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    status = main()
    if status >= 128:
        os._exit(status)
    sys.exit(status)
