"""Every attention by its name, as layers of the encoder."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import jitted, mask_with, normal

import nystrom
from nystrom.attention import softmax_attention
from nystrom.registry import Attention
from nystrom.self_attention import Bound

LENGTH = 14


def make_encoder(name, *, seed=0, **options):
    rngs = nnx.Rngs(0)
    small = {
        "num_landmarks": 4,
        "num_features": 16,
        "projection_length": 6,
        "bucket_size": 4,
    }
    known = nystrom.ATTENTIONS[name].options if name in nystrom.ATTENTIONS else ()
    options = {key: value for key, value in small.items() if key in known} | options
    make_attention = nystrom.self_attention_maker(
        name, 8, 2, max_length=24, seed=seed, rngs=rngs, **options
    )
    return nystrom.Encoder(
        12, 24, width=8, mlp_width=16, num_heads=2, make_attention=make_attention, rngs=rngs
    )


def num_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def run(model, tokens, mask=None):
    return jitted(lambda tokens, mask: model(tokens, mask))(tokens, mask)


@pytest.mark.parametrize("name", nystrom.ATTENTIONS)
class TestEveryName:
    def test_padding_never_changes_a_document(self, name):
        model = make_encoder(name)
        tokens = np.random.default_rng(0).integers(0, 12, (1, 9), np.int32)
        mask = mask_with(9, LENGTH, "holes")
        padded = np.full((1, LENGTH), 3, np.int32)
        padded[:, mask] = tokens
        out = run(model, padded, mask[None])
        np.testing.assert_allclose(out[:, mask], run(model, tokens), atol=2e-5)

    def test_what_is_allowed_is_of_options_that_it_has(self, name):
        entry = nystrom.ATTENTIONS[name]
        assert entry.allowed.keys() <= entry.options.keys()
        nystrom.self_attention_maker(name, 8, 2, max_length=24, rngs=nnx.Rngs(0))  # its defaults

    def test_parameters_are_those_of_softmax(self, name):
        """The paper's model for ListOps: within a tenth of softmax's but for what a method adds."""
        counts = {}
        for each in (name, "softmax"):
            maker = nystrom.self_attention_maker(each, 64, 2, max_length=2048, rngs=nnx.Rngs(0))
            counts[each] = num_parameters(
                nystrom.Encoder(16, 2048, make_attention=maker, rngs=nnx.Rngs(0))
            )
        added = 2 * 256 * 2048 if name == "linformer" else 0
        assert abs(counts[name] - added - counts["softmax"]) <= 0.1 * counts["softmax"]

    def test_state_is_parameters_alone(self, name):
        """Nothing but parameters to train or save: constants follow from the seed."""
        model = make_encoder(name)
        leaves = jax.tree.leaves(nnx.state(model))
        assert len(leaves) == len(jax.tree.leaves(nnx.state(model, nnx.Param)))
        jax.eval_shape(lambda: nnx.state(make_encoder(name)))


def test_linformer_layers_share_one_projection():
    model = make_encoder("linformer")
    one, other = (block.attention.attention for block in model.blocks)
    assert one.projection is other.projection
    assert num_parameters(model) - num_parameters(make_encoder("softmax")) == 2 * 6 * 24


def test_nystrom_alone_has_the_convolution_unless_asked():
    for name in nystrom.ATTENTIONS:
        filters = [
            make_encoder(name, conv_kernel_size=k).blocks[0].attention.filters for k in (None, 0, 5)
        ]
        assert (filters[0] is not None) == (name == "nystrom")
        assert filters[1] is None
        assert filters[2].shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nystrom", {"num_landmarks": 5}),
        ("nystrom", {"pinv_iterations": 5}),
        ("nystrom", {"pinv": "chebyshev"}),
        ("nystrom", {"conv_kernel_size": 3}),
        ("nystrom", {"padding": "authors"}),
        ("performer", {"num_features": 8}),
        ("performer", {"feature_kernel": "softmax"}),
        ("performer", {"seed": 1}),
        ("linformer", {"projection_length": 5}),
        ("reformer", {"num_hashes": 1}),
        ("reformer", {"bucket_size": 8}),
        ("reformer", {"seed": 1}),
    ],
)
def test_every_option_changes_something(name, options):
    tokens = np.random.default_rng(1).integers(0, 12, (1, LENGTH), np.int32)
    change = run(make_encoder(name, **options), tokens) - run(make_encoder(name), tokens)
    assert np.abs(change).max() > 1e-5


@pytest.mark.parametrize(
    ("wrong", "gave"),
    [
        (lambda query, key, value, **masks: jnp.swapaxes(value, 1, 2), r"float32\[2, 2, 14, 4\]"),
        (lambda query, key, value, **masks: value.astype(jnp.bfloat16), r"bfloat16\[2, 14, 2, 4\]"),
        (lambda query, key, value, **masks: None, "NoneType"),
    ],
)
@pytest.mark.unchecked
def test_an_attention_that_gives_something_else_is_refused(monkeypatch, wrong, gave):
    monkeypatch.setitem(nystrom.ATTENTIONS, "wrong", Attention(lambda setting: wrong))
    with pytest.raises(TypeError, match=rf"gave {gave}, expected float32\[2, 14, 2, 4\]"):
        jax.eval_shape(make_encoder("wrong"), np.ones((2, LENGTH), np.int32))


@pytest.mark.parametrize(
    ("value", "error"), [(0.5, ValueError), (math.nan, ValueError), ("2", TypeError)]
)
def test_an_option_may_be_a_real_number_with_a_bound(monkeypatch, value, error):
    entry = Attention(
        lambda setting, strength: softmax_attention, {"strength": 2.0}, {"strength": 1}
    )
    monkeypatch.setitem(nystrom.ATTENTIONS, "sharp", entry)
    make_encoder("sharp", strength=1.5)
    with pytest.raises(error, match=r"strength=.*at least 1"):
        make_encoder("sharp", strength=value)


def test_what_is_no_attention_is_refused():
    with pytest.raises(ValueError, match="num_heads=0: at least 1"):
        nystrom.self_attention_maker("softmax", 64, 0, max_length=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="attention='cosine': expected one of linear, linformer"):
        make_encoder("cosine")


def test_linformers_projection_starts_as_the_authors_does():
    make = nystrom.ATTENTIONS["linformer"].make
    setting = nystrom.registry.Setting(4, 2, 100, 0, None, nnx.Rngs(0))
    assert np.std(make(setting, 50).projection[...]) == pytest.approx(0.02, rel=0.05)


def test_the_authors_padding_takes_their_options_alone():
    def make(**options):
        return nystrom.self_attention_maker(
            "nystrom", 8, 2, max_length=24, padding="authors", rngs=nnx.Rngs(0), **options
        )

    for options in ({"pinv": "chebyshev"}, {"axis_name": "sequence"}):
        with pytest.raises(ValueError, match="padding='authors' needs pinv='iterative' and whole"):
            make(**options)
    x = normal(0, 1, 14, 8)
    one, other = (make(pinv_iterations=n)(nnx.Rngs(0))(x) for n in (6, 4))
    assert np.abs(one - other).max() > 1e-4


def test_a_padding_that_there_is_not_is_refused():
    for name, option in (
        ("nystrom", "padding"),
        ("nystrom", "pinv"),
        ("performer", "feature_kernel"),
    ):
        with pytest.raises(ValueError, match=f"{option}='x': expected one of"):
            nystrom.self_attention_maker(
                name, 8, 2, max_length=24, rngs=nnx.Rngs(0), **{option: "x"}
            )


def test_sequences_are_cut_for_nystrom_alone():
    for name in nystrom.ATTENTIONS.keys() - {"nystrom"}:
        with pytest.raises(
            ValueError, match=f"'{name}' can't have its sequences cut over devices: nystrom can"
        ):
            nystrom.self_attention_maker(
                name, 8, 2, max_length=24, axis_name="sequence", rngs=nnx.Rngs(0)
            )


def test_a_bucket_may_be_larger_than_any_sequence():
    setting = nystrom.registry.Setting(4, 2, 24, 0, None, nnx.Rngs(0))
    attend = nystrom.ATTENTIONS["reformer"].make(setting, num_hashes=2, bucket_size=64)
    assert jax.eval_shape(attend, *[normal(0, 5, 2, 4)] * 3).shape == (5, 2, 4)


def test_bound_functions_are_equal_however_their_options_are_ordered():
    one = Bound.of(softmax_attention, scale=0.5, is_causal=True)
    assert one == Bound.of(softmax_attention, is_causal=True, scale=0.5)
    assert one != Bound.of(softmax_attention, is_causal=True, scale=0.4)
