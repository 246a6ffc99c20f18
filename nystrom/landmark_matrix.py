"""A of eq. 9, the softmax between the landmarks. Reverse-mode differentiation only, and once."""

import jax
import jax.numpy as jnp

from nystrom.array_typing import Array, Bool, Float
from nystrom.landmark_attention import MASKED
from nystrom.pinv import matmul, matmul_t, transpose


@jax.custom_vjp
def landmark_matrix(
    queries: Float[Array, "B H L D"],
    keys: Float[Array, "B H L D"],
    queries_valid: Bool[Array, "B L"] | None,
    keys_valid: Bool[Array, "B L"] | None,
) -> Float[Array, "B H L L"]:
    """softmax(queries keys^T / sqrt D) over the valid keys; zeros where either is not valid."""
    return _landmark_matrix_fwd(queries, keys, queries_valid, keys_valid)[0]


def _landmark_matrix_fwd(queries, keys, queries_valid, keys_valid):
    num_heads, num_landmarks, depth = queries.shape[1:]

    def flat(valid):
        return jnp.repeat(valid, num_heads, axis=0)

    q, k = (x.reshape(-1, num_landmarks, depth) for x in (queries, keys))
    logits = matmul_t(q * depth**-0.5, k)
    if keys_valid is not None:
        logits = jnp.where(flat(keys_valid)[:, None], logits, MASKED)
    logits -= logits.max(axis=-1, keepdims=True)
    # Not divided by the sum: XLA would divide anew wherever a is used, and keep the dividend.
    a = jnp.exp(logits - jnp.log(jnp.exp(logits).sum(axis=-1, keepdims=True)))
    if keys_valid is not None:
        a = jnp.where(flat(keys_valid)[:, None], a, 0)
    if queries_valid is not None:
        a = jnp.where(flat(queries_valid)[:, :, None], a, 0)
    return a.reshape(*queries.shape[:-1], num_landmarks), (q, k, a)


def _landmark_matrix_bwd(residuals, d_a):
    """Of d_logits = t - mean a, with t = a d_a and mean its row sums, only products are formed."""
    q, k, a = residuals
    shape = *d_a.shape[:-1], q.shape[-1]
    scale = q.shape[-1] ** -0.5
    t = a * d_a.reshape(a.shape)
    mean = matmul(t, jnp.ones((a.shape[-1], 1), a.dtype))
    d_q = matmul(t, k) - mean * matmul(a, k)
    d_k = matmul(transpose(q), t) - matmul(transpose(mean * q), a)
    d_q, d_k = (scale * x for x in (d_q, transpose(d_k)))
    return d_q.reshape(shape), d_k.reshape(shape), None, None


landmark_matrix.defvjp(_landmark_matrix_fwd, _landmark_matrix_bwd)
