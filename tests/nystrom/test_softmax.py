"""Softmax attention's own gradient beside what JAX derives from eq. 1."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import normal
from jax.test_util import check_grads

from nystrom.softmax import attend

SCALE = 0.3


def arrays(length=5, num_keys=7, heads=2, groups=2, width=3):
    """Query, key and value, in float64."""
    shapes = (length, heads, 4), (num_keys, groups, 4), (num_keys, groups, width)
    return [normal(seed, 2, *shape).astype(np.float64) for seed, shape in enumerate(shapes)]


def written_out(query, key, value, key_mask=None, is_causal=False):
    """Eq. 1, head by head."""
    shared = query.shape[-2] // key.shape[-2]
    out = []
    for h in range(query.shape[-2]):
        q, k, v = query[:, :, h], key[:, :, h // shared], value[:, :, h // shared]
        seen = jnp.ones((1, q.shape[1], k.shape[1]), bool)
        seen = seen if key_mask is None else seen & key_mask[:, None]
        seen = jnp.tril(seen) if is_causal else seen
        logits = jnp.where(seen, SCALE * q @ k.mT, -1e30)
        out.append(jnp.where(seen, jax.nn.softmax(logits, axis=-1), 0) @ v)
    return jnp.stack(out, axis=-2)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ({}, {}),
        ({"width": 9}, {}),
        ({"heads": 6}, {}),
        ({"heads": 6, "width": 9}, {"key_mask": np.arange(7)[None] % 3 > np.array([[0], [-1]])}),
        ({"length": 7}, {"is_causal": True}),
        ({"length": 7, "heads": 4}, {"is_causal": True, "key_mask": np.arange(7) > [[2], [0]]}),
    ],
)  # fmt: skip
def test_values_and_gradients_are_those_of_eq_1(sizes, options):
    mask = options.get("key_mask")
    with jax.enable_x64(True):
        inputs = arrays(**sizes)
        if mask is not None:
            inputs[2] = np.where(mask[..., None, None], inputs[2], 0)  # as all who call it have it
        out, back = jax.vjp(
            lambda *x: attend(*x, mask, SCALE, is_causal=options.get("is_causal", False)), *inputs
        )
        exact, exact_back = jax.vjp(partial(written_out, **options), *inputs)
        np.testing.assert_allclose(out, exact, atol=1e-13)
        cotangent = normal(9, *out.shape).astype(np.float64)
        for found, expected in zip(back(cotangent), exact_back(cotangent), strict=True):
            if mask is not None and found.shape == inputs[2].shape:
                found, expected = (
                    jnp.where(mask[..., None, None], x, 0) for x in (found, expected)
                )
            np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("width", [3, 9])
def test_derivatives_of_all_kinds_are_those_of_differences(width):
    with jax.enable_x64(True):
        inputs = arrays(heads=4, width=width)
        mask = np.arange(7)[None] < np.array([[5], [7]])
        check_grads(lambda *x: attend(*x, mask, SCALE), inputs, order=2, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("values_are_apart", [True, False])
def test_halves_are_rounded_at_the_end_of_each_product(dtype, values_are_apart):
    inputs = [x.astype(dtype) for x in arrays(60, 30, width=40)]
    inputs[2] += 0 if values_are_apart else 30
    cotangent = normal(9, 2, 60, 2, 40).astype(dtype)

    def derived(inputs, cotangent):
        def attended(*inputs):
            return attend(*inputs, None, SCALE, values_are_apart=values_are_apart)

        out, back = jax.vjp(attended, *inputs)
        return out, *back(cotangent.astype(out.dtype))

    wide = derived([x.astype(np.float32) for x in inputs], cotangent)
    epsilon = float(jnp.finfo(dtype).eps)
    for found, exact in zip(derived(inputs, cotangent), wide, strict=True):
        error = np.linalg.norm(found.astype(np.float32) - exact) / np.linalg.norm(exact)
        assert error < epsilon
