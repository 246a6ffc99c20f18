"""The released model against `transformers`: stored outputs, and the library where it is there."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nystrom
from benchmarks import language_peer as peer
from nystrom import language
from nystrom.baselines.shared_scale import shared_scale_attention
from nystrom.language.attention import language_attention

DATA = Path(__file__).parents[2] / "data" / "language"
HEADS = tuple(language.HEADS)
COMPILE_FAST = {"xla_backend_optimization_level": 0}
OWN_SHAPES = ("multiple_choice", "float32")
TOLERANCE = {"float64": 1e-5, "float32": 1e-4}
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="requirements-language.txt"
)


def stored_inputs(stored, mode):
    return {name: stored[f"{mode}/{name}"] for name in ("tokens", "types", "labels")}


@pytest.mark.parametrize("mode", ["exact", "nystrom"])
@pytest.mark.parametrize(
    ("head", "dtype"),
    # Those whose inputs have the same shapes compile little anew.
    [(head, dtype) for head in HEADS for dtype in TOLERANCE if (head, dtype) != OWN_SHAPES],
)
def test_hidden_states_logits_and_loss_are_those_that_transformers_had(head, dtype, mode):
    stored = np.load(DATA / head / "outputs.npz", allow_pickle=False)
    inputs, mask = stored_inputs(stored, mode), stored[f"{mode}/mask"]
    assert not mask.all()
    with peer.with_x64(dtype):
        for padding, given in (("none", None), ("transformers", mask)):
            if dtype == "float32" and given is not None:
                continue
            own = "inert" if padding == "none" else padding
            ours = peer.our_outputs(peer.load_ours(DATA / head, mode, dtype, own), inputs, given)
            start = f"{mode}/{padding}/"
            theirs = {name.removeprefix(start): stored[name] for name in stored if start in name}
            assert {"logits", "loss"} <= theirs.keys()
            for name, expected in theirs.items():
                assert ours[name].dtype == dtype
                np.testing.assert_allclose(ours[name], expected, rtol=0, atol=TOLERANCE[dtype])


@needs_transformers
@pytest.mark.parametrize("mode", ["exact", "nystrom"])
@pytest.mark.parametrize("head", ["none", *HEADS])
def test_padded_is_what_transformers_has_unpadded(head, mode, tmp_path):
    """Where the peer can't be trusted with padding it is given none: ours is, and agrees."""
    peer.save_peer(head, tmp_path, seed=1)
    inputs = peer.make_inputs(head, "nystrom", seed=1)  # of one example
    mask = np.isin(np.arange(peer.LENGTH), (0, 3, 7, 8, 11, 15, 21, 23), invert=True)
    shape = inputs["tokens"].shape
    short = inputs | {name: inputs[name][..., mask] for name in ("tokens", "types")}
    if head in ("masked_lm", "token_classification"):
        short["labels"] = inputs["labels"][..., mask]
        inputs["labels"] = np.where(mask, inputs["labels"], -100)
    elif head == "question_answering":
        inputs["labels"] = np.flatnonzero(mask)[short["labels"] % mask.sum()]
        short["labels"] = short["labels"] % mask.sum()
    with peer.with_x64("float64"):
        model = peer.load_peer(head, tmp_path, mode, "float64", length=int(mask.sum()))
        theirs = peer.peer_outputs(model, head, short)
        ours = peer.our_outputs(
            peer.load_ours(tmp_path, mode, "float64"), inputs, np.broadcast_to(mask, shape)
        )
    real = ours["hidden"][..., mask, :]
    np.testing.assert_allclose(real, theirs["hidden"], rtol=0, atol=1e-5)
    assert not ours["hidden"][..., ~mask, :].any()
    if head in ("masked_lm", "token_classification", "question_answering"):
        ours["logits"] = ours["logits"][:, mask]
    for name in theirs.keys() - {"hidden"}:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)


@needs_transformers
@pytest.mark.parametrize("sizes", [{"conv_kernel_size": None}, {"tie_word_embeddings": False}])
def test_options_are_those_of_transformers(sizes, tmp_path):
    peer.save_peer("masked_lm", tmp_path, hidden_act="gelu", layer_norm_eps=1e-2, **sizes)
    inputs = peer.make_inputs("masked_lm", "nystrom")
    with peer.with_x64("float64"):
        model = peer.load_peer("masked_lm", tmp_path, "nystrom", "float64")
        theirs = peer.peer_outputs(model, "masked_lm", inputs)
        ours = peer.our_outputs(peer.load_ours(tmp_path, "nystrom", "float64"), inputs)
    assert max(peer.largest_difference(ours, theirs).values()) < 1e-5


def load(head="masked_lm", **options):
    return language.from_pretrained(DATA / head, **options)


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 40, shape))


@pytest.mark.parametrize("attention", ["softmax", "nystrom"])
def test_padding_changes_no_real_token(attention):
    """Nor does another example, and one without a real token is zeros."""
    model, short = load(attention=attention, max_length=31).body, tokens(1, 24)
    where = np.sort(np.random.default_rng(1).permutation(31)[:24])
    mask = jnp.zeros((2, 31), bool).at[0, where].set(True)
    padded = tokens(2, 31, seed=2).at[0, where].set(short[0])
    found = model(padded, mask)
    np.testing.assert_allclose(found[:1, where], model(short), atol=2e-5)
    assert not found[~mask].any()
    assert model(padded[:0], mask[:0]).shape == (0, 31, 16)


@pytest.mark.parametrize("head", HEADS)
def test_padding_changes_no_logits_of_a_head(head):
    model, rng = load(head, attention="softmax"), np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 3, 9, 16)), jnp.float32)
    mask = np.arange(9) % 4 != 0
    found = model.logits(hidden, jnp.broadcast_to(jnp.asarray(mask), (2, 3, 9)))
    expected = model.logits(hidden[..., mask, :])
    if head in ("masked_lm", "token_classification", "question_answering"):
        if head == "question_answering":
            places = jnp.asarray(rng.integers(0, mask.sum(), (2, 3, 2)))
            loss = model.loss(found, jnp.asarray(np.flatnonzero(mask))[places])
            np.testing.assert_allclose(loss, model.loss(expected, places), rtol=1e-5)
        found = found[..., mask, :]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def qkv(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)]


def test_padding_changes_no_gradient():
    mask = jnp.arange(12) % 4 != 1
    arrays = qkv(12, 2, 4)

    def gradient(mask, *arrays):
        def loss(arrays):
            return (shared_scale_attention(*arrays, mask, 4) ** 2).sum()

        return jax.jit(jax.grad(loss), compiler_options=COMPILE_FAST)(arrays)

    found = gradient(mask, *arrays)
    expected = gradient(None, *(x[mask] for x in arrays))
    for padded, short in zip(found, expected, strict=True):
        np.testing.assert_allclose(padded[mask], short, atol=2e-5)
        assert not padded[~mask].any()


def test_with_one_head_the_scale_is_its_own():
    options = {"num_landmarks": 8, "implementation": "plain"}
    for heads, alike in ((1, True), (2, False)):
        arrays = qkv(1, 24, heads, 8)
        found = shared_scale_attention(*arrays, None, 8)
        difference = np.abs(found - nystrom.nystrom_attention(*arrays, **options)).max()
        assert (difference < 1e-5) == alike


def test_half_precision_keeps_the_digits_of_what_is_summed():
    arrays = [x.astype(jnp.bfloat16) for x in qkv(1, 24, 2, 8)]
    found = shared_scale_attention(*arrays, None, 8)
    assert found.dtype == jnp.bfloat16
    wide = shared_scale_attention(*(x.astype(jnp.float32) for x in arrays), None, 8)
    assert np.abs(np.asarray(found, np.float32) - wide).max() < 2e-2


def test_a_scale_of_each_matrix_changes_something():
    """`inv_coeff_init_option`, which `transformers` declares and can't run."""
    config = language.LanguageConfig(**peer.TINY)
    own = dataclasses.replace(config, inv_coeff_init_option=True)
    arrays = qkv(1, 24, 2, 8)
    one, other = (language_attention(*arrays, None, x) for x in (config, own))
    assert np.abs(one - other).max() > 1e-4
    expected = nystrom.nystrom_attention(*arrays, num_landmarks=8)
    np.testing.assert_array_equal(other, expected)


def test_nystrom_forms_nothing_quadratic_and_exact_does():
    def jaxpr(**options):
        model = load(max_length=509, **options)
        return str(jax.make_jaxpr(lambda x: model.body(x))(tokens(509)))

    assert "509,509" not in jaxpr(num_landmarks=8)
    assert "509,509" in jaxpr(attention="softmax")
