"""The model that a config asks for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import lra_listops
from experiment.model import make_model
from lra_tasks import without_data


def made(seed=0, **fields):
    config = lra_listops.get_config()
    config.model.update(num_layers=1, **fields)
    return make_model(config.model, without_data(config.task), seed)


IDS = np.arange(1, 17, dtype=np.int32)[None] % 16
FULL = np.ones(IDS.shape, bool)


def test_random_constants_of_an_attention_follow_from_the_seed():
    logits = []
    for seed in (0, 0, 1):
        graph, _ = nnx.split(made(seed, attention="performer"))
        _, params = nnx.split(made(0, attention="performer"))
        logits.append(np.asarray(nnx.merge(graph, params)(IDS, FULL)))
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_the_embeddings_have_the_deviation_asked_for():
    for deviation in (0.02, 3.0):
        table = made(embedding_std=deviation).encoder.token_embed.embedding[...]
        np.testing.assert_allclose(np.std(table), deviation, rtol=0.2)


@pytest.mark.parametrize(("dtype", "remat"), [("float32", False), ("bfloat16", True)])
def test_the_encoder_computes_in_the_type_asked_for_and_again_where_it_is_to(dtype, remat):
    graph, params = nnx.split(made(dtype=dtype, remat=remat).encoder)
    assert nnx.merge(graph, params)(IDS, FULL).dtype == jnp.dtype(dtype)

    def loss(params):
        return nnx.merge(graph, params)(IDS, FULL).astype(jnp.float32).sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert ("remat" in program) == remat and ("bf16" in program) == (dtype == "bfloat16")
