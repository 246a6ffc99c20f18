"""The heads' losses, dropout and what they refuse."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from language_folders import DATA, edit_config

from nystrom import language
from nystrom.language.activations import ACTIVATIONS
from nystrom.language.losses import binary_cross_entropy, squared_error
from nystrom.layers import dropout, split_keys

SMALL = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 12,
    "conv_kernel_size": 3,
}


def make(kind, **fields):
    """A model without numbers: for what needs none, since drawing them compiles."""
    config = language.LanguageConfig(**SMALL | fields)
    return nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))


def test_cross_entropy_counts_what_has_a_label():
    logits = jnp.log(jnp.asarray([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
    found = language.cross_entropy(logits, jnp.asarray([0, -100, 2]))
    np.testing.assert_allclose(found, -(np.log(0.5) + np.log(0.6)) / 2, rtol=1e-6)
    assert language.cross_entropy(logits, jnp.full(3, -100)) == 0


@pytest.mark.unchecked
def test_labels_of_another_shape_than_the_logits_are_refused():
    with pytest.raises(ValueError, match=r"labels have shape \(1,\): expected \(4,\), as the log"):
        language.cross_entropy(jnp.zeros((4, 3)), jnp.array([1]))
    with pytest.raises(ValueError, match=r"labels have shape \(3,\): expected \(4, 3\)"):
        binary_cross_entropy(jnp.zeros((4, 3)), jnp.zeros(3))
    for labels in (jnp.zeros((3, 4)), jnp.zeros(12), jnp.zeros((1, 4, 3)), jnp.zeros(4)):
        with pytest.raises(ValueError, match=r"labels have shape .*: expected \(4, 3\)"):
            squared_error(jnp.zeros((4, 3)), labels)
    with pytest.raises(TypeError, match="labels have dtype float32: expected integers"):
        language.cross_entropy(jnp.zeros((2, 3)), jnp.array([0, 1.9]))


@pytest.mark.unchecked
def test_labels_that_are_no_class_give_nan():
    logits = jnp.zeros((2, 3))
    for label in (-1, -3, -101, 3):
        assert np.isnan(language.cross_entropy(logits, jnp.array([0, label])))
    assert language.cross_entropy(logits, [0, -100]) == language.cross_entropy(logits, [0, 1])


@pytest.mark.unchecked
def test_losses_of_narrow_numbers():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(2, 300)), jnp.float32)
    for labels in ([156, 7], [200, 255]):
        expected = language.cross_entropy(logits, jnp.asarray(labels))
        assert language.cross_entropy(logits, jnp.asarray(labels, jnp.uint8)) == expected
    model, places = make(language.QuestionAnswering), jnp.asarray([[200, 210]])
    both = jnp.stack([logits[:1], logits[1:]], axis=-1)
    assert model.loss(both, places.astype(jnp.uint8)) == model.loss(both, places) > 0
    half = jnp.asarray([[256.0]], jnp.bfloat16)
    assert squared_error(half, jnp.asarray([257.0])) == 1


def test_losses_of_a_sequence_follow_its_labels():
    logits, numbers = jnp.asarray([[0.3, -1.2]]), jnp.asarray([[1.0, 0.0]])
    two = make(language.SequenceClassification)
    np.testing.assert_allclose(two.loss(logits, jnp.asarray([1])), np.log1p(np.exp(1.5)), rtol=1e-6)
    p = 1 / (1 + np.exp(-np.asarray(logits[0])))
    expected = -(np.log(p[0]) + np.log(1 - p[1])) / 2
    np.testing.assert_allclose(two.loss(logits, numbers), expected, rtol=1e-6)
    assert two.loss(logits, numbers) == binary_cross_entropy(logits, numbers)
    one = make(language.SequenceClassification, num_labels=1)
    np.testing.assert_allclose(one.loss(logits[:, :1], jnp.asarray([1.3])), 1.0, rtol=1e-6)
    told = make(language.SequenceClassification, problem_type="regression")
    assert told.loss(logits, numbers) == squared_error(logits, numbers)
    told = make(language.SequenceClassification, problem_type="single_label_classification")
    assert told.loss(logits, jnp.asarray([1])) == two.loss(logits, jnp.asarray([1]))


@pytest.mark.unchecked
def test_many_labels_are_those_of_a_problem_type_however_many_and_integers_too():
    logits, numbers = jnp.asarray([[0.3, -1.2]]), jnp.asarray([[1.0, 0.0]])
    for count in (1, 2):
        fields = {"problem_type": "multi_label_classification", "num_labels": count}
        told, some = make(language.SequenceClassification, **fields), logits[:, :count]
        labels = numbers[:, :count].astype(int)
        assert told.loss(some, labels) == binary_cross_entropy(some, numbers[:, :count])


@pytest.mark.unchecked
def test_labels_may_be_lists_and_none():
    model, logits = make(language.SequenceClassification), jnp.asarray([[0.3, -1.2]])
    for labels in ([1], [[1.0, 0.0]]):
        assert model.loss(logits, labels) == model.loss(logits, jnp.asarray(labels))
    for loss in (squared_error, binary_cross_entropy):
        assert loss(logits[:0], jnp.zeros((0, 2))) == 0


def test_an_answer_beyond_the_input_counts_for_nothing():
    model = make(language.QuestionAnswering)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 2)), jnp.float32)
    places = jnp.asarray([[1, 3], [9, 9]])
    np.testing.assert_allclose(
        model.loss(logits, places), model.loss(logits[:1], places[:1]), rtol=1e-6
    )


def test_logits_of_padding_can_be_added_up():
    """As those of an answer's first and last token are."""
    model = make(language.QuestionAnswering)
    model.out = lambda hidden: hidden[..., :2]
    for dtype in (jnp.float32, jnp.float16):
        first, last = model.logits(jnp.ones((1, 3, 8), dtype), jnp.arange(3)[None] < 2)[0].T
        assert np.isfinite(first + last).all() and (first + last)[2] < -60_000


@pytest.mark.unchecked
def test_places_below_0_are_the_first_and_no_numbers_between():
    model = make(language.QuestionAnswering)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 2)), jnp.float32)
    assert model.loss(logits, [[-1, 3], [-100, 2]]) == model.loss(logits, [[0, 3], [0, 2]])
    with pytest.raises(TypeError, match="places have dtype float32: expected integers"):
        model.loss(logits, jnp.asarray([[1.5, 2.0], [1.0, 2.0]]))


@pytest.mark.parametrize("head", ["none", "sequence_classification", "token_classification"])
def test_dropout_acts_when_given_a_key_and_one_an_example_is_its_own(head, tmp_path):
    folder = shutil.copytree(DATA / ("masked_lm" if head == "none" else head), tmp_path / "model")
    edit_config(folder, hidden_dropout_prob=0.5)
    model = language.from_pretrained(folder, head=head, attention="softmax")
    rng = np.random.default_rng(0)
    x, keys = rng.integers(0, 40, (2, 12)), jax.random.split(jax.random.key(0), 2)
    call = lambda x, keys: model(x, dropout_key=keys)  # noqa: E731
    if head != "none":
        x = rng.normal(size=(2, 12, 16)).astype(np.float32)
        call = lambda x, keys: model.logits(x, None, keys)  # noqa: E731
    call = jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})
    dropped = call(x, keys)
    assert np.abs(dropped - call(x, None)).max() > 1e-4
    np.testing.assert_allclose(call(x[1:], keys[1:]), dropped[1:], atol=1e-5)


def test_no_tokens_give_logits_too():
    model = language.from_pretrained(DATA / "sequence_classification", attention="softmax")
    assert np.isfinite(model(np.zeros((2, 0), int))).all()
    assert np.isfinite(model(np.zeros((2, 0), int), np.zeros((2, 0), bool))).all()


def test_parameters_are_float32_under_x64():
    with jax.enable_x64(True):
        model = language.MaskedLM(language.LanguageConfig(**SMALL), rngs=nnx.Rngs(0))
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


def test_types_change_something():
    model = language.from_pretrained(DATA / "masked_lm", head="none", attention="softmax")
    tokens = jnp.arange(12)[None]
    assert jnp.array_equal(model(tokens), model(tokens, types=jnp.zeros_like(tokens)))
    assert not jnp.array_equal(model(tokens), model(tokens, types=jnp.ones_like(tokens)))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros((1, 13), int),), ValueError, r"at most 12 .*max_length"),
        ((np.zeros((1, 4)),), TypeError, "tokens have dtype float64"),
        (([1, 2],), TypeError, "tokens have dtype list"),
        ((np.zeros((1, 4), int), np.ones((1, 4), int)), TypeError, "mask has dtype int"),
        ((np.zeros((1, 4), int), np.ones((1, 3), bool)), ValueError, "mask .* not alike"),
        ((np.zeros((1, 4), int), None, np.ones(4, int)), ValueError, "types .* not alike"),
        ((np.zeros((1, 4), int), None, np.ones((1, 4))), TypeError, "types have dtype float64"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        make(language.MaskedLM)(*arguments)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 9}, "hidden_size=9 can't be split among num_attention_heads=2"),
        ({"conv_kernel_size": 4}, "conv_kernel_size=4: expected an odd number"),
        ({"hidden_act": "relu6"}, "hidden_act='relu6': expected one of gelu"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0"),
        ({"padding": "left"}, "padding='left': expected one of inert, transformers"),
        ({"num_landmarks": 0}, "num_landmarks=0: at least 1"),
        ({"vocab_size": "40"}, "vocab_size='40': expected an integer"),
        ({"layer_norm_eps": 0}, "layer_norm_eps=0: expected a finite number above 0"),
        ({"layer_norm_eps": True}, "layer_norm_eps=True: expected a finite number above 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings='no': expected true or false"),
        ({"inv_coeff_init_option": 1}, "inv_coeff_init_option=1: expected true or false"),
        ({"problem_type": "x"}, "problem_type='x'"),
        ({"problem_type": ""}, "problem_type=''"),
        ({"problem_type": []}, r"problem_type=\[\]"),
        ({"initializer_range": 10**400}, "initializer_range=1000.*: expected a finite number"),
        (
            {"inv_coeff_init_option": True, "padding": "transformers"},
            "inv_coeff_init_option=True: transformers can't run it",
        ),
        ({"hidden_act": "x", "padding": "y"}, "hidden_act='x'.*; padding='y'"),
    ],
)
def test_configs_that_can_not_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        language.LanguageConfig(**SMALL | fields)


def test_dropout_of_a_tokens_head_does_not_depend_on_where_padding_stands():
    fields = SMALL | {"hidden_dropout_prob": 0.4}
    config = language.LanguageConfig(**fields)
    model = language.TokenClassification(config, rngs=nnx.Rngs(0))
    key, tokens = jax.random.split(jax.random.key(0), 1), jnp.array([[3, 4, 5]])
    padded = jnp.array([[0, 0, 3, 4, 5]])
    found = model(padded, padded > 0, None, key)[:, 2:]
    np.testing.assert_allclose(found, model(tokens, None, None, key), atol=1e-6)


@pytest.mark.unchecked
def test_numbers_of_numpy_are_saved_as_json_has_them():
    fields = SMALL | {"vocab_size": np.int64(40), "hidden_dropout_prob": np.float32(0.5)}
    told = json.loads(json.dumps(language.LanguageConfig(**fields).to_dict()))
    assert (told["vocab_size"], told["hidden_dropout_prob"]) == (40, 0.5)


def test_what_is_dropped_has_keys_of_its_own():
    config = language.LanguageConfig(**SMALL | {"hidden_dropout_prob": 0.5}, initializer_range=0.5)
    model = language.SequenceClassification(config, rngs=nnx.Rngs(0))
    tokens, key = jnp.arange(5)[None], jax.random.key(0)
    body_key, head_key = split_keys(key, 2)
    first, second = split_keys(body_key, 2)
    x = dropout(model.body._embed(tokens, jnp.zeros_like(tokens)), 0.5, first)
    block, keys = model.body.blocks[0], split_keys(second, 2)
    y = block.attention_norm(x + dropout(block._attend(x, None), 0.5, keys[0]))
    mlp = block.mlp_out(jax.nn.gelu(block.mlp_in(y)))
    x = block.mlp_norm(y + dropout(mlp, 0.5, keys[1]))[:, 0]
    keys = split_keys(head_key, 2)
    hidden = jax.nn.gelu(model.hidden(dropout(x, 0.5, keys[0])))
    expected = model.out(dropout(hidden, 0.5, keys[1]))
    np.testing.assert_allclose(model(tokens, None, None, key), expected, atol=1e-5)


def test_weights_are_drawn_with_the_configs_spread():
    config = language.LanguageConfig(
        **SMALL
        | {
            "hidden_size": 64,
            "intermediate_size": 64,
            "initializer_range": 0.5,
            "conv_kernel_size": 65,
        }
    )
    model = language.SequenceClassification(config, rngs=nnx.Rngs(0))
    block = model.body.blocks[0]
    for table in (block.query.kernel, block.mlp_out.kernel, model.hidden.kernel,
                  model.body.words.embedding, model.body.positions.embedding):  # fmt: skip
        assert np.std(table[...]) == pytest.approx(0.5, rel=0.1)
    assert np.std(block.filters[...]) == pytest.approx(0.5, rel=0.25)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", 0.841344746),
        ("gelu_new", 0.841191991),
        ("gelu_fast", 0.841191991),
        ("gelu_pytorch_tanh", 0.841191991),
        ("relu", 1.0),
        ("silu", 0.731058579),
        ("swish", 0.731058579),
        ("tanh", 0.761594156),
    ],
)
def test_activations_at_one(name, expected):
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.float32(1)), expected, rtol=2e-6)


@pytest.mark.unchecked
def test_one_label_is_a_regression_of_integers_too():
    config = language.LanguageConfig(**SMALL | {"num_labels": 1})
    one = nnx.eval_shape(lambda: language.SequenceClassification(config, rngs=nnx.Rngs(0)))
    assert one.loss(jnp.asarray([[0.5], [1.0]]), jnp.asarray([2, 1])) == 1.125


def test_the_epsilon_of_every_norm_is_the_configs():
    model = make(language.MaskedLM, layer_norm_eps=0.25)
    block = model.body.blocks[0]
    norms = model.norm, model.body.norm, block.attention_norm, block.mlp_norm
    assert {norm.epsilon for norm in norms} == {0.25}
