"""Classifiers on the encoder: one document, or two encoded by the same weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.encoder import Encoder
from nystrom.layers import Dense

POOLINGS = ("mean", "cls")


class Classifier(nnx.Module):
    """Class logits of a document: one vector of its hidden states, then a small MLP.

    The vector is the mean over the real tokens or, with a `cls_token`, the hidden state of that
    token, put before every document: an id that no document has and the encoder knows, whose
    `max_length` must leave room for it.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
        width: int = 64,
        head_width: int = 128,
        cls_token: int | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.encoder = encoder
        self.cls_token = cls_token
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
        if self.cls_token is None:
            return mean_of_real(self.encoder(tokens, mask, dropout_key), mask)
        tokens = _put_first(tokens, self.cls_token)
        mask = None if mask is None else _put_first(mask, True)
        return self.encoder(tokens, mask, dropout_key)[..., 0, :]

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
        documents = self._pool(tokens, mask, dropout_key)
        a, b = documents[..., 0, :], documents[..., 1, :]
        return self._head(jnp.concatenate([a, b, a * b, a - b], axis=-1))


def mean_of_real(
    x: Float[Array, "*B N C"], mask: Bool[Array, "*B N"] | None = None
) -> Float[Array, "*B C"]:
    """Mean over the real tokens; zeros where there is none."""
    if mask is None:
        return x.mean(axis=-2)
    count = jnp.maximum(mask.sum(axis=-1, dtype=x.dtype), 1)
    return jnp.where(mask[..., None], x, 0).sum(axis=-2) / count[..., None]


def _put_first(x, first):
    return jnp.concatenate([jnp.full_like(x[..., :1], first), x], axis=-1)
