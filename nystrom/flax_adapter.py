"""Nyström attention as the `attention_fn` of Flax's multi-head attention, NNX and Linen."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nystrom.array_typing import Array, Bool
from nystrom.checks import known
from nystrom.self_attention import Bound, bound_nystrom


def attention_fn(
    num_landmarks: int = 64,
    pinv_iterations: int = 6,
    pinv: str = "iterative",
    *,
    implementation: str | None = None,
    float_masks: bool = False,
) -> Callable[..., jax.Array]:
    """A self-attention for `nnx.MultiHeadAttention` and `linen.MultiHeadDotProductAttention`.

    The result takes what either module passes: query, key and value *B N H D, and a padding mask
    *B 1 1 N, True = real token, or None. It is the queries' mask too. Integers are taken as 0 and 1
    (others are refused where jit shows them). Floats are refused: an additive mask (0 and -1e9)
    would mean the contrary. With `float_masks` they are taken as 0 and 1, and so are those that can
    be seen to hold nothing else, and a 1 somewhere.

    The result raises ValueError for what would change the outcome and can't be honoured: a mask
    over pairs of positions or heads, a mask where lengths differ, a bias, causal use, dropout of
    attention weights, sown weights; and TypeError for options that jit has yet to learn.

    Linen passes only arguments that it finds by name: a function `(q, k, v, **options)` round the
    result would lose the mask.

    Raises:
      ValueError, TypeError: options that `nystrom_attention` refuses.
    """
    bound = bound_nystrom(num_landmarks, pinv, pinv_iterations, implementation=implementation)
    return _Adapter(bound, float_masks, cross=False)


def cross_attention_fn(
    num_landmarks: int = 64,
    pinv_iterations: int = 6,
    pinv: str = "iterative",
    *,
    implementation: str | None = None,
    float_masks: bool = False,
) -> Callable[..., jax.Array]:
    """`attention_fn` for queries and keys of two sequences: the mask is that of the keys alone.

    Flax has none for the queries, which all count as real.
    """
    bound = bound_nystrom(num_landmarks, pinv, pinv_iterations, implementation=implementation)
    return _Adapter(bound, float_masks, cross=True)


@dataclasses.dataclass(frozen=True)
class _Adapter:
    """`attend` as Flax calls it; equal to others with the same options, as `Bound` is."""

    attend: Bound
    float_masks: bool
    cross: bool

    # Every name that Flax is known to send. Without effect: `broadcast_dropout`, for nothing is
    # dropped; `dtype`, which queries have already; `force_fp32_for_softmax`, which is always so.
    def __call__(
        self,
        query,
        key,
        value,
        bias=None,
        mask=None,
        dropout_rng=None,
        dropout_rate=0.0,
        broadcast_dropout=True,
        deterministic=True,
        dtype=None,
        precision=None,
        module=None,
        is_causal=False,
        force_fp32_for_softmax=False,
        qk_attn_weights_einsum=None,
        attn_weights_value_einsum=None,
    ):
        _refuse_what_cannot_be(bias, module, qk_attn_weights_einsum, attn_weights_value_einsum)
        if not known("deterministic", deterministic) and known("dropout_rate", dropout_rate) > 0:
            raise ValueError(
                f"dropout_rate={dropout_rate}: Nyström attention has no attention weights to drop; "
                "set dropout_rate=0 in the attention module and drop its output instead"
            )
        if mask is not None:
            mask = _padding_mask(mask, key, self.float_masks)
            if not self.cross and query.shape[-3] != key.shape[-3]:
                raise ValueError(
                    f"query {query.shape} and key {key.shape} with a mask: attention_fn is "
                    "self-attention, whose mask is the queries' too (and can't decode step by "
                    "step); use nystrom.cross_attention_fn"
                )
        masks = {"key_mask" if self.cross else "mask": mask}
        with _at(precision):
            return self.attend(query, key, value, **masks, is_causal=is_causal)


def _refuse_what_cannot_be(bias, module, *einsums):
    if bias is not None:
        raise ValueError("bias: Nyström attention can't add a bias to logits it never forms")
    if module is not None:
        raise ValueError(
            "sow_weights=True: Nyström attention never forms the N x M weights; "
            "nystrom.nystrom_factors returns their factors"
        )
    if any(einsum is not None for einsum in einsums):
        raise ValueError("qk_attn_weights_einsum, attn_weights_value_einsum: can't be honoured")


def _at(precision):
    """Flax's precision as JAX's default one."""
    if isinstance(precision, tuple) and len(set(precision)) == 1:
        precision = precision[0]  # one for both operands
    if precision is None:
        return contextlib.nullcontext()
    if isinstance(precision, tuple):
        raise ValueError(f"precision={precision}: expected the same for both operands")
    if isinstance(precision, jax.lax.Precision):
        precision = precision.name.lower()
    name = getattr(precision, "name", precision)  # of a preset of algorithms
    return jax.default_matmul_precision("default" if name in ("fastest", "DEFAULT") else name)


def _padding_mask(mask, key, float_masks) -> Bool[Array, "*B M"]:
    """The padding mask *B M in Flax's *B 1 1 M; any other mask is refused."""
    *batch, length = key.shape[:-2]
    if not hasattr(mask, "dtype"):
        raise TypeError(f"mask has type {type(mask).__name__}: expected a bool array")
    fits = mask.ndim == len(batch) + 3 and mask.shape[-3:] == (1, 1, length)
    if not fits or any(m not in (1, n) for m, n in zip(mask.shape, batch, strict=False)):
        raise ValueError(
            f"mask has shape {mask.shape}: Nyström attention honours padding masks only, "
            f"{(*batch, 1, 1, length)} here (batch, 1, 1, keys). A mask over pairs of positions "
            "(causal, banded, nn.make_attention_mask) or per head can't be applied to landmarks; "
            "for padding pass is_real[:, None, None, :]."
        )
    if not jnp.issubdtype(mask.dtype, jnp.bool_):
        _check_numbers(mask, float_masks)
    return jnp.broadcast_to(mask[..., 0, 0, :].astype(jnp.bool_), (*batch, length))


def _check_numbers(mask, float_masks):
    """Raises unless a mask of numbers is of 0 and 1, and no zeros that may be meant to be added."""
    doubtful = jnp.issubdtype(mask.dtype, jnp.floating) and not float_masks
    if isinstance(mask, jax.core.Tracer):
        good = not doubtful
    else:
        seen = np.asarray(mask)
        good = bool(((seen == 0) | (seen == 1)).all() and ((seen == 1).any() or not doubtful))
    if not good:
        raise ValueError(
            f"mask has dtype {mask.dtype}: expected bool, True for real tokens. A mask of "
            "numbers to add to logits (0 and -1e9, say) would be taken for its contrary: pass "
            "mask == 0 of it. For floats that are 0 and 1, pass mask != 0, or float_masks=True "
            "to attention_fn."
        )
