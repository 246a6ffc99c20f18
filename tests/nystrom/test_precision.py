"""What is computed in which type: products, sums, angles, losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import equations, normal, random_inputs

import nystrom
from nystrom import language
from nystrom.baselines.shared_scale import authors_attention
from nystrom.kernels import convolution
from nystrom.language.losses import binary_cross_entropy
from nystrom.layers import Logits, gelu, rotate


def test_float32_is_multiplied_in_float32():
    q, k, v = random_inputs(9)
    filters = normal(0, 2, 3)
    for run in (
        lambda: nystrom.nystrom_attention(q, k, v, num_landmarks=4, implementation="plain"),
        lambda: nystrom.softmax_attention(q, k, v, implementation="plain"),
        lambda: nystrom.depthwise_convolution(v, filters, implementation="plain"),
    ):
        program = jax.make_jaxpr(run)().jaxpr
        found = [*equations(program, "dot_general"), *equations(program, "conv_general_dilated")]
        assert {each.params["precision"] for each in found} == {(jax.lax.Precision.HIGHEST,) * 2}


@pytest.mark.parametrize("form", ["plain", "tiled"])
@pytest.mark.parametrize("attend", [nystrom.nystrom_attention, nystrom.softmax_attention])
def test_keys_wider_than_queries_keep_their_digits(attend, form):
    q, k, v = random_inputs(7, length=60)
    k = k + 30  # which half precision rounds by 1/8
    q = q.astype(jnp.bfloat16)
    out = attend(q, k, v, implementation=form)
    exact = attend(q.astype(np.float32), k, v, implementation=form)
    assert out.dtype == jnp.bfloat16
    scale = np.abs(exact).max()
    assert np.abs(out.astype(np.float32) - exact).max() < 2**-8 * scale


def beside_float64(function, *halves):
    """Errors of a function's results, relative to float64's of the same numbers."""
    found = function(*halves)
    with jax.enable_x64(True):
        exact = function(*(np.asarray(x, np.float64) for x in halves))
    pairs = zip(*map(jax.tree.leaves, (found, exact)), strict=True)
    pairs = ([np.asarray(x, np.float64) for x in pair] for pair in pairs)
    return [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in pairs]


def far_from_zero(length=384, **offsets):
    """Query, key and value in bfloat16, of which two features have an offset, as transformers' have
    some."""
    tokens = {name: normal(seed, 1, length, 2, 64) for seed, name in enumerate("qkv")}
    first = (np.arange(64) < 2).astype(np.float32)
    return [
        jnp.asarray(x + offsets.get(name, 0) * first, jnp.bfloat16) for name, x in tokens.items()
    ]


@pytest.mark.parametrize("mask", [None, "a third is padding"])
@pytest.mark.parametrize("form", ["plain", "tiled", "authors"])
def test_features_far_from_zero_cost_halves_no_digits(form, mask):
    """What all keys share changes no softmax, and is not rounded."""
    options = {"num_landmarks": 32, "mask": mask and np.arange(384)[None] % 3 > 0}
    attend = partial(nystrom.nystrom_attention, implementation=form)
    attend = authors_attention if form == "authors" else attend
    (error,) = beside_float64(partial(attend, **options), *far_from_zero(q=40, k=40))
    assert error < 2**-7  # of bfloat16's 2^-8


@pytest.mark.parametrize("form", ["plain", "tiled"])
def test_forward_mode_has_the_digits_that_values_have(form):
    def along(q, k, v):
        attend = partial(nystrom.nystrom_attention, num_landmarks=32, implementation=form)
        return jax.jvp(lambda q: attend(q, k, v), (q,), (jnp.ones_like(q),))[1]

    (error,) = beside_float64(along, *far_from_zero(q=40, k=40))
    assert error < 2**-5


def gradients_of(attend, cotangent, **options):
    """Of query, key and value the gradients by them, where the result's is `cotangent`."""

    def gradients(*inputs):
        def total(*inputs):
            out = attend(*inputs, implementation="plain")
            wide = jnp.promote_types(out.dtype, jnp.float32)
            return (out.astype(wide) * jnp.asarray(cotangent, wide)).sum()

        return jax.jit(jax.grad(total, (0, 1, 2)), **options)(*inputs)

    return gradients


@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize(
    ("attend", "bound"),
    [(nystrom.nystrom_attention, 2**-6), (nystrom.softmax_attention, 2**-8)],
)
def test_what_values_share_costs_gradients_no_digits(attend, bound, offset):
    q, k, v = far_from_zero(1024)
    v = (v + offset).astype(v.dtype)
    assert max(beside_float64(gradients_of(attend, normal(3, *v.shape)), q, k, v)) < bound


@pytest.mark.parametrize(
    ("offsets", "bound"), [({}, 0.01), ({"q": 40, "k": 40}, 0.02), ({"v": 300}, 0.01)]
)
def test_gradients_keep_their_digits_where_every_conversion_rounds(offsets, bound):
    """As on a GPU; XLA leaves some out for a CPU, unless it is told not to."""
    as_written = {"xla_allow_excess_precision": False}
    inputs = far_from_zero(512, **offsets)
    cotangent = normal(3, *inputs[0].shape)
    gradients = gradients_of(nystrom.nystrom_attention, cotangent, compiler_options=as_written)
    assert max(beside_float64(gradients, *inputs)) < bound


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_float16_has_gradients_of_long_sequences(scale):
    """A weight of 8,192 is below what it has digits for, times a small cotangent below all; beside
    an example of a large one."""
    inputs = [x.astype(np.float16) for x in random_inputs(3, 2, length=8, key_length=8192)]
    cotangent = np.array([scale, 1e4])[:, None, None, None] * normal(9, *inputs[0].shape)
    gradients = gradients_of(nystrom.softmax_attention, cotangent)
    wide = gradients(*(x.astype(np.float32) for x in inputs))
    pairs = zip(gradients(*inputs), wide, strict=True)
    for x, exact in ((x[i], y[i]) for x, y in pairs for i in range(2)):
        rounding = 2.0**-25 * x.size**0.5  # of numbers as small as float16 has them
        error = np.linalg.norm(x.astype(np.float32) - exact)
        assert error < 0.005 * np.linalg.norm(exact) + rounding


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_weights_are_kept_once_for_gradients_in_the_inputs_dtype(dtype):
    inputs = (normal(seed, 60, 2, 8).astype(dtype) for seed in range(3))
    attend = partial(nystrom.nystrom_attention, num_landmarks=12, implementation="plain")
    _, back = jax.vjp(attend, *inputs)
    weights = [x for x in jax.tree.leaves(back) if x.size == 60 * 2 * 12]
    assert [x.dtype for x in weights] == [dtype, dtype]  # F and G


def test_logits_of_tokens_are_not_rounded():
    encoder = nystrom.Encoder(50, 20, width=8, num_layers=1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model = nystrom.TokenPredictor(encoder, 50, dtype=jnp.bfloat16, rngs=nnx.Rngs(1))
    hidden = jnp.asarray(50 * normal(0, 2, 9, 8), jnp.bfloat16)
    table = encoder.token_embed.embedding[...].astype(jnp.bfloat16)
    exact = np.asarray(hidden[:, :1], np.float64) @ np.asarray(table, np.float64).T
    found = model.token_logits(hidden, np.zeros((2, 1), np.int32))
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


def test_logits_of_classes_are_not_rounded():
    logits = Logits(8, 5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    hidden = jnp.asarray(50 * normal(0, 3, 8), jnp.bfloat16)
    kernel = np.asarray(logits.kernel[...].astype(jnp.bfloat16), np.float64)
    exact = np.asarray(hidden, np.float64) @ kernel + np.asarray(logits.bias[...], np.float64)
    found = logits(hidden)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max())


def test_the_far_end_of_a_gelu_keeps_its_digits():
    x = jnp.linspace(-3, -2, 100, dtype=jnp.bfloat16)
    exact = gelu(np.asarray(x, np.float32))
    np.testing.assert_allclose(gelu(x).astype(np.float32), exact, rtol=2**-6)


def test_gradients_of_halves_without_a_real_key_are_zeros():
    inputs = [normal(seed, 6, 1, 4).astype(jnp.bfloat16) for seed in range(3)]

    def total(*inputs):
        options = {"key_mask": np.zeros(6, bool), "num_landmarks": 2, "implementation": "plain"}
        out = nystrom.nystrom_attention(*inputs, **options)
        return out.sum(dtype=jnp.float32)

    for gradient in jax.jit(jax.grad(total, (0, 1, 2)))(*inputs):
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0)


def test_the_widest_dtype_of_inputs_is_computed_in():
    with jax.enable_x64(True):
        q, k, v = random_inputs(7, dtype=np.float64)
        q = q.astype(np.float32)
        out = nystrom.linear_attention(q, k, v)
        exact = nystrom.linear_attention(q.astype(np.float64), k, v)
        assert out.dtype == np.float32
        np.testing.assert_array_equal(out, exact.astype(np.float32))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("form", [convolution.tiled, convolution.fused])
def test_halves_are_summed_in_float32(form, dtype):
    value, filters = (x.astype(dtype) for x in (normal(0, 2, 90, 2, 4), normal(1, 2, 35)))
    out = form(value, filters)
    assert out.dtype == dtype
    exact = form(value.astype(np.float32), filters.astype(np.float32))
    epsilon = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=epsilon, atol=1e-5)


def test_filters_wider_than_values_keep_their_digits():
    value, filters = normal(0, 2, 90, 2, 4).astype(jnp.bfloat16), normal(1, 2, 35)
    exact = nystrom.depthwise_convolution(value.astype(np.float32), filters)
    for form in ("plain", "tiled"):
        out = nystrom.depthwise_convolution(value, filters, implementation=form)
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_angles_of_half_precision_are_float32s(dtype):
    x, rank = normal(0, 4, 1, 8).astype(dtype), np.array([1001, 2049, 4093, 70_001])
    expected = rotate(x.astype(np.float32), rank)
    found = rotate(jnp.asarray(x), rank)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.05)


@pytest.mark.unchecked
def test_losses_of_half_precision_are_float32():

    logits = jnp.asarray(normal(1, 40, 300), jnp.bfloat16)
    labels = jnp.asarray(np.random.default_rng(0).integers(0, 300, 40))
    wide = logits.astype(jnp.float32)
    assert language.cross_entropy(logits, labels) == language.cross_entropy(wide, labels)
    yes = (wide > 0.3).astype(jnp.float32)
    assert binary_cross_entropy(logits, yes) == binary_cross_entropy(wide, yes)
