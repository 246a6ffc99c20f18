"""The iterative pseudo-inverse: identities of eq. 7 and 8, and agreement with NumPy."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import jitted, normal

from nystrom import chebyshev_pinv, iterative_pinv, nystrom_attention
from nystrom.kernels.symmetric_pinv import apply_pinv

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "eq9_float64.npz", allow_pickle=False)

pinv = jitted(iterative_pinv, static_argnums=1)
solve = jitted(apply_pinv, static_argnums=2)


def softmax_matrices(seed, *shape, size=8, dtype=np.float32):
    return np.asarray(jax.nn.softmax(normal(seed, *shape, size, size), axis=-1)).astype(dtype)


@pytest.mark.parametrize("iterations", [6, 12])
def test_golden_iterates(iterations):
    with jax.enable_x64(True):
        z = pinv(GOLDEN["a"], iterations)
    np.testing.assert_allclose(z, GOLDEN[f"pinv{iterations}"], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [8, 5])
def test_converges_to_the_pseudo_inverse(rank):
    """Singular values 1 to 2, or 0: NumPy's pseudo-inverse, and the four Penrose conditions."""
    u, v = (np.linalg.qr(normal(seed, 3, 8, 8, dtype=np.float64))[0] for seed in (0, 1))
    a = (u * np.where(np.arange(8) < rank, np.linspace(1, 2, 8), 0)) @ v
    with jax.enable_x64(True):
        z = np.asarray(pinv(a, 12))
    np.testing.assert_allclose(z, np.linalg.pinv(a, rcond=1e-10), atol=1e-8)
    np.testing.assert_allclose(a @ z @ a, a, atol=1e-8)
    np.testing.assert_allclose(z @ a @ z, z, atol=1e-8)
    for product in (a @ z, z @ a):
        np.testing.assert_allclose(product, np.swapaxes(product, -1, -2), atol=1e-8)


def test_each_matrix_has_its_own_scale():
    """A matrix's inverse is the same alone as beside one a thousand times larger."""
    a = softmax_matrices(1, 2)
    beside = pinv(a * np.array([1, 1000], np.float32)[:, None, None], 6)
    np.testing.assert_allclose(beside[0], pinv(a, 6)[0], rtol=1e-6)
    np.testing.assert_allclose(beside[1] * 1000, pinv(a, 6)[1], rtol=1e-4, atol=1e-4)


def test_zero_rows_columns_and_matrices_stay_zero():
    a = softmax_matrices(2, 2)
    a[0, 5:] = 0
    a[0, :, 5:] = 0
    a[1] = 0
    z = pinv(a, 6)
    np.testing.assert_array_equal(z[1], 0)
    np.testing.assert_array_equal(z[0, 5:], 0)
    np.testing.assert_array_equal(z[0, :, 5:], 0)
    np.testing.assert_allclose(z[0, :5, :5], pinv(a[0, :5, :5], 6), rtol=1e-4, atol=1e-4)
    grad = jitted(jax.grad(lambda a: (apply_pinv(a, normal(3, 2, 8, 4), 6) ** 2).sum()))(a)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(("iterations", "tolerance"), [(1, 1e-5), (3, 1e-5), (6, 2e-4), (12, 2e-4)])
def test_apply_pinv_is_the_pinv_times_w(iterations, tolerance):
    a, w = softmax_matrices(4, 2, 3, size=12), normal(5, 2, 3, 12, 4)
    expected = pinv(a, iterations) @ w
    scale = np.abs(expected).max()
    np.testing.assert_allclose(solve(a, w, iterations) / scale, expected / scale, atol=tolerance)


def test_beyond_six_iterations_apply_is_eq_7_which_stops_where_it_is_near():
    """Rounding would grow in the products that the last three iterations leave out."""
    a, w = softmax_matrices(4, 2, 3, size=12), normal(5, 2, 3, 12, 4)
    expected = pinv(a, 40) @ w
    scale = np.abs(expected).max()
    np.testing.assert_allclose(solve(a, w, 40) / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 3, 4, 6, 7])
def test_apply_pinv_in_float64(iterations):
    """The two forms are one function, values and gradients."""
    with jax.enable_x64(True):
        a = softmax_matrices(6, 2, dtype=np.float64)
        w, cotangent = normal(7, 2, 8, 4, dtype=np.float64), normal(8, 2, 8, 4)

        def loss(apply, a, w):
            out = apply(a, w)
            return (out * cotangent).sum(), out

        def plain(a, w):
            return iterative_pinv(a, iterations) @ w

        fast = partial(apply_pinv, num_iterations=iterations)
        results = [
            jitted(jax.grad(partial(loss, form), (0, 1), has_aux=True))(a, w)
            for form in (fast, plain)
        ]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spread", [1, 2, 4])
def test_apply_pinv_of_float32_is_near_float64s(spread):
    """Values and gradients, by the largest."""
    logits = spread**2 * normal(10, 64, 64) @ normal(11, 64, 64) / 8
    w, cotangent = normal(12, 64, 64), normal(13, 64, 64)

    def run(dtype):
        def loss(logits, w):
            out = apply_pinv(jax.nn.softmax(logits), w)
            return (out * cotangent.astype(dtype)).sum(), out

        (_, out), grads = jitted(jax.value_and_grad(loss, (0, 1), has_aux=True))(
            logits.astype(dtype), w.astype(dtype)
        )
        return jax.tree.map(np.asarray, (out, *grads))

    found = run(np.float32)
    with jax.enable_x64(True):
        expected = run(np.float64)
    for one, other, atol in zip(found, expected, (4e-6, 2e-5, 4e-6), strict=True):
        np.testing.assert_allclose(one, other, atol=atol * np.abs(other).max(), rtol=0)


def test_computes_in_float32():
    a = softmax_matrices(9)
    z = pinv(a.astype(jnp.bfloat16), 6)
    assert z.dtype == jnp.bfloat16
    expected = pinv(a.astype(jnp.bfloat16).astype(jnp.float32), 6)
    np.testing.assert_allclose(z.astype(jnp.float32), expected, rtol=8e-3)


def test_matrices_without_rows_stay_so():
    for form in (iterative_pinv, chebyshev_pinv):
        assert form(jnp.ones((3, 0, 0))).shape == (3, 0, 0)


@pytest.mark.parametrize("scale", [1e-17, 1e-12, 1e12, 1e17])
def test_the_gradient_of_small_and_large_matrices(scale):
    """It falls with the square of their size."""
    a = jnp.asarray([[1, 0.3], [0.2, 0.7]])
    for form in (iterative_pinv, chebyshev_pinv):
        grad = jitted(jax.grad(lambda a, s, f=form: (f(a) * s).sum()))
        np.testing.assert_allclose(grad(a * scale, scale) * scale, grad(a, 1.0), rtol=1e-4)


@pytest.mark.unchecked
def test_errors():
    with pytest.raises(ValueError, match=r"a has shape \(3, 4\): expected square"):
        iterative_pinv(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="num_iterations=0: at least 1"):
        iterative_pinv(jnp.ones((3, 3)), 0)
    for form in (iterative_pinv, chebyshev_pinv):
        with pytest.raises(TypeError, match="a has type list: expected an array of floating-point"):
            form([[1.0]])


@pytest.mark.parametrize("iterations", [8, 12, 16, 20, 40])
def test_more_iterations_are_never_worse(iterations):
    """Near rank one, rounding outside of A's range would grow 13/4 times an iteration.

    Values are near those of float64 at the same number, and gradients, by the largest of all
    three, within 1e-3.
    """
    rng = np.random.default_rng(0)
    q, k = (1 + 1e-3 * rng.normal(size=(16, 1, 8)) for _ in range(2))
    v, cotangent = rng.normal(size=(2, 16, 1, 8))

    def run(dtype):
        def loss(q, k, v):
            out = nystrom_attention(q, k, v, num_landmarks=16, pinv_iterations=iterations)
            return (out * cotangent.astype(dtype)).sum(), out

        inputs = (x.astype(dtype) for x in (q, k, v))
        (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*inputs)
        return np.asarray(out), np.stack(grads)

    out, grads = run(np.float32)
    with jax.enable_x64(True):
        a = np.asarray(jax.nn.softmax((q[:, 0] @ k[:, 0].T) / np.sqrt(8)))
        expected = a @ v[:, 0]  # what the exact inverse gives
        _, expected_grads = run(np.float64)
    np.testing.assert_allclose(out[:, 0], expected, atol=1e-5 * np.abs(expected).max())
    error = np.abs(grads - expected_grads).max() / np.abs(expected_grads).max()
    assert error < 1e-3 * (1 if iterations <= 20 else 2)


@pytest.mark.parametrize("spread", [0.05, 0.1, 0.3])  # of the logits: near rank one and less so
def test_the_residual_never_rises_with_more_iterations(spread):
    logits = spread * np.random.default_rng(2).normal(size=(8, 16, 16))
    a = np.asarray(jax.nn.softmax(logits), np.float32)
    wide = a.astype(np.float64)
    residuals = [
        np.linalg.norm(wide @ pinv(a, n).astype(np.float64) @ wide - wide, axis=(1, 2))
        for n in (6, 8, 10, 12, 14, 16, 20, 30)
    ]
    least = np.minimum.accumulate(residuals)
    assert (residuals <= 1.1 * least + 1e-7).all(), residuals / least
    assert (residuals[-1] < residuals[0]).all()


@pytest.mark.parametrize("size", [1e-18, 1e-17, 1e-9, 1e18])
def test_more_iterations_help_matrices_of_any_size(size):
    a = softmax_matrices(4, size=8).astype(np.float32) * np.float32(size)
    wide = a.astype(np.float64)
    rough, fine = (
        np.linalg.norm(wide @ pinv(a, n).astype(np.float64) @ wide - wide) / np.linalg.norm(wide)
        for n in (6, 30)
    )
    assert rough > 1e-4 and fine < 1e-5


def test_each_matrix_stops_for_itself():
    """One that goes on beside one that stops is what it would be alone."""
    rng = np.random.default_rng(1)
    flat = np.full((16, 16), 1 / 16) * (1 + 1e-4 * rng.normal(size=(16, 16)))
    a = np.stack([softmax_matrices(4, size=16), flat]).astype(np.float32)
    together = pinv(a, 30)
    for one, alone in zip(together, a, strict=True):
        np.testing.assert_allclose(one, pinv(alone, 30), rtol=1e-3, atol=1e-3)
    residual = np.linalg.norm(a @ together @ a - a, axis=(1, 2))
    assert (residual < 1e-3).all()
