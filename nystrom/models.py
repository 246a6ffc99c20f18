"""Classifiers on the encoder: one document, or two encoded by the same weights."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.checks import check_choice
from nystrom.encoder import Encoder
from nystrom.landmarks import token_ranks
from nystrom.layers import Dense

POOLINGS = ("mean", "max", "cls", "last", "mean_padded")


class Classifier(nnx.Module):
    """Class logits of a document: one vector of its hidden states, then a small MLP.

    The vector is, by `pooling`, the mean over the real tokens, their maximum, the last of them, the
    mean over all positions, padding included ("mean_padded", the authors' released code: results
    then depend on the padding), or, with "cls", the hidden state of a token `cls_token` put before
    every document: an id that no document has and the encoder knows, whose `max_length` must leave
    room for it.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        width: int = 64,
        head_width: int = 128,
        pooling: str = "mean",
        cls_token: int | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("pooling", pooling, POOLINGS)
        if (pooling == "cls") != (cls_token is not None):
            raise ValueError(f"pooling={pooling!r}, cls_token={cls_token}: each asks for the other")
        if pooling == "cls" and encoder.axis_name is not None:
            raise ValueError("pooling='cls' can't have its sequences cut over devices: use 'mean'")
        self.encoder = encoder
        self.cls_token = cls_token
        self.pooling = pooling
        self.hidden = Dense(width, head_width, dtype=dtype, rngs=rngs)
        self.logits = Dense(head_width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*B num_classes"]:
        """Logits in float32; dropout acts only when given a key."""
        return self._head(self._pool(tokens, mask, dropout_key))

    def _pool(self, tokens, mask, dropout_key):
        if self.cls_token is not None:
            tokens = _put_first(tokens, self.cls_token)
            mask = None if mask is None else _put_first(mask, True)
        hidden = self.encoder(tokens, mask, dropout_key)
        return pool(hidden, mask, self.pooling, self.encoder.axis_name)

    def _head(self, features):
        hidden = jax.nn.relu(self.hidden(features))
        return self.logits(hidden).astype(jnp.float32)


class PairClassifier(Classifier):
    """Class logits of a pair of documents a and b, from [a, b, a * b, a - b]."""

    def __init__(self, encoder, num_classes, *, width=64, **options):
        super().__init__(encoder, num_classes, width=4 * width, **options)

    def __call__(
        self,
        tokens: Int[Array, "*B 2 N"],
        mask: Bool[Array, "*B 2 N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[Array, "*B num_classes"]:
        """Logits in float32; dropout acts only when given a key."""
        if dropout_key is not None and dropout_key.ndim:  # one for each document of an example
            dropout_key = jax.vmap(jax.random.split)(dropout_key.ravel())
            dropout_key = dropout_key.reshape(tokens.shape[:-1])
        documents = self._pool(tokens, mask, dropout_key)
        a, b = documents[..., 0, :], documents[..., 1, :]
        return self._head(jnp.concatenate([a, b, a * b, a - b], axis=-1))


def pool(
    x: Float[Array, "*B N C"],
    mask: Bool[Array, "*B N"] | None,
    pooling: str = "mean",
    axis_name: str | None = None,
) -> Float[Array, "*B C"]:
    """One vector of each sequence, see `Classifier`; zeros where no token is real.

    Inside `jax.shard_map`, `axis_name` is the axis over which the sequence is cut.
    """
    mask = jnp.ones(x.shape[:-1], bool) if mask is None else mask
    length = x.shape[-2]
    total = (lambda y: y) if axis_name is None else (lambda y: jax.lax.psum(y, axis_name))
    if pooling == "max":
        lowest = jnp.asarray(jnp.finfo(x.dtype).min, x.dtype)
        largest = jnp.where(mask[..., None], x, lowest).max(axis=-2)
        if axis_name is not None:
            largest = jax.lax.all_gather(largest, axis_name).max(axis=0)
        return jnp.where(total(mask.sum(axis=-1))[..., None] > 0, largest, jnp.zeros_like(largest))
    if pooling == "cls":
        return x[..., 0, :]
    if pooling == "last":
        rank, real = token_ranks(mask, axis_name)
        picked = mask & (rank == real[..., None] - 1)
        return total(jnp.where(picked[..., None], x, jnp.zeros((), x.dtype)).sum(axis=-2))
    count = total(jnp.full_like(mask[..., 0], length, jnp.int32))
    if pooling == "mean":
        count = jnp.maximum(total(mask.sum(axis=-1, dtype=jnp.int32)), 1)
    summed = total(jnp.where(mask[..., None], x, jnp.zeros((), x.dtype)).sum(axis=-2))
    return summed / count[..., None].astype(x.dtype)


def _put_first(x, first):
    return jnp.concatenate([jnp.full_like(x[..., :1], first), x], axis=-1)
