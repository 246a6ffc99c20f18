"""Weights in and out: to the bit, by every name they go by, and what is said of broken files."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx
from language_folders import DATA, WORDS, arrays_of, assert_same_weights, edit_config, rewrite

from benchmarks import language_peer as peer
from nystrom import language
from nystrom.language import weights
from nystrom.language.config import read_config

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("head", language.HEADS)
def test_what_is_read_is_written_to_the_bit(head, tmp_path):
    model = language.from_pretrained(DATA / head)
    language.save_pretrained(model, tmp_path / "new" / "folder")
    before, after = arrays_of(DATA / head), arrays_of(tmp_path / "new" / "folder")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.dtype == after[name].dtype and np.array_equal(array, after[name])
    files = [path / "config.json" for path in (DATA / head, tmp_path / "new" / "folder")]
    old, new = (json.loads(path.read_text()) for path in files)
    assert new.items() >= old.items()
    again = language.from_pretrained(tmp_path / "new" / "folder")
    assert again.config.num_labels == model.config.num_labels
    assert_same_weights(again, model)
    assert {path.name for path in files[1].parent.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("head", ["none", *language.HEADS])
def test_transformers_loads_what_is_written(head, tmp_path):
    torch, transformers = (pytest.importorskip(x) for x in ("torch", "transformers"))
    peer.save_peer(head, tmp_path / "theirs", seed=2)
    language.save_pretrained(language.from_pretrained(tmp_path / "theirs"), tmp_path / "ours")
    inputs = peer.make_inputs(head, "exact")
    outputs = []
    for name in ("theirs", "ours"):
        kind = getattr(transformers, peer.CLASSES[head])
        model, info = kind.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        outputs.append((model.state_dict(), peer.peer_outputs(model.eval(), head, inputs)))
    (weights, out), (our_weights, our_out) = outputs
    assert weights.keys() == our_weights.keys()
    assert all(torch.equal(weights[name], our_weights[name]) for name in weights)
    assert all(np.array_equal(out[name], our_out[name]) for name in out)


def to_authors(name):
    """A released name as the authors' own code has it."""
    name = name.removeprefix("nystromformer.")
    for theirs, own in (
        ("attention.self.conv", "mha.attn.conv"),
        ("attention.self.query", "mha.W_q"),
        ("attention.self.key", "mha.W_k"),
        ("attention.self.value", "mha.W_v"),
        ("attention.output.dense", "mha.ff"),
        ("attention.output.LayerNorm", "norm1"),
        ("intermediate.dense", "ff1"),
        ("output.dense", "ff2"),
        ("output.LayerNorm", "norm2"),
        ("embeddings.LayerNorm", "embeddings.norm"),
        ("cls.predictions.transform.dense", "mlm.dense"),
        ("cls.predictions.transform.LayerNorm", "mlm.norm"),
        ("cls.predictions.bias", "mlm.mlm_class.bias"),
        ("encoder.layer.", "transformer_"),
    ):
        name = name.replace(theirs, own)
    return f"model.{name}" if not name.startswith("mlm") else name


def test_the_authors_own_names_are_converted(folder):
    arrays = {to_authors(name): array for name, array in arrays_of(folder).items()}
    assert "model.transformer_1.mha.W_q.weight" in arrays
    arrays["mlm.mlm_class.weight"] = arrays["model.embeddings.word_embeddings.weight"].copy()
    for name in ("sen_class.weight", "model.pooler.bias", "model.transformer_0.mha.attn.conv.bias"):
        arrays[name] = np.zeros(3, np.float32)
    rewrite(folder, arrays)
    assert_same_weights(
        language.from_pretrained(folder), language.from_pretrained(DATA / "masked_lm")
    )


def test_tied_weights_go_by_either_name_or_both(folder):
    expected = language.from_pretrained(folder)
    arrays = arrays_of(folder)
    arrays["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"].copy()
    arrays["cls.predictions.decoder.weight"] = arrays[WORDS].copy()
    arrays["nystromformer.embeddings.position_ids"] = np.arange(24)
    rewrite(folder, arrays)
    assert_same_weights(language.from_pretrained(folder), expected)
    rewrite(folder, {k: x for k, x in arrays.items() if k not in (WORDS, "cls.predictions.bias")})
    assert_same_weights(language.from_pretrained(folder), expected)
    arrays["cls.predictions.bias"][0] = arrays["cls.predictions.decoder.bias"][0] = np.nan
    rewrite(folder, arrays)
    assert np.isnan(language.from_pretrained(folder).bias[0])  # though unequal to itself
    arrays["cls.predictions.decoder.weight"] = arrays[WORDS] + 1
    rewrite(folder, arrays)
    with pytest.raises(ValueError, match=r"decoder\.weight: differs from .*word_embeddings"):
        language.from_pretrained(folder)


def test_one_error_lists_all_keys_that_do_not_fit(folder):
    arrays = arrays_of(folder)
    norm = "nystromformer.encoder.layer.0.output.LayerNorm"
    del arrays[f"{norm}.bias"]
    arrays[WORDS] = arrays[WORDS][:, :-1].copy()
    arrays[f"{norm}.weight"] = np.ones(16, np.int32)
    arrays["nystromformer.encoder.layer.2.output.dense.bias"] = np.zeros(16, np.float32)
    arrays["a\nb\x1b[31m"] = np.zeros(1, np.float32)
    rewrite(folder, arrays)
    with pytest.raises(ValueError) as error:
        language.from_pretrained(folder)
    text = str(error.value)
    assert text.startswith(f"{folder} does not hold MaskedLM:")
    for line in (
        "encoder.layer.0.output.LayerNorm.bias: missing, expected (16,)",
        "embeddings.word_embeddings.weight: has shape (40, 15), expected (40, 16)",
        "encoder.layer.0.output.LayerNorm.weight: has dtype int32, expected floating-point",
        "encoder.layer.2.output.dense.bias: unknown, of shape (16,)",
        r"a\nb\x1b[31m: unknown, of shape (1,)",
    ):
        assert line in text
    assert text.count("\n") == 5


def test_an_untied_decoder_has_a_bias_of_its_own(folder, tmp_path):
    """`transformers` 5 reads that one alone, and 4 knows one parameter by both names."""
    arrays, old, own = arrays_of(folder), "cls.predictions.bias", "cls.predictions.decoder.bias"
    arrays |= {own: arrays[old] + 1, "cls.predictions.decoder.weight": arrays[WORDS] + 1}
    rewrite(folder, arrays)
    edit_config(folder, tie_word_embeddings=False)
    model = language.from_pretrained(folder)
    np.testing.assert_array_equal(model.bias[...], arrays[own])
    language.save_pretrained(model, tmp_path / "saved")
    saved = arrays_of(tmp_path / "saved")
    np.testing.assert_array_equal(saved[own], arrays[own])
    np.testing.assert_array_equal(saved[old], arrays[own])
    assert_same_weights(language.from_pretrained(tmp_path / "saved"), model)


def test_two_names_of_one_parameter_are_refused(folder):
    arrays = arrays_of(folder)
    rewrite(folder, arrays | {WORDS.removeprefix("nystromformer."): arrays[WORDS] + 1})
    with pytest.raises(ValueError, match=r"word_embeddings\.weight: there twice, by two names"):
        language.from_pretrained(folder)


def test_layers_without_weights_are_not_made(folder):
    """A config may ask for any number of them: no time or memory goes into those."""
    edit_config(folder, num_hidden_layers=10**9)
    with pytest.raises(ValueError, match=r"num_hidden_layers=1000000000: of \d+ arrays"):
        language.from_pretrained(folder)


def test_an_output_layer_of_its_own_is_not_taken_for_word_embeddings(folder):
    arrays = arrays_of(folder)
    arrays["cls.predictions.decoder.weight"] = arrays.pop(WORDS)
    rewrite(folder, arrays)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"word_embeddings\.weight: missing"):
        language.from_pretrained(folder, head="none")


def test_a_failed_save_leaves_the_folder_as_it_was(folder, monkeypatch):
    model = language.from_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def no_room(*_, **__):
        raise OSError("no space left on device")

    for what in ("write_text", None):
        with monkeypatch.context() as patched:
            if what:
                patched.setattr(Path, what, no_room)
            else:
                patched.setattr(weights, "write_arrays", no_room)
            with pytest.raises(OSError, match="no space"):
                language.save_pretrained(model, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_that_can_not_be_written_leave_no_part(folder, monkeypatch):
    model = language.from_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def no_room(arrays, path, metadata):
        path.write_bytes(b"half")
        raise safetensors.SafetensorError("no space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", no_room)
    with pytest.raises(OSError, match=r"model\.safetensors can't be written: no space"):
        language.save_pretrained(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_transformers_asks_of_a_folder_is_written(folder):
    edit_config(folder, dtype="float16")
    language.save_pretrained(language.from_pretrained(folder), folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    with safetensors.safe_open(folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.unchecked
def test_only_models_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"model is a dict: expected a model of nystrom\.language"):
        language.save_pretrained({}, tmp_path / "new")
    assert not any(tmp_path.iterdir())


def test_positions_are_repeated_for_longer_inputs(tmp_path):
    model = language.from_pretrained(DATA / "masked_lm", max_length=60)
    table = model.body.positions.embedding[...]
    old = language.from_pretrained(DATA / "masked_lm").body.positions.embedding[...]
    assert jnp.array_equal(table, jnp.concatenate([old, old[2:], old[2:14]]))
    assert model.config.attention == "nystrom"
    language.save_pretrained(model, tmp_path)
    assert language.from_pretrained(tmp_path).config.max_position_embeddings == 60


def test_a_table_of_another_length_than_the_configs_is_not_repeated(folder):
    edit_config(folder, max_position_embeddings=20)
    with pytest.raises(ValueError, match=r"position_embeddings\.weight: has shape \(26, 16\), exp"):
        language.from_pretrained(folder, max_length=60)


def test_a_new_head_on_old_weights():
    with pytest.raises(
        ValueError, match=r"head 'masked_lm', not 'token_classification': give rngs"
    ):
        language.from_pretrained(DATA / "masked_lm", head="token_classification")
    with pytest.raises(ValueError, match="head='tagger': expected one of none, masked_lm"):
        language.from_pretrained(DATA / "masked_lm", head="tagger")
    options = {"head": "token_classification", "num_labels": 5}
    model = language.from_pretrained(DATA / "masked_lm", rngs=nnx.Rngs(0), **options)
    body = language.from_pretrained(DATA / "masked_lm", head="none")
    assert_same_weights(model.body, body)
    with jax.enable_x64(True):
        wide = language.from_pretrained(
            DATA / "masked_lm", rngs=nnx.Rngs(0), dtype=jnp.float64, **options
        )
    assert {x.dtype for x in jax.tree.leaves(nnx.state(wide, nnx.Param))} == {np.dtype(np.float64)}
    kernel = model.out.kernel[...]
    assert kernel.shape == (16, 5) and 0.01 < kernel.std() < 0.03  # initializer_range is 0.02
    with pytest.raises(ValueError, match=r"classifier\.weight: has shape \(3, 16\), expected \(5,"):
        language.from_pretrained(DATA / "token_classification", num_labels=5)


@pytest.mark.parametrize("head", ["none", *language.HEADS])
def test_the_head_is_told_from_the_names_where_the_config_says_nothing(head, tmp_path):
    source = DATA / ("masked_lm" if head == "none" else head)
    language.save_pretrained(language.from_pretrained(source, head=head), tmp_path)
    kind = language.NystromformerModel if head == "none" else language.HEADS[head]
    for architectures in (kind.__name__ if head == "none" else [kind.ARCHITECTURE], None):
        edit_config(tmp_path, architectures=architectures)
        assert type(language.from_pretrained(tmp_path)) is kind
    if head == "masked_lm":
        rewrite(tmp_path, arrays_of(tmp_path) | {"cls.seq_relationship.weight": np.ones((2, 16))})
        with pytest.raises(ValueError, match=r"cls\.seq_relationship\.weight: unknown"):
            language.from_pretrained(tmp_path)


def test_exact_attention_is_never_the_default_of_a_config_but_that_of_a_file(tmp_path):
    assert language.LanguageConfig().attention == "nystrom"
    (tmp_path / "config.json").write_text("{}")  # which has the defaults of transformers
    assert read_config(tmp_path / "config.json")[0].attention == "softmax"


def test_attention_follows_the_file_aloud_or_what_is_asked_for(folder, tmp_path, caplog):
    def attention(**options):
        caplog.clear()
        config = language.from_pretrained(folder, **options).config
        return config.attention, config.num_landmarks, len(caplog.messages)

    caplog.set_level(logging.WARNING)
    assert attention() == ("nystrom", 8, 0)
    assert attention(num_landmarks=6) == ("nystrom", 6, 0)
    assert attention(num_landmarks=24) == ("nystrom", 24, 0)
    edit_config(folder, segment_means_seq_len=8)  # as all released models have it
    assert attention() == ("softmax", 8, 1)
    assert attention(attention="softmax") == ("softmax", 8, 0)
    assert attention(attention="nystrom") == ("nystrom", 8, 0)
    assert attention(num_landmarks=8) == ("nystrom", 8, 0)
    with pytest.raises(ValueError, match="attention='softmax' has no landmarks, num_landmarks=8"):
        language.from_pretrained(folder, attention="softmax", num_landmarks=8)
    for options in ({"attention": "softmax"}, {"num_landmarks": 24}):
        model = language.from_pretrained(folder, **options)
        language.save_pretrained(model, tmp_path / "saved")
        again = language.from_pretrained(tmp_path / "saved")
        assert again.config.attention == model.config.attention


def test_float64_without_x64_is_refused():
    assert not jax.config.jax_enable_x64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        language.from_pretrained(DATA / "masked_lm", dtype=jnp.float64)


@pytest.mark.unchecked
def test_options_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="dtype=complex64: expected one of floating-point numbers"):
        language.from_pretrained(DATA / "masked_lm", dtype="complex64")
    for dtype in (None, jnp.float8_e4m3fn):
        with pytest.raises(ValueError, match=f"dtype={jnp.dtype(dtype) if dtype else None}: expe"):
            language.from_pretrained(DATA / "masked_lm", dtype=dtype)
    with pytest.raises(TypeError, match=r"num_labels=2\.5: expected an integer"):
        language.from_pretrained(DATA / "token_classification", num_labels=2.5)
    for name in ("max_length", "num_landmarks"):
        with pytest.raises(TypeError, match=rf"{name}=2\.5: expected an integer"):
            language.from_pretrained(DATA / "masked_lm", **{name: 2.5})
    for head in (None, "none", "question_answering"):
        with pytest.raises(ValueError, match="num_labels=7: only sequence_classification and tok"):
            language.from_pretrained(DATA / "masked_lm", head=head, num_labels=7, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"rngs=0: expected nnx\.Rngs\(seed\)"):
        language.from_pretrained(DATA / "masked_lm", head="multiple_choice", rngs=0)


def test_importing_nystrom_imports_no_language_model():
    code = (
        "import sys, nystrom; assert 'nystrom.language' not in sys.modules; "
        "import nystrom.language; assert not {'safetensors', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_config_is_written_with_its_model_and_as_many_labels():
    assert language.LanguageConfig().to_dict()["model_type"] == "nystromformer"
    own = {str(i): f"no {i}" for i in range(3)}
    unread = json.dumps({"id2label": own})
    for count, expected in ((3, own), (2, {"0": "LABEL_0", "1": "LABEL_1"})):
        config = language.LanguageConfig(num_labels=count, unread=unread)
        assert config.to_dict()["id2label"] == expected
    assert config.to_dict()["label2id"] == {"LABEL_0": 0, "LABEL_1": 1}


def test_nystrom_attention_is_written_with_the_length_of_a_full_input():
    """At which `transformers` runs it; where that would say exact attention, another."""
    config = language.LanguageConfig(num_landmarks=64, segment_means_seq_len=64)
    for count, expected in ((None, 510), (510, 64)):
        assert config.with_attention("nystrom", count).segment_means_seq_len == expected
    full = language.LanguageConfig(num_landmarks=510, segment_means_seq_len=510)
    assert full.with_attention("nystrom").segment_means_seq_len == 1020


def test_padding_is_no_field_of_a_file(tmp_path):
    (tmp_path / "config.json").write_text('{"padding": "transformers", "unread": "{}"}')
    assert read_config(tmp_path / "config.json")[0].padding == "inert"
