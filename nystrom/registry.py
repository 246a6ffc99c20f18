"""The attentions by name, as layers of the encoder: one entry each."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array
from nystrom.attention import softmax_attention
from nystrom.baselines.identity import identity_attention
from nystrom.baselines.linear import linear_attention
from nystrom.baselines.linformer import linformer_attention
from nystrom.baselines.performer import FEATURE_KERNELS, orthogonal_features, performer_attention
from nystrom.baselines.reformer import random_rotations, reformer_attention
from nystrom.baselines.shared_scale import authors_attention
from nystrom.checks import PINVS, check_choice, check_count, check_number
from nystrom.self_attention import Bound, SelfAttention, bound_nystrom

PADDINGS = ("inert", "authors")
NONE: Mapping[str, Any] = MappingProxyType({})


class Setting(NamedTuple):
    """What an attention may need to know of the model it is made for."""

    depth: int  # features of one head
    num_heads: int
    max_length: int
    seed: int  # of constants drawn at random
    axis_name: str | None  # of the mesh axis over which sequences are cut
    rngs: nnx.Rngs  # initialises what layers share


class Attention(NamedTuple):
    """An entry of the registry.

    Attributes:
      make: (setting, **options) -> attention, a function of this package's signature.
      options: defaults of its options; `config.model.<option>` sets them in the trainers.
      allowed: of an option the least number, or the names that it may have.
      conv_kernel_size: taps of the convolution of the values where a model names none.
      layer: what else `SelfAttention` is given.
      cuts_sequences: whether it knows a sequence that is cut over devices.
    """

    make: Callable[..., Callable[..., Array]]
    options: Mapping[str, Any] = NONE
    allowed: Mapping[str, int | float | tuple[str, ...]] = NONE
    conv_kernel_size: int = 0
    layer: Mapping[str, Any] = NONE
    cuts_sequences: bool = False


def _nystrom(setting, num_landmarks, pinv, pinv_iterations, padding):
    if padding == "authors":
        if pinv != "iterative" or setting.axis_name is not None:
            raise ValueError("padding='authors' needs pinv='iterative' and whole sequences")
        return Bound.of(
            authors_attention, num_landmarks=num_landmarks, pinv_iterations=pinv_iterations
        )
    return bound_nystrom(num_landmarks, pinv, pinv_iterations, setting.axis_name)


def _performer(setting, num_features, feature_kernel):
    drawn = num_features, setting.depth, setting.seed
    return Bound.of(_drawn_performer, drawn=drawn, feature_kernel=feature_kernel)


def _drawn_performer(*arrays, drawn, **options):
    return performer_attention(*arrays, projection=orthogonal_features(*drawn), **options)


def _reformer(setting, num_hashes, bucket_size):
    half_buckets = max(1, setting.max_length // bucket_size)
    drawn = num_hashes, setting.depth, half_buckets, setting.seed
    return Bound.of(_drawn_reformer, drawn=drawn, bucket_size=bucket_size)


def _drawn_reformer(*arrays, drawn, **options):
    return reformer_attention(*arrays, rotations=random_rotations(*drawn), **options)


class Linformer(nnx.Module):
    """`linformer_attention` with its projection, at first normal(0, 0.02) as the authors' is.

    It is one parameter, shared by all layers.
    """

    def __init__(self, setting: Setting, projection_length: int):
        shape = (setting.num_heads, projection_length, setting.max_length)
        init = nnx.initializers.normal(0.02)
        self.projection = nnx.Param(init(setting.rngs.params(), shape, jnp.float32))

    def __call__(self, query, key, value, **masks) -> Array:
        return linformer_attention(query, key, value, projection=self.projection[...], **masks)


# As in the authors' models `reformer`'s queries are its keys, and `nystrom` alone has a convolution
# of the values unless a model asks for it. Random features and rotations are constants that follow
# from the seed: they are neither trained nor part of the model's state, and all layers and heads
# have the same.
ATTENTIONS: dict[str, Attention] = {
    "linear": Attention(lambda setting: linear_attention),
    "linformer": Attention(Linformer, {"projection_length": 256}, {"projection_length": 1}),
    "none": Attention(lambda setting: identity_attention),
    "nystrom": Attention(
        _nystrom,
        {
            "num_landmarks": 64,
            "pinv": "iterative",
            "pinv_iterations": 6,
            "padding": "inert",
        },
        {
            "num_landmarks": 1,
            "pinv": PINVS,
            "pinv_iterations": 1,
            "padding": PADDINGS,
        },
        conv_kernel_size=35,
        cuts_sequences=True,
    ),
    "performer": Attention(
        _performer,
        {"num_features": 256, "feature_kernel": "relu"},
        {"num_features": 1, "feature_kernel": FEATURE_KERNELS},
    ),
    "reformer": Attention(
        _reformer,
        {"num_hashes": 2, "bucket_size": 64},
        {"num_hashes": 1, "bucket_size": 1},
        layer={"shared_query_key": True},
    ),
    "softmax": Attention(lambda setting: softmax_attention),
}


def self_attention_maker(
    name: str,
    width: int,
    num_heads: int,
    *,
    max_length: int,
    conv_kernel_size: int | None = None,
    rotary: bool = False,
    seed: int = 0,
    axis_name: str | None = None,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
    **options: Any,
) -> Callable[[nnx.Rngs], SelfAttention]:
    """What `Encoder` takes as `make_attention`: makes each layer's self-attention of that name.

    Args:
      name: one of `ATTENTIONS`.
      width, num_heads, max_length, axis_name, dtype: as for `Encoder`.
      conv_kernel_size: taps of the convolution of the values, 0: none; None: what the authors have,
        35 with nystrom and none with others.
      rotary: turn queries and keys by their positions.
      seed: of constants drawn at random.
      rngs: initialises what layers share.
      options: those of the attention, `ATTENTIONS[name].options`, with their defaults.

    Raises:
      ValueError: an unknown name, an option's value that can't be, or sequences cut over devices
        for an attention that knows only whole ones.
      TypeError: an option that the attention does not have, or a number that is no integer.
    """
    check_choice("attention", name, tuple(ATTENTIONS))
    check_count("num_heads", num_heads)
    entry = ATTENTIONS[name]
    if unknown := options.keys() - entry.options.keys():
        raise TypeError(f"attention {name!r} has no option {', '.join(sorted(unknown))}")
    if axis_name is not None and not entry.cuts_sequences:
        able = ", ".join(other for other, each in ATTENTIONS.items() if each.cuts_sequences)
        raise ValueError(
            f"attention {name!r} can't have its sequences cut over devices: {able} can"
        )
    options = dict(entry.options) | options
    for option, allowed in entry.allowed.items():
        if isinstance(allowed, tuple):
            check_choice(option, options[option], allowed)
        elif isinstance(entry.options[option], float):
            check_number(option, options[option], allowed)
        else:
            check_count(option, options[option], int(allowed))
    taps = entry.conv_kernel_size if conv_kernel_size is None else conv_kernel_size
    setting = Setting(width // num_heads, num_heads, max_length, seed, axis_name, rngs)
    attention = entry.make(setting, **options)
    return lambda rngs: SelfAttention(
        width,
        num_heads,
        attention=attention,
        conv_kernel_size=taps,
        rotary=rotary,
        axis_name=axis_name,
        dtype=dtype,
        rngs=rngs,
        **entry.layer,
    )
