"""The Chebyshev pseudo-inverse: what its docstring claims, and its place in the attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import jitted, normal

from nystrom import chebyshev_pinv, iterative_pinv, nystrom_attention, nystrom_factors
from nystrom.chebyshev import apply_chebyshev_pinv

pinv = jitted(chebyshev_pinv)


def softmax_matrices(seed, *shape, scale=1.0):
    return np.asarray(jax.nn.softmax(scale * normal(seed, *shape), axis=-1))


def test_every_eigenvalue_of_the_interval_comes_near_one():
    """On a diagonal matrix with largest entry 1, eq. 8's scale is 1 and t is an entry's square."""
    t = np.concatenate([np.geomspace(0.01126, 1, 1_000), [1e-9]])
    with jax.enable_x64(True):
        product = np.diag(np.sqrt(t) * np.asarray(pinv(np.diag(np.sqrt(t)))))
    assert np.abs(product[:-1] - 1).max() < 1e-11
    assert product[-1] / t[-1] == pytest.approx((13 / 4) ** 6, rel=1e-3)


def test_takes_half_the_products():
    def products(function):
        return str(jax.make_jaxpr(function)(np.eye(4, dtype=np.float32))).count("dot_general")

    assert products(iterative_pinv) == 24
    assert products(chebyshev_pinv) == 12


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0])
def test_residual_is_at_most_that_of_the_paper(scale):
    a = softmax_matrices(0, 8, 64, 64, scale=scale)

    def residual(z):
        return np.linalg.norm(a @ np.asarray(z) @ a - a, axis=(-2, -1))

    assert (residual(pinv(a)) <= residual(jitted(iterative_pinv)(a))).all()


def test_is_nearly_the_function_that_eq_7_is():
    t = np.geomspace(1e-9, 1, 1_000)
    with jax.enable_x64(True):
        a = np.diag(np.sqrt(t))
        ends = [np.diag(a * np.asarray(form(a))) for form in (pinv, jitted(iterative_pinv))]
    assert np.abs(ends[0] - ends[1]).max() < 0.02


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_apply_is_the_pinv_times_w_and_so_are_its_gradients(dtype):
    tolerance = {np.float32: 1e-5, np.float64: 1e-12}[dtype]
    with jax.enable_x64(dtype == np.float64):
        a = softmax_matrices(1, 2, 3, 12, 12).astype(dtype)
        w, cotangent = normal(2, 2, 3, 12, 4, dtype=dtype), normal(3, 2, 3, 12, 4, dtype=dtype)
        results = []
        for form in (apply_chebyshev_pinv, lambda a, w: chebyshev_pinv(a) @ w):
            out, pull = jax.vjp(form, a, w)
            results.append([np.asarray(x) for x in (out, *pull(jnp.asarray(cotangent)))])
    for one, other in zip(*results, strict=True):
        scale = np.abs(other).max()
        # The gradients by `a` are sums whose terms nearly cancel: they lose up to three digits.
        np.testing.assert_allclose(one / scale, other / scale, atol=1e3 * tolerance)
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e2 * tolerance)


@pytest.mark.parametrize("scale", [0.05, 1.0, 3.0])
def test_float32_is_near_float64(scale):
    a, w = softmax_matrices(4, 2, 64, 64, scale=scale), normal(5, 2, 64, 32)
    with jax.enable_x64(True):
        exact = np.asarray(apply_chebyshev_pinv(a.astype(np.float64), w.astype(np.float64)))
    error = np.abs(np.asarray(apply_chebyshev_pinv(a, w)) - exact).max()
    assert error <= 1e-5 * np.abs(exact).max()


def test_zero_rows_columns_and_matrices_stay_zero():
    a = np.array(softmax_matrices(6, 2, 8, 8))
    a[0, 5:] = 0
    a[0, :, 5:] = 0
    a[1] = 0
    z = pinv(a)
    np.testing.assert_array_equal(z[1], 0)
    np.testing.assert_array_equal(z[0, 5:], 0)
    np.testing.assert_array_equal(z[0, :, 5:], 0)
    np.testing.assert_allclose(z[0, :5, :5], pinv(a[0, :5, :5]), rtol=1e-3, atol=1e-3)
    grad = jax.grad(lambda a: (apply_chebyshev_pinv(a, normal(7, 2, 8, 4)) ** 2).sum())(a)
    assert np.isfinite(grad).all()


def test_halves_are_inverted_in_float32():
    a = jnp.asarray(softmax_matrices(8, 2, 8, 8), jnp.bfloat16)
    z = pinv(a)
    assert z.dtype == jnp.bfloat16
    exact = jnp.asarray(pinv(a.astype(np.float32)), jnp.bfloat16)
    np.testing.assert_array_equal(z.astype(np.float32), exact.astype(np.float32))


def test_each_matrix_has_its_own_scale():
    a = softmax_matrices(8, 2, 8, 8)
    beside = pinv(a * np.array([1, 1000], np.float32)[:, None, None])
    np.testing.assert_allclose(beside[0], pinv(a)[0], rtol=1e-4, atol=1e-4)


def test_attention_and_its_factors_use_it():
    """Padding changes nothing, and the factors' product is the attention's."""
    q, k, v = (normal(seed, 1, 20, 2, 8) for seed in (9, 10, 11))
    mask = np.arange(20)[None] < 13
    attend = jitted(nystrom_attention, static_argnames=("num_landmarks", "pinv"))
    out = attend(q, k, v, query_mask=mask, key_mask=mask, num_landmarks=4, pinv="chebyshev")
    alone = attend(q[:, :13], k[:, :13], v[:, :13], num_landmarks=4, pinv="chebyshev")
    np.testing.assert_allclose(out[:, :13], alone, atol=1e-5)
    factors = nystrom_factors(q[:, :13], k[:, :13], num_landmarks=4, pinv="chebyshev")
    rows = np.einsum("bhnm,bmhd->bnhd", factors.rows(np.arange(13)), v[:, :13])
    np.testing.assert_allclose(rows, alone, atol=1e-5)
    paper = attend(q[:, :13], k[:, :13], v[:, :13], num_landmarks=4)
    assert 1e-5 < np.abs(paper - alone).max() < 0.02 * np.abs(paper).max()


@pytest.mark.unchecked
def test_errors():
    with pytest.raises(ValueError, match=r"a has shape \(3, 4\): expected square"):
        chebyshev_pinv(jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="pinv='svd': expected one of iterative, chebyshev"):
        nystrom_attention(*(normal(seed, 1, 4, 1, 2) for seed in (1, 2, 3)), pinv="svd")
