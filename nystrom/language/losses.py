"""The losses of the heads, as means over what has a label."""

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array, Float, Int
from nystrom.checks import is_empty
from nystrom.numerics import accumulator

IGNORED = -100  # a label that stands for none


def cross_entropy(
    logits: Float[Array, "*B num_labels"], labels: Int[Array, "*B"], ignored: int = IGNORED
) -> Float[jax.Array, ""]:
    """Mean cross-entropy in nats over the labels that are not `ignored`; 0 if there are none.

    NaN if a label is no class: less than 0, or num_labels or more.

    Raises:
      ValueError: labels are not *B.
      TypeError: labels that are not integers.
    """
    _check_alike(labels, logits.shape[:-1])
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels have dtype {labels.dtype}: expected integers, numbers of classes")
    logits = logits.astype(accumulator(logits.dtype))
    labels = labels.astype(jnp.int32)  # narrow ones can't hold `ignored`
    labelled = labels != ignored
    index = jnp.where(labelled, labels, 0)[..., None]
    index = jnp.where(index < 0, logits.shape[-1], index)  # not counted from the end
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)[..., 0]
    count = jnp.maximum(labelled.sum(dtype=jnp.int32), 1)
    return jnp.where(labelled, nats, 0).sum() / count.astype(nats.dtype)


def squared_error(logits: Float[Array, "*B num_labels"], labels: Array) -> Float[jax.Array, ""]:
    """Mean squared difference; labels are *B num_labels, or *B for one label.

    Raises:
      ValueError: labels of another shape.
    """
    labels = jnp.asarray(labels)
    if logits.shape[-1] == 1 and labels.shape == logits.shape[:-1]:
        labels = labels[..., None]
    _check_alike(labels, logits.shape)
    wide = logits.astype(accumulator(logits.dtype))
    return _mean((wide - labels.astype(wide.dtype)) ** 2)


def binary_cross_entropy(
    logits: Float[Array, "*B num_labels"], labels: Float[Array, "*B num_labels"]
) -> Float[jax.Array, ""]:
    """Mean cross-entropy in nats of independent yes or no labels, 1 or 0.

    Raises:
      ValueError: labels are not *B num_labels.
    """
    _check_alike(labels, logits.shape)
    wide, labels = logits.astype(accumulator(logits.dtype)), jnp.asarray(labels)
    return _mean(jax.nn.softplus(wide) - wide * labels.astype(wide.dtype))


def _mean(x):
    """The mean, and 0 of nothing."""
    return jnp.zeros((), x.dtype) if is_empty(*x.shape) else x.mean()


def _check_alike(labels, shape):
    if np.shape(labels) != shape:
        raise ValueError(f"labels have shape {np.shape(labels)}: expected {shape}, as the logits")
