"""Nyströmformer in JAX: attention whose time and memory grow linearly with the length."""

from nystrom.attention import nystrom_attention, softmax_attention
from nystrom.baselines.identity import identity_attention
from nystrom.baselines.linear import linear_attention
from nystrom.baselines.linformer import linformer_attention
from nystrom.baselines.performer import orthogonal_features, performer_attention
from nystrom.baselines.reformer import random_rotations, reformer_attention
from nystrom.chebyshev import chebyshev_pinv
from nystrom.checks import IMPLEMENTATIONS, PINVS
from nystrom.convolution import depthwise_convolution
from nystrom.encoder import NORMS, POSITIONS, Encoder
from nystrom.factors import NystromFactors, nystrom_factors
from nystrom.flax_adapter import attention_fn, cross_attention_fn
from nystrom.landmarks import segment_means
from nystrom.models import POOLINGS, Classifier, PairClassifier, TokenPredictor
from nystrom.pinv import iterative_pinv
from nystrom.registry import ATTENTIONS, self_attention_maker
from nystrom.self_attention import NystromSelfAttention, SelfAttention
from nystrom.sharding import sharded_attention

__all__ = [
    "ATTENTIONS",
    "IMPLEMENTATIONS",
    "NORMS",
    "PINVS",
    "POOLINGS",
    "POSITIONS",
    "Classifier",
    "Encoder",
    "NystromFactors",
    "NystromSelfAttention",
    "PairClassifier",
    "SelfAttention",
    "TokenPredictor",
    "attention_fn",
    "chebyshev_pinv",
    "cross_attention_fn",
    "depthwise_convolution",
    "identity_attention",
    "iterative_pinv",
    "linear_attention",
    "linformer_attention",
    "nystrom_attention",
    "nystrom_factors",
    "orthogonal_features",
    "performer_attention",
    "random_rotations",
    "reformer_attention",
    "segment_means",
    "self_attention_maker",
    "sharded_attention",
    "softmax_attention",
]
