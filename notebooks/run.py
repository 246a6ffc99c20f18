"""Runs the notebooks and stores them with their outputs.

    python notebooks/run.py [NAME ...] [--short] [--runs=DIR]

Each `notebooks/NN_name.py` is executed in a kernel of its own and written to `NN_name.ipynb`; all
of them without names. `--short` takes tiny sizes and writes to a temporary folder: a check that
they run, not worth looking at. `--runs` is the folder whose runs 03_lra_results reads.
"""

import argparse
import base64
import io
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

FOLDER = Path(__file__).resolve().parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
    "jupytext": {"formats": "ipynb,py:percent"},
}


def main(argv: list[str] | None = None) -> int:
    """Runs the notebooks of a command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in FOLDER.glob("[0-9]*.py"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--short", action="store_true", help="tiny sizes, to a temporary folder")
    parser.add_argument(
        "--runs",
        type=lambda text: Path(text).expanduser(),
        default=FOLDER.parent / "results",
        help="the folder of runs whose results are shown",
    )
    options = parser.parse_args(argv)
    unknown = set(options.names) - set(names)
    if unknown:
        parser.error(f"no notebook {', '.join(sorted(unknown))}: expected of {', '.join(names)}")
    if not options.runs.is_dir():
        parser.error(f"--runs={options.runs}: no such folder")
    os.environ["NOTEBOOK_RUNS"] = os.path.relpath(options.runs, FOLDER)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the kernel warns at its start
    if options.short:
        os.environ["NOTEBOOK_SHORT"] = "1"
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if options.short else FOLDER
        for name in options.names or names:
            start = time.monotonic()
            try:
                run(FOLDER / f"{name}.py", out / f"{name}.ipynb")
            except CellExecutionError as error:
                print(f"{name}: {error}", file=sys.stderr)
                return 1
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


def run(source: Path, target: Path) -> None:
    """Executes a notebook and writes it; what it says on stderr counts as an error."""
    notebook = jupytext.read(source)
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # the same at every run
    client = NotebookClient(
        notebook,
        timeout=3600,
        startup_timeout=600,
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(source.parent)}},
    )
    execute(client)
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise CellExecutionError(cell.source, "stderr", output.text)
            if picture := output.get("data", {}).get("image/png"):
                output.data["image/png"] = with_palette(picture)
    jupytext.write(notebook, target, fmt="ipynb")


def execute(client: NotebookClient) -> None:
    """Executes a notebook in a thread, where nbclient can't take Ctrl-C from the main one."""
    result: Future = Future()

    def work():
        try:
            result.set_result(client.execute())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    result.result()


def with_palette(picture: str) -> str:
    """A PNG, as notebooks hold it, of 256 colours: a third of the bytes, and plots need no more."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    small = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        os._exit(130)  # its kernel sees that, and ends too
