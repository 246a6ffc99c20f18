"""`attention_fn` inside Flax's own multi-head attention, NNX and Linen."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from inputs import jitted, mask_with, normal

from nystrom import attention_fn, nystrom_attention


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
        out = apply(self.attend, q, k, mask=mask[:, None, None, :])
        alone = apply(self.attend, q[1:], k[1:, mask[1]])
        np.testing.assert_allclose(out[1], alone[0], atol=2e-5)

    def test_a_mask_over_pairs_is_refused(self, apply):
        x = normal(3, 2, 12, 8)
        for mask in (
            nn.make_causal_mask(x[..., 0]),
            nn.make_attention_mask(np.ones((2, 12)), np.ones((2, 12))),
            np.ones((2, 2, 1, 12), bool),
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


def test_equal_lengths_of_two_documents():
    """By default keys' mask is the queries' where lengths agree; `cross_attention` unties them."""
    q, k, v = normal(6, 1, 9, 2, 4), normal(7, 1, 9, 2, 4), normal(8, 1, 9, 2, 4)
    mask = mask_with(5, 9, "trailing")[None]
    tied = jitted(attention_fn(num_landmarks=4))(q, k, v, mask=mask[:, None, None, :])
    np.testing.assert_array_equal(tied[~mask], 0)
    free = attention_fn(num_landmarks=4, cross_attention=True)(q, k, v, mask=mask[:, None, None, :])
    expected = nystrom_attention(q, k, v, key_mask=mask, num_landmarks=4)
    np.testing.assert_allclose(free, expected, atol=1e-6)


def test_bias_and_causal_use_are_refused():
    q = normal(9, 1, 6, 2, 4)
    attend = attention_fn(num_landmarks=4)
    with pytest.raises(ValueError, match="bias: "):
        attend(q, q, q, bias=np.zeros((1, 2, 6, 6)))
    with pytest.raises(ValueError, match="is_causal=True"):
        attend(q, q, q, is_causal=True)


def test_no_batch_dimension_and_several():
    x = normal(10, 2, 3, 6, 2, 4)
    mask = np.stack([mask_with(n, 6, "holes") for n in range(1, 7)]).reshape(2, 3, 6)
    attend = jitted(attention_fn(num_landmarks=4))
    out = attend(x, x, x, mask=mask[:, :, None, None, :])
    one = attend(x[1, 0], x[1, 0], x[1, 0], mask=mask[1, 0][None, None, :])
    np.testing.assert_allclose(out[1, 0], one, atol=2e-5)
