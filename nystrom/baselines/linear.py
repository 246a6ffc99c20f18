"""Linear attention (Katharopoulos et al. 2020, "Transformers are RNNs")."""

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.baselines.per_head import kernel_average, map_heads
from nystrom.checks import check_inputs
from nystrom.numerics import MASKED


def linear_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    value: Float[Array, "*B M G E"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
) -> Float[jax.Array, "*B N H E"]:
    """phi(Q) (phi(K)^T V) / (phi(Q) phi(K)^T 1) with phi(x) = elu(x) + 1 (its eq. 4-7).

    The Nyströmformer authors' runs leave out the denominator; the paper's form is kept here.
    Arguments, result and errors are those of `nystrom_attention`; O(N + M) in time and memory.
    """
    query_mask, key_mask = check_inputs(query, key, value, mask, query_mask, key_mask)
    return _attention(query, key, value, query_mask, key_mask)


@jax.jit
def _attention(query, key, value, query_mask, key_mask):
    return map_heads(_attend, query, key, value, query_mask, key_mask)


def _attend(q, k, v, _, key_mask):
    q, k = _log_phi(q), _log_phi(k)
    if key_mask is not None:
        k = jnp.where(key_mask[:, None], k, MASKED)
    # A query's factor, and one of all keys, cancel: those that leave the largest feature 1.
    q_largest, k_largest = jax.lax.stop_gradient((q.max(axis=-1, keepdims=True), k.max()))
    real = jnp.ones(k.shape[0], v.dtype) if key_mask is None else key_mask.astype(v.dtype)
    mean = (v * real[:, None]).sum(axis=0, keepdims=True) / jnp.maximum(real.sum(), 1)
    return kernel_average(jnp.exp(q - q_largest), jnp.exp(k - k_largest), v, mean)


def _log_phi(x):
    """log(elu(x) + 1): x where it is not positive, log(1 + x) elsewhere."""
    return jnp.where(x > 0, jnp.log1p(jnp.maximum(x, 0)), x)
