"""What stands on the encoder for a task: logits, and the loss of labels."""

import abc
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.language.activations import ACTIVATIONS
from nystrom.language.config import LanguageConfig
from nystrom.language.losses import binary_cross_entropy, cross_entropy, squared_error
from nystrom.language.model import NystromformerModel, dense, first_real, layer_norm
from nystrom.layers import dropout, split_keys


class Head(nnx.Module):
    """The encoder, and what a subclass makes of its hidden states in `logits`.

    `__call__` takes the arguments of `NystromformerModel.__call__`.
    """

    ARCHITECTURE: ClassVar[str]  # the class of `transformers`
    NAMES: ClassVar[dict[str, str]]  # of the head's modules, in the released files

    def __init__(self, config: LanguageConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.body = NystromformerModel(config, dtype=dtype, rngs=rngs)
        self._add_head(partial(dense, config=config, dtype=dtype, rngs=rngs), dtype, rngs)

    def __call__(
        self,
        tokens: Int[Array, "*B N"],
        mask: Bool[Array, "*B N"] | None = None,
        types: Int[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "..."]:
        """Logits, see the class."""
        body_key, head_key = split_keys(dropout_key, 2)
        return self.logits(self.body(tokens, mask, types, body_key), mask, head_key)

    @abc.abstractmethod
    def _add_head(self, dense, dtype, rngs):
        """Makes the head's modules; `dense(in_features, out_features)` makes a layer."""

    @abc.abstractmethod
    def logits(self, hidden, mask=None, dropout_key=None):
        """Logits of hidden states."""

    def loss(self, logits: Float[Array, "*B V"], labels: Int[Array, "*B"]) -> Float[jax.Array, ""]:
        """Mean cross-entropy in nats over the labels that are not -100."""
        return cross_entropy(logits, labels)

    def _drop(self, x, key):
        return dropout(x, self.config.hidden_dropout_prob, key)


class MaskedLM(Head):
    """Logits over the vocabulary for every token, *B N V."""

    ARCHITECTURE = "NystromformerForMaskedLM"
    NAMES: ClassVar[dict[str, str]] = {
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "decoder": "cls.predictions.decoder",
        "bias": "cls.predictions.bias",
    }

    def _add_head(self, dense, dtype, rngs):
        config = self.config
        self.transform = dense(config.hidden_size, config.hidden_size)
        self.norm = layer_norm(config, dtype, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))
        self.decoder = nnx.data(None)
        if not config.tie_word_embeddings:
            init = nnx.initializers.normal(config.initializer_range)
            shape = (config.hidden_size, config.vocab_size)
            self.decoder = nnx.Linear(
                *shape, use_bias=False, kernel_init=init, dtype=dtype, rngs=rngs
            )

    def logits(
        self,
        hidden: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B N V"]:
        """Logits of hidden states; of chosen ones, hidden[..., places, :], it costs less."""
        x = self.norm(ACTIVATIONS[self.config.hidden_act](self.transform(hidden)))
        decode = self.body.words.attend if self.decoder is None else self.decoder
        logits = decode(x)
        return logits + jnp.broadcast_to(self.bias[...].astype(x.dtype), logits.shape)


class SequenceClassification(Head):
    """Logits of the whole input from its first token, *B num_labels."""

    ARCHITECTURE = "NystromformerForSequenceClassification"
    NAMES: ClassVar[dict[str, str]] = {"hidden": "classifier.dense", "out": "classifier.out_proj"}

    def _add_head(self, dense, dtype, rngs):
        self.hidden = dense(self.config.hidden_size, self.config.hidden_size)
        self.out = dense(self.config.hidden_size, self.config.num_labels)

    def logits(
        self,
        hidden: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B num_labels"]:
        """Logits of hidden states."""
        keys = split_keys(dropout_key, 2)
        x = self._drop(first_real(hidden, mask, self.config), keys[0])
        x = ACTIVATIONS[self.config.hidden_act](self.hidden(x))
        return self.out(self._drop(x, keys[1]))

    def loss(self, logits: Float[Array, "*B num_labels"], labels: Array) -> Float[jax.Array, ""]:
        """By the config's `problem_type`, or if it has none by what the labels are.

        One label is a regression: the squared error. Integers are classes: cross-entropy. Other
        numbers, *B num_labels, are many labels of 0 and 1: binary cross-entropy.
        """
        labels = jnp.asarray(labels)
        kind = self.config.problem_type
        if kind == "regression" or (kind is None and self.config.num_labels == 1):
            return squared_error(logits, labels)
        is_class = jnp.issubdtype(labels.dtype, jnp.integer)
        if kind == "single_label_classification" or (kind is None and is_class):
            return cross_entropy(logits, labels)
        return binary_cross_entropy(logits, labels)


class TokenClassification(Head):
    """Logits for every token, *B N num_labels."""

    ARCHITECTURE = "NystromformerForTokenClassification"
    NAMES: ClassVar[dict[str, str]] = {"out": "classifier"}

    def _add_head(self, dense, dtype, rngs):
        self.out = dense(self.config.hidden_size, self.config.num_labels)

    def logits(
        self,
        hidden: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B N num_labels"]:
        """Logits of hidden states."""
        counted = mask if self.config.padding == "inert" else None
        rate = self.config.hidden_dropout_prob
        return self.out(dropout(hidden, rate, dropout_key, mask=counted))


class QuestionAnswering(Head):
    """Logits of every token being an answer's first and its last, *B N 2; tiny where padded."""

    ARCHITECTURE = "NystromformerForQuestionAnswering"
    NAMES: ClassVar[dict[str, str]] = {"out": "qa_outputs"}

    def _add_head(self, dense, dtype, rngs):
        self.out = dense(self.config.hidden_size, 2)

    def logits(
        self,
        hidden: Float[Array, "*B N C"],
        mask: Bool[Array, "*B N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B N 2"]:
        """Logits of hidden states."""
        logits = self.out(hidden)
        if mask is None or self.config.padding == "transformers":
            return logits
        return jnp.where(mask[..., None], logits, jnp.finfo(logits.dtype).min / 2)

    def loss(
        self, logits: Float[Array, "*B N 2"], places: Int[Array, "*B 2"]
    ) -> Float[jax.Array, ""]:
        """Mean cross-entropy in nats of the first's and the last's place.

        As `transformers` has it N or more is no place, and less than 0 is the first token's.
        """
        length, places = logits.shape[-2], jnp.asarray(places)
        if not jnp.issubdtype(places.dtype, jnp.integer):
            raise TypeError(f"places have dtype {places.dtype}: expected integers")
        logits, places = jnp.moveaxis(logits, -1, 0), jnp.moveaxis(places, -1, 0)
        places = jnp.clip(places.astype(jnp.int32), 0, length)
        return jnp.mean(jax.vmap(partial(cross_entropy, ignored=length))(logits, places))


class MultipleChoice(Head):
    """Logits of the choices, *B K, of inputs *B K N: one sequence a choice."""

    ARCHITECTURE = "NystromformerForMultipleChoice"
    NAMES: ClassVar[dict[str, str]] = {"hidden": "pre_classifier", "out": "classifier"}

    def _add_head(self, dense, dtype, rngs):
        self.hidden = dense(self.config.hidden_size, self.config.hidden_size)
        self.out = dense(self.config.hidden_size, 1)

    def logits(
        self,
        hidden: Float[Array, "*B K N C"],
        mask: Bool[Array, "*B K N"] | None = None,
        dropout_key: Array | None = None,
    ) -> Float[jax.Array, "*B K"]:
        """Logits of hidden states."""
        x = jax.nn.relu(self.hidden(first_real(hidden, mask, self.config)))
        return self.out(x)[..., 0]


HEADS = {
    "masked_lm": MaskedLM,
    "sequence_classification": SequenceClassification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
}
