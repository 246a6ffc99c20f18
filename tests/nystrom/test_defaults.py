"""Defaults are the paper's, the authors' runs' and the released models'."""

import numpy as np
from flax import nnx
from inputs import random_inputs

import nystrom
from nystrom import attention_fn, cross_attention_fn
from nystrom.language import LanguageConfig


def test_adapter_defaults_are_the_papers():
    for make in (attention_fn, cross_attention_fn):
        assert make() == make(64, 6, "iterative", implementation=None, float_masks=False)


def test_a_layers_defaults_are_the_papers():
    layer = nystrom.NystromSelfAttention(8, 2, rngs=nnx.Rngs(0))
    assert layer.attention == nystrom.self_attention.bound_nystrom(64, "iterative", 6)
    assert layer.filters.shape == (2, 35)


def test_factor_defaults_are_the_papers():
    q, k, _ = random_inputs(4, length=80)
    for one, other in zip(
        nystrom.nystrom_factors(q, k),
        nystrom.nystrom_factors(q, k, num_landmarks=64, pinv="iterative", pinv_iterations=6),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_defaults_are_those_of_the_authors_runs():
    made = {name: dict(entry.options) for name, entry in nystrom.ATTENTIONS.items()}
    assert made == {
        "linear": {},
        "linformer": {"projection_length": 256},
        "none": {},
        "nystrom": {
            "num_landmarks": 64,
            "pinv": "iterative",
            "pinv_iterations": 6,
            "padding": "inert",
        },
        "performer": {"num_features": 256, "feature_kernel": "relu"},
        "reformer": {"num_hashes": 2, "bucket_size": 64},
        "softmax": {},
    }
    taps = {name: entry.conv_kernel_size for name, entry in nystrom.ATTENTIONS.items()}
    assert taps == dict.fromkeys(made, 0) | {"nystrom": 35}


def test_a_language_models_defaults_are_the_released_ones():
    config = LanguageConfig()
    assert (config.num_landmarks, config.conv_kernel_size) == (64, 65)
