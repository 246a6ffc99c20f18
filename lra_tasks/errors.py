"""Errors told in a line: which those are, worded for users and no faults of code, and how."""

import linecache
import traceback

PACKAGES = ("lra_tasks", "configs", "experiment", "train", "__main__")


def is_worded(error: Exception) -> bool:
    """Whether the system raised the error, or a `raise` of this repository; else it is a fault.

    Of a fault, such as a product of wrong shapes in an attention of one's own, the place matters.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return True
    *_, (frame, number) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    line = linecache.getline(frame.f_code.co_filename, number)
    return package in PACKAGES and line.lstrip().startswith("raise")


def first_line(error: Exception) -> str:
    """What an error of a library says first, in at most 200 characters; its type if nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". See full TensorStore")[0][:200]
