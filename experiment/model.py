"""The model of a config."""

import jax.numpy as jnp
import ml_collections
from flax import nnx

import lra_tasks
import nystrom


def make_model(config: ml_collections.ConfigDict, task: lra_tasks.Task, seed: int) -> nnx.Module:
    """A classifier for `task`; `config` is config.model, `seed` draws the weights."""
    rngs = nnx.Rngs(seed)
    dtype = jnp.dtype(config.dtype)
    has_cls = config.pooling == "cls"  # one more token, and a place for it
    length = max(task.padded_length, *task.bucket_boundaries, 1) + has_cls
    make_attention = nystrom.self_attention_maker(
        config.attention,
        config.width,
        config.num_heads,
        max_length=length,
        num_landmarks=config.num_landmarks,
        pinv=config.pinv,
        pinv_iterations=config.pinv_iterations,
        conv_kernel_size=config.conv_kernel_size,
        num_features=config.num_features,
        feature_kernel=config.feature_kernel,
        projection_length=config.projection_length,
        num_hashes=config.num_hashes,
        bucket_size=config.bucket_size,
        seed=seed,
        dtype=dtype,
        rngs=rngs,
    )
    encoder = nystrom.Encoder(
        task.vocab_size + has_cls,
        length,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        mlp_width=config.mlp_width,
        embedding_std=config.embedding_std,
        dropout_rate=config.dropout_rate,
        make_attention=make_attention,
        remat=config.remat,
        dtype=dtype,
        rngs=rngs,
    )
    classifier = nystrom.Classifier if task.num_documents == 1 else nystrom.PairClassifier
    return classifier(
        encoder,
        task.num_classes,
        width=config.width,
        head_width=config.head_width,
        cls_token=task.vocab_size if has_cls else None,
        dtype=dtype,
        rngs=rngs,
    )
