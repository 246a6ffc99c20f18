"""Writes tests/data/language: tiny models of `transformers` with random weights, and their outputs.

    python -m benchmarks.language_fixture

One folder a head with config.json, model.safetensors in float32, and outputs.npz: inputs, and what
`transformers` makes of them in float64, in exact and in Nyström mode, with and without padding. The
hidden states of all layers are stored for the masked-language head alone. Needs what
requirements-language.txt lists; the files are replaced once all are made.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.command_line import make_parser, run
from benchmarks.language_peer import (
    REAL,
    load_peer,
    make_inputs,
    make_mask,
    peer_outputs,
    save_peer,
)
from nystrom.language import HEADS

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "data" / "language"


def main():
    make_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as made:
        make(Path(made))
        shutil.copytree(made, FOLDER, dirs_exist_ok=True)


def make(output: Path):
    """Writes the folders of all heads."""
    for head in HEADS:
        folder = output / head
        save_peer(head, folder)
        stored = {}
        for mode in ("exact", "nystrom"):
            inputs = make_inputs(head, mode)
            mask = make_mask(inputs, REAL)
            stored |= {f"{mode}/{name}": x.astype(np.int32) for name, x in inputs.items()}
            stored[f"{mode}/mask"] = mask
            model = load_peer(head, folder, mode, "float64")
            for padding, given in (("none", None), ("transformers", mask)):
                for name, x in peer_outputs(model, head, inputs, given).items():
                    if name != "hidden" or head == "masked_lm":
                        stored[f"{mode}/{padding}/{name}"] = x
        np.savez_compressed(folder / "outputs.npz", **stored)
        print(head, sum(path.stat().st_size for path in folder.iterdir()), "bytes")


if __name__ == "__main__":
    run(main)
