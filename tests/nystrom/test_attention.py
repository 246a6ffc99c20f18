"""Nyström and softmax attention: the contract, equations and golden numbers."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import AttentionContract
from inputs import jitted, mask_with, normal, random_inputs

from nystrom import nystrom_attention, nystrom_factors, softmax_attention

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "eq9_float64.npz", allow_pickle=False)


@partial(jitted, static_argnums=(3, 4))
def run(q, k, v, num_landmarks=64, iterations=6, query_mask=None, key_mask=None):
    return nystrom_attention(
        q,
        k,
        v,
        query_mask=query_mask,
        key_mask=key_mask,
        num_landmarks=num_landmarks,
        pinv_iterations=iterations,
    )


class TestNystrom(AttentionContract):
    """Eight landmarks: 13 tokens don't divide among them, 5 leave three inert."""

    attend = staticmethod(partial(nystrom_attention, num_landmarks=8, implementation="tiled"))
    is_average = False  # F A^+ G has rows that add up to 1 only for the exact inverse


class TestNystromPlain(AttentionContract):
    """The form that accelerators get, and what is small; above is the tiled one."""

    attend = staticmethod(partial(nystrom_attention, num_landmarks=8, implementation="plain"))
    is_average = False
    multiplies_halves = True


class TestSoftmax(AttentionContract):
    attend = staticmethod(partial(softmax_attention, implementation="tiled"))


class TestSoftmaxPlain(AttentionContract):
    attend = staticmethod(partial(softmax_attention, implementation="plain"))
    multiplies_halves = True


def test_causal_softmax_is_exact():
    q, k, v = random_inputs(1, 2, length=9)
    expected = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    out = softmax_attention(q, k, v, is_causal=True)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    mask = np.stack([mask_with(6, 9, "holes")] * 2)
    out = softmax_attention(q, k, v, mask=mask, is_causal=True)
    real = [x[:, mask[0]] for x in (q, k, v)]
    alone = softmax_attention(*real, is_causal=True)
    np.testing.assert_allclose(out[:, mask[0]], alone, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "tiled"])
def test_scale_replaces_the_default(form):
    q, k, v = random_inputs(2)
    for attend in (partial(nystrom_attention, num_landmarks=5), softmax_attention):
        attend = partial(attend, implementation=form)
        out = attend(q, k, v, scale=0.1)
        expected = attend(q * (0.1 * q.shape[-1] ** 0.5), k, v)
        np.testing.assert_allclose(out, expected, atol=1e-5)
        assert np.abs(out - attend(q, k, v)).max() > 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
@pytest.mark.parametrize("attend", [partial(nystrom_attention, num_landmarks=8), softmax_attention])
def test_tiles_scale_what_they_have_widened(attend, dtype):
    """With 6 features a head the scale is no power of two: keys times it are not of the dtype."""
    inputs = [normal(seed, 40, 2, 6).astype(dtype) for seed in range(3)]
    out = attend(*inputs, implementation="tiled").astype(np.float32)
    exact = attend(*(x.astype(np.float32) for x in inputs), implementation="tiled")
    np.testing.assert_allclose(out, exact, rtol=float(jnp.finfo(dtype).eps), atol=2e-5)


def test_more_landmarks_than_tokens_cost_nothing():
    """A hundred thousand landmarks of 13 tokens are 13: no array grows with the number asked."""
    inputs = random_inputs(3)
    many = partial(nystrom_attention, num_landmarks=100_000)
    np.testing.assert_array_equal(many(*inputs), nystrom_attention(*inputs, num_landmarks=13))
    assert nystrom_factors(*inputs[:2], num_landmarks=100_000).f.shape[-1] == 13


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-5), (jnp.bfloat16, 4e-2)]
)
def test_equations_6_to_9(dtype, tolerance):
    """Outputs of float64 NumPy in `eq9_float64.npz`, for both forms of the inverse."""
    with jax.enable_x64(True):
        inputs = [GOLDEN[name].astype(dtype) for name in ("query", "key", "value")]
        landmarks = int(GOLDEN["num_landmarks"])
        for name, iterations in (("out6", 6), ("out12", 12)):
            expected = GOLDEN[name]
            if dtype == jnp.bfloat16:  # of the rounded inputs: the tolerance is the output's
                expected = run(*(x.astype(np.float64) for x in inputs), landmarks, iterations)
            out = run(*inputs, landmarks, iterations)
            assert out.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(out, np.float64), expected, atol=tolerance, rtol=tolerance
            )
        out = np.asarray(softmax_attention(*inputs), np.float64)
        np.testing.assert_allclose(out, GOLDEN["out_softmax"], atol=tolerance, rtol=tolerance)


def test_equations_6_to_9_with_a_converged_inverse():
    with jax.enable_x64(True):
        inputs = [GOLDEN[name] for name in ("query", "key", "value")]
        out = run(*inputs, 8, 25)
    np.testing.assert_allclose(out, GOLDEN["out_exact_pinv"], atol=1e-9)


def test_every_token_a_landmark_is_softmax():
    """With a converged inverse F A^+ G = A A^+ A = A, padded or not, fewer tokens than L or not."""
    with jax.enable_x64(True):
        q, k, v = random_inputs(0, 2, length=9, dtype=np.float64)
        q = 2 * q
        mask = np.stack([mask_with(9, 9, "holes"), mask_with(6, 9, "holes")])
        for num_landmarks in (9, 16):
            out = run(q, k, v, num_landmarks, 40, mask, mask)
            expected = softmax_attention(q, k, v, query_mask=mask, key_mask=mask)
            np.testing.assert_allclose(out, expected, atol=1e-7)


def test_softmax_is_flax_dot_product_attention():
    q, k, v = random_inputs(1, 2, length=9, key_length=12)
    mask = np.stack([mask_with(12, 12, "holes"), mask_with(7, 12, "holes")])
    expected = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
    out = softmax_attention(q, k, v, key_mask=mask)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_approximation_improves_with_landmarks():
    """Smooth queries and keys: the error falls with L, and 32 landmarks of 64 come close."""
    rng = np.random.default_rng(2)
    drift = np.cumsum(rng.normal(size=(3, 64, 2, 4)) * 0.2, axis=1).astype(np.float32)
    q, k, v = drift
    exact = softmax_attention(q, k, v)
    errors = [np.abs(run(q, k, v, n, 12) - exact).max() for n in (2, 8, 32)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.1 * np.abs(exact).max()


def test_every_option_changes_something():
    inputs = random_inputs(3, length=24)
    out = run(*inputs, 8, 6)
    assert np.abs(run(*inputs, 7, 6) - out).max() > 1e-3
    assert np.abs(run(*inputs, 8, 5) - out).max() > 1e-3


def test_defaults_are_the_papers():
    inputs = random_inputs(4, length=80)
    np.testing.assert_array_equal(jitted(nystrom_attention)(*inputs), run(*inputs, 64, 6))


def test_causal_use_is_refused():
    with pytest.raises(ValueError, match=r"is_causal=True: .*mixes past and future"):
        nystrom_attention(*random_inputs(5), is_causal=True)


@pytest.mark.unchecked
def test_options_out_of_range_are_refused():
    inputs = random_inputs(6)
    with pytest.raises(ValueError, match="num_landmarks=0: at least 1"):
        nystrom_attention(*inputs, num_landmarks=0)
    with pytest.raises(ValueError, match=r"iterations=0: at least 1"):
        nystrom_attention(*inputs, pinv_iterations=0)
    for count in (np.array([2]), np.array(2.5)):
        with pytest.raises(TypeError, match=r"num_landmarks=array.*: expected an integer"):
            nystrom_attention(*inputs, num_landmarks=count)
    complex_ones = 1j, np.complex64(1), jnp.asarray(1j)
    for scale in ("a", [1], *complex_ones, np.ones(2), True):
        with pytest.raises(TypeError, match=re.escape(f"scale={scale!r}: expected a number")):
            nystrom_attention(*inputs, scale=scale)
    for scale in (float("nan"), float("inf"), 10**400):
        said = re.escape(f"scale={scale!r}: expected a finite number")
        with pytest.raises(ValueError, match=said):
            nystrom_attention(*inputs, scale=scale)
    for scale in (np.float32(0.5), jnp.array(0.5)):
        np.testing.assert_array_equal(
            nystrom_attention(*inputs, scale=scale), nystrom_attention(*inputs, scale=0.5)
        )


def test_large_logits_stay_finite():
    q, k, v = random_inputs(9)
    for attend in (partial(nystrom_attention, num_landmarks=4), softmax_attention):
        loss = jitted(jax.grad(lambda q, k, v, a=attend: (a(q, k, v) ** 2).sum(), (0, 1, 2)))
        for grad in loss(200 * q, 200 * k, v):
            assert np.isfinite(grad).all()


@pytest.mark.parametrize("form", ["plain", "tiled"])
@pytest.mark.parametrize("attend", [partial(nystrom_attention, num_landmarks=1), softmax_attention])
def test_equal_weights_of_any_logits_are_means(attend, form):
    """Also where all logits are below what masked ones have."""
    ones, value = np.ones((6, 1, 4), np.float32), normal(11, 6, 1, 3)
    for size in (1, 1e14, 1e15, 1e18):
        out = attend(size * ones, -size * ones, value, implementation=form)
        expected = np.broadcast_to(value.mean(axis=0), value.shape)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [96, 8192])  # one tile, and several
def test_tiles_have_the_plain_forms_gradient_at_large_logits(length):
    """Each landmark's weights on the values sum to one, whatever the logits' rounding is."""
    x = 1e4 * normal(9, length, 1, 64)
    values, cotangent = normal(10, length, 1, 2), np.ones((length, 1, 2), np.float32)

    @partial(jitted, static_argnums=0)
    def gradient(form):
        attend = partial(nystrom_attention, num_landmarks=32, implementation=form)
        return jax.vjp(lambda v: attend(x, x, v), values)[1](cotangent)[0]

    plain, tiled = (gradient(form) for form in ("plain", "tiled"))
    np.testing.assert_allclose(tiled, plain, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_allclose(tiled.sum(axis=0), length, rtol=1e-4)


def test_padding_costs_tiles_little_memory():
    """No copy of the tokens, which is 8 MB here, but for the gradients themselves."""
    tokens = jax.ShapeDtypeStruct((1, 16_384, 2, 64), np.float32)
    mask = jax.ShapeDtypeStruct((1, 16_384), bool)

    def attend(query, key, value, mask):
        options = {"mask": mask, "implementation": "tiled"}
        return nystrom_attention(query, key, value, **options)

    def gradient(*args):
        return jax.grad(lambda *args: attend(*args).sum(), (0, 1, 2))(*args)

    def temporary_mb(function, mask):
        compiled = jax.jit(function).lower(tokens, tokens, tokens, mask).compile()
        return compiled.memory_analysis().temp_size_in_bytes / 1e6

    for function in (attend, gradient):
        assert temporary_mb(function, mask) < temporary_mb(function, None) + 4


def test_values_of_half_precision_do_not_overflow_inside():
    """float16 values near its limit average without passing through an infinity."""
    q, k, _ = (x.astype(np.float16) for x in random_inputs(10))
    v = np.full(q.shape, 60000, np.float16)
    np.testing.assert_allclose(softmax_attention(q, k, v).astype(np.float32), 60000, rtol=1e-3)


def test_inert_landmarks_change_nothing():
    """More landmarks than tokens: the surplus has no effect, on gradients neither."""
    inputs = random_inputs(11, length=5)
    cotangent = normal(12, 5, 2, 4)

    @partial(jitted, static_argnums=1)
    def out_and_grad(query, num_landmarks):
        def loss(query):
            out = nystrom_attention(query, *inputs[1:], num_landmarks=num_landmarks)
            return (out * cotangent).sum(), out

        return jax.grad(loss, has_aux=True)(query)

    for fit, surplus in zip(out_and_grad(inputs[0], 5), out_and_grad(inputs[0], 9), strict=True):
        np.testing.assert_allclose(surplus, fit, atol=1e-4)


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 2.5])  # of Q and K: A from near rank one up
def test_float32_is_near_float64(scale):
    """Output and gradients of eq. 9, within 1e-5 of the largest of either, and each gradient within
    5e-5 of its own largest: eq. 7 followed in float32 as written is no nearer."""
    inputs = [
        x * factor
        for x, factor in zip(
            normal(40, 3, 1, 512, 2, 32, dtype=np.float64), (scale, scale, 1), strict=True
        )
    ]
    cotangent = normal(41, 1, 512, 2, 32, dtype=np.float64)

    def output_and_gradients(q, k, v, cotangent):
        out, pull = jax.vjp(nystrom_attention, q, k, v)
        return out, pull(cotangent)

    with jax.enable_x64(True):
        exact, exact_gradients = jitted(output_and_gradients)(*inputs, cotangent)
    low = [x.astype(np.float32) for x in (*inputs, cotangent)]
    out, gradients = jitted(output_and_gradients)(*low)
    for form in (out, jitted(nystrom_attention)(*low[:3])):  # with and without gradients to come
        assert np.abs(form - exact).max() <= 1e-5 * np.abs(exact).max()
    largest = max(np.abs(gradient).max() for gradient in exact_gradients)
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        error = np.abs(gradient - expected).max()
        assert error <= 1e-5 * largest
        assert error <= 5e-5 * np.abs(expected).max()


def test_causal_attention_without_an_early_key_reads_no_later_one():
    q, k, v = random_inputs(8, length=4)
    mask = np.array([False, True, True, True])
    out, grads = jitted(
        jax.value_and_grad(
            lambda v: softmax_attention(q, k, v, key_mask=mask, is_causal=True)[0].sum()
        )
    )(v)
    assert out == 0
    np.testing.assert_array_equal(grads, 0)
