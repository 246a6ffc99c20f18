"""Performer: attention by random features, FAVOR+ (Choromanski et al. 2021)."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array, Bool, Float
from nystrom.baselines.per_head import kernel_average, map_heads
from nystrom.checks import check_choice, check_count, check_floats, check_inputs
from nystrom.numerics import MASKED
from nystrom.pinv import matmul

FEATURE_KERNELS = ("relu", "softmax")
EPSILON = {"relu": 1e-3, "softmax": 1e-6}  # added to features, as the published code does


def performer_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    value: Float[Array, "*B M G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    projection: Float[Array, "F D"],
    feature_kernel: str = "relu",
) -> Float[jax.Array, "*B N H E"]:
    """phi(Q) (phi(K)^T V) / (phi(Q) phi(K)^T 1) with F random features (its eq. 3-5).

    With x scaled by D^(-1/4) and w the rows of `projection`, phi(x) is relu(w x), the kernel of
    the Nyströmformer authors' runs, or exp(w x - |x|^2 / 2), whose products are on average
    exp(q k / sqrt D): softmax attention.

    Args:
      query, key, value, mask, query_mask, key_mask: as for `nystrom_attention`.
      projection: F D, see `orthogonal_features`.
      feature_kernel: 'relu' or 'softmax'.

    Raises:
      ValueError: another kernel, a projection for another D, or what `nystrom_attention` refuses.
      TypeError: a projection that is not floating-point, or what `nystrom_attention` refuses.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    check_choice("feature_kernel", feature_kernel, FEATURE_KERNELS)
    check_floats("projection", projection)
    if projection.ndim != 2 or not len(projection) or projection.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"projection has shape {projection.shape}: expected F D with "
            f"D = {query.shape[-1]} and F of at least 1"
        )
    return _attention(query, key, value, query_mask, key_mask, projection, feature_kernel)


@partial(jax.jit, static_argnums=6)
def _attention(query, key, value, query_mask, key_mask, projection, feature_kernel):
    attend = partial(_attend, feature_kernel, projection)
    return map_heads(attend, query, key, value, query_mask, key_mask)


def _attend(feature_kernel, projection, q, k, v, _, key_mask):
    projection = (projection * q.shape[-1] ** -0.25).astype(q.dtype)
    if feature_kernel == "relu":
        query_features, key_features = (jax.nn.relu(matmul(x, projection.T)) for x in (q, k))
    else:  # a factor of each query, and one of all keys, cancel
        query_features = softmax_features(q, projection, axis=-1)
        key_features = softmax_features(k, projection, axis=None, mask=key_mask)
    epsilon = EPSILON[feature_kernel]
    key_features = key_features + epsilon
    if key_mask is not None:
        key_features = jnp.where(key_mask[:, None], key_features, 0)
    return kernel_average(query_features + epsilon, key_features, v)


def softmax_features(x, projection, *, axis, mask=None):
    """exp(x projection^T - |x|^2 / 2) over its largest along `axis`, or of all: N F."""
    depth_scale = x.shape[-1] ** -0.5
    logits = matmul(x, projection.T)
    logits = logits - 0.5 * depth_scale * (x**2).sum(axis=-1, keepdims=True)
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, MASKED)
    largest = logits.max(axis=axis, keepdims=True)
    return jnp.exp(logits - jax.lax.stop_gradient(largest))


def orthogonal_features(num_features: int, depth: int, seed: int = 0) -> np.ndarray:
    """Random directions F D, orthogonal in blocks of D (its section 2.4), float32.

    Each row has the distribution of a standard normal vector: a uniform direction and a norm
    drawn apart from it. The same seed gives the same features on every machine.
    """
    sizes = check_count("num_features", num_features), check_count("depth", depth)
    return _features(*sizes, check_count("seed", seed, 0))


@cache
def _features(num_features, depth, seed):
    rng = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-num_features // depth)):
        q, r = np.linalg.qr(rng.normal(size=(depth, depth)))
        blocks.append((q * np.sign(np.diag(r))).T)  # the signs make q uniform
    directions = np.concatenate(blocks)[:num_features]
    norms = np.linalg.norm(rng.normal(size=(num_features, depth)), axis=1, keepdims=True)
    features = (directions * norms).astype(np.float32)
    features.flags.writeable = False  # all who ask get this one
    return features
