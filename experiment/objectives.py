"""What a run minimises: the loss of labels, or that of tokens that were hidden from the model.

An objective is called with (model, batch, key, copies), in train and eval steps, where it is static
and so hashable; it returns metrics as (sum, weight) pairs, "loss" in nats among them. `key` is one
an example, None in evaluations; `copies` are the devices that are given the same examples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lra_tasks
from nystrom.layers import as_threshold, hash_bits, split_keys
from nystrom.models import document_keys

SPARE_DEVIATIONS = 8  # room for hidden tokens beyond their mean number, in standard deviations


def make_objective(config, task: lra_tasks.Task) -> Callable:
    """The objective that config.objective names."""
    if config.objective == "classify":
        return classify_full if task.is_full else classify
    given = config.masked
    mask_id = mask_token(task, config.model.pooling)
    return Masked(
        given.share,
        given.mask_share,
        given.random_share,
        task.first_id,
        task.vocab_size,
        mask_id,
        task.sop,
    )


def mask_token(task: lra_tasks.Task, pooling: str) -> int:
    """The id of hidden tokens: the task's, else one past the vocabulary and the token put first."""
    return task.vocab_size + (pooling == "cls") if task.mask_id is None else task.mask_id


def checkpoint_score(objective: str, values: dict[str, float]) -> float:
    """By what the best checkpoint is chosen, of validation metrics: the greater the better.

    Accuracy, or for hidden tokens the geometric mean of the probabilities of the right ones.
    """
    return values["accuracy"] if objective == "classify" else math.exp(-values["loss"])


def unigram_nats(train: lra_tasks.Batches, test: lra_tasks.Batches) -> float:
    """Loss in nats on test's tokens of a unigram model of train's, with add-one smoothing."""
    first = train.task.first_id  # special ones are never hidden
    known, asked = train.token_counts()[first:] + 1, test.token_counts()[first:]
    return float(-(asked * np.log(known / known.sum())).sum() / asked.sum())


def classify(model, batch, key=None, copies=1, is_full=False):
    """Loss (nats) and accuracy of a batch's labels; examples of weight 0 are out.

    With `is_full` the model is given no mask, and its program then has no branches for padding.
    """
    mask = batch["mask"]
    if is_full and model.encoder.axis_name is None:
        mask = None
    logits = model(batch["inputs"], mask, key)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    correct = logits.argmax(axis=-1) == batch["label"]
    weight = batch["weight"]
    total = weight.sum()
    found = {
        "loss": (jnp.sum(loss * weight), total),
        "accuracy": (jnp.sum(correct * weight), total),
    }
    return jax.tree.map(lambda x: x / copies, found)


classify_full = functools.partial(classify, is_full=True)


@dataclasses.dataclass(frozen=True)
class Masked:
    """Loss, bits and accuracy of guessing tokens that are hidden, each with probability `share`.

    A hidden one is replaced by `mask_id` with probability `mask_share`, by a random token with
    `random_share`, else it stays as it is. Which ones follows from the example's key and the
    position alone, so neither padding nor devices change it. In evaluations, without a key, it
    follows from the example's tokens: alike in every evaluation of every run.

    With `order` the loss is the sum of that of tokens and of that of labels, which say whether two
    halves changed places, in which an example's label weighs as much as it has hidden tokens; their
    accuracy counts examples.
    """

    share: float
    mask_share: float
    random_share: float
    first_id: int
    vocab_size: int
    mask_id: int
    order: bool = False

    def __call__(self, model, batch, key=None, copies=1):
        """Metrics by hidden tokens; devices that cut sequences have their own of these."""
        tokens, mask = batch["inputs"], batch["mask"]
        axis = model.encoder.axis_name
        first = 0 if axis is None else jax.lax.axis_index(axis) * tokens.shape[-1]
        if key is None:
            mask_keys, dropout_keys = content_keys(tokens, mask, first, axis), None
        else:
            mask_keys, dropout_keys = split_keys(document_keys(key, tokens.shape[:-1]), 2)
        inputs, places, is_hidden = self.hide(tokens, mask, mask_keys, first)
        hidden = model.hidden(inputs, mask, dropout_keys)
        logits = model.token_logits(hidden, places)
        right = jnp.take_along_axis(tokens, places, axis=-1)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, right)
        weight = is_hidden * batch["weight"].reshape(-1, *(1,) * (is_hidden.ndim - 1))
        total, lost = weight.sum(), jnp.sum(loss * weight)
        found = {
            "loss": (lost, total),
            "bits_per_token": (lost / math.log(2), total),
            "accuracy": (jnp.sum((logits.argmax(axis=-1) == right) * weight), total),
        }
        if not self.order:
            return found
        guess, label, each = model.order_logits(hidden, mask), batch["label"], weight.sum(axis=-1)
        order = jnp.sum(optax.softmax_cross_entropy_with_integer_labels(guess, label) * each)
        right_order = jnp.sum((guess.argmax(axis=-1) == label) * batch["weight"])
        return found | {
            "loss": (lost + order, total),
            "token_loss": (lost, total),
            "order_loss": (order, total),
            "order_accuracy": (right_order, batch["weight"].sum()),
        }

    def hide(self, tokens, mask, keys, first=0):
        """(tokens with some hidden [*B, N], their places [*B, K], which places count [*B, K]).

        `first` is the position at which these tokens begin. There is room for the expected number
        and SPARE_DEVIATIONS more; should there be more in a sequence, they are not hidden.
        """
        length = tokens.shape[-1]
        bits = hash_bits(keys, (*tokens.shape, 3), first)
        chosen = mask & (tokens >= self.first_id) & (bits[..., 0] < as_threshold(self.share))
        mean = length * self.share
        spare = SPARE_DEVIATIONS * math.sqrt(mean * (1 - self.share))
        size = min(length, math.ceil(mean + spare) + 1)
        position = jnp.arange(length)
        places = jnp.sort(jnp.where(chosen, position, length))[..., :size]
        chosen &= position <= places[..., -1:]
        is_mask = bits[..., 1] < as_threshold(self.mask_share)
        is_random = bits[..., 1] < as_threshold(self.mask_share + self.random_share)
        some = self.first_id + bits[..., 2] % np.uint32(self.vocab_size - self.first_id)
        other = jnp.where(
            is_mask, self.mask_id, jnp.where(is_random, some.astype(jnp.int32), tokens)
        )
        is_hidden = places < length
        return jnp.where(chosen, other, tokens), jnp.minimum(places, length - 1), is_hidden


def check_hidden(objective: Callable, task: lra_tasks.Task, splits: Sequence[str]) -> None:
    """Raises ValueError where tokens are to be hidden and of a split none is."""
    if not isinstance(objective, Masked):
        return

    @jax.jit
    def are_some(tokens, mask):
        return objective.hide(tokens, mask, content_keys(tokens, mask))[-1].any()

    for split in splits:
        batches = lra_tasks.Batches(task, split, 8)
        each = (batches[i] for i in range(len(batches)))
        if not any(are_some(batch["inputs"], batch["mask"]) for batch in each):
            raise ValueError(nothing_hidden(batches))


def nothing_hidden(batches: lra_tasks.Batches) -> str:
    """What is wrong with a split of which no token is hidden, and what helps."""
    return (
        f"{batches.task.name} {batches.split_name}: no token is hidden of its "
        f"{len(batches.split.lengths):,} examples; give longer ones, or more, or a larger "
        "config.masked.share"
    )


def content_keys(tokens, mask, first=0, axis_name=None):
    """A key for each sequence that depends on its real tokens alone; arguments as for `hide`."""
    key = jax.random.key(0)
    factors = hash_bits(key, (tokens.shape[-1], 1), first)[:, 0] | np.uint32(1)
    parts = jnp.where(mask, (tokens + 1).astype(jnp.uint32) * factors, jnp.uint32(0))
    words = parts.sum(axis=-1, dtype=jnp.uint32)
    if axis_name is not None:
        words = jax.lax.psum(words, axis_name)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, words.ravel())
    return keys.reshape(words.shape)
