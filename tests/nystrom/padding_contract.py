"""What the contract of attentions says of padding, and of any length."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs import DEPTH, HEADS, LENGTH, mask_with, normal, random_inputs, spread

# Of tests that each attention's class inherits.
THE_SAME_EACH_TIME = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.differing_executors],
}


class PaddingContract:
    """A part of `contract.AttentionContract`, which says what an attention has."""

    @pytest.mark.parametrize("where", ["trailing", "leading", "holes"])
    @pytest.mark.parametrize("fill", [7.0, np.inf, np.nan])
    def test_padding_never_changes_a_real_token(self, where, fill):
        """Values and gradients of real tokens are those of the tokens alone; padding has none.

        One batch holds examples of 12, 5 and no real tokens.
        """
        counts = (12, 5, 0)
        mask = np.stack([mask_with(count, LENGTH, where) for count in counts])
        inputs = [random_inputs(count, length=count) for count in counts[:2]]
        cotangents = [normal(count, count, HEADS, DEPTH) for count in counts[:2]]
        padded = np.full((4, 3, LENGTH, HEADS, DEPTH), fill, np.float32)
        padded[3] = 3.0  # cotangents of padded rows are live: nothing may flow back from there
        for row, (example, cotangent) in enumerate(zip(inputs, cotangents, strict=True)):
            padded[:, row, mask[row]] = np.stack([*example, cotangent])
        out, grads = self.run_grads(tuple(padded[:3]), padded[3], mask, mask)
        np.testing.assert_array_equal(out[~mask], 0)
        for grad in grads:
            np.testing.assert_array_equal(grad[~mask], 0)
        for row, (example, cotangent) in enumerate(zip(inputs, cotangents, strict=True)):
            alone, grads_alone = self.run_grads(example, cotangent)
            real = mask[row]
            np.testing.assert_allclose(out[row, real], alone, atol=self.tolerance, rtol=1e-4)
            for grad, grad_alone in zip(grads, grads_alone, strict=True):
                np.testing.assert_allclose(
                    grad[row, real], grad_alone, atol=5 * self.tolerance, rtol=1e-3
                )

    def test_query_and_key_masks_are_separate(self):
        if not self.supports_cross_lengths:
            pytest.skip("one length")
        q, k, v = random_inputs(0, length=6, key_length=9)
        expected = self.run(q, k, v)
        query_mask, key_mask = mask_with(6, 11, "holes"), mask_with(9, 17, "holes", seed=1)
        padded_q = spread(q, query_mask, np.nan)
        padded_k, padded_v = spread(k, key_mask, np.inf), spread(v, key_mask, np.nan)
        for out in (
            self.run(padded_q, padded_k, padded_v, query_mask=query_mask, key_mask=key_mask),
            self.run(padded_q, k, v, query_mask=query_mask),
        ):
            np.testing.assert_allclose(out[query_mask], expected, atol=self.tolerance, rtol=1e-4)
            np.testing.assert_array_equal(out[~query_mask], 0)
        out = self.run(q, padded_k, padded_v, key_mask=key_mask)
        np.testing.assert_allclose(out, expected, atol=self.tolerance, rtol=1e-4)

    def test_no_real_key_gives_zeros(self):
        q, k, v = random_inputs(2, length=LENGTH)
        nothing, everything = np.zeros(LENGTH, bool), np.ones(LENGTH, bool)
        out = self.run(q, k, v, query_mask=everything, key_mask=nothing)
        np.testing.assert_array_equal(out, 0)

    def test_all_true_mask_is_no_mask(self):
        inputs = random_inputs(4, length=LENGTH)
        mask = np.ones(LENGTH, bool)
        np.testing.assert_allclose(
            self.run(*inputs, query_mask=mask, key_mask=mask),
            self.run(*inputs),
            atol=self.tolerance,
            rtol=1e-4,
        )

    @settings(max_examples=25, **THE_SAME_EACH_TIME)
    @given(bits=st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), scale=st.floats(0.1, 4))
    def test_any_mask_equals_real_tokens_moved_to_the_front(self, bits, scale):
        mask = np.array(bits)
        q, k, v = random_inputs(5, length=LENGTH)
        inputs = (q * np.float32(scale), k, v)
        order = np.argsort(~mask, kind="stable")
        out = self.run(*inputs, query_mask=mask, key_mask=mask)
        front = self.run(*(x[order] for x in inputs), query_mask=mask[order], key_mask=mask[order])
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out[order], front, atol=10 * self.tolerance, rtol=1e-3)

    @settings(max_examples=5, **THE_SAME_EACH_TIME)
    @given(
        length=st.integers(1, 70), key_length=st.integers(1, 70), batch=st.sampled_from([(), (2,)])
    )
    def test_any_length(self, length, key_length, batch):
        if not self.supports_cross_lengths:
            key_length = length
        inputs = random_inputs(length, *batch, length=length, key_length=key_length)
        out = self.run(*inputs)
        assert out.shape == inputs[0].shape
        assert np.isfinite(out).all()
