"""The three factors of eq. 9, for inspection."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import jitted, mask_with, random_inputs

from nystrom import nystrom_attention, nystrom_factors, segment_means

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "eq9_float64.npz", allow_pickle=False)
factors_of = jitted(partial(nystrom_factors, num_landmarks=8))


class TestFactors:
    """F, A^+ and G, whose product is what the attention applies to the values."""

    q, k, v = random_inputs(7, 2, length=11, key_length=14)
    query_mask = np.stack([mask_with(11, 11, "holes"), mask_with(6, 11, "holes")])
    key_mask = np.stack([mask_with(14, 14, "holes"), mask_with(5, 14, "holes")])

    def factors(self):
        return factors_of(self.q, self.k, query_mask=self.query_mask, key_mask=self.key_mask)

    def test_product_times_values_is_the_attention(self):
        factors = self.factors()
        assert factors.f.shape == (2, 2, 11, 8)
        assert factors.a_pinv.shape == (2, 2, 8, 8)
        assert factors.g.shape == (2, 2, 8, 14)
        out = np.einsum("bhnl,bhlk,bhkm,bmhd->bnhd", *factors, self.v)
        masks = {"query_mask": self.query_mask, "key_mask": self.key_mask}
        expected = nystrom_attention(self.q, self.k, self.v, num_landmarks=8, **masks)
        np.testing.assert_allclose(out, expected, atol=2e-5)

    def test_rows_are_rows_of_the_product(self):
        factors = self.factors()
        product = np.einsum("bhnl,bhlk,bhkm->bhnm", *map(np.asarray, factors))
        positions = np.array([0, 10, 3])
        rows = factors.rows(positions)
        np.testing.assert_allclose(rows, product[:, :, positions], atol=1e-5)
        np.testing.assert_allclose(factors.rows(np.arange(11)), product, atol=1e-5)

    @pytest.mark.unchecked
    def test_positions_that_are_no_integers_in_a_row_are_refused(self):
        for positions in (3, [[0, 1]], [0.5], []):
            with pytest.raises(
                TypeError, match=r"positions are \w+\[.*\]: expected integers in one"
            ):
                self.factors().rows(positions)

    @pytest.mark.unchecked
    def test_positions_that_there_are_not_are_refused_or_nan(self):
        factors = self.factors()
        for position in (11, 5000, -12):
            with pytest.raises(ValueError, match=f"position {position}: there are 11"):
                factors.rows([0, position])
            rows = jax.jit(factors.rows)(jnp.array([3, position]))
            np.testing.assert_allclose(rows[:, :, :1], factors.rows([3]), atol=1e-6)
            assert np.isnan(rows[:, :, 1]).all()
        np.testing.assert_array_equal(factors.rows([-1]), factors.rows([10]))
        many = factors._replace(f=np.concatenate([factors.f] * 30, axis=-2))  # 330 positions
        last = factors.rows(np.array([10], np.int8))
        np.testing.assert_allclose(many.rows(np.array([-1], np.int8)), last, atol=1e-6)

    def test_padding_has_neither_rows_nor_columns(self):
        factors = self.factors()
        np.testing.assert_array_equal(np.moveaxis(factors.f, 1, 2)[~self.query_mask], 0)
        np.testing.assert_array_equal(np.moveaxis(factors.g, -1, 1)[~self.key_mask], 0)
        inert = np.asarray(factors.a_pinv)[1, :, 5:]  # the second example has five real keys
        np.testing.assert_array_equal(inert, 0)

    def test_f_and_g_are_softmax_matrices(self):
        factors = self.factors()
        np.testing.assert_allclose(factors.f.sum(-1)[0], 1, rtol=1e-5)
        np.testing.assert_allclose(factors.g.sum(-1)[0], 1, rtol=1e-5)
        np.testing.assert_allclose(factors.g.sum(-1)[1, :, :6], 1, rtol=1e-5)

    def test_golden_inverse(self):
        with jax.enable_x64(True):
            factors = factors_of(GOLDEN["query"], GOLDEN["key"])
        np.testing.assert_allclose(factors.a_pinv, GOLDEN["pinv6"], atol=1e-11, rtol=1e-11)


def test_features_far_from_zero_cost_halves_no_digits():
    """As of the attention: what all keys share is not rounded."""
    q, k, _ = random_inputs(3, length=24)
    q, k = ((x + 40).astype(jnp.bfloat16) for x in (q, k))
    halves, wide = factors_of(q, k), factors_of(q.astype(np.float32), k.astype(np.float32))
    np.testing.assert_allclose(halves.f, wide.f, atol=2**-5)


@pytest.mark.parametrize("shape", [(0, 8, 2, 4), (2, 0, 2, 4), (2, 8, 0, 4)])
def test_factors_and_means_of_empty_arrays(shape):
    x = np.ones(shape, np.float32)
    batch, length, heads, depth = shape
    count = min(3, max(1, length))
    shapes = [part.shape for part in nystrom_factors(x, x, num_landmarks=3)]
    assert shapes == [
        (batch, heads, *size) for size in ((length, count), (count, count), (count, length))
    ]
    landmarks, valid = segment_means(x, 3)
    assert landmarks.shape == (batch, 3, heads, depth) and valid.shape == (batch, 3)
