"""The attentions by name, as layers of the encoder."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import nnx

from nystrom.array_typing import Array
from nystrom.attention import nystrom_attention, softmax_attention
from nystrom.baselines.identity import identity_attention
from nystrom.baselines.linear import linear_attention
from nystrom.baselines.linformer import linformer_attention
from nystrom.baselines.performer import orthogonal_features, performer_attention
from nystrom.baselines.reformer import random_rotations, reformer_attention
from nystrom.encoder import SelfAttention

ATTENTIONS = ("linear", "linformer", "none", "nystrom", "performer", "reformer", "softmax")


def self_attention_maker(
    name: str,
    width: int,
    num_heads: int,
    *,
    max_length: int,
    num_landmarks: int = 64,
    pinv: str = "iterative",
    pinv_iterations: int = 6,
    conv_kernel_size: int = 35,
    num_features: int = 256,
    feature_kernel: str = "relu",
    projection_length: int = 256,
    num_hashes: int = 2,
    bucket_size: int = 64,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
) -> Callable[[nnx.Rngs], SelfAttention]:
    """What `Encoder` takes as `make_attention`: makes each layer's self-attention of that name.

    As in the authors' models only `nystrom` has the convolution of the values, `linformer`'s
    projection is one parameter shared by all layers, and `reformer`'s queries are its keys.
    Random features and rotations are constants that follow from `seed`: they are neither
    trained nor part of the model's state, and all layers and heads have the same.

    Args:
      name: one of `ATTENTIONS`.
      width, num_heads, max_length, dtype: as for `Encoder`.
      num_landmarks, pinv, pinv_iterations, conv_kernel_size: of `nystrom`.
      num_features, feature_kernel: of `performer`.
      projection_length: of `linformer`.
      num_hashes, bucket_size: of `reformer`.
      seed: of performer's features and reformer's rotations.
      rngs: initialises what layers share.

    Raises:
      ValueError: an unknown name.
    """
    options = {}
    depth = width // num_heads
    match name:
        case "linear":
            attention = linear_attention
        case "linformer":
            attention = Linformer(num_heads, projection_length, max_length, rngs=rngs)
        case "none":
            attention = identity_attention
        case "nystrom":
            attention = partial(
                nystrom_attention,
                num_landmarks=num_landmarks,
                pinv=pinv,
                pinv_iterations=pinv_iterations,
            )
            options = {"conv_kernel_size": conv_kernel_size}
        case "performer":
            attention = partial(
                performer_attention,
                projection=orthogonal_features(num_features, depth, seed),
                feature_kernel=feature_kernel,
            )
        case "reformer":
            half_buckets = max(1, max_length // bucket_size)
            attention = partial(
                reformer_attention,
                rotations=random_rotations(num_hashes, depth, half_buckets, seed),
                bucket_size=bucket_size,
            )
            options = {"shared_query_key": True}
        case "softmax":
            attention = softmax_attention
        case _:
            raise ValueError(f"attention={name!r}: expected one of {', '.join(ATTENTIONS)}")
    return lambda rngs: SelfAttention(
        width, num_heads, attention=attention, dtype=dtype, rngs=rngs, **options
    )


class Linformer(nnx.Module):
    """`linformer_attention` with its projection, at first normal(0, 0.02) as the authors' is."""

    def __init__(self, num_heads: int, projection_length: int, max_length: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.02)
        shape = (num_heads, projection_length, max_length)
        self.projection = nnx.Param(init(rngs.params(), shape))

    def __call__(self, query, key, value, *, query_mask=None, key_mask=None) -> Array:
        return linformer_attention(
            query,
            key,
            value,
            query_mask=query_mask,
            key_mask=key_mask,
            projection=self.projection[...],
        )
