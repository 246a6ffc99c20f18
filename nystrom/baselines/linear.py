"""Linear attention (Katharopoulos et al. 2020, "Transformers are RNNs")."""

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.attention import check_inputs
from nystrom.baselines.per_head import kernel_average, map_heads


def linear_attention(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M H D"],
    value: Float[Array, "*B M H D"],
    *,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
) -> Float[Array, "*B N H D"]:
    """phi(Q) (phi(K)^T V) / (phi(Q) phi(K)^T 1) with phi(x) = elu(x) + 1 (its eq. 4-7).

    The Nyströmformer authors' runs leave out the denominator; the paper's form is kept here.
    Arguments, result and errors are those of `nystrom_attention`; O(N + M) in time and memory.
    """
    check_inputs(query, key, value, query_mask, key_mask)
    return map_heads(_attend, query, key, value, query_mask, key_mask)


def _attend(q, k, v, _, key_mask):
    key_features = jax.nn.elu(k) + 1
    if key_mask is not None:
        key_features = jnp.where(key_mask[:, None], key_features, 0)
    return kernel_average(jax.nn.elu(q) + 1, key_features, v)
