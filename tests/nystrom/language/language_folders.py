"""What the tests of the language model share: the fixture's folders and how models compare."""

import json
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

WORDS = "nystromformer.embeddings.word_embeddings.weight"
DATA = Path(__file__).parents[2] / "data" / "language"


def arrays_of(folder):
    return load_file(folder / "model.safetensors")


def rewrite(folder, arrays):
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def assert_same_weights(one, other):
    one, other = (nnx.to_flat_state(nnx.state(model)) for model in (one, other))
    assert [steps for steps, _ in one] == [steps for steps, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert np.array_equal(a[...], b[...])
