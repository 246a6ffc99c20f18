"""Rows of measurements: what they are of, and their CSV files."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path


def made_by() -> dict[str, str]:
    """The commit and the processor that figures are of."""
    from experiment.provenance import code_version, hardware  # here: JAX is set up before it starts

    return {"commit": code_version(), "processor": hardware()["processor"]}


def signed(rows: list[dict]) -> list[dict]:
    """Rows with the commit and the processor that they are of."""
    about = made_by()
    return [row | about for row in rows]


def write_signed(path: Path, rows: list[dict], names: tuple[str, ...]) -> None:
    """Writes rows, signed, in place of those that the file has with the same `names`.

    What it has of other processors and with other names stays, before them.
    """

    def what(row):
        return [str(row.get(name, "")) for name in (*names, "processor")]

    rows = signed(rows)
    there = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
    measured = [what(row) for row in rows]
    write_csv(path, [row for row in there if what(row) not in measured] + rows)


def same_commit(row: dict, about: dict) -> bool:
    """Whether a row is of the commit that `about` has; the CSV being written is a change of it."""
    found = row.get("commit") or ""
    return found.removesuffix("+changes") == about["commit"].removesuffix("+changes")


def write_csv(path: Path, rows: list[dict], columns: Iterable[str] = ()) -> None:
    """Writes rows under `columns`, else all that any of them has; whole, or the file stays."""
    path = path.resolve()  # else what a link leads to would not be replaced, but the link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="") as file:
        names = columns or dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
