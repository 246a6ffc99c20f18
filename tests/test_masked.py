"""Hidden tokens: which are hidden, and what is measured."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lra_tasks
from experiment import training
from experiment.model import head_of, make_model
from experiment.objectives import (
    Masked,
    check_hidden,
    checkpoint_score,
    content_keys,
    make_objective,
)
from tests.test_tasks_train import small
from train import train

BYTES = Masked(0.15, 0.8, 0.1, first_id=1, vocab_size=257, mask_id=257)
hide = jax.jit(BYTES.hide)
KEYS = jax.random.split(jax.random.key(5), 8)
SHORT = {"task.max_length": 60, "task.padded_length": 64, "model.attention": "linear"}


def some_tokens(rows=8, length=3_000):
    return np.random.default_rng(0).integers(1, 257, (rows, length), np.int32)


def test_the_shares_of_hidden_tokens_are_those_asked_for():
    tokens = some_tokens()
    inputs, places, counts = hide(tokens, np.ones(tokens.shape, bool), KEYS)
    number = int(counts.sum())
    assert number / tokens.size == pytest.approx(0.15, abs=0.01)
    hidden = np.take_along_axis(np.asarray(inputs), np.asarray(places), -1)[counts]
    right = np.take_along_axis(np.asarray(tokens), np.asarray(places), -1)[counts]
    assert np.mean(hidden == 257) == pytest.approx(0.8, abs=0.03)
    assert np.mean(hidden == right) == pytest.approx(0.1, abs=0.03)
    others = hidden[(hidden != 257) & (hidden != right)]
    assert len(others) / number == pytest.approx(0.1, abs=0.03)
    assert others.min() >= 1 and others.max() <= 256 and len(set(others.tolist())) > 100
    elsewhere = np.ones(tokens.shape, bool)
    np.put_along_axis(elsewhere, np.asarray(places), ~np.asarray(counts), -1)
    np.testing.assert_array_equal(np.asarray(inputs)[elsewhere], np.asarray(tokens)[elsewhere])


def test_neither_padding_nor_special_tokens_are_hidden_and_padding_changes_nothing():
    tokens = some_tokens(length=200)
    tokens[:, ::3] = 0
    mask = np.arange(200) < np.array([[200], [150], [1], [0]] * 2)
    hide_all = jax.jit(Masked(1.0, 1.0, 0.0, 1, 257, 257).hide)
    inputs, places, counts = hide_all(tokens, mask, KEYS)
    np.testing.assert_array_equal(inputs == 257, mask & (tokens > 0))
    assert counts.sum() == (mask & (tokens > 0)).sum()

    inputs, places, counts = hide(tokens, mask, KEYS)
    wider = [np.pad(x, ((0, 0), (0, 56))) for x in (tokens, mask)]
    inputs2, places2, counts2 = hide(*wider, KEYS)
    np.testing.assert_array_equal(inputs2[:, :200], inputs)
    for row in range(8):
        np.testing.assert_array_equal(places2[row][counts2[row]], places[row][counts[row]])
    one = np.asarray([1])  # without the others
    inputs1, _, _ = hide(tokens[one], mask[one], KEYS[one])
    np.testing.assert_array_equal(inputs1, inputs[one])


def test_random_tokens_are_none_of_the_special_ones():
    tokens = np.full((8, 500), 7, np.int32)
    hide_all = Masked(1.0, 0.0, 1.0, first_id=5, vocab_size=12, mask_id=4).hide
    inputs, _, _ = hide_all(tokens, np.ones(tokens.shape, bool), KEYS)
    assert set(np.asarray(inputs).ravel().tolist()) == set(range(5, 12))


def test_in_training_other_tokens_are_hidden_with_another_key():
    config = masked("text", **{"model.dropout_rate": 0.0})
    task = lra_tasks.load(config.task, progress=False)
    graph, params = nnx.split(make_model(config.model, task, 0, head=head_of(config)))
    objective = make_objective(config, task)
    batch = lra_tasks.Batches(task, "train", 4, seed=0)[0]

    @jax.jit
    def loss(keys):
        return objective(nnx.merge(graph, params), batch, keys)["loss"][0]

    one, again, other = (float(loss(jax.random.split(jax.random.key(i), 4))) for i in (0, 0, 1))
    assert one == again != other


def test_in_evaluations_hidden_tokens_follow_from_the_tokens_alone():
    tokens = some_tokens(length=64)
    mask = np.arange(64) < np.array([[64], [50], [50], [3]] * 2)

    def keys(*given):
        return jax.random.key_data(jax.jit(content_keys)(*given)).tolist()

    found = keys(tokens, mask)
    assert len({tuple(key) for key in found}) == 8
    longer = [np.pad(x, ((0, 0), (0, 9))) for x in (np.where(mask, tokens, 7), mask)]
    assert keys(*longer) == found
    assert keys(tokens[:, ::-1], mask)[0] != found[0]


def masked(name, **fields):
    return small(name, **SHORT | {"objective": "masked", "masked.share": 0.3} | fields)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("retrieval", {}), ("text", {"masked.head": "own", "model.pooling": "cls"})],
)
def test_what_is_measured_is_the_loss_at_all_places_that_were_hidden(name, fields):
    config = masked(name, **fields)
    task = lra_tasks.load(config.task, progress=False)
    model = make_model(config.model, task, 0, head=head_of(config))
    objective = make_objective(config, task)
    batch = lra_tasks.Batches(task, "validation", 3)[1]  # one example, and two of padding
    graph, params = nnx.split(model)
    found = jax.device_get(training.eval_step(graph, params, batch, None, objective))
    tokens, mask = batch["inputs"], batch["mask"]
    keys = jax.jit(content_keys)(tokens, mask)
    inputs, places, counts = jax.jit(objective.hide)(tokens, mask, keys)
    assert objective.mask_id in np.asarray(inputs)
    everywhere = np.broadcast_to(np.arange(tokens.shape[-1]), tokens.shape)
    apply = jax.jit(lambda params, *given: nnx.merge(graph, params)(*given))
    logits = np.asarray(apply(params, inputs, mask, everywhere), np.float64)
    losses = np.log(np.exp(logits).sum(-1))
    losses -= np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    was_hidden = np.zeros(tokens.shape, bool)
    np.put_along_axis(was_hidden, np.asarray(places), np.asarray(counts), -1)
    was_hidden[1:] = False
    right = (logits.argmax(-1) == tokens)[was_hidden].sum()
    assert found["loss"][1] == was_hidden.sum() > 3
    assert found["loss"][0] == pytest.approx(losses[was_hidden].sum(), rel=1e-5)
    assert found["bits_per_token"][0] == pytest.approx(found["loss"][0] / math.log(2), rel=1e-6)
    assert tuple(found["accuracy"]) == (right, was_hidden.sum())


def test_a_split_of_which_no_token_is_hidden_is_refused_before_the_first_step(tmp_path):
    config = masked("text", **{"masked.share": 1e-3, "task.num_validation": 500})
    task = lra_tasks.load(config.task, progress=False)
    with pytest.raises(ValueError, match=r"text test: no token is hidden of its 4 examples.*share"):
        train(config, tmp_path, task)
    assert not list(tmp_path.glob("checkpoints/*"))
    check_hidden(make_objective(config, task), task, ("validation",))


def test_a_split_of_which_no_token_is_hidden_is_refused_with_what_helps():
    config = masked("text", **{"masked.share": 1e-9})
    task = lra_tasks.load(config.task, progress=False)
    graph, params = nnx.split(make_model(config.model, task, 0, head=head_of(config)))
    batches = lra_tasks.Batches(task, "validation", 4)
    with pytest.raises(ValueError, match=r"text validation: no token is hidden.*masked\.share"):
        training.evaluate(graph, params, batches, objective=make_objective(config, task))


def test_a_step_on_a_batch_of_which_no_token_is_hidden_leaves_numbers():
    config = masked("text", **{"masked.share": 1e-9})
    task = lra_tasks.load(config.task, progress=False)
    graph, params = nnx.split(make_model(config.model, task, 0, head=head_of(config)))
    optimizer = training.make_optimizer(config)
    state = training.initial_state(optimizer, params)
    batch, objective = lra_tasks.Batches(task, "train", 4, seed=0)[0], make_objective(config, task)
    state, totals = training.train_step(
        graph, optimizer, state, batch, jax.random.key(1), objective=objective
    )
    assert totals["loss"] == (0, 0) and totals["gradient_norm"][0] == 0 and state["step"] == 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["params"]))


def test_the_best_checkpoint_of_a_masked_run_is_that_of_least_loss():
    good, bad = {"loss": 1.5, "accuracy": 0.1}, {"loss": 1.6, "accuracy": 0.9}
    assert checkpoint_score("masked", good) > checkpoint_score("masked", bad) > 0
    assert checkpoint_score("classify", good) < checkpoint_score("classify", bad)


def test_a_label_weighs_as_much_as_its_example_has_hidden_tokens():
    """And as one in the accuracy; an example of weight 0 counts in neither."""
    objective = Masked(0.5, 1.0, 0.0, first_id=1, vocab_size=9, mask_id=9, order=True)
    model = types.SimpleNamespace(
        encoder=types.SimpleNamespace(axis_name=None),
        hidden=lambda inputs, mask, keys: inputs,
        token_logits=lambda hidden, places: jnp.zeros((*places.shape, 9)),
        order_logits=lambda hidden, mask: jnp.array([[0.0, 0.0], [0.0, 1.0], [5.0, 5.0]]),
    )
    tokens = np.random.default_rng(0).integers(1, 9, (3, 20), np.int32)
    batch = {"inputs": tokens, "mask": np.ones((3, 20), bool), "label": np.array([0, 0, 1])}
    batch["weight"] = np.array([1.0, 1.0, 0.0], np.float32)

    @jax.jit
    def measured(batch):
        tokens, mask = batch["inputs"], batch["mask"]
        *_, is_hidden = objective.hide(tokens, mask, content_keys(tokens, mask))
        return objective(model, batch), is_hidden.sum(axis=-1)

    found, (one, two, _) = jax.device_get(measured(batch))
    assert one != two
    order = one * math.log(2) + two * math.log(1 + math.e)
    np.testing.assert_allclose(found["order_loss"], (order, one + two), rtol=1e-5)
    np.testing.assert_allclose(found["token_loss"][0], (one + two) * math.log(9), rtol=1e-5)
    np.testing.assert_allclose(found["loss"][0], order + found["token_loss"][0], rtol=1e-5)
    assert tuple(found["order_accuracy"]) == (1, 2)
