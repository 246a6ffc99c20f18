"""The Nyströmformer encoder as Flax NNX modules: they own parameters, the maths is elsewhere."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.attention import nystrom_attention
from nystrom.checks import PINVS, check_choice, check_count, check_mask_type
from nystrom.convolution import depthwise_convolution
from nystrom.layers import (
    Dense,
    check_rate,
    dropout,
    gelu,
    layer_norm,
    real_ranks,
    rotate,
    split_keys,
    uniform_init,
)
from nystrom.numerics import from_front, to_front, unless_trailing, zero_padded

POSITIONS = ("learned", "rotary", "none")
NORMS = ("pre", "post")


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function with options bound, equal to others of it with the same: so are models that it is
    a part of, which then share compiled programs (a `functools.partial` equals only itself)."""

    function: Callable[..., Array]
    options: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(function: Callable[..., Array], **options: Any) -> "Bound":
        return Bound(function, tuple(sorted(options.items())))

    def __call__(self, *arrays: Any, **more: Any) -> Array:
        return self.function(*arrays, **dict(self.options), **more)

    def __hash__(self):  # options may be arrays, which have none
        return hash((self.function, tuple(name for name, _ in self.options)))


class SelfAttention(nnx.Module):
    """Multi-head self-attention with any attention of this package's signature.

    Queries, keys and values are projections of the input; the depthwise convolution of the
    values, one filter of `conv_kernel_size` taps per head, is added to the attention's output
    before the output projection (0 taps: none). With `shared_query_key` the queries serve as
    keys too, with one projection for both; with `rotary` queries and keys are turned by their
    positions. `axis_name` is the axis over which sequences are cut inside `jax.shard_map`, for
    an `attention` that knows it.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        attention: Callable[..., Array],
        conv_kernel_size: int = 0,
        shared_query_key: bool = False,
        rotary: bool = False,
        axis_name: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if num_heads < 1 or width < 1 or width % num_heads:
            raise ValueError(f"width={width} can't be split among num_heads={num_heads}")
        check_count("conv_kernel_size", conv_kernel_size, least=0)
        if conv_kernel_size and conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={conv_kernel_size}: expected 0 or an odd number")
        if rotary and width // num_heads % 2:
            raise ValueError(
                f"rotary positions with {width // num_heads} features a head: expected an even "
                "number (width / num_heads)"
            )
        self.num_heads = num_heads
        self.attention = attention
        self.shared_query_key = shared_query_key
        self.rotary = rotary
        self.axis_name = axis_name
        self.qkv = Dense(width, (2 if shared_query_key else 3) * width, dtype=dtype, rngs=rngs)
        self.out = Dense(width, width, dtype=dtype, rngs=rngs)
        self.filters = nnx.data(None)
        if conv_kernel_size:
            init = uniform_init(conv_kernel_size)
            self.filters = nnx.Param(init(rngs.params(), (num_heads, conv_kernel_size)))

    def __call__(
        self,
        x: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        *,
        trailing: bool = False,
    ) -> Float[Array, "*B N C"]:
        """Attends from every token to the real ones (`mask` True; None: all are real).

        With `trailing` padding must stand after the real tokens: the program is the smaller.
        """
        qkv = self.qkv(x)
        parts = 2 if self.shared_query_key else 3
        shape = (*x.shape[:-1], parts * self.num_heads, x.shape[-1] // self.num_heads)
        heads = jnp.reshape(qkv, shape)
        *turned, value = jnp.split(heads, parts, -2)
        if self.rotary:
            rank = real_ranks(None if trailing else mask, x.shape[:-1], self.axis_name)
            turned = [jnp.asarray(rotate(y, rank)) for y in turned]
        query, key = turned[0], turned[-1]  # one and the same where they are shared
        out = self.attention(query, key, value, mask=mask)
        if self.filters is not None:
            filters = self.filters[...].astype(value.dtype)
            # Trailing zeros are as good as an end.
            what = (zero_padded(value, mask), filters) if trailing else (value, filters, mask)
            out = out + depthwise_convolution(*what, axis_name=self.axis_name)
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
        rotary: bool = False,
        axis_name: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attention = Bound.of(
            nystrom_attention,
            num_landmarks=check_count("num_landmarks", num_landmarks),
            pinv=pinv,
            pinv_iterations=check_count("pinv_iterations", pinv_iterations),
            axis_name=axis_name,
        )
        check_choice("pinv", pinv, PINVS)
        super().__init__(
            width,
            num_heads,
            attention=attention,
            conv_kernel_size=conv_kernel_size,
            rotary=rotary,
            axis_name=axis_name,
            dtype=dtype,
            rngs=rngs,
        )


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
        trailing: bool = False,
    ) -> Float[Array, "*B N C"]:
        keys = split_keys(dropout_key, 3)

        def drop(x, key):
            return dropout(x, self.dropout_rate, key, self.axis_name)

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

    Positions count real tokens only, so that padding, wherever it stands, changes nothing.
    Embeddings start as normal numbers with std `embedding_std`. `make_attention(rngs)` gives each
    block its self-attention module; without it the blocks have `NystromSelfAttention` with its
    defaults. `position` is "learned" (a table, the paper's), "rotary" (queries and keys are turned;
    `make_attention` must do so, the default does) or "none"; `norm` is "pre" (the authors' LRA
    models) or "post" (without the final LayerNorm, as in their language models). `axis_name` is
    the axis over which sequences are cut inside `jax.shard_map`; `make_attention` must know it too.

    Token ids are not checked: those beyond the vocabulary give NaN, negative ones wrap round.

    Raises:
      ValueError: sizes, rates or names that can't be.
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
        check_choice("position", position, POSITIONS)
        check_choice("norm", norm, NORMS)
        for name, size in (("vocab_size", vocab_size), ("max_length", max_length)):
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
        self.norm = nnx.data(layer_norm(width, dtype=dtype, rngs=rngs) if norm == "pre" else None)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*B N C"]:
        """Hidden states, zeros where padded; dropout acts only when given a key, or one an example.

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
    ) -> tuple[Float[Array, "*B N C"], Bool[Array, "*B N"] | None]:
        """`__call__` with the real tokens moved in front of the padding, and their mask there.

        So no layer asks where the padding stands. Sequences that are cut over devices stay as they
        are.
        """
        self._check(tokens, mask)
        trailing = self.axis_name is None
        if mask is not None and trailing:
            tokens, mask = unless_trailing(to_front, mask, tokens, mask)
        *keys, embedding_key = split_keys(dropout_key, len(self.blocks) + 1)
        x = self._embed(tokens, mask)
        x = dropout(x, self.dropout_rate, embedding_key, self.axis_name)
        call = EncoderBlock.__call__
        call = nnx.remat(call, static_argnums=4) if self.remat else call
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

    def _check(self, tokens, mask):
        if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
            found = getattr(tokens, "dtype", type(tokens).__name__)
            raise TypeError(f"tokens have dtype {found}: expected an array of integer ids")
        if tokens.ndim < 1 or tokens.shape[-1] > self.max_length:
            raise ValueError(f"tokens {tokens.shape}: expected *B N, N at most {self.max_length}")
        if mask is not None:
            check_mask_type("mask", mask)
            if mask.shape != tokens.shape:
                raise ValueError(f"mask has shape {mask.shape}, tokens {tokens.shape}: not alike")
