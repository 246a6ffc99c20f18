"""Dense, GELU and dropout against their definitions, and the statistics of dropout's masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import normal
from jax.test_util import check_grads

from nystrom.layers import Dense, LayerNorm, Logits, dropout, gelu, hash_bits, rotate


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_dense_starts_uniform_within_one_over_the_root_of_its_inputs():
    dense = Dense(400, 300, rngs=nnx.Rngs(0))
    bound = 400**-0.5
    for values in (dense.kernel[...], dense.bias[...]):
        assert np.abs(values).max() <= bound
        assert np.std(values) == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize(("m", "n"), [(7, 3), (104, 100), (3, 7)])
def test_rotary_products_are_those_of_turned_complex_numbers(x64, m, n):
    query, key = np.random.default_rng(0).normal(size=(2, 8))

    def turned(x, rank):
        return np.asarray(rotate(x[None, None], np.array([rank])))

    rates = 10_000.0 ** (-np.arange(4) / 4)
    pairs = (query[:4] + 1j * query[4:]) * np.conj(key[:4] + 1j * key[4:])
    expected = (pairs * np.exp(1j * (m - n) * rates)).real.sum()
    assert (turned(query, m) * turned(key, n)).sum() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("place", [1023, 1024, 70_001, 1_000_003, 2**24 - 1])
def test_angles_of_far_places_keep_their_digits(place):
    rates = 10_000.0 ** (-np.arange(4) / 4)
    ones = np.concatenate([np.ones(4, np.float32), np.zeros(4, np.float32)])[None, None]
    turned = rotate(jnp.asarray(ones), np.array([place], np.int32))[0, 0]
    exact = np.concatenate([np.cos(place * rates), np.sin(place * rates)])
    np.testing.assert_allclose(turned, exact, atol=1e-5 + 1e-9 * place)


@pytest.mark.parametrize("kind", [Dense, Logits])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (2, 2, 3, 5), (0, 3, 5)])
def test_dense_is_the_affine_map_on_any_leading_dimensions(shape, kind):
    dense = kind(5, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), shape)
    graph, params = nnx.split(dense)

    def ours(params, x):
        return nnx.merge(graph, params)(x) ** 2

    def definition(params, x):
        return (jnp.einsum("...c,cd->...d", x, params["kernel"][...]) + params["bias"][...]) ** 2

    out, pull = jax.vjp(ours, params, x)
    expected, expected_pull = jax.vjp(definition, params, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    gradients = zip(
        jax.tree.leaves(pull(jnp.ones_like(out))),
        jax.tree.leaves(expected_pull(jnp.ones_like(out))),
        strict=True,
    )
    for gradient, expected in gradients:
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_gelu_is_exact(x64):
    x = jnp.linspace(-8, 8, 161, dtype=jnp.float64)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), rtol=1e-12, atol=1e-15)
    check_grads(gelu, (x,), order=2, rtol=1e-6, atol=1e-6)
    single = gelu(x.astype(jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, gelu(x), atol=4e-7)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_it(rate):
    x = jnp.ones((64, 256, 16))
    out = np.asarray(dropout(x, rate, jax.random.key(0)))
    assert set(np.unique(out)) == {0, np.float32(1 / (1 - rate))}
    kept = (out != 0).mean()
    assert abs(kept - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / x.size)


def test_dropout_without_key_or_rate_is_the_identity():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.unchecked
def test_a_rate_may_be_a_number_of_numpys():
    x, key = jnp.ones(64), jax.random.key(0)
    for rate in (np.float32(0.5), np.float64(0.5)):
        np.testing.assert_array_equal(dropout(x, rate, key), dropout(x, 0.5, key))
        assert dropout(x.astype(jnp.bfloat16), rate, key).dtype == jnp.bfloat16


def test_all_but_everything_may_be_dropped():
    out = dropout(jnp.ones(100), 1 - 1e-12, jax.random.key(0))
    np.testing.assert_array_equal(out, 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_refuses_an_impossible_rate(rate):
    with pytest.raises(ValueError, match="rate"):
        dropout(jnp.ones(3), rate, jax.random.key(0))


def test_dropout_is_a_function_of_the_key_alone_and_its_gradient_has_the_same_mask():
    x = jax.random.normal(jax.random.key(0), (5, 7, 11)) + 10
    key = jax.random.key(3)
    out, pull = jax.vjp(lambda x: dropout(x, 0.3, key), x)
    np.testing.assert_array_equal(out, dropout(x, 0.3, key))
    np.testing.assert_array_equal(out, jax.jit(dropout, static_argnums=1)(x, 0.3, key))
    (gradient,) = pull(jnp.ones_like(out))
    np.testing.assert_array_equal(gradient != 0, out != 0)
    assert (np.asarray(dropout(x, 0.3, jax.random.key(4))) != out).any()


def test_dropout_of_pieces_of_sequences_is_that_of_the_whole_with_one_key_for_all():
    whole = jnp.ones((3, 8, 5))
    pieces = jnp.moveaxis(whole.reshape(3, 4, 2, 5), 1, 0)
    key = jax.random.key(3)
    cut = jax.vmap(lambda x: dropout(x, 0.5, key, "sequence"), axis_name="sequence")(pieces)
    expected = dropout(whole, 0.5, key)
    np.testing.assert_array_equal(jnp.moveaxis(cut, 0, 1).reshape(whole.shape), expected)


def test_dropout_of_pieces_counts_real_tokens_as_if_they_stood_in_front():
    mask = np.random.default_rng(0).random((3, 8)) < 0.6
    pieces = np.moveaxis(mask.reshape(3, 4, 2), 1, 0)
    key = jax.random.key(3)

    def cut(mask):
        return dropout(jnp.ones((3, 2, 5)), 0.5, key, "sequence", mask)

    found = jnp.moveaxis(jax.vmap(cut, axis_name="sequence")(pieces), 0, 1).reshape(3, 8, 5)
    in_front = dropout(jnp.ones((3, 8, 5)), 0.5, key)
    for example, real, expected in zip(found, mask, in_front, strict=True):
        np.testing.assert_array_equal(example[real], expected[: real.sum()])


def test_dropout_keeps_the_dtype_and_zeroes_even_infinities():
    x = jnp.full((100,), jnp.inf, jnp.bfloat16)
    out = dropout(x, 0.5, jax.random.key(0))
    assert out.dtype == jnp.bfloat16
    assert (out == 0).any() and not jnp.isnan(out).any()


def test_hash_bits_number_elements_in_row_major_order():
    key = jax.random.key(5)
    flat = hash_bits(key, (2 * 3 * 4,))
    np.testing.assert_array_equal(hash_bits(key, (2, 3, 4)).ravel(), flat)
    assert len(np.unique(hash_bits(key, (4096,)))) == 4096


def test_every_output_bit_is_fair_and_uncorrelated_with_its_neighbours():
    bits = _bits(hash_bits(jax.random.key(7), (1 << 16,)))
    bound = 5 / np.sqrt(len(bits))
    assert np.abs(bits.mean(axis=0)).max() < bound
    between_bits = bits.T @ bits / len(bits) - np.eye(32)
    assert np.abs(between_bits).max() < bound
    for lag in (1, 2, 3, 64, 128, 4096):
        assert np.abs(bits[lag:].T @ bits[:-lag] / len(bits)).max() < bound


@pytest.mark.parametrize(
    "pair",
    [
        lambda: (jax.random.key(0), jax.random.key(1)),
        lambda: tuple(jax.random.fold_in(jax.random.key(0), step) for step in (10, 11)),
        lambda: tuple(jax.random.split(jax.random.key(0), 2)),
        lambda: (jax.random.key(0, impl="rbg"), jax.random.key(1, impl="rbg")),
    ],
)
def test_neighbouring_keys_give_independent_bits(pair):
    first, second = (_bits(hash_bits(key, (1 << 16,))) for key in pair())
    bound = 5 / np.sqrt(len(first))
    for lag in (0, 1, 64):
        shifted = second[lag:]
        assert np.abs(first[: len(shifted)].T @ shifted / len(first)).max() < bound


def test_kept_counts_vary_over_keys_as_independent_draws_would():
    keys = jax.random.split(jax.random.key(9), 512)
    masks = jax.vmap(lambda key: dropout(jnp.ones((32, 16)), 0.1, key) != 0)(keys)
    counts = np.asarray(masks).reshape(512, -1).sum(axis=1)
    variance = 512 * 0.1 * 0.9
    assert abs(counts.var() / variance - 1) < 5 * np.sqrt(2 / 512)
    by_position = np.asarray(masks).reshape(512, -1).sum(axis=0)
    assert abs(by_position.var() / variance - 1) < 5 * np.sqrt(2 / 512)


def _bits(words):
    """uint32 [n] to its bits as -1 and 1, float32 [n, 32]."""
    words = np.asarray(words)
    return ((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.float32) * 2 - 1


@pytest.mark.parametrize(
    ("mean", "size", "tolerance"),
    [(1000, 1, {"atol": 1e-3}), (0, 1e-3, {"rtol": 1e-4, "atol": 1e-6})],
)
def test_layer_norm_is_its_definition_far_from_zero_and_near_it(mean, size, tolerance):
    """With PyTorch's epsilon."""
    x = mean + size * normal(0, 3, 64)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(LayerNorm(64, rngs=nnx.Rngs(0))(x), expected, **tolerance)
