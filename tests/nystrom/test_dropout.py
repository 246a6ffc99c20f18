"""What models drop: all that is added, each with a key of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import normal
from model_makers import make_encoder, random_tokens

import nystrom
from nystrom import layers
from nystrom.layers import dropout, gelu, split_keys


@pytest.mark.parametrize("norm", nystrom.NORMS)
def test_all_that_a_block_adds_is_dropped_each_with_a_key_of_its_own(norm):
    block, key = make_encoder(norm=norm, dropout_rate=0.5).blocks[0], jax.random.key(0)
    x = jnp.asarray(normal(0, 2, 9, 8))
    keys = iter(split_keys(key, 3))

    def attend(x):
        return dropout(block.attention(x), 0.5, next(keys))

    def mlp(x):
        hidden = dropout(gelu(block.mlp_in(x)), 0.5, next(keys))
        return dropout(block.mlp_out(hidden), 0.5, next(keys))

    if norm == "pre":
        expected = x + attend(block.attention_norm(x))
        expected = expected + mlp(block.mlp_norm(expected))
    else:
        expected = block.attention_norm(x + attend(x))
        expected = block.mlp_norm(expected + mlp(expected))
    np.testing.assert_allclose(block(x, None, key), expected, atol=1e-5)


def test_no_key_is_used_twice():
    """As JAX itself looks for it, in programs too."""
    encoder, key = make_encoder(dropout_rate=0.5), jax.random.key(0)
    keys = jax.random.split(key, 2)
    apart = split_keys(keys, 3)
    with jax.debug_key_reuse(True):
        for given in (key, keys):
            jax.jit(lambda key: encoder(random_tokens(0, 2, 9), None, key))(given)
    for one, other in zip(apart, zip(*map(split_keys, keys, (3, 3)), strict=True), strict=True):
        for row, expected in zip(one, other, strict=True):
            np.testing.assert_array_equal(*map(jax.random.key_data, (row, expected)))


def test_embeddings_are_dropped_and_every_block_has_a_key():
    encoder, key = make_encoder(dropout_rate=0.5, num_layers=2), jax.random.key(0)
    tokens = random_tokens(0, 2, 9)
    *keys, first = split_keys(key, 3)
    x = encoder.token_embed(tokens) + encoder.position_embed[:9]
    x = dropout(x, 0.5, first)
    for block, each in zip(encoder.blocks, keys, strict=True):
        x = block(x, None, each)
    np.testing.assert_allclose(encoder(tokens, None, key), encoder.norm(x), atol=1e-5)


def test_both_words_of_a_key_count(monkeypatch):
    found = set()
    for words in ([0, 0], [0, 1], [1, 0]):
        monkeypatch.setattr(layers, "_words", lambda key, w=words: jnp.array(w, jnp.uint32))
        found.add(layers.hash_bits(jax.random.key(0), (4,)).tobytes())
    assert len(found) == 3
