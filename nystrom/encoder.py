"""The Nyströmformer encoder as Flax NNX modules: they own parameters, the maths is elsewhere."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.attention import nystrom_attention
from nystrom.convolution import depthwise_convolution
from nystrom.layers import Dense, dropout, gelu, layer_norm, repeat_over_batch, uniform_init


class SelfAttention(nnx.Module):
    """Multi-head self-attention with any attention of this package's signature.

    Queries, keys and values are projections of the input; the depthwise convolution of the
    values, one filter of `conv_kernel_size` taps per head, is added to the attention's output
    before the output projection (0 taps: none). With `shared_query_key` the queries serve as
    keys too, with one projection for both.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        attention: Callable[..., Array],
        conv_kernel_size: int = 0,
        shared_query_key: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"width={width} can't be split among num_heads={num_heads}")
        if conv_kernel_size < 0 or (conv_kernel_size and conv_kernel_size % 2 == 0):
            raise ValueError(f"conv_kernel_size={conv_kernel_size}: expected 0 or an odd number")
        self.num_heads = num_heads
        self.attention = attention
        self.shared_query_key = shared_query_key
        self.qkv = Dense(width, (2 if shared_query_key else 3) * width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)
        self.filters = nnx.data(None)
        if conv_kernel_size:
            init = uniform_init(conv_kernel_size)
            self.filters = nnx.Param(init(rngs.params(), (num_heads, conv_kernel_size)))

    def __call__(
        self, x: Float[Array, "*B N C"], mask: Bool[Array, "*B N"] | None = None
    ) -> Float[Array, "*B N C"]:
        """Attends from every token to the real ones (`mask` True; None: all are real)."""
        qkv = self.qkv(x)
        parts = 2 if self.shared_query_key else 3
        query, *keys, value = jnp.split(
            qkv.reshape(*x.shape[:-1], parts * self.num_heads, -1), parts, -2
        )
        key = keys[0] if keys else query
        out = self.attention(query, key, value, query_mask=mask, key_mask=mask)
        if self.filters is not None:
            out = out + depthwise_convolution(value, self.filters[...].astype(value.dtype), mask)
        return self.out(out.reshape(x.shape))


class NystromSelfAttention(SelfAttention):
    """Multi-head self-attention of Nyströmformer: eq. 9 plus a convolution of the values."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        num_landmarks: int = 64,
        pinv: str = "iterative",
        pinv_iterations: int = 6,
        conv_kernel_size: int = 35,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attention = partial(
            nystrom_attention,
            num_landmarks=num_landmarks,
            pinv=pinv,
            pinv_iterations=pinv_iterations,
        )
        super().__init__(
            width,
            num_heads,
            attention=attention,
            conv_kernel_size=conv_kernel_size,
            dtype=dtype,
            rngs=rngs,
        )


class EncoderBlock(nnx.Module):
    """A pre-norm block: x + drop(attention(norm(x))), then x + mlp(norm(x))."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        self_attention: SelfAttention,
        *,
        dropout_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dropout_rate = dropout_rate
        self.attention_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.attention = self_attention
        self.mlp_norm = layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp_in = Dense(width, mlp_width, dtype=dtype, rngs=rngs)
        self.mlp_out = Dense(mlp_width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*B N C"]:
        keys = [None] * 3 if dropout_key is None else jax.random.split(dropout_key, 3)
        attended = self.attention(self.attention_norm(x), mask)
        x = x + dropout(attended, self.dropout_rate, keys[0])
        hidden = gelu(self.mlp_in(self.mlp_norm(x)))
        hidden = self.mlp_out(dropout(hidden, self.dropout_rate, keys[1]))
        return x + dropout(hidden, self.dropout_rate, keys[2])


class Encoder(nnx.Module):
    """Token ids to hidden states: embeddings, pre-norm blocks and a final LayerNorm.

    Positions count real tokens only, so that padding, wherever it stands, changes nothing. Both
    embeddings, of tokens and of positions, start as normal numbers with std `embedding_std`.
    `make_attention(rngs)` gives each block its self-attention module; without it the blocks
    have `NystromSelfAttention` with its defaults.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        *,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 2,
        mlp_width: int = 128,
        embedding_std: float = 0.02,
        dropout_rate: float = 0.0,
        make_attention: Callable[[nnx.Rngs], SelfAttention] | None = None,
        remat: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        make_attention = make_attention or (
            lambda rngs: NystromSelfAttention(width, num_heads, dtype=dtype, rngs=rngs)
        )
        embed_init = nnx.initializers.normal(embedding_std)
        self.dropout_rate = dropout_rate
        self.remat = remat
        self.max_length = max_length
        self.token_embed = nnx.Embed(
            vocab_size, width, embedding_init=embed_init, dtype=dtype, rngs=rngs
        )
        self.position_embed = nnx.Param(embed_init(rngs.params(), (max_length, width)))
        self.blocks = nnx.List(
            EncoderBlock(
                width,
                mlp_width,
                make_attention(rngs),
                dropout_rate=dropout_rate,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.norm = layer_norm(width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*B N C"]:
        """Hidden states, zeros where padded; dropout acts only when given a key.

        Raises:
          ValueError: more positions than the position table has.
        """
        if tokens.shape[-1] > self.max_length:
            raise ValueError(
                f"tokens have {tokens.shape[-1]} positions, but max_length={self.max_length}"
            )
        num_keys = len(self.blocks) + 1
        keys = [None] * num_keys
        if dropout_key is not None:
            keys = jax.random.split(dropout_key, num_keys)
        x = self._add_positions(self.token_embed(tokens), mask)
        x = dropout(x, self.dropout_rate, keys[-1])
        call = nnx.remat(EncoderBlock.__call__) if self.remat else EncoderBlock.__call__
        for block, key in zip(self.blocks, keys, strict=False):
            x = call(block, x, mask, key)
        x = self.norm(x)
        return x if mask is None else jnp.where(mask[..., None], x, 0)

    def _add_positions(self, x, mask):
        table = self.position_embed[...].astype(x.dtype)
        *batch, length, _ = x.shape

        def in_order(x, table):
            return x + repeat_over_batch(table[:length], batch)

        def by_rank(x, table):
            return x + table[jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)]

        if mask is None:
            return in_order(x, table)
        # The table as it stands is far cheaper, backward above all, than a lookup.
        only_trailing = jnp.all(mask[..., :-1] >= mask[..., 1:])
        return jax.lax.cond(only_trailing, in_order, by_rank, x, table)
