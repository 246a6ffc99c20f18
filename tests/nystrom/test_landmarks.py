"""Landmarks against a loop over segments."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import jitted, mask_with, normal

from nystrom import landmarks, segment_means
from nystrom.kernels import tiled

means = jitted(segment_means, static_argnums=1)


def loop(x, num_landmarks, mask):
    """Segment means of one example *N H D, as the docstring words them."""
    real = x[mask]
    landmarks = np.zeros((num_landmarks, *x.shape[1:]), x.dtype)
    sizes = [
        len(real) // num_landmarks + (i < len(real) % num_landmarks) for i in range(num_landmarks)
    ]
    start = 0
    for i, size in enumerate(sizes):
        if size:
            landmarks[i] = real[start : start + size].mean(axis=0)
        start += size
    assert start == len(real)
    return landmarks, np.array(sizes) > 0


def test_a_constant_mask_is_counted_when_it_runs():
    """XLA would compile for minutes on a long one's ranks."""
    x, mask = normal(0, 20_000, 1, 4), np.arange(20_000) < 19_999
    program = jax.jit(lambda x: segment_means(x, 8, mask)).lower(x).compile().as_text()
    assert "pred[20000]" in program  # the mask itself
    assert not re.findall(r"s32\[20000\]\S* constant\(", program)


@pytest.mark.parametrize("num_landmarks", [1, 4, 5, 16])
def test_without_mask(num_landmarks):
    x = normal(0, 2, 13, 3, 4)
    landmarks, valid = means(x, num_landmarks)
    for row in range(2):
        expected, expected_valid = loop(x[row], num_landmarks, np.ones(13, bool))
        np.testing.assert_allclose(landmarks[row], expected, atol=1e-6)
        np.testing.assert_array_equal(valid[row], expected_valid)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    bits=st.lists(st.booleans(), min_size=13, max_size=13),
    num_landmarks=st.sampled_from([1, 3, 8, 16]),
)
def test_any_mask(bits, num_landmarks):
    mask = np.array(bits)
    x = np.where(mask[:, None, None], normal(1, 13, 3, 4), np.nan)
    landmarks, valid = means(x, num_landmarks, mask)
    expected, expected_valid = loop(x, num_landmarks, mask)
    np.testing.assert_allclose(landmarks, expected, atol=1e-6)
    np.testing.assert_array_equal(valid, expected_valid)


@settings(deadline=None, derandomize=True, database=None)
@given(st.integers(1, 2**30), st.integers(0, 2**20 - 1), st.integers(0, 2**31 - 1))
def test_the_whole_part_by_floats_is_exact(y, times, rest):
    """At whole multiples, just below and between them."""
    times = min(times, (2**31 - 1) // y - 1)
    x = np.array([times * y, times * y + y - 1, times * y + rest % y], np.int32)
    found = landmarks.whole_part_by_floats(jnp.asarray(x), jnp.full(3, y, jnp.int32))
    np.testing.assert_array_equal(found, times)


def test_all_true_mask_is_no_mask():
    x = normal(2, 11, 2, 4)
    for with_mask, without in zip(means(x, 4, np.ones(11, bool)), means(x, 4), strict=True):
        np.testing.assert_allclose(with_mask, without, atol=1e-6)


def test_divisible_length_is_a_reshape_and_a_mean():
    x = normal(3, 2, 12, 2, 4)
    expected = x.reshape(2, 4, 3, 2, 4).mean(axis=2)
    np.testing.assert_allclose(means(x, 4)[0], expected, atol=1e-6)


def test_means_of_half_precision_are_summed_in_float32():
    x = np.full((4096, 1, 1), 100, np.float16)  # a float16 sum would overflow at 656 tokens
    for mask in (None, np.ones(4096, bool)):
        landmarks, _ = means(x, 1, mask)
        assert landmarks.dtype == np.float16
        np.testing.assert_array_equal(landmarks, 100)


def test_gradient_spreads_evenly_over_the_segment():
    mask = mask_with(9, 13, "holes")
    x = normal(4, 13, 2, 4)
    grad = jitted(jax.grad(lambda x: segment_means(x, 4, mask)[0].sum()))(x)
    sizes = np.array([3, 3, 3, 2, 2, 2, 2, 2, 2])
    sizes[3:] = 2
    np.testing.assert_allclose(grad[mask], np.broadcast_to(1 / sizes[:, None, None], (9, 2, 4)))
    np.testing.assert_array_equal(grad[~mask], 0)


@pytest.mark.unchecked
def test_errors():
    x = normal(5, 2, 6, 2, 4)
    with pytest.raises(ValueError, match="num_landmarks=0: at least 1"):
        segment_means(x, 0)
    with pytest.raises(TypeError, match="x has dtype int32"):
        segment_means(x.astype(np.int32), 2)
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\)"):
        segment_means(x[0, 0], 2)
    with pytest.raises(ValueError, match=r"mask has shape \(6,\): expected .*\(2, 6\)"):
        segment_means(x, 2, np.ones(6, bool))
    with pytest.raises(TypeError, match="mask has dtype int32: expected a bool array"):
        segment_means(x, 2, jnp.ones((2, 6), jnp.int32))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_tpus_means_are_those_of_other_platforms(dtype):
    """And a program for one has them, with no mask to lay segments by."""
    x = jnp.asarray(normal(0, 2, 12, 3, 4), dtype)
    expected = landmarks.even_means(3, x)
    found = jax.jit(landmarks.even_means_by_product, static_argnums=0)(3, x)
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    run = jax.jit(partial(segment_means, num_landmarks=3))
    text = {
        platform: run.trace(x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert [name for name, program in text.items() if "dot_general" in program] == ["tpu"]


def test_a_mask_costs_little_memory():
    """The 0/1 matrix of a million tokens and 64 landmarks alone would be 256 MB."""
    x = jax.ShapeDtypeStruct((1, 1_000_000, 1, 64), np.float32)
    mask = jax.ShapeDtypeStruct((1, 1_000_000), bool)

    def gradient(x, mask):
        return jax.grad(lambda x: segment_means(x, 64, mask)[0].sum())(x)

    def forward(x, mask):
        return segment_means(x, 64, mask)[0]

    def temporary_mb(function):
        return jax.jit(function).lower(x, mask).compile().memory_analysis().temp_size_in_bytes / 1e6

    assert temporary_mb(forward) < 32
    assert temporary_mb(gradient) < 288  # its 256 MB result once more, before it is laid out


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3)])
def test_a_cpus_pieces_change_nothing(batch, monkeypatch):
    x, mask = normal(0, *batch, 29, 2, 4), np.random.default_rng(0).random((*batch, 29)) < 0.6
    whole, valid = segment_means(x, 4, mask)
    x[~mask] = np.nan

    @partial(jax.jit, static_argnums=1)
    def tiled_means(x, piece):
        monkeypatch.setattr(tiled, "PIECE", piece)
        return landmarks.landmark_means(x, 4, mask, sums=tiled.sums)

    def loss(x, piece):
        return (tiled_means(x, piece)[0] ** 2).sum()

    for piece in (80, 2**20):
        out, found = tiled_means(x, piece)
        np.testing.assert_allclose(out, whole, atol=1e-6)
        np.testing.assert_array_equal(found, valid)
        gradient = jax.grad(loss)(x, piece)
        expected = jax.grad(lambda x: (segment_means(x, 4, mask)[0] ** 2).sum())(x)
        np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_means_of_pieces_are_those_of_the_whole():
    x, mask = normal(0, 4, 5, 2, 3), mask_with(13, 20, "holes").reshape(4, 5)

    def means(x, mask):
        return segment_means(x, 6, mask, axis_name="sequence")

    found, valid = jax.vmap(means, axis_name="sequence")(x, mask)
    expected = segment_means(x.reshape(20, 2, 3), 6, mask.ravel())
    for each in zip(found, valid, strict=True):
        for one, other in zip(each, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
