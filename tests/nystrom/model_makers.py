"""Small models, and what their tests share."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from inputs import jitted

import nystrom

LENGTH = 14


def make_encoder(**options):
    rngs = nnx.Rngs(0)
    options = {
        "width": 8,
        "mlp_width": 16,
        "num_heads": 2,
        "num_layers": 1,
        "rngs": rngs,
        **options,
    }
    dtype = options.get("dtype", jnp.float32)
    options.setdefault(
        "make_attention",
        lambda rngs: nystrom.NystromSelfAttention(
            8, 2, num_landmarks=4, conv_kernel_size=5, dtype=dtype, rngs=rngs
        ),
    )
    return nystrom.Encoder(12, 24, **options)


@cache  # one graph per model, so that jit compiles it once
def make_model(pair=False, cls_token=None, **options):
    kind = nystrom.PairClassifier if pair else nystrom.Classifier
    options = {"dtype": jnp.float32, **options}
    head = {"head_width": 16, "dtype": options["dtype"], "rngs": nnx.Rngs(1)}
    pooling = "mean" if cls_token is None else "cls"
    return kind(make_encoder(**options), 3, pooling=pooling, cls_token=cls_token, **head)


def random_tokens(seed, *shape):
    return np.random.default_rng(seed).integers(0, 12, shape, np.int32)


@partial(jitted, static_argnums=0)
def apply(graph, state, *args):
    return nnx.merge(graph, state)(*args)


@partial(jitted, static_argnums=0)
def apply_and_grads(graph, state, tokens, mask=None, key=None):
    """The model's output, and the gradients of the sum of its squares."""

    def loss(state):
        out = nnx.merge(graph, state)(tokens, mask, key)
        return (out**2).sum(), out

    grads, out = jax.grad(loss, has_aux=True)(state)
    return out, grads


def assert_trees_close(one, other, **tolerances):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)
