"""The classifiers and predictors on the encoder, and its poolings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import equations, mask_with, normal
from model_makers import (
    LENGTH,
    apply,
    apply_and_grads,
    assert_trees_close,
    make_encoder,
    make_model,
    random_tokens,
)

import nystrom
from nystrom.models import pool


def test_poolings_are_what_they_say():
    x = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
    mask = mask_with(5, 9, "holes")[None]
    real = x[0, mask[0]]
    for pooling, expected in {
        "max": real.max(axis=0),
        "last": real[-1],
        "mean": real.mean(axis=0),
        "mean_padded": real.sum(axis=0) / 9,
        "cls": x[0, 0],
    }.items():
        np.testing.assert_allclose(pool(x, mask, pooling)[0], expected, atol=1e-6)


def test_of_equal_tokens_one_has_the_gradient_of_the_largest():
    x = np.array([[3.0, 1.0], [5.0, 5.0], [5.0, 2.0], [9.0, 9.0]], np.float32)
    mask = np.array([True, True, True, False])
    gradient = jax.grad(lambda x: (pool(x, mask, "max") * np.array([1.0, 10.0])).sum())(x)
    np.testing.assert_array_equal(gradient, [[0, 0], [1, 10], [0, 0], [0, 0]])
    assert pool(x[:0], None, "max").tolist() == [0, 0]


@pytest.mark.parametrize("where", ["trailing", "leading", "holes"])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("cls_token", [None, 11])
def test_padding_never_changes_a_document(where, pair, cls_token):
    """Logits and parameter gradients; what the padded ids are has no say."""
    graph, state = nnx.split(make_model(pair, cls_token))
    documents = (2,) if pair else ()
    tokens = random_tokens(0, 1, *documents, 9)
    mask = mask_with(9, LENGTH, where)
    padded = random_tokens(1, 1, *documents, LENGTH)
    padded[..., mask] = tokens
    masks = np.broadcast_to(mask, padded.shape)
    assert_trees_close(
        apply_and_grads(graph, state, padded, masks),
        apply_and_grads(graph, state, tokens),
        atol=2e-5,
        rtol=1e-3,
    )


@pytest.mark.parametrize("pair", [False, True])
def test_where_padding_stands_changes_no_dropout(pair):
    graph, state = nnx.split(make_model(pair, dropout_rate=0.5))
    tokens = random_tokens(0, 1, *((2,) if pair else ()), 9)
    logits = []
    for where in ("trailing", "holes"):
        mask = mask_with(9, LENGTH, where)
        padded = np.zeros((*tokens.shape[:-1], LENGTH), np.int32)
        padded[..., mask] = tokens
        masks = np.broadcast_to(mask, padded.shape)
        logits.append(apply(graph, state, padded, masks, jax.random.key(0)))
    np.testing.assert_allclose(*logits, atol=2e-5, rtol=1e-3)


def test_a_classifier_branches_on_padding_once_and_by_token_ids_alone():
    """Not in every layer, where a branch is two programs, forward and backward."""
    graph, state = nnx.split(make_model(num_layers=2))
    tokens, mask = np.zeros((2, LENGTH), np.int32), np.ones((2, LENGTH), bool)
    program = jax.make_jaxpr(lambda state: nnx.merge(graph, state)(tokens, mask))(state)
    (branch,) = branches(program.jaxpr)
    assert {out.aval.dtype for out in branch.outvars} == {np.dtype("int32"), np.dtype("bool")}


def branches(jaxpr):
    """The `cond` equations of a program, and of those that it calls; not those by platform."""
    platforms = [out for each in equations(jaxpr, "platform_index") for out in each.outvars]
    return [each for each in equations(jaxpr, "cond") if each.invars[0] not in platforms]


@pytest.mark.parametrize("cls_token", [None, 11])
def test_document_without_tokens_has_finite_logits(cls_token):
    graph, state = nnx.split(make_model(cls_token=cls_token))
    mask = np.zeros((1, LENGTH), bool)
    logits = apply(graph, state, random_tokens(3, 1, LENGTH), mask)
    np.testing.assert_array_equal(logits, apply(graph, state, random_tokens(4, 1, LENGTH), mask))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("shape", [(0, LENGTH), (2, 0), (0, 2, LENGTH)])
@pytest.mark.parametrize("pooling", nystrom.POOLINGS)
def test_batches_without_documents_and_documents_without_places(shape, pooling):
    options = {"pooling": pooling, "cls_token": 11 if pooling == "cls" else None}
    model = nystrom.Classifier(make_encoder(), 3, **options, rngs=nnx.Rngs(1))
    graph, state = nnx.split(model)
    logits, grads = apply_and_grads(graph, state, np.zeros(shape, np.int32), np.ones(shape, bool))
    assert logits.shape == (*shape[:-1], 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, grads)))


def test_dropout_acts_only_with_a_key():
    tokens = random_tokens(6, 2, LENGTH)
    with_rate = nnx.split(make_model(dropout_rate=0.5))
    without = nnx.split(make_model(dropout_rate=0.0))
    quiet = apply(*with_rate, tokens)
    np.testing.assert_array_equal(quiet, apply(*without, tokens))
    one = apply(*with_rate, tokens, None, jax.random.key(0))
    np.testing.assert_array_equal(one, apply(*with_rate, tokens, None, jax.random.key(0)))
    assert np.abs(one - quiet).max() > 1e-3
    assert np.abs(apply(*with_rate, tokens, None, jax.random.key(1)) - one).max() > 1e-3
    np.testing.assert_array_equal(
        apply(*without, tokens, None, jax.random.key(0)), apply(*without, tokens)
    )


def test_bfloat16_has_float32_parameters_and_logits():
    model = make_model(dtype=jnp.bfloat16)
    graph, state = nnx.split(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype(np.float32)}
    tokens = random_tokens(7, 2, LENGTH)
    assert apply(*nnx.split(model.encoder), tokens).dtype == jnp.bfloat16
    logits = apply(graph, state, tokens)
    assert logits.dtype == jnp.float32
    expected = apply(*nnx.split(make_model()), tokens)
    np.testing.assert_allclose(logits, expected, atol=5e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_predictors_of_tokens_stay_float32_under_x64(tied):
    with jax.enable_x64(True):
        rngs = nnx.Rngs(0)
        model = nystrom.TokenPredictor(make_encoder(), 11, tied=tied, order=True, rngs=rngs)
        leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
        hidden = model.hidden(random_tokens(12, 2, LENGTH).astype(np.int32))
        places = np.zeros((2, 3), np.int32)
        for logits in (model.token_logits(hidden, places), model.order_logits(hidden)):
            assert logits.dtype == jnp.float32


def test_one_document_never_changes_another():
    graph, state = nnx.split(make_model())
    tokens = random_tokens(8, 2, LENGTH)
    other = np.stack([tokens[0], random_tokens(9, LENGTH)])
    np.testing.assert_allclose(
        apply(graph, state, tokens)[0], apply(graph, state, other)[0], atol=1e-6
    )


def test_pair_features_are_a_b_product_and_difference():
    model = make_model(pair=True)
    tokens = random_tokens(10, 1, 2, LENGTH)
    a, b = apply(*nnx.split(model.encoder), tokens)[0].mean(axis=1)
    features = np.concatenate([a, b, a * b, a - b], axis=-1)
    hidden = np.maximum(model.hidden(features), 0)
    logits = apply(*nnx.split(model), tokens)[0]
    np.testing.assert_allclose(logits, model.logits(hidden), atol=1e-5)


def test_with_a_cls_token_its_state_is_classified_as_if_the_document_began_with_it():
    model = make_model(cls_token=11)
    tokens = random_tokens(13, 2, LENGTH)
    begun = np.concatenate([np.full((2, 1), 11, np.int32), tokens], axis=1)
    first = apply(*nnx.split(model.encoder), begun)[:, 0]
    logits = apply(*nnx.split(model), tokens)
    hidden = np.maximum(model.hidden(first), 0)
    np.testing.assert_allclose(logits, model.logits(hidden), atol=1e-5)


def test_order_of_tokens_counts():
    graph, state = nnx.split(make_model())
    tokens = random_tokens(11, 1, LENGTH)
    difference = apply(graph, state, tokens) - apply(graph, state, tokens[:, ::-1].copy())
    assert np.abs(difference).max() > 1e-5


def test_the_paper_s_model_has_its_parameters():
    """Width 64, two blocks, two heads: counted by hand for the model of the authors' LRA runs."""
    model = nystrom.Encoder(16, 2048, rngs=nnx.Rngs(0))
    block = 4 * (64 * 64 + 64) + 2 * 35 + (64 * 128 + 128) + (128 * 64 + 64) + 2 * 2 * 64
    expected = 16 * 64 + 2048 * 64 + 2 * block + 2 * 64
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected


@pytest.mark.unchecked
@pytest.mark.parametrize("pair", [False, True])
def test_dropout_keys_that_are_none_or_do_not_fit_are_refused(pair):
    model = make_model(pair=pair, dropout_rate=0.5)
    tokens = random_tokens(15, 2, 2, LENGTH) if pair else random_tokens(15, 2, LENGTH)
    for key in (jax.random.PRNGKey(0), np.zeros(2, np.uint32), 3, [jax.random.key(0)]):
        with pytest.raises(
            TypeError, match=r"a dropout key of .*: expected one that jax\.random\.key"
        ):
            model(tokens, None, key)
    for count in (1, 3):
        keys = jax.random.split(jax.random.key(0), count)
        with pytest.raises(ValueError, match=rf"dropout keys \({count},\) for .* one an example"):
            model(tokens, None, keys)


@pytest.mark.parametrize("pair", [False, True])
def test_an_example_and_its_key_give_the_same_in_a_batch_and_alone(pair):
    graph, state = nnx.split(make_model(pair=pair, dropout_rate=0.5))
    tokens = random_tokens(16, 2, 2, LENGTH) if pair else random_tokens(16, 2, LENGTH)
    keys = jax.random.split(jax.random.key(1), 2)
    batch = apply(graph, state, tokens, None, keys)
    for i in range(2):
        alone = apply(graph, state, tokens[i], None, keys[i])
        np.testing.assert_allclose(batch[i], alone, atol=1e-5)
    model = nnx.merge(graph, state)
    mapped = jax.vmap(lambda tokens, key: model(tokens, None, key))(tokens, keys)
    np.testing.assert_allclose(batch, mapped, atol=1e-5)


@pytest.mark.parametrize("name", ["performer", "reformer"])
def test_models_that_differ_in_a_seed_share_a_jitted_function(name):
    outs = []
    run = nnx.jit(lambda model, tokens: model(tokens))
    for seed in (0, 1):
        maker = nystrom.self_attention_maker(
            name, 8, 2, max_length=LENGTH, seed=seed, rngs=nnx.Rngs(0)
        )
        outs.append(run(make_encoder(make_attention=maker), random_tokens(6, 1, LENGTH)))
    assert outs[0].shape == outs[1].shape and np.abs(outs[0] - outs[1]).max() > 0


@pytest.mark.unchecked
def test_a_cls_token_beyond_a_narrow_dtype():
    encoder = nystrom.Encoder(257, LENGTH + 1, width=8, num_layers=1, rngs=nnx.Rngs(0))
    options = {"pooling": "cls", "cls_token": 256}
    model = nystrom.Classifier(encoder, 3, **options, rngs=nnx.Rngs(1))
    narrow = random_tokens(7, 1, LENGTH).astype(np.uint8)
    np.testing.assert_array_equal(model(narrow), model(narrow.astype(np.int32)))


@pytest.mark.unchecked
def test_places_of_a_narrow_dtype_count_the_token_put_first():
    encoder = nystrom.Encoder(20, 301, width=8, num_layers=1, mlp_width=8, rngs=nnx.Rngs(0))
    model = nystrom.TokenPredictor(encoder, 20, cls_token=19, rngs=nnx.Rngs(1))
    tokens, places = random_tokens(7, 1, 300), np.array([[255, 127, 299 - 256]])
    expected = model(tokens, None, places.astype(np.int32))
    np.testing.assert_array_equal(model(tokens, None, places.astype(np.uint8)), expected)
    from_end = places.astype(np.int32) - 300
    np.testing.assert_array_equal(model(tokens, None, from_end), expected)
    with pytest.raises(TypeError, match="places have dtype list: expected an array of integers"):
        model(tokens, None, places.tolist())
    with pytest.raises(ValueError, match=r"places \(3,\): expected \*B K"):
        model(tokens, None, places[0])


def test_the_mean_of_many_halves_is_finite():
    x = np.full((1, 70_000, 1), 0.5, np.float16)
    np.testing.assert_allclose(pool(x, None), 0.5, rtol=1e-3)


def test_the_order_of_halves_is_told_by_the_first_real_token():
    encoder = nystrom.Encoder(11, 12, width=8, num_layers=1, mlp_width=8, rngs=nnx.Rngs(0))
    model = nystrom.TokenPredictor(encoder, 9, order=True, rngs=nnx.Rngs(1))
    logits = []
    for tokens in ([[3, 4, 5]], [[0, 0, 3, 4, 5]]):
        tokens = jnp.array(tokens)
        logits.append(model.order_logits(model.hidden(tokens, tokens > 0), tokens > 0))
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-6)


def test_dropout_is_exported_for_any_length():
    encoder = nystrom.Encoder(
        11, 12, width=8, num_layers=1, mlp_width=8, dropout_rate=0.3, rngs=nnx.Rngs(0)
    )

    def run(tokens):
        return encoder(tokens, None, jax.random.key(0))

    (length,) = jax.export.symbolic_shape("n", constraints=["n <= 12"])
    shape = jax.ShapeDtypeStruct((2, length), jnp.int32)
    tokens = jnp.arange(14).reshape(2, 7) % 11
    found = jax.export.export(jax.jit(run))(shape).call(tokens)
    np.testing.assert_allclose(found, run(tokens), atol=1e-5)


def test_the_order_of_halves_is_told_by_a_layer_and_tanh():
    model = nystrom.TokenPredictor(make_encoder(), 11, order=True, rngs=nnx.Rngs(1))
    hidden = jnp.asarray(3 * normal(0, 2, 9, 8))
    expected = model.order(np.tanh(model.order_hidden(hidden[:, 0])))
    np.testing.assert_allclose(model.order_logits(hidden), expected, atol=1e-5)


def test_a_predictors_bias_is_added():
    model = nystrom.TokenPredictor(make_encoder(), 11, rngs=nnx.Rngs(0))
    hidden, places = normal(0, 2, 9, 8), np.array([[1], [2]])
    before = np.asarray(model.token_logits(hidden, places))
    model.bias[...] = jnp.arange(11.0)
    np.testing.assert_allclose(
        model.token_logits(hidden, places), before + np.arange(11), atol=1e-5
    )


def test_poolings_and_cls_tokens_that_do_not_go_together_are_refused():
    for options in ({"pooling": "cls"}, {"cls_token": 11}, {"pooling": "max", "cls_token": 11}):
        with pytest.raises(ValueError, match="each asks for the other"):
            nystrom.Classifier(make_encoder(), 3, **options, rngs=nnx.Rngs(0))
    cut = make_encoder(axis_name="sequence")
    with pytest.raises(ValueError, match="pooling='cls' can't have its sequences cut over devices"):
        nystrom.Classifier(cut, 3, pooling="cls", cls_token=11, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cls_token=-1: at least 0"):
        nystrom.Classifier(make_encoder(), 3, pooling="cls", cls_token=-1, rngs=nnx.Rngs(0))


def test_logits_of_their_own_may_be_of_more_ids_than_the_encoder_has():
    encoder = make_encoder()
    assert nystrom.TokenPredictor(encoder, 50, tied=False, rngs=nnx.Rngs(0)).vocab_size == 50
    with pytest.raises(ValueError, match=r"vocab_size=50: the encoder has embeddings of \d+ ids"):
        nystrom.TokenPredictor(encoder, 50, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("pooling", ["mean", "max", "last", "mean_padded"])
def test_pooled_is_zero_where_no_token_is_real(pooling):
    x, mask = normal(0, 2, 9, 4), np.arange(9) < np.array([[0], [5]])
    found = np.asarray(pool(x, mask, pooling))
    assert not found[0].any() and found[1].any()
