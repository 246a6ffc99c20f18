"""What is computed in which type: products, sums, angles, losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import equations, normal, random_inputs

import nystrom
from nystrom import language
from nystrom.kernels import convolution
from nystrom.language.losses import binary_cross_entropy
from nystrom.layers import rotate


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


@pytest.mark.parametrize("mask", [None, "a third is padding"])
@pytest.mark.parametrize("form", ["plain", "tiled"])
def test_features_far_from_zero_cost_halves_no_digits(form, mask):
    """As transformers have some: what all keys share changes no softmax, and is not rounded."""
    q, k, v = (normal(seed, 1, 384, 2, 64) for seed in range(3))
    q, k = (x + 40 * (np.arange(64) < 2).astype(np.float32) for x in (q, k))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    options = {"num_landmarks": 32, "mask": mask and np.arange(384)[None] % 3 > 0}
    out = nystrom.nystrom_attention(q, k, v, implementation=form, **options)
    with jax.enable_x64(True):
        wide = (np.asarray(x, np.float64) for x in (q, k, v))
        exact = np.asarray(nystrom.nystrom_attention(*wide, implementation="plain", **options))
    error = np.linalg.norm(np.asarray(out, np.float64) - exact) / np.linalg.norm(exact)
    assert error < 2**-7  # of bfloat16's 2^-8


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
