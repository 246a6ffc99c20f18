"""The model of a config: an encoder, and the head that its objective needs."""

import jax.numpy as jnp
import ml_collections
from flax import nnx

import lra_tasks
import nystrom
from experiment.objectives import mask_token


def make_model(
    config: ml_collections.ConfigDict,
    task: lra_tasks.Task,
    seed: int,
    axis_name: str | None = None,
    head: str = "classify",
) -> nnx.Module:
    """A model for `task`; `config` is config.model, `seed` draws the weights.

    `axis_name` is the mesh axis over which sequences are cut, if they are. `head` is
    "classify", or what predicts hidden tokens with the embeddings' weights ("tied") or its "own".
    The table of embeddings has the task's ids, then the token put first, then that of hidden ones.
    """
    rngs = nnx.Rngs(seed)
    dtype = jnp.dtype(config.dtype)
    has_cls = config.pooling == "cls"  # one more token, and a place for it
    length = max(task.padded_length, *task.bucket_boundaries, 1) + has_cls
    make_attention = nystrom.self_attention_maker(
        config.attention,
        config.width,
        config.num_heads,
        max_length=length,
        conv_kernel_size=config[conv_field(config.attention)],
        rotary=config.position == "rotary",
        seed=seed,
        axis_name=axis_name,
        dtype=dtype,
        rngs=rngs,
        **{name: config[name] for name in nystrom.ATTENTIONS[config.attention].options},
    )
    num_ids = task.vocab_size + has_cls
    if head != "classify":
        num_ids = max(num_ids, mask_token(task, config.pooling) + 1)
    encoder = nystrom.Encoder(
        num_ids,
        length,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        mlp_width=config.mlp_width,
        embedding_std=config.embedding_std,
        dropout_rate=config.dropout_rate,
        position=config.position,
        norm=config.norm,
        make_attention=make_attention,
        axis_name=axis_name,
        remat=config.remat,
        dtype=dtype,
        rngs=rngs,
    )
    options = {
        "cls_token": task.vocab_size if has_cls else None,
        "dtype": dtype,
        "rngs": rngs,
    }
    refuse_state(encoder, config.attention)
    if head != "classify":
        tied = head == "tied"
        return nystrom.TokenPredictor(
            encoder, task.vocab_size, tied=tied, order=task.sop, **options
        )
    classifier = nystrom.Classifier if task.num_documents == 1 else nystrom.PairClassifier
    return classifier(
        encoder,
        task.num_classes,
        head_width=config.head_width,
        pooling=config.pooling,
        **options,
    )


def refuse_state(encoder: nystrom.Encoder, attention: str) -> None:
    """Raises ValueError if an attention keeps what is no parameter: it would be trained as one."""
    state = nnx.to_flat_state(nnx.state(encoder, nnx.Not(nnx.Param)))
    if kinds := sorted({type(variable).__name__ for _, variable in state}):
        raise ValueError(
            f"config.model.attention={attention}: keeps {', '.join(kinds)}; the trainers keep "
            "parameters alone (nnx.Param), no statistics and no random state of a dropout"
        )


def conv_field(attention: str) -> str:
    """The field of config.model that has the taps of an attention's convolution of the values."""
    return "conv_kernel_size" if attention == "nystrom" else "baseline_conv_kernel_size"


def head_of(config: ml_collections.ConfigDict) -> str:
    """The head that a config's objective needs."""
    return "classify" if config.objective == "classify" else config.masked.head
