"""The released encoder as Flax NNX modules: they own parameters, the maths is elsewhere."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.checks import check_ids, is_empty
from nystrom.convolution import depthwise_convolution
from nystrom.language.activations import ACTIVATIONS
from nystrom.language.attention import language_attention
from nystrom.language.config import LanguageConfig
from nystrom.layers import LayerNorm, dropout, real_ranks, split_keys
from nystrom.numerics import first_token, from_front, to_front, unless_trailing, zero_padded

FIRST_POSITION = 2  # rows of the table that no token uses: left over from RoBERTa


def dense(in_features: int, out_features: int, config: LanguageConfig, dtype, rngs) -> nnx.Linear:
    """x W + b with the released model's initial weights."""
    init = nnx.initializers.normal(config.initializer_range)
    return nnx.Linear(in_features, out_features, kernel_init=init, dtype=dtype, rngs=rngs)


def layer_norm(config: LanguageConfig, dtype, rngs) -> LayerNorm:
    """LayerNorm over features with the config's epsilon."""
    epsilon = float(config.layer_norm_eps)
    return LayerNorm(config.hidden_size, epsilon=epsilon, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """norm(x + drop(attention(x))), then norm(x + drop(mlp(x)))."""

    # Of the modules, in the released files.
    NAMES: ClassVar[dict[str, str]] = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "filters": "attention.self.conv",
        "out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "mlp_in": "intermediate.dense",
        "mlp_out": "output.dense",
        "mlp_norm": "output.LayerNorm",
    }

    def __init__(self, config: LanguageConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, mlp_width = config.hidden_size, config.intermediate_size
        self.config = config
        self.query, self.key, self.value, self.out = (
            dense(width, width, config, dtype, rngs) for _ in range(4)
        )
        self.attention_norm = layer_norm(config, dtype, rngs)
        self.mlp_in = dense(width, mlp_width, config, dtype, rngs)
        self.mlp_out = dense(mlp_width, width, config, dtype, rngs)
        self.mlp_norm = layer_norm(config, dtype, rngs)
        self.filters = nnx.data(None)
        if config.conv_kernel_size is not None:
            shape = (config.num_attention_heads, config.conv_kernel_size)
            init = nnx.initializers.normal(config.initializer_range)
            self.filters = nnx.Param(init(rngs.params(), shape, jnp.float32))

    def __call__(
        self,
        x: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B N C"]:
        """The next hidden states; dropout acts only when given a key, or one an example.

        Padding must stand after the real tokens.
        """
        keys = split_keys(dropout_key, 2)
        drop = partial(dropout, rate=self.config.hidden_dropout_prob)
        attended = self.attention_norm(x + drop(self._attend(x, mask), key=keys[0]))
        hidden = ACTIVATIONS[self.config.hidden_act](self.mlp_in(attended))
        return self.mlp_norm(attended + drop(self.mlp_out(hidden), key=keys[1]))

    def _attend(self, x, mask):
        heads = self.config.num_attention_heads
        shape = (*x.shape[:-1], heads, x.shape[-1] // heads)
        query, key, value = (
            project(x).reshape(shape) for project in (self.query, self.key, self.value)
        )
        out = language_attention(query, key, value, mask, self.config)
        if self.filters is not None:
            if self.config.padding != "transformers":  # trailing zeros are as good as an end
                value = zero_padded(value, mask)
            out = out + depthwise_convolution(value, self.filters[...].astype(value.dtype))
        return self.out(out.reshape(x.shape))


class NystromformerModel(nnx.Module):
    """Token ids to hidden states: embeddings, LayerNorm and post-norm blocks.

    Computes in `dtype` with parameters in float32. Token ids are not checked: those beyond the
    vocabulary give NaN, negative ones wrap round.
    """

    # Of the modules, in the released files.
    NAMES: ClassVar[dict[str, str]] = {
        "words": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "types": "embeddings.token_type_embeddings",
        "norm": "embeddings.LayerNorm",
        "blocks": "encoder.layer",
    }

    def __init__(self, config: LanguageConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_range)
        self.config = config
        self.words, self.positions, self.types = (
            nnx.Embed(rows, config.hidden_size, embedding_init=init, dtype=dtype, rngs=rngs)
            for rows in (
                config.vocab_size,
                config.max_position_embeddings + FIRST_POSITION,
                config.type_vocab_size,
            )
        )
        self.norm = layer_norm(config, dtype, rngs)
        self.blocks = nnx.List(
            Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)
        )

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        types: Int[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B N C"]:
        """The last hidden states.

        Args:
          tokens: ids.
          mask: True for real tokens; None: all are. Padding changes no real token, wherever it
            stands, and gets zeros, but with `config.padding` "transformers".
          types: 0 for a first and 1 for a second sentence; None: all 0.
          dropout_key: without it no dropout; or one an example.

        Raises:
          ValueError: more tokens than positions, arrays whose shapes are not alike.
          TypeError: ids that are not integers, a mask that is not boolean.
        """
        return self._put_back(mask, self._blocks(tokens, mask, types, dropout_key)[-1])[0]

    def hidden_states(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        types: Int[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> list[Float[Array, "*B N C"]]:
        """The embeddings' hidden states and then every block's, see `__call__`."""
        return self._put_back(mask, *self._blocks(tokens, mask, types, dropout_key))

    def _blocks(self, tokens, mask, types, dropout_key):
        """Hidden states with the real tokens in front: no block asks where the padding stands."""
        longest = self.config.max_position_embeddings
        hint = " (max_position_embeddings); from_pretrained(..., max_length=N) extends the table"
        check_ids(tokens, longest, mask=mask, types=types, hint=hint)
        ids = tokens, jnp.zeros_like(tokens) if types is None else types
        if mask is not None and self.config.padding != "transformers":
            *ids, mask = unless_trailing(to_front, mask, *ids, mask)
            ids = [zero_padded(x, mask) for x in ids]
        key, *keys = split_keys(dropout_key, len(self.blocks) + 1)
        states = [dropout(self._embed(*ids), self.config.hidden_dropout_prob, key)]
        for block, key in zip(self.blocks, keys, strict=True):
            states.append(block(states[-1], mask, key))
        return states

    def _put_back(self, mask, *states):
        if mask is None or self.config.padding == "transformers":
            return list(states)
        return [zero_padded(x, mask) for x in unless_trailing(from_front, mask, *states)]

    def _embed(self, tokens, types):
        positions = self.positions(FIRST_POSITION + real_ranks(None, tokens.shape))
        return self.norm(self.words(tokens) + self.types(types) + positions)


def first_real(
    x: Float[Array, "*B N C"], mask: Bool[Array, "*B N"] | None, config: LanguageConfig
) -> Float[Array, "*B C"]:
    """The first real token's hidden state, zeros where there is none.

    With padding "transformers" the first token's.
    """
    if is_empty(x.shape[-2]):
        return jnp.zeros_like(x, shape=(*x.shape[:-2], x.shape[-1]))
    return first_token(x, None if config.padding == "transformers" else mask)
