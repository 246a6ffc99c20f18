"""Heads on the encoder: classes of one document or of two, and tokens that were hidden."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.checks import check_choice, check_count, check_ids, check_integers, is_empty
from nystrom.encoder import Encoder
from nystrom.landmarks import token_ranks
from nystrom.layers import Dense, Logits, check_key, logits
from nystrom.numerics import accumulator, first_token, widened, zero_padded

POOLINGS = ("mean", "max", "cls", "last", "mean_padded")


class Classifier(nnx.Module):
    """Class logits of a document: one vector of its hidden states, then a small MLP.

    The vector is, by `pooling`, the mean over the real tokens, their maximum, the last of them, the
    mean over all positions, padding included ("mean_padded", the authors' released code: results
    then depend on the padding), or, with "cls", the hidden state of a token `cls_token` put before
    every document: an id that no document has and the encoder knows, whose `max_length` must leave
    room for it.

    Raises:
      ValueError: an unknown `pooling`, "cls" without `cls_token` or the other way round, or with
        sequences that are cut over devices; sizes that can't be.
      TypeError: sizes that are not integers.
    """

    NUM_FEATURES: ClassVar[int] = 1  # of the head's input, in widths

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        *,
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
        _check_cls(encoder, cls_token)
        check_count("num_classes", num_classes)
        check_count("head_width", head_width)
        self.encoder = encoder
        self.cls_token = cls_token
        self.pooling = pooling
        num_features = self.NUM_FEATURES * encoder.token_embed.features
        self.hidden = Dense(num_features, head_width, dtype=dtype, rngs=rngs)
        self.logits = Logits(head_width, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B num_classes"]:
        """Logits in float32; dropout acts only when given a key."""
        return self._head(self._pool(tokens, mask, dropout_key))

    def _pool(self, tokens, mask, dropout_key):
        tokens, mask = _with_cls(self.encoder, tokens, mask, self.cls_token)
        hidden, mask = self.encoder.in_front(tokens, mask, dropout_key)
        return pool(hidden, mask, self.pooling, self.encoder.axis_name)

    def _head(self, features):
        hidden = jax.nn.relu(self.hidden(features))
        return self.logits(hidden)


class PairClassifier(Classifier):
    """Class logits of a pair of documents a and b, from [a, b, a * b, a - b]: as `Classifier`."""

    NUM_FEATURES: ClassVar[int] = 4

    def __call__(
        self,
        tokens: Int[Array, "*B 2 N"],
        mask: Bool[Array, "*B 2 N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B num_classes"]:
        """Logits in float32; dropout acts only when given a key, or one a pair."""
        shape = np.shape(tokens)
        if len(shape) < 2 or shape[-2] != 2:
            raise ValueError(f"tokens {shape}: expected *B 2 N, pairs of documents")
        check_key(dropout_key)
        if len(shape) == 2 and dropout_key is not None and dropout_key.ndim == 0:
            dropout_key = jax.random.split(dropout_key)  # the one pair's own
        documents = self._pool(tokens, mask, document_keys(dropout_key, shape[:-1]))
        a, b = documents[..., 0, :], documents[..., 1, :]
        return self._head(jnp.concatenate([a, b, a * b, a - b], axis=-1))


class TokenPredictor(nnx.Module):
    """Logits of the token at each of chosen places, from the hidden states there.

    Of the first `vocab_size` ids; the encoder may know more, such as one for what is hidden. With
    `tied` they are products with the encoder's own embeddings, else those of a dense layer. A
    `cls_token` is put before every document as `Classifier` does; places don't count it. With
    `order` there is also a head for whether two halves of a sequence changed places.

    Raises:
      ValueError: `cls_token` or `order` with sequences that are cut over devices; sizes that can't
        be.
      TypeError: sizes that are not integers.
    """

    def __init__(
        self,
        encoder: Encoder,
        vocab_size: int,
        *,
        tied: bool = True,
        cls_token: int | None = None,
        order: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if encoder.axis_name is not None and (order or cls_token is not None):
            raise ValueError("cls_token and order can't have sequences cut over devices")
        _check_cls(encoder, cls_token)
        check_count("vocab_size", vocab_size)
        if tied and vocab_size > encoder.token_embed.num_embeddings:
            its = encoder.token_embed.num_embeddings
            raise ValueError(f"vocab_size={vocab_size}: the encoder has embeddings of {its} ids")
        width = encoder.token_embed.features
        self.encoder = encoder
        self.vocab_size = vocab_size
        self.cls_token = cls_token
        self.bias, self.logits = nnx.data(None), nnx.data(None)
        if tied:
            self.bias = nnx.Param(jnp.zeros(vocab_size, jnp.float32))
        else:
            self.logits = Logits(width, vocab_size, dtype=dtype, rngs=rngs)
        self.order_hidden, self.order = nnx.data(None), nnx.data(None)
        if order:
            self.order_hidden = Dense(width, width, dtype=dtype, rngs=rngs)
            self.order = Logits(width, 2, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None,
        places: Int[Array, "*B K"],
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B K vocab_size"]:
        """Logits in float32; a key, or one a sequence, makes dropout act."""
        return self.token_logits(self.hidden(tokens, mask, dropout_key), places)

    def hidden(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B M C"]:
        """The encoder's hidden states, that of the token put first among them."""
        tokens, mask = _with_cls(self.encoder, tokens, mask, self.cls_token)
        return self.encoder(tokens, mask, dropout_key)

    def token_logits(
        self, hidden: Float[Array, "*B M C"], places: Int[Array, "*B K"]
    ) -> Float[jax.Array, "*B K vocab_size"]:
        """Logits over the vocabulary at places of the sequences; NaN where there is none.

        Raises:
          TypeError: places that are not an array of integers.
          ValueError: places of other dimensions.
        """
        check_integers("places", places)
        if places.shape[:-1] != hidden.shape[:-2] or not places.ndim:
            raise ValueError(f"places {places.shape}: expected *B K, for hidden {hidden.shape}")
        if self.cls_token is not None:
            places = widened(places)
            places = jnp.where(places < 0, places, places + 1)  # those below 0 are from the end
        x = jnp.take_along_axis(hidden, places[..., None], axis=-2)
        if self.logits is not None:
            return self.logits(x)
        assert self.bias is not None  # there is the one or the other
        table = self.encoder.token_embed.embedding[...][: self.vocab_size].astype(x.dtype)
        return logits(x, table.T, self.bias[...])

    def order_logits(
        self, hidden: Float[Array, "*B M C"], mask: Bool[Array, "*B N"] | None = None
    ) -> Float[jax.Array, "*B 2"]:
        """Logits of halves in order and swapped, from the first real token's hidden state.

        Without a mask, and where a token is put first, it is the first of all.
        """
        if self.order_hidden is None or self.order is None:
            raise ValueError("order_logits: this TokenPredictor was made without order=True")
        first = first_token(hidden, None if self.cls_token is not None else mask)
        return self.order(jnp.tanh(self.order_hidden(first)))


def document_keys(key: Array | None, shape: tuple[Any, ...]) -> Array | None:
    """Of a key an example one for each of its documents, `shape`; a single key or None as it is.

    Raises:
      ValueError: keys that are not one an example.
    """
    if key is None or key.ndim in (0, len(shape)):
        return key
    if key.shape != shape[:-1]:
        raise ValueError(f"dropout keys {key.shape} for {shape}: expected one, or one an example")
    return jax.vmap(jax.random.split)(key.ravel()).reshape(shape)


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
    total = (lambda y: y) if axis_name is None else (lambda y: jax.lax.psum(y, axis_name))
    if pooling == "max":
        if is_empty(x.shape[-2]):
            return jnp.zeros_like(x, shape=(*x.shape[:-2], x.shape[-1]))
        lowest = jnp.asarray(jnp.finfo(x.dtype).min, x.dtype)
        largest = _largest(jnp.where(mask[..., None], x, lowest))
        if axis_name is not None:
            of_all = jax.lax.all_gather(jax.lax.stop_gradient(largest), axis_name)
            is_here = jnp.argmax(of_all, axis=0) == jax.lax.axis_index(axis_name)
            largest = total(jnp.where(is_here, largest, jnp.zeros_like(largest)))
        return jnp.where(total(mask.sum(axis=-1))[..., None] > 0, largest, jnp.zeros_like(largest))
    if pooling == "cls":
        return x[..., 0, :]
    if pooling == "last":
        rank, real = token_ranks(mask, axis_name)
        picked = mask & (rank == real[..., None] - 1)
        return total(zero_padded(x, picked).sum(axis=-2))
    counted = mask if pooling == "mean" else mask | True
    count = jnp.maximum(total(counted.sum(axis=-1, dtype=jnp.int32)), 1)
    summed = total(zero_padded(x, mask).sum(axis=-2, dtype=accumulator(x.dtype)))
    return (summed / count[..., None].astype(summed.dtype)).astype(x.dtype)


def _largest(x):
    """The largest of the tokens, feature by feature, with the gradient to its place alone.

    That of `max` goes to whatever equals the result, and is lost where a compiler computes x anew
    for the comparison, and rounds it otherwise.
    """
    place = jnp.argmax(x, axis=-2)[..., None, :]
    is_there = jax.lax.broadcasted_iota(place.dtype, x.shape, x.ndim - 2) == place
    return jnp.where(is_there, x, jnp.zeros((), x.dtype)).sum(axis=-2)


def _check_cls(encoder, cls_token):
    """Raises unless the encoder knows the token that is put first."""
    num_ids = encoder.token_embed.num_embeddings
    if cls_token is not None and check_count("cls_token", cls_token, 0) >= num_ids:
        raise ValueError(f"cls_token={cls_token}: the encoder knows ids of 0 to {num_ids - 1}")


def _with_cls(encoder, tokens, mask, cls_token):
    if cls_token is None:
        return tokens, mask
    longest = encoder.max_length - 1
    check_ids(tokens, longest, mask=mask, hint=f", and {cls_token} is put before them")
    return _put_first(tokens, cls_token), None if mask is None else _put_first(mask, True)


def _put_first(x, first):
    x = widened(x)
    return jnp.concatenate([jnp.full_like(x, first, shape=(*x.shape[:-1], 1)), x], axis=-1)
