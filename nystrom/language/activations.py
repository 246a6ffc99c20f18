"""The activations that a config.json may name, as `transformers` computes them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from nystrom.layers import gelu

_tanh_gelu = partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jax.numpy.tanh,
}
