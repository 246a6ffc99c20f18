"""The Nyströmformer encoder as Flax NNX modules: they own parameters, the maths is elsewhere."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.checks import check_choice, check_count, check_ids, check_number
from nystrom.layers import Dense, LayerNorm, check_rate, dropout, gelu, real_ranks, split_keys
from nystrom.numerics import from_front, to_front, unless_trailing, zero_padded
from nystrom.self_attention import NystromSelfAttention, SelfAttention

POSITIONS = ("learned", "rotary", "none")
NORMS = ("pre", "post")


class EncoderBlock(nnx.Module):
    """x + drop(attention(norm(x))), then x + mlp(norm(x)); or norm after each sum (post-norm)."""

    def __init__(
        self,
        width: int,
        mlp_width: int,
        self_attention: SelfAttention,
        *,
        norm: str = "pre",
        dropout_rate: float = 0.0,
        axis_name: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.is_pre = norm == "pre"
        self.dropout_rate = dropout_rate
        self.axis_name = axis_name
        self.attention_norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.attention = self_attention
        self.mlp_norm = LayerNorm(width, dtype=dtype, rngs=rngs)
        self.mlp_in = Dense(width, mlp_width, dtype=dtype, rngs=rngs)
        self.mlp_out = Dense(mlp_width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
        trailing: bool = False,
    ) -> Float[jax.Array, "*B N C"]:
        keys = split_keys(dropout_key, 3)

        def drop(x, key):
            return dropout(x, self.dropout_rate, key, self.axis_name, None if trailing else mask)

        def mlp(x):
            return drop(self.mlp_out(drop(gelu(self.mlp_in(x)), keys[1])), keys[2])

        def attend(x):
            return drop(self.attention(x, mask, trailing=trailing), keys[0])

        if self.is_pre:
            x = x + attend(self.attention_norm(x))
            return x + mlp(self.mlp_norm(x))
        x = self.attention_norm(x + attend(x))
        return self.mlp_norm(x + mlp(x))


class Encoder(nnx.Module):
    """Token ids to hidden states: embeddings, blocks and a final LayerNorm.

    Positions count real tokens only, so that padding, wherever it stands, changes nothing. Token
    ids are not checked: those beyond the vocabulary give NaN, negative ones wrap round.

    Args:
      vocab_size: ids that tokens may have, that of padding among them.
      max_length: the most positions of a sequence.
      width: C, features of a token; `num_heads`, of the default attention, divides it.
      num_layers: blocks, each of a self-attention and an MLP with `mlp_width` hidden features.
      embedding_std: of the normal numbers that embeddings start as.
      dropout_rate: of the embeddings and of what each block adds; in [0, 1).
      position: "learned" (a table, the paper's), "rotary" (queries and keys are turned;
        `make_attention` must do so, the default does) or "none".
      norm: "pre" (the authors' LRA models) or "post" (without the final LayerNorm, as in their
        language models).
      make_attention: (rngs) -> a block's self-attention, called as (x, mask, trailing=...) like
        `SelfAttention`; None: `NystromSelfAttention` with its defaults.
      axis_name: the axis over which sequences are cut inside `jax.shard_map`; `make_attention`
        must know it too.
      remat: compute each block anew in the backward pass, for less memory on accelerators: XLA's
        compiler for CPUs joins what is computed twice, and saves none.
      dtype: computed in; parameters are float32.

    Raises:
      ValueError: sizes, rates or names that can't be.
      TypeError: sizes that are not integers.
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
        position: str = "learned",
        norm: str = "pre",
        make_attention: Callable[[nnx.Rngs], SelfAttention] | None = None,
        axis_name: str | None = None,
        remat: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_rate("dropout_rate", dropout_rate)
        check_number("embedding_std", embedding_std, 0)
        check_choice("position", position, POSITIONS)
        check_choice("norm", norm, NORMS)
        sizes = {"vocab_size": vocab_size, "max_length": max_length, "num_layers": num_layers}
        for name, size in (sizes | {"width": width, "mlp_width": mlp_width}).items():
            check_count(name, size)
        make_attention = make_attention or (
            lambda rngs: NystromSelfAttention(
                width,
                num_heads,
                rotary=position == "rotary",
                axis_name=axis_name,
                dtype=dtype,
                rngs=rngs,
            )
        )
        embed_init = nnx.initializers.normal(embedding_std)
        self.dropout_rate = dropout_rate
        self.remat = remat
        self.max_length = max_length
        self.axis_name = axis_name
        self.token_embed = nnx.Embed(
            vocab_size, width, embedding_init=embed_init, dtype=dtype, rngs=rngs
        )
        self.position_embed = nnx.data(None)
        if position == "learned":
            table = embed_init(rngs.params(), (max_length, width), jnp.float32)
            self.position_embed = nnx.Param(table)
        self.blocks = nnx.List(
            EncoderBlock(
                width,
                mlp_width,
                make_attention(rngs),
                norm=norm,
                dropout_rate=dropout_rate,
                axis_name=axis_name,
                dtype=dtype,
                rngs=rngs,
            )
            for _ in range(num_layers)
        )
        self.norm = nnx.data(LayerNorm(width, dtype=dtype, rngs=rngs) if norm == "pre" else None)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B N C"]:
        """Hidden states, zeros where padded; dropout acts only when given a key, or one an example
        (as `jax.random.key` makes them).

        Raises:
          ValueError: more positions than `max_length`, a mask that is not *B N.
          TypeError: tokens that are not integers, a mask that is not boolean.
        """
        hidden, _ = self.in_front(tokens, mask, dropout_key)
        if mask is None or self.axis_name is not None:
            return hidden
        (hidden,) = unless_trailing(from_front, mask, hidden)
        return zero_padded(hidden, mask)

    def in_front(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> tuple[Float[jax.Array, "*B N C"], Bool[Array, "*B N"] | None]:
        """`__call__` with the real tokens moved in front of the padding, and their mask there.

        So no layer asks where the padding stands. Sequences that are cut over devices stay as they
        are.
        """
        pieces = 1 if self.axis_name is None else jax.lax.axis_size(self.axis_name)
        check_ids(tokens, self.max_length // pieces, mask=mask)
        trailing = self.axis_name is None
        if mask is not None and trailing:
            tokens, mask = unless_trailing(to_front, mask, tokens, mask)
        *keys, embedding_key = split_keys(dropout_key, len(self.blocks) + 1)
        x = self._embed(zero_padded(tokens, mask), mask)
        ranked = None if trailing else mask
        x = dropout(x, self.dropout_rate, embedding_key, self.axis_name, ranked)
        call = _remat if self.remat else EncoderBlock.__call__
        for block, key in zip(self.blocks, keys, strict=True):
            x = call(block, x, mask, key, trailing)
        x = x if self.norm is None else self.norm(x)
        return zero_padded(x, mask), mask

    def _embed(self, tokens, mask):
        x = self.token_embed(jnp.asarray(tokens))
        if self.position_embed is None:
            return x
        table = self.position_embed[...].astype(x.dtype)
        if self.axis_name is not None:
            return x + table[real_ranks(mask, x.shape[:-1], self.axis_name)]
        # The table as it stands is far cheaper, backward above all, than a lookup.
        return x + jnp.broadcast_to(table[: x.shape[-2]], x.shape)


def _remat(block, x, mask, key, trailing):
    """A block computed anew in the backward pass.

    nnx.remat keeps what a user's attention changes of its state, but breaks a block that jit closes
    over, so blocks of parameters alone go without it.
    """
    graph, params, others = nnx.split(block, nnx.Param, ...)
    if jax.tree.leaves(others):
        return nnx.remat(EncoderBlock.__call__, static_argnums=4)(block, x, mask, key, trailing)

    def call(params, x, mask, key):
        return nnx.merge(graph, params, others)(x, mask, key, trailing)

    return jax.checkpoint(call)(params, x, mask, key)
