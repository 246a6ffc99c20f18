"""Broken, missing, pickled, half-precision and divided files: read, or what is said of them."""

import json
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from language_folders import DATA, WORDS, arrays_of, assert_same_weights, rewrite
from safetensors.numpy import save_file

from nystrom import language


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"hidden_size": ' + b"1" * 5_000 + b"}", "is not JSON"),
        (b"[1]", "holds a list: expected an object"),
        (b'{"model_type": "bert"}', "model_type 'bert': expected 'nystromformer'"),
        (b'{"hidden_size": "wide"}', "hidden_size='wide': expected an integer"),
        (b'{"num_landmarks": null}', "num_landmarks=None: expected an integer"),
        (b'{"position_embedding_type": "relative_key"}', "only position_embedding_type"),
        (
            b'{"architectures": ["BertModel"]}',
            "BertModel.*expected one of NystromformerForMaskedLM",
        ),
        (b'{"id2label": 3}', "id2label=3: expected an object of labels, or null"),
        (b'{"layer_norm_eps": Infinity}', "layer_norm_eps=inf: expected a finite number above 0"),
        (b'{"architectures": 3}', r"architectures=\[3\]"),
        (b'{"architectures": [["a"]]}', r"architectures=\[\['a'\]\]"),
    ],
)
def test_a_broken_config_is_named(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        language.from_pretrained(folder)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_broken_safetensors_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        language.from_pretrained(folder)


def test_numbers_that_numpy_lacks_are_named(folder):
    header = b'{"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}'
    content = len(header).to_bytes(8, "little") + header + b"\0"
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors holds numbers of a type that NumPy"):
        language.from_pretrained(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="uw/model is no folder"):
        language.from_pretrained("uw/model")
    (folder / "model.safetensors").rename(tmp_path / "aside")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors$"):
        language.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: expected a model's folder"):
        language.from_pretrained(folder)


def test_weights_in_several_files(folder):
    expected, arrays = language.from_pretrained(folder), arrays_of(folder)
    names = list(arrays)
    parts = {"one.safetensors": names[:9], "two.safetensors": names[9:]}
    for part, held in parts.items():
        save_file({name: arrays[name] for name in held}, folder / part)
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {x: p for p, held in parts.items() for x in held}}))
    assert_same_weights(language.from_pretrained(folder), expected)
    save_file({name: arrays[name] for name in names[8:]}, folder / "two.safetensors")
    with pytest.raises(ValueError, match=rf"two\.safetensors holds {names[8]}, as does another"):
        language.from_pretrained(folder)
    save_file(arrays, folder / "model.safetensors")  # as saving anew does: it is the newer
    (folder / "two.safetensors").rename(folder / "away")
    assert_same_weights(language.from_pretrained(folder), expected)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors, which .* names, is missing"):
        language.from_pretrained(folder)
    for content, message in (
        ("{}", "no index"),
        ("[" * 100_000, "no index"),
        ('{"weight_map": {"a": "../b"}}', "same folder"),
    ):
        index.write_text(content)
        with pytest.raises(ValueError, match=message):
            language.from_pretrained(folder)


class Trap:
    """Makes a file of the given name wherever it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_are_read_only_when_asked_for_and_run_no_code(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "optimizer.bin").touch()
    (folder / "pytorch_model.bin.index.json").touch()
    with pytest.raises(FileNotFoundError, match="pickles in several files are not read"):
        language.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"a": Trap(tmp_path / "sprung")}, protocol=2)
    )
    with pytest.raises(FileNotFoundError, match=r"pickle.*torch_file='pytorch_model\.bin'"):
        language.from_pretrained(folder)
    try:
        import torch
    except ImportError:
        with pytest.raises(ImportError, match="needs PyTorch"):
            language.from_pretrained(folder, torch_file="pytorch_model.bin")
        return
    said = r"pytorch_model\.bin can't be read by torch's weights-only loader: it is broken, or hold"
    with pytest.raises(ValueError, match=said):
        language.from_pretrained(folder, torch_file="pytorch_model.bin")
    (folder / "empty.bin").touch()
    with pytest.raises(ValueError, match=r"weights-only loader: EOFError"):
        language.from_pretrained(folder, torch_file="empty.bin")
    assert not (tmp_path / "sprung").exists()
    arrays = arrays_of(DATA / "masked_lm")
    state = {name: torch.tensor(array) for name, array in arrays.items()}
    expected = language.from_pretrained(DATA / "masked_lm")
    for content in (state, {"model_state_dict": state, "epoch": 3}):
        torch.save(content, folder / "pytorch_model.bin")
        found = language.from_pretrained(folder, torch_file="pytorch_model.bin")
        assert_same_weights(found, expected)
    words = torch.nn.Parameter(state.pop(WORDS))
    torch.save(state | {WORDS: words}, folder / "pytorch_model.bin")
    found = language.from_pretrained(folder, torch_file="pytorch_model.bin")
    assert_same_weights(found, expected)
    for content, message in (
        ({0: words}, "holds no dictionary of named tensors"),
        ({WORDS: words.detach().to_sparse()}, "of a kind that NumPy lacks"),
        ({WORDS: words.detach().to(torch.float8_e4m3fn)}, "of a kind that NumPy lacks"),
        ({WORDS: torch._neg_view(words.detach())}, "of a kind that NumPy lacks"),
    ):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=message):
            language.from_pretrained(folder, torch_file="pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="is missing"):
        language.from_pretrained(folder, torch_file="other.bin")


def test_half_precision_weights_become_float32(folder):
    arrays = arrays_of(folder)
    for dtype in (np.float16, jnp.bfloat16):
        rewrite(folder, {name: array.astype(dtype) for name, array in arrays.items()})
        model = language.from_pretrained(folder)
        words = model.body.words.embedding[...]
        assert words.dtype == jnp.float32
        assert np.array_equal(words, arrays[WORDS].astype(dtype).astype(np.float32))


def test_without_safetensors_the_error_says_what_to_install(monkeypatch, tmp_path):
    model = language.from_pretrained(DATA / "masked_lm")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (
        lambda: language.from_pretrained(DATA / "masked_lm"),
        lambda: language.save_pretrained(model, tmp_path),
    ):
        with pytest.raises(ImportError, match=r"need safetensors: pip install"):
            call()


def test_a_head_is_found_by_its_arrays_where_the_architecture_is_unknown(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NystromformerForPreTraining"], "id2label": None}
    (folder / "config.json").write_text(json.dumps(config))
    model = language.from_pretrained(folder, head="masked_lm")
    assert type(model) is language.MaskedLM
    language.save_pretrained(model, folder)


def test_an_index_that_names_a_file_that_no_system_has(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"x": "a" * 5_000}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        language.from_pretrained(folder)
