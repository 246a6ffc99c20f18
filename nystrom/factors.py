"""The factors of Nyström attention's matrix (eq. 9), for inspection."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array, Bool, Float, Int
from nystrom.attention import (
    invert,
    landmark_matrix,
    landmarks,
    make_options,
    zero_padding,
)
from nystrom.checks import check_inputs, is_empty
from nystrom.landmarks import apart
from nystrom.numerics import accumulator, common_dtype, exact_einsum, widened, zero_padded
from nystrom.softmax import softmax


class NystromFactors(NamedTuple):
    """The factors of the N x M matrix F A^+ G that Nyström attention applies to the values.

    Attributes:
      f: softmax of queries with the keys' landmarks.
      a_pinv: pseudo-inverse of the softmax of both kinds of landmarks.
      g: softmax of the queries' landmarks with keys.
    """

    f: Float[Array, "*B H N L"]
    a_pinv: Float[Array, "*B H L L"]
    g: Float[Array, "*B H L M"]

    def rows(self, positions: Int[Array, " R"]) -> Float[Array, "*B H R M"]:
        """The rows of F A^+ G that belong to the given query positions, all if asked for all.

        Raises:
          TypeError: positions that are not integers R.
          ValueError: positions that there are not (NaN where they are traced).
        """
        positions = jnp.asarray(positions)
        if positions.ndim != 1 or not jnp.issubdtype(positions.dtype, jnp.integer):
            found = f"{positions.dtype}{list(positions.shape)}"
            raise TypeError(f"positions are {found}: expected integers in one dimension, as [3]")
        positions, length = widened(positions), self.f.shape[-2]
        if not isinstance(positions, jax.core.Tracer):
            seen = np.asarray(positions)
            if (beyond := seen[(seen < -length) | (seen >= length)]).size:
                raise ValueError(f"position {beyond[0]}: there are {length}, counted from 0")
        f = jnp.take(self.f, positions, axis=-2, mode="fill", fill_value=jnp.nan)
        f_a_pinv = exact_einsum("...nl,...lk->...nk", f, self.a_pinv)
        return exact_einsum("...nl,...lm->...nm", f_a_pinv, self.g)


def nystrom_factors(
    query: Float[Array, "*B N H D"],
    key: Float[Array, "*B M G D"],
    *,
    mask: Bool[Array, "*B N"] | None = None,
    query_mask: Bool[Array, "*B N"] | None = None,
    key_mask: Bool[Array, "*B M"] | None = None,
    num_landmarks: int = 64,
    pinv: str = "iterative",
    pinv_iterations: int = 6,
    scale: float | None = None,
) -> NystromFactors:
    """F, A^+ and G of `nystrom_attention`, for inspection; their N x M product is not formed.

    Arguments and errors are those of `nystrom_attention`. Rows of padded queries, columns of
    padded keys and what belongs to inert landmarks are zeros; float32 (float64 for float64).
    """
    query_mask, key_mask = check_inputs(query, key, key, mask, query_mask, key_mask)
    options = make_options(query, key, num_landmarks, pinv, pinv_iterations, scale)
    return _factors(query, key, query_mask, key_mask, options)


@partial(jax.jit, static_argnums=4)
def _factors(query, key, query_mask, key_mask, options):
    dtype = common_dtype(query, key)
    *batch, length, heads, _ = query.shape
    if is_empty(*query.shape, key.shape[-3]):
        count = options.num_landmarks
        sizes = (length, count), (count, count), (count, key.shape[-3])
        zeros = (jnp.zeros((*batch, heads, *size), accumulator(dtype)) for size in sizes)
        return NystromFactors(*zeros)
    query, key = (
        zero_padded(x, mask).astype(dtype) for x, mask in ((query, query_mask), (key, key_mask))
    )
    q, k, q_valid, k_valid = landmarks(query, key, query_mask, key_mask, options)
    a = landmark_matrix(q, k, q_valid, k_valid, options.scale)
    _, k = apart(k, k_valid, dtype)
    f = softmax(query, k.astype(dtype), k_valid, options.scale)
    g = softmax(q.astype(dtype), key, key_mask, options.scale)
    return NystromFactors(
        zero_padding(f, query_mask, k_valid),
        invert(a, options),
        zero_padding(g, q_valid, key_mask),
    )
