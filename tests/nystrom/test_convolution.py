"""The depthwise convolution against np.correlate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import jitted, mask_with, normal

from nystrom import depthwise_convolution
from nystrom.convolution import convolve_in_order
from nystrom.kernels import convolution

convolve = jitted(depthwise_convolution)


def correlate(value, filters):
    """One example N H D: each head and feature correlated with the head's filter."""
    taps = filters.shape[-1]
    padded = np.pad(value, [(taps // 2, taps // 2), (0, 0), (0, 0)])
    out = np.empty_like(value)
    for head, feature in np.ndindex(value.shape[1:]):
        full = np.correlate(padded[:, head, feature], filters[head], "valid")
        out[:, head, feature] = full[: len(value)]  # NumPy swaps its arguments for no tokens
    return out


@pytest.mark.parametrize(
    ("length", "taps"), [(1, 5), (7, 35), (64, 1), (65, 35), (150, 3), (90, 71)]
)
def test_is_a_correlation(length, taps):
    value, filters = normal(0, 2, length, 3, 4), normal(1, 3, taps)
    out = convolve(value, filters)
    for row in range(2):
        np.testing.assert_allclose(out[row], correlate(value[row], filters), atol=2e-5)


def test_a_constant_mask_is_sorted_when_it_runs():
    """XLA would compile for seconds on its order."""
    x, mask = normal(0, 20_000, 1, 4), np.arange(20_000) % 4 > 0

    def convolve(x):
        return depthwise_convolution(x, np.ones((1, 3), np.float32), mask)

    program = jax.jit(convolve).lower(x).compile().as_text()
    assert " sort(" in program


@pytest.mark.parametrize("form", [convolution.tiled, convolution.fused])
@pytest.mark.parametrize(
    ("length", "depth", "taps"),
    [(1, 4, 5), (64, 4, 3), (65, 4, 35), (90, 4, 37), (200, 4, 151), (65, 128, 35), (90, 128, 71)],
)
def test_forms_have_the_plain_ones_values_and_gradients(form, length, depth, taps):
    value, cotangent = normal(0, 2, length, 2, depth), normal(2, 2, length, 2, depth)
    filters = normal(1, 2, taps)

    def derivatives(convolve, value, filters, cotangent):
        def gradients(value, filters):
            out, pull_back = jax.vjp(convolve, value, filters)
            return out, *pull_back(cotangent)

        return gradients(value, filters), jax.jvp(gradients, (value, filters), (value, filters))[1]

    derivatives = jitted(derivatives, static_argnums=0)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-4),
        derivatives(form, value, filters, cotangent),
        derivatives(convolve_in_order, value, filters, cotangent),
    )


@pytest.mark.parametrize("form", [convolution.tiled, convolution.fused])
def test_gradients_have_the_dtypes_of_what_they_are_by(form):
    value, filters = normal(0, 2, 90, 2, 4).astype(jnp.bfloat16), normal(1, 2, 5)
    for each in (filters, filters.astype(jnp.bfloat16)):
        grads = jax.grad(lambda *x: form(*x).astype(jnp.float32).sum(), (0, 1))(value, each)
        assert [g.dtype for g in grads] == [value.dtype, each.dtype]


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(bits=st.lists(st.booleans(), min_size=20, max_size=20))
def test_padding_is_left_out(bits):
    """The real tokens are convolved as if they stood side by side; padding may hold anything."""
    mask = np.array(bits)
    value, filters = normal(2, 20, 2, 4), normal(3, 2, 5)
    out = convolve(np.where(mask[:, None, None], value, np.nan), filters, mask)
    np.testing.assert_allclose(out[mask], correlate(value[mask], filters), atol=1e-5)
    np.testing.assert_array_equal(out[~mask], 0)


@pytest.mark.parametrize("where", ["trailing", "holes"])
def test_gradients_are_those_of_the_tokens_alone(where):
    mask = np.stack([mask_with(14, 20, where), mask_with(0, 20, where)])
    value, filters = normal(4, 2, 20, 2, 4), normal(5, 2, 5)
    value[~mask] = np.inf
    cotangent = normal(6, 2, 20, 2, 4)

    def loss(value, filters, cotangent, mask=None):
        return (depthwise_convolution(value, filters, mask) * cotangent).sum()

    grads = jitted(jax.grad(loss, (0, 1)))
    in_value, in_filters = grads(value, filters, cotangent, mask)
    real = mask[0]
    alone, filters_alone = grads(value[0, real], filters, cotangent[0, real])
    np.testing.assert_allclose(in_value[0, real], alone, atol=1e-5)
    np.testing.assert_allclose(in_filters, filters_alone, atol=1e-5)
    np.testing.assert_array_equal(in_value[~mask], 0)


@pytest.mark.unchecked
def test_errors():
    value = normal(7, 6, 2, 4)
    with pytest.raises(ValueError, match=r"filters \(2, 4\): expected \(2, K\) with K odd"):
        depthwise_convolution(value, normal(8, 2, 4))
    with pytest.raises(ValueError, match=r"filters \(3, 5\): expected \(2, K\)"):
        depthwise_convolution(value, normal(9, 3, 5))
    with pytest.raises(ValueError, match=r"filters \(\): expected \(2, K\)"):
        depthwise_convolution(value, np.float32(1))
    with pytest.raises(TypeError, match="filters has dtype complex64: expected an array of float"):
        depthwise_convolution(value, np.ones((2, 5), np.complex64))
    filters = normal(10, 2, 5)  # as lists too
    np.testing.assert_array_equal(
        depthwise_convolution(value, filters.tolist()), depthwise_convolution(value, filters)
    )


@pytest.mark.unchecked
def test_masks_that_are_no_padding_masks_are_refused():
    value, filters = normal(7, 2, 6, 2, 4), normal(10, 2, 5)
    with pytest.raises(ValueError, match=r"mask has shape \(6,\): expected a padding mask"):
        depthwise_convolution(value, filters, np.ones(6, bool))
    with pytest.raises(TypeError, match="mask has dtype float32: expected a bool array"):
        depthwise_convolution(value, filters, np.ones((2, 6), np.float32))
