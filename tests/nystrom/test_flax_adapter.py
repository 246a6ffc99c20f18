"""`attention_fn` inside Flax's own multi-head attention, NNX and Linen."""

import pickle

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from inputs import equations, jitted, mask_with, normal

from nystrom import attention_fn, cross_attention_fn, nystrom_attention


def nnx_module(attend, **options):
    return nnx.MultiHeadAttention(
        num_heads=2,
        in_features=8,
        attention_fn=attend,
        decode=False,
        deterministic=options.pop("deterministic", True),
        rngs=nnx.Rngs(0),
        **options,
    )


def linen_apply(attend, *inputs, mask=None, **options):
    module = nn.MultiHeadDotProductAttention(
        num_heads=2,
        attention_fn=attend,
        deterministic=options.pop("deterministic", True),
        **options,
    )

    @jitted
    def call(*inputs):
        params = module.init(jax.random.key(0), *inputs)
        return module.apply(params, *inputs, mask=mask, rngs={"dropout": jax.random.key(1)})

    return call(*inputs)


def nnx_apply(attend, *inputs, mask=None, **options):
    module = nnx_module(attend, **options)

    @jitted
    def call(*inputs):
        return module(*inputs, mask=mask, rngs=nnx.Rngs(1))

    return call(*inputs)


@pytest.mark.parametrize("apply", [nnx_apply, linen_apply])
class TestBothModules:
    attend = staticmethod(attention_fn(num_landmarks=4))

    def test_padded_equals_unpadded(self, apply):
        mask = np.stack([mask_with(7, 12, "holes"), mask_with(12, 12, "holes")])
        x = normal(0, 2, 12, 8)
        out = apply(self.attend, x, mask=mask[:, None, None, :])
        alone = apply(self.attend, x[:1, mask[0]])
        np.testing.assert_allclose(out[0, mask[0]], alone[0], atol=2e-5)
        unmasked = apply(self.attend, x)
        np.testing.assert_allclose(out[1], unmasked[1], atol=2e-5)
        assert np.abs(out[0] - unmasked[0])[mask[0]].max() > 1e-3
        as_numbers = apply(self.attend, x, mask=mask[:, None, None, :].astype(np.float32))
        np.testing.assert_array_equal(as_numbers, out)

    def test_cross_attention(self, apply):
        q, k = normal(1, 2, 5, 8), normal(2, 2, 9, 8)
        mask = np.stack([mask_with(9, 9, "holes"), mask_with(6, 9, "holes")])
        attend = cross_attention_fn(num_landmarks=4)
        out = apply(attend, q, k, mask=mask[:, None, None, :])
        alone = apply(attend, q[1:], k[1:, mask[1]])
        np.testing.assert_allclose(out[1], alone[0], atol=2e-5)

    def test_a_mask_over_pairs_is_refused(self, apply):
        x = normal(3, 2, 12, 8)
        for mask in (
            nn.make_causal_mask(x[..., 0]),
            nn.make_attention_mask(np.ones((2, 12)), np.ones((2, 12))),
            np.ones((2, 2, 1, 12), bool),
            np.ones((3, 1, 1, 12), bool),
        ):
            with pytest.raises(ValueError, match=r"mask has shape .*padding masks only"):
                apply(self.attend, x, mask=mask)

    def test_dropout_of_weights_is_refused(self, apply):
        x = normal(4, 2, 12, 8)
        with pytest.raises(ValueError, match=r"dropout_rate=0.5: .*no attention weights"):
            apply(self.attend, x, dropout_rate=0.5, deterministic=False)
        quiet = apply(self.attend, x, dropout_rate=0.5, deterministic=True)
        np.testing.assert_array_equal(quiet, apply(self.attend, x))

    def test_options_reach_the_attention(self, apply):
        x = normal(5, 2, 12, 8)
        out = apply(self.attend, x)
        for options in (
            {"num_landmarks": 3},
            {"num_landmarks": 4, "pinv_iterations": 4},
            {"num_landmarks": 4, "pinv": "chebyshev"},
        ):
            assert np.abs(apply(attention_fn(**options), x) - out).max() > 1e-4


def test_two_documents_are_cross_attention():
    """`attention_fn`'s mask is both's, `cross_attention_fn`'s the keys': no shape decides."""
    q, k, v = normal(6, 1, 9, 2, 4), normal(7, 1, 9, 2, 4), normal(8, 1, 9, 2, 4)
    mask = mask_with(5, 9, "trailing")[None]
    tied = jitted(attention_fn(num_landmarks=4))(q, k, v, mask=mask[:, None, None, :])
    np.testing.assert_array_equal(tied[~mask], 0)
    free = cross_attention_fn(num_landmarks=4)(q, k, v, mask=mask[:, None, None, :])
    expected = nystrom_attention(q, k, v, key_mask=mask, num_landmarks=4)
    np.testing.assert_allclose(free, expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"attention_fn is self-attention.*cross_attention_fn"):
        attention_fn(num_landmarks=4)(q[:, :7], k, v, mask=mask[:, None, None, :])


@pytest.mark.parametrize("lowest", [-1e9, -np.inf, np.finfo(np.float32).min])
def test_additive_masks_are_refused(lowest):
    """Taken for a padding mask it would mean its contrary; also where jit hides its numbers."""
    q, mask = normal(6, 1, 9, 2, 4), mask_with(5, 9, "trailing")[None, None, None]
    additive = np.where(mask, 0, lowest).astype(np.float32)
    attend = attention_fn(num_landmarks=4)
    for call in (attend, jax.jit(attend)):
        with pytest.raises(ValueError, match="mask has dtype float32: expected bool"):
            call(q, q, q, mask=additive)
    expected = attend(q, q, q, mask=mask)
    for numbers in (mask.astype(np.float32), mask.astype(np.int32)):
        np.testing.assert_allclose(attend(q, q, q, mask=numbers), expected, atol=1e-6)
    with pytest.raises(ValueError, match="mask has dtype float32"):
        jax.jit(attend)(q, q, q, mask=mask.astype(np.float32))
    with pytest.raises(ValueError, match="mask has dtype float32"):
        attend(q, q, q, mask=np.zeros_like(additive))  # to be added, where nothing is padding
    asked_for = jax.jit(attention_fn(num_landmarks=4, float_masks=True))
    np.testing.assert_allclose(asked_for(q, q, q, mask=mask * 1.0), expected, atol=1e-6)
    with pytest.raises(ValueError, match="mask has dtype int32"):
        attend(q, q, q, mask=mask.astype(np.int32) - 1)


@pytest.mark.parametrize("make", [attention_fn, cross_attention_fn])
def test_modules_that_hold_it_are_alike_and_can_be_pickled(make):
    """So that equal models share compiled programs."""
    graph, _ = nnx.split(nnx_module(make(num_landmarks=4)))
    for alike in (
        nnx.split(nnx_module(make(num_landmarks=4)))[0],
        pickle.loads(pickle.dumps(graph)),
    ):
        assert alike == graph and hash(alike) == hash(graph)
    assert nnx.split(nnx_module(make(num_landmarks=5)))[0] != graph
    assert attention_fn() != cross_attention_fn()


def test_only_what_flax_sends_is_taken():
    """Names that Flax never sends are errors, and what can't be honoured is refused."""
    q, attend = normal(9, 1, 6, 2, 4), attention_fn(num_landmarks=4)
    for name in ("num_landmark", "key_mask", "sow_weights", "decode"):
        with pytest.raises(TypeError, match=name):
            attend(q, q, q, **{name: None})
    with pytest.raises(ValueError, match="sow_weights=True: "):
        attend(q, q, q, module=object())
    with pytest.raises(ValueError, match="sow_weights=True: "):
        nnx_module(attend)(normal(3, 2, 12, 8), sow_weights=True)
    with pytest.raises(ValueError, match="qk_attn_weights_einsum"):
        attend(q, q, q, qk_attn_weights_einsum=np.einsum)
    decoding = nnx_module(attend)
    decoding.decode = True
    decoding.init_cache((2, 12, 8))
    with pytest.raises(ValueError, match="can't decode step by step"):
        decoding(normal(3, 2, 1, 8))
    quiet = attend(q, q, q, broadcast_dropout=False, dtype=np.float32, force_fp32_for_softmax=True)
    np.testing.assert_array_equal(quiet, attend(q, q, q))
    exact = attend(q, q, q, precision=jax.lax.Precision.HIGHEST)
    np.testing.assert_allclose(exact, attend(q, q, q, precision="float32"), atol=1e-6)


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["is_causal", "dropout_rate", "deterministic"])
def test_traced_options_are_named(name):
    q, attend = normal(9, 1, 6, 2, 4), attention_fn(num_landmarks=4)
    options = {"dropout_rate": 0.5, "deterministic": False} if name == "dropout_rate" else {}
    value = {"is_causal": False, "dropout_rate": 0.0, "deterministic": True}[name]

    def call(q, value):
        return attend(q, q, q, **options | {name: value})

    with pytest.raises(TypeError, match=f"{name} is traced: it must be known when compiling"):
        jax.jit(call)(q, value)
    jax.jit(call, static_argnums=1)(q, value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_landmarks": 0}, ValueError, "num_landmarks=0: at least 1"),
        ({"num_landmarks": 8.0}, TypeError, "num_landmarks=8.0: expected an integer"),
        ({"num_landmarks": None}, TypeError, "num_landmarks=None: expected an integer"),
        ({"num_landmarks": True}, TypeError, "num_landmarks=True: expected an integer"),
        ({"pinv_iterations": 0}, ValueError, "pinv_iterations=0: at least 1"),
        ({"pinv": "x"}, ValueError, "pinv='x': expected one of iterative, chebyshev"),
        (
            {"implementation": "x"},
            ValueError,
            "implementation=.x.: expected one of plain, tiled, pallas",
        ),
    ],
)
@pytest.mark.unchecked
def test_options_are_checked_where_given(options, error, message):
    q = normal(9, 6, 2, 4)
    for make in (attention_fn, cross_attention_fn, lambda **o: nystrom_attention(q, q, q, **o)):
        with pytest.raises(error, match=message):
            make(**options)


def test_bias_and_causal_use_are_refused():
    q = normal(9, 1, 6, 2, 4)
    attend = attention_fn(num_landmarks=4)
    with pytest.raises(ValueError, match="bias: "):
        attend(q, q, q, bias=np.zeros((1, 2, 6, 6)))
    with pytest.raises(ValueError, match="is_causal=True"):
        attend(q, q, q, is_causal=True)


def test_a_mask_that_is_no_array_is_refused():
    q = normal(9, 1, 6, 2, 4)
    with pytest.raises(TypeError, match="mask has type list: expected a bool array"):
        attention_fn(num_landmarks=4)(q, q, q, mask=[[[[True] * 6]]])


def test_no_batch_dimension_and_several():
    x = normal(10, 2, 3, 6, 2, 4)
    mask = np.stack([mask_with(n, 6, "holes") for n in range(1, 7)]).reshape(2, 3, 6)
    attend = jitted(attention_fn(num_landmarks=4))
    out = attend(x, x, x, mask=mask[:, :, None, None, :])
    one = attend(x[1, 0], x[1, 0], x[1, 0], mask=mask[1, 0][None, None, :])
    np.testing.assert_allclose(out[1, 0], one, atol=2e-5)


def test_every_precision_that_flax_knows():
    x = jax.random.normal(jax.random.key(0), (1, 8, 2, 4))
    attend, highest = attention_fn(4), jax.lax.Precision.HIGHEST
    expected = attend(x, x, x, precision="highest")
    for precision in (highest, (highest, highest), jax.lax.DotAlgorithmPreset.F32_F32_F32):
        np.testing.assert_allclose(attend(x, x, x, precision=precision), expected, atol=1e-5)
    for precision in ("fastest", jax.lax.DotAlgorithmPreset.DEFAULT):
        assert np.isfinite(attend(x, x, x, precision=precision)).all()
    with pytest.raises(ValueError, match=r"precision=.*the same for both operands"):
        attend(x, x, x, precision=("highest", "default"))


def test_one_mask_may_be_that_of_all_examples():
    x, mask = normal(10, 2, 3, 6, 2, 4), mask_with(4, 6, "holes")[None, None, None]
    attend = jitted(attention_fn(num_landmarks=4))
    whole = np.broadcast_to(mask, (2, 3, 1, 1, 6))
    for one in (mask[None], np.broadcast_to(mask, (1, 3, 1, 1, 6))):
        np.testing.assert_array_equal(attend(x, x, x, mask=one), attend(x, x, x, mask=whole))


def test_integers_that_jit_hides_are_0_and_1():
    q, mask = normal(6, 1, 9, 2, 4), mask_with(5, 9, "trailing")[None, None, None]
    attend = jax.jit(attention_fn(num_landmarks=4))
    expected = attend(q, q, q, mask=mask)
    np.testing.assert_array_equal(attend(q, q, q, mask=mask.astype(np.int32)), expected)


def test_flaxs_precision_reaches_the_products():
    x, attend = normal(0, 8, 2, 4), attention_fn(4, implementation="plain")

    def of_tokens(precision):
        program = jax.make_jaxpr(lambda x: attend(x, x, x, precision=precision))(x)
        found = equations(program.jaxpr, "dot_general")
        long = (each for each in found if any(8 in x.aval.shape for x in each.invars))
        return {str(each.params["precision"]) for each in long}

    default, highest = jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST
    assert of_tokens(None) == of_tokens("highest") == of_tokens(highest) == {str((highest,) * 2)}
    for precision in ("default", "fastest", default, (default, default)):
        assert of_tokens(precision) == {str((default,) * 2)}
