"""Multi-head self-attention as a Flax NNX module, with any attention of the package's signature."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import nystrom_attention
from nystrom.checks import (
    NYSTROM_IMPLEMENTATIONS,
    PINVS,
    check_choice,
    check_count,
    check_features,
    check_implementation,
    check_result,
)
from nystrom.convolution import depthwise_convolution
from nystrom.layers import Dense, real_ranks, rotate, uniform_init
from nystrom.numerics import zero_padded


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function with options bound, equal to others of it with the same: so are models that it is
    a part of, which then share compiled programs (a `functools.partial` equals only itself)."""

    function: Callable[..., jax.Array]
    options: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(function: Callable[..., jax.Array], **options: Any) -> "Bound":
        return Bound(function, tuple(sorted(options.items())))

    def __call__(self, *arrays: Any, **more: Any) -> jax.Array:
        return self.function(*arrays, **dict(self.options), **more)


def bound_nystrom(
    num_landmarks: int,
    pinv: str,
    pinv_iterations: int,
    axis_name: str | None = None,
    implementation: str | None = None,
) -> Bound:
    """`nystrom_attention` with these options, which are checked."""
    check_choice("pinv", pinv, PINVS)
    check_implementation(implementation, axis_name, NYSTROM_IMPLEMENTATIONS)
    return Bound.of(
        nystrom_attention,
        num_landmarks=check_count("num_landmarks", num_landmarks),
        pinv=pinv,
        pinv_iterations=check_count("pinv_iterations", pinv_iterations),
        axis_name=axis_name,
        implementation=implementation,
    )


class SelfAttention(nnx.Module):
    """Multi-head self-attention with any attention of this package's signature.

    Queries, keys and values are projections of the input; the depthwise convolution of the
    values, one filter of `conv_kernel_size` taps per head, is added to the attention's output
    before the output projection (0 taps: none). With `shared_query_key` the queries serve as
    keys too, with one projection for both; with `rotary` queries and keys are turned by their
    positions. `axis_name` is the axis over which sequences are cut inside `jax.shard_map`, for
    an `attention` that knows it.

    Raises:
      ValueError: heads that don't divide the width, an even number of taps, rotary positions with
        an odd number of features a head.
      TypeError: sizes that are not integers.
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
        if check_count("width", width) % check_count("num_heads", num_heads):
            raise ValueError(f"width={width} can't be split among num_heads={num_heads}")
        check_count("conv_kernel_size", conv_kernel_size, least=0)
        if conv_kernel_size and conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size={conv_kernel_size}: expected 0 or an odd number")
        if rotary and width // num_heads % 2:
            raise ValueError(
                f"rotary positions with {width // num_heads} features a head: expected an even "
                "number (width / num_heads)"
            )
        self.width = width
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
    ) -> Float[jax.Array, "*B N C"]:
        """Attends from every token to the real ones (`mask` True; None: all are real).

        With `trailing` padding must stand after the real tokens, and hold finite numbers: the
        program is the smaller.
        """
        check_features(x, self.width, mask)
        if not trailing:
            x = zero_padded(x, mask)
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
        check_result(self.attention, out, query, value)
        if self.filters is not None:
            filters = self.filters[...].astype(value.dtype)
            # Trailing zeros are as good as an end.
            what = (zero_padded(value, mask), filters) if trailing else (value, filters, mask)
            out = out + depthwise_convolution(*what, axis_name=self.axis_name)
        return self.out(out.reshape(x.shape))


class NystromSelfAttention(SelfAttention):
    """Multi-head self-attention of Nyströmformer: eq. 9 plus a convolution of the values.

    `num_landmarks`, `pinv`, `pinv_iterations` and `implementation` are those of
    `nystrom_attention`, the rest, and errors, those of `SelfAttention` and both.
    """

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
        implementation: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attention = bound_nystrom(num_landmarks, pinv, pinv_iterations, axis_name, implementation)
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
