"""The encoder's layers: dense, GELU, LayerNorm, positions and dropout."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.checks import all_known
from nystrom.landmarks import token_ranks
from nystrom.numerics import accumulator

LAYER_NORM_EPSILON = 1e-5
ROTARY_BASE = 10_000  # Su et al. 2021, "RoFormer"


class Dense(nnx.Linear):
    """x W + b with PyTorch's initial weights and bias, as the authors' models have it."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        init = uniform_init(in_features)
        super().__init__(
            in_features, out_features, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(  # type: ignore[override]  # no out_sharding
        self, x: Float[Array, "*B in_features"]
    ) -> Float[jax.Array, "*B out_features"]:
        # As one matrix, or XLA on CPU transposes a copy of the gradient to form the weights'.
        out = super().__call__(jnp.reshape(x, (-1, x.shape[-1])))
        return out.reshape(*x.shape[:-1], self.out_features)


class Logits(Dense):
    """`Dense` with a result in float32 that is not rounded to its dtype first."""

    def __call__(  # type: ignore[override]  # no out_sharding
        self, x: Float[Array, "*B in_features"]
    ) -> Float[jax.Array, "*B out_features"]:
        tokens, kernel = (each.astype(self.dtype) for each in (x, self.kernel[...]))
        bias = self.bias[...]  # type: ignore[index]  # without one only if asked for
        out = logits(tokens.reshape(-1, x.shape[-1]), kernel, bias)
        return out.reshape(*x.shape[:-1], self.out_features)


def logits(
    x: Float[Array, "*B C"], kernel: Float[Array, "C K"], bias: Float[Array, " K"]
) -> Float[jax.Array, "*B K"]:
    """x W + b in float32, multiplied in x's dtype: not what 16 bits keep of a logit."""
    out = jnp.matmul(x, kernel, preferred_element_type=accumulator(x.dtype)).astype(jnp.float32)
    return out + jnp.broadcast_to(bias, out.shape)


def uniform_init(fan_in: int) -> Callable[..., Array]:
    """An initialiser uniform within +-1/sqrt(fan_in), PyTorch's default for dense and conv."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over features with PyTorch's epsilon, as the authors' models have it."""

    def __init__(
        self,
        width: int,
        *,
        epsilon: float = LAYER_NORM_EPSILON,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        # Variance as the mean of squares about the mean: as fast here, and loses no digits.
        super().__init__(width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)

    def __call__(  # type: ignore[override]  # no mask
        self, x: Float[Array, "*B C"]
    ) -> Float[jax.Array, "*B C"]:
        # Flax mixes half precision with float32, which JAX's strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x)


def gelu(x: Float[Array, "..."]) -> Float[jax.Array, "..."]:
    """The exact GELU, x Phi(x), by erf: half the cost of `jax.nn.gelu`'s erfc on CPU."""
    return x * _normal_cdf(x)


@jax.custom_jvp
def _normal_cdf(x):
    wide = x.astype(accumulator(x.dtype))  # 16 bits of 1 + erf are none where erf is nearly -1
    return (0.5 * (1 + jax.lax.erf(wide * float(np.sqrt(0.5))))).astype(x.dtype)


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals, tangents):
    """Its derivative, the normal density: that of JAX 0.12's erf is refused in `jax.shard_map`."""
    (x,), (d_x,) = primals, tangents
    density = float(np.sqrt(0.5 / np.pi)) * jnp.exp(-0.5 * x * x)
    return _normal_cdf(x), d_x * density


def real_ranks(
    mask: Bool[Array, "*B N"] | None, shape: tuple[Any, ...], axis_name: str | None = None
) -> Int[jax.Array, "... N"]:
    """The position of every token among the real ones; padding has that of the last before it.

    Of whole sequences without a mask each of *B is 1, to broadcast.
    """
    if mask is None and axis_name is None:
        return jnp.arange(shape[-1]).reshape(*(1,) * (len(shape) - 1), -1)
    mask = jnp.ones(shape, bool) if mask is None else mask
    return jnp.maximum(token_ranks(mask, axis_name)[0], 0)


def rotate(x: Float[Array, "*B N H D"], rank: Int[Array, "... N"]) -> Float[jax.Array, "*B N H D"]:
    """Rotary positions (Su et al. 2021, eq. 34): products then depend on distances alone.

    The pair of features i and i + D/2 turns by rank / 10000^(2 i / D); D is even. Ranks have *B or
    ones.
    """
    half, dtype = x.shape[-1] // 2, accumulator(x.dtype)
    rate = ROTARY_BASE ** -(np.arange(half) / half)
    # 1,024 positions less whole turns, for which float32 has no digits at a million of positions.
    parts = (rank & 1023, rate), (rank >> 10, 1024 * rate % (2 * np.pi))
    angle = sum(
        n[..., None, None].astype(dtype) * turn.astype(dtype).reshape(*(1,) * (n.ndim + 1), half)
        for n, turn in parts
    )
    cos, sin = (f(angle).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def check_rate(name: str, rate: float) -> None:
    """Raises unless `rate` is a share that dropout can have."""
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise ValueError(f"{name}={rate!r}: expected a number of at least 0 and below 1")


def dropout(
    x: Float[Array, "..."],
    rate: float,
    key: Array | None,
    axis_name: str | None = None,
    mask: Bool[Array, "*B N"] | None = None,
) -> Float[Array, "..."]:
    """x with a share `rate` of its elements zeroed and the rest scaled up; x without a key.

    An element is kept if a hash of its index and of the key is small enough. Unlike the bits of
    `jax.random`, which cost as much as a dense layer on CPU, the hash fuses with the product,
    forward and backward, so no mask need be stored. There is one key, or one for every example
    (*B): what is dropped of an example then depends on nothing else. `axis_name` is the axis over
    which N is cut inside `jax.shard_map`; with a `mask` real tokens are counted, as if they stood
    in front of the padding. 64 bits of key; indices repeat after 2^32 elements.

    Raises:
      ValueError: rate is not in [0, 1), or keys are not one an example.
    """
    check_rate("dropout rate", rate)
    if key is None or rate == 0:
        return x
    if key.shape != x.shape[: key.ndim]:
        raise ValueError(f"dropout keys {key.shape} for {x.shape}: expected one, or one an example")
    first: int | Array = 0
    length = None
    if axis_name is not None:
        first = jax.lax.axis_index(axis_name) * x.shape[-2]
        length = jax.lax.axis_size(axis_name) * x.shape[-2]
    if mask is not None:
        here = jnp.arange(x.shape[-2], dtype=jnp.int32).reshape(*(1,) * (x.ndim - 2), -1, 1)
        first = real_ranks(mask, mask.shape, axis_name)[..., None] - here
    keep = hash_bits(key, x.shape, first, length) >= as_threshold(rate)
    return jnp.where(keep, x * float(1 / (1 - rate)), jnp.zeros((), x.dtype))


def check_key(key: Array | None) -> None:
    """Raises unless it is None, or keys as `jax.random.key` makes them."""
    kind = getattr(key, "dtype", type(key).__name__)
    is_key = isinstance(key, jax.Array) and jnp.issubdtype(kind, jax.dtypes.prng_key)
    if key is not None and not is_key:
        raise TypeError(f"a dropout key of {kind}: expected one that jax.random.key has made")


def split_keys(key: Array | None, num: int) -> list[Array | None]:
    """`num` keys from a key, or from one an example as many for each.

    Raises:
      TypeError: no key that `jax.random.key` has made.
    """
    check_key(key)
    if key is None:
        return [None] * num

    def split(key):
        return tuple(jax.random.split(key, num))

    for _ in range(key.ndim):
        split = jax.vmap(split)
    return list(split(key))


def as_threshold(probability: float) -> np.uint32:
    """Random uint32 are below this with the given probability (1 but for 2^-32)."""
    return np.uint32(min(round(probability * 2**32), 2**32 - 1))


def hash_bits(
    key: Array, shape: tuple[Any, ...], first: int | Array = 0, length: int | None = None
) -> Array:
    """Random-looking uint32 of the given shape: index and key through two rounds of a mixer.

    The last axis but one is a piece of an axis of `length`, which begins at `first` (an array: each
    of its places as if in a piece of its own); by default it is whole. Leading axes that keys have
    are no part of an index.
    """
    words = jnp.moveaxis(jax.vmap(_words)(key.ravel()), -1, 0)
    words = words.reshape(2, *key.shape, *(1,) * (len(shape) - key.ndim))
    index = jnp.zeros((1,) * len(shape), jnp.uint32)
    stride = 1
    for axis in range(len(shape) - 1, key.ndim - 1, -1):
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        place = jax.lax.broadcasted_iota(jnp.uint32, sizes, axis)
        if axis == len(shape) - 2:
            place += jnp.asarray(first, jnp.uint32)
        index = index + place * (
            np.uint32(stride % 2**32) if all_known(stride) else jnp.asarray(stride, jnp.uint32)
        )
        stride *= length if length is not None and axis == len(shape) - 2 else shape[axis]
    return _mix(_mix(index + words[0]) ^ words[1])


def _words(key):
    return jax.random.bits(key, (2,), jnp.uint32)


def _mix(x):
    """A bijection of uint32 with low bias: C. Wellons' lowbias32 (2018)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
