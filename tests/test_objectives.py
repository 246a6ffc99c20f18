"""Labels of examples without padding: the same loss and gradients, in a program without masks."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import lra_tasks
from configs import lra_image, lra_listops, lra_pathfinder, lra_retrieval
from experiment import metrics, training
from experiment.model import make_model
from experiment.objectives import classify, classify_full, make_objective, unigram_nats


def opened(module):
    config = module.get_config()
    config.update_from_flattened_dict(
        {"task.source": "synthetic", "model.num_layers": 1, "model.num_landmarks": 8}
    )
    return config, lra_tasks.load(config.task, progress=False)


@pytest.mark.parametrize(
    ("module", "is_full"),
    [(lra_image, True), (lra_pathfinder, True), (lra_listops, False), (lra_retrieval, False)],
)
def test_masks_are_left_out_where_every_example_fills_the_length(module, is_full):
    config, task = opened(module)
    assert task.is_full == is_full
    assert not lra_tasks.without_data(config.task).is_full
    assert make_objective(config, task) is (classify_full if is_full else classify)


@pytest.mark.parametrize("attention", ["nystrom", "softmax"])
def test_examples_without_padding_need_no_mask(attention):
    config, task = opened(lra_pathfinder)
    config.model.attention = attention
    graph, params = nnx.split(make_model(config.model, task, seed=0))
    batch = dict(lra_tasks.Batches(task, "train", 3, seed=0)[0])
    batch["inputs"][2], batch["mask"][2], batch["weight"][2] = 0, False, 0  # fills a last batch
    key = jax.random.key(1)
    found, programs = {}, {}
    for objective in (classify, classify_full):
        summed = jax.jit(
            lambda params, objective=objective: training.summed_gradients(
                graph, 1, None, objective, batch, params, key
            )
        )
        programs[objective] = summed.lower(params).as_text()
        found[objective] = jax.tree.map(np.asarray, summed(params))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        found[classify],
        found[classify_full],
    )
    assert "stablehlo.sort" in programs[classify] or attention == "softmax"
    assert "stablehlo.sort" not in programs[classify_full]


def test_dropout_differs_from_step_to_step():
    config, task = opened(lra_pathfinder)
    config.model.update(dropout_rate=0.5, attention="linear")
    graph, params = nnx.split(make_model(config.model, task, seed=0))
    optimizer = training.make_optimizer(config)
    batch = lra_tasks.Batches(task, "train", 4, seed=0)[0]

    def loss(step):
        state = training.initial_state(optimizer, jax.tree.map(jnp.copy, params))  # it is donated
        state["step"] = jnp.int32(step)
        _, totals = training.train_step(graph, optimizer, state, batch, jax.random.key(1))
        return float(totals["loss"][0])

    assert loss(0) == loss(0) != loss(1)


def test_a_steps_gradient_is_of_the_mean_loss_and_so_is_its_norm():
    config, task = opened(lra_pathfinder)
    config.model.update(dropout_rate=0.0, attention="linear")
    graph, params = nnx.split(make_model(config.model, task, seed=0))
    optimizer = optax.sgd(1.0)
    batch, key = lra_tasks.Batches(task, "train", 4, seed=0)[0], jax.random.key(1)
    before = jax.tree.map(np.asarray, params)

    def mean_loss(params):
        found = classify(nnx.merge(graph, params), batch)["loss"]
        return found[0] / found[1]

    expected = jax.tree.map(np.asarray, jax.jit(jax.grad(mean_loss))(params))
    state = training.initial_state(optimizer, params)  # it is donated
    state, totals = training.train_step(graph, optimizer, state, batch, key)
    norm = math.sqrt(sum((g**2).sum() for g in jax.tree.leaves(expected)))
    assert totals["gradient_norm"][0] == pytest.approx(norm, rel=1e-4)
    jax.tree.map(
        lambda x, y, g: np.testing.assert_allclose(x, y - g, rtol=1e-4, atol=1e-5),
        state["params"],
        before,
        expected,
    )


class Clock(metrics.Silence):
    """Two seconds pass from each look at it to the next, the first of which is at ten."""

    def __init__(self):
        super().__init__()
        self.now, self.done = 8.0, []

    def seconds(self):
        self.now += 2
        return self.now

    def doing(self, what):
        self.done.append(what)


def test_the_examples_of_a_split_are_counted_by_the_time_since_it_began():
    config, task = opened(lra_pathfinder)
    config.model.attention = "none"
    graph, params = nnx.split(make_model(config.model, task, seed=0))
    log, batches = Clock(), lra_tasks.Batches(task, "validation", 5)
    found = training.evaluate(graph, params, batches, log)
    assert found["examples_per_second"] == len(task.splits["validation"].lengths) / 2
    assert log.done == ["evaluating"]


def test_a_unigram_model_has_seen_every_token_once_more():
    def batches(*counts):
        task = types.SimpleNamespace(first_id=1)
        return types.SimpleNamespace(task=task, token_counts=lambda: np.array((7, *counts)))

    expected = -(2 * math.log(4 / 6) + math.log(2 / 6)) / 3
    assert unigram_nats(batches(3, 1), batches(2, 1)) == pytest.approx(expected)
    assert unigram_nats(batches(3, 0), batches(0, 2)) == pytest.approx(math.log(5))
