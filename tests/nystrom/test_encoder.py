"""The encoder's modules and the classifiers on it."""

import os
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import equations, jitted, mask_with

import nystrom
from nystrom.models import pool

DATA = Path(__file__).parents[1] / "data"
LENGTH = 14


def make_encoder(**options):
    rngs = nnx.Rngs(0)
    options = {
        "width": 8,
        "mlp_width": 16,
        "num_heads": 2,
        "num_layers": 1,
        "rngs": rngs,
        **options,
    }
    dtype = options.get("dtype", jnp.float32)
    options.setdefault(
        "make_attention",
        lambda rngs: nystrom.NystromSelfAttention(
            8, 2, num_landmarks=4, conv_kernel_size=5, dtype=dtype, rngs=rngs
        ),
    )
    return nystrom.Encoder(12, 24, **options)


@cache  # one graph per model, so that jit compiles it once
def make_model(pair=False, cls_token=None, **options):
    kind = nystrom.PairClassifier if pair else nystrom.Classifier
    options = {"dtype": jnp.float32, **options}
    head = {"head_width": 16, "dtype": options["dtype"], "rngs": nnx.Rngs(1)}
    pooling = "mean" if cls_token is None else "cls"
    return kind(make_encoder(**options), 3, width=8, pooling=pooling, cls_token=cls_token, **head)


def random_tokens(seed, *shape):
    return np.random.default_rng(seed).integers(0, 12, shape, np.int32)


@partial(jitted, static_argnums=0)
def apply(graph, state, *args):
    return nnx.merge(graph, state)(*args)


@partial(jitted, static_argnums=0)
def apply_and_grads(graph, state, tokens, mask=None, key=None):
    """The model's output, and the gradients of the sum of its squares."""

    def loss(state):
        out = nnx.merge(graph, state)(tokens, mask, key)
        return (out**2).sum(), out

    grads, out = jax.grad(loss, has_aux=True)(state)
    return out, grads


def assert_trees_close(one, other, **tolerances):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, **tolerances)


@pytest.mark.parametrize("norm", nystrom.NORMS)
def test_a_block_is_that_of_the_papers(norm):
    block = make_encoder(norm=norm).blocks[0]
    x = np.random.default_rng(0).normal(size=(1, LENGTH, 8)).astype(np.float32)

    def normed(x):
        deviation = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return (x - x.mean(axis=-1, keepdims=True)) / deviation

    def dense(layer, x):
        return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])

    def mlp(x):
        hidden = jax.nn.gelu(dense(block.mlp_in, x), approximate=False)
        return dense(block.mlp_out, np.asarray(hidden))

    def attend(x):
        return np.asarray(block.attention(x))

    if norm == "pre":
        y = x + attend(normed(x))
        expected = y + mlp(normed(y))
    else:
        y = normed(x + attend(x))
        expected = normed(y + mlp(y))
    np.testing.assert_allclose(apply(*nnx.split(block), x), expected, atol=2e-5)


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


def test_golden_lucidrains():
    """Input, weights and output of the PyTorch module, through `NystromSelfAttention`."""
    golden = np.load(DATA / "lucidrains_one_head.npz", allow_pickle=False)
    module = nystrom.NystromSelfAttention(
        16,
        1,
        num_landmarks=int(golden["num_landmarks"]),
        conv_kernel_size=int(golden["kernel_size"]),
        rngs=nnx.Rngs(0),
    )
    module.qkv.kernel[...] = golden["to_qkv"].T
    module.qkv.bias[...] = np.zeros(48, np.float32)
    module.out.kernel[...] = golden["to_out_kernel"].T
    module.out.bias[...] = golden["to_out_bias"]
    module.filters[...] = golden["conv"][:, 0, :, 0]
    out = apply(*nnx.split(module), golden["x"])
    np.testing.assert_allclose(out, golden["out"], atol=2e-5)


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


def test_padded_hidden_states_are_zeros():
    graph, state = nnx.split(make_encoder())
    mask = np.stack([mask_with(n, LENGTH, "holes") for n in (LENGTH, 6, 0)])
    out, grads = apply_and_grads(graph, state, random_tokens(2, 3, LENGTH), mask)
    np.testing.assert_array_equal(out[~mask], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


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
    options = {"width": 8, "pooling": pooling, "cls_token": 11 if pooling == "cls" else None}
    model = nystrom.Classifier(make_encoder(), 3, **options, rngs=nnx.Rngs(1))
    graph, state = nnx.split(model)
    logits, grads = apply_and_grads(graph, state, np.zeros(shape, np.int32), np.ones(shape, bool))
    assert logits.shape == (*shape[:-1], 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((logits, grads)))


def test_remat_changes_nothing():
    """Neither values nor gradients, dropout included."""
    tokens, key = random_tokens(5, 2, LENGTH), jax.random.key(0)
    mask = np.stack([mask_with(9, LENGTH, "holes"), np.ones(LENGTH, bool)])
    results = []
    for remat in (False, True):
        graph, state = nnx.split(make_model(dropout_rate=0.3, remat=remat))
        results.append(apply_and_grads(graph, state, tokens, mask, key))
    assert_trees_close(*results, atol=1e-5, rtol=1e-4)


def test_remat_under_a_jit_that_closes_over_the_model():
    tokens, encoder = random_tokens(5, 2, LENGTH), make_encoder(remat=True)
    expected = make_encoder()(tokens)
    for transform in (jax.jit, jax.vmap):
        np.testing.assert_allclose(transform(lambda t: encoder(t))(tokens), expected, atol=1e-5)
    np.testing.assert_allclose(encoder(tokens), expected, atol=1e-5)  # and is as it was


@pytest.mark.unchecked  # any module that is called so
def test_remat_keeps_what_an_attention_changes_of_its_state():
    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.drop, self.calls = nnx.Dropout(0.5, rngs=rngs), nnx.BatchStat(jnp.zeros(()))

        def __call__(self, x, mask=None, *, trailing=False):
            self.calls[...] += 1
            return self.drop(x)

    encoder = make_encoder(remat=True, make_attention=Counting, embedding_std=1.0)
    call, tokens = nnx.jit(lambda encoder, tokens: encoder(tokens)), random_tokens(5, 2, LENGTH)
    first, second = call(encoder, tokens), call(encoder, tokens)
    assert np.abs(first - second).max() > 0.1 and encoder.blocks[0].attention.calls[...] == 2


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


def test_embeddings_start_with_the_std_asked_for():
    for options, std in (({}, 0.02), ({"embedding_std": 0.5}, 0.5)):
        encoder = nystrom.Encoder(500, 500, rngs=nnx.Rngs(0), **options)
        for table in (encoder.token_embed.embedding, encoder.position_embed):
            assert np.std(table[...]) == pytest.approx(std, rel=0.03)


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
        model = nystrom.TokenPredictor(
            make_encoder(), 11, width=8, tied=tied, order=True, rngs=rngs
        )
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
def test_errors():
    with pytest.raises(ValueError, match=r"width=8 can't be split among num_heads=3"):
        nystrom.NystromSelfAttention(8, 3, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"num_heads=2\.0: expected an integer of at least 1"):
        nystrom.NystromSelfAttention(8, 2.0, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="conv_kernel_size=4: expected 0 or an odd number"):
        nystrom.NystromSelfAttention(8, 2, conv_kernel_size=4, rngs=nnx.Rngs(0))
    layer, x = nystrom.NystromSelfAttention(8, 2, rngs=nnx.Rngs(0)), np.ones((2, 9, 8), np.float32)
    with pytest.raises(ValueError, match=r"x has shape \(2, 9, 6\): expected .* with C = 8"):
        layer(x[..., :6])
    for mask in (np.ones((2, 8), bool), np.ones((2, 1, 1, 9), bool), np.ones(9, bool)):
        with pytest.raises(ValueError, match=r"expected a padding mask \*B N = \(2, 9\)"):
            layer(x, mask)
    with pytest.raises(TypeError, match="mask has dtype float32"):
        layer(x, x[..., 0])
    with pytest.raises(ValueError, match=r"tokens \(1, 25\): expected \*B N, N at most 24"):
        make_encoder()(random_tokens(12, 1, 25))
    for tokens in (random_tokens(12, 2, 3, 9), random_tokens(12, 9)):
        with pytest.raises(ValueError, match=r"tokens \(.*9,?\): expected \*B 2 N, pairs"):
            make_model(pair=True)(tokens)
    for model in (make_model(cls_token=11), make_model(pair=True)):
        with pytest.raises(TypeError, match="tokens have dtype list: expected an array of integer"):
            model([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"N at most 23, and 11 is put before them"):
        make_model(cls_token=11)(random_tokens(12, 1, 24))
    for kind in (nystrom.Classifier, nystrom.PairClassifier, nystrom.TokenPredictor):
        with pytest.raises(
            ValueError, match="width=16 for an encoder of width=8: expected the same"
        ):
            kind(make_encoder(), 3, width=16, rngs=nnx.Rngs(0))
    for cls_token, error in ((12, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=rf"cls_token={cls_token}: "):
            make_model(cls_token=cls_token)
    for size in ("num_classes", "head_width"):
        with pytest.raises(ValueError, match=f"{size}=0: at least 1"):
            nystrom.Classifier(
                make_encoder(), **{"num_classes": 3, "width": 8} | {size: 0}, rngs=nnx.Rngs(0)
            )
    with pytest.raises(ValueError, match="vocab_size=13: the encoder has embeddings of 12 ids"):
        nystrom.TokenPredictor(make_encoder(), 13, width=8, rngs=nnx.Rngs(0))
    predictor = nystrom.TokenPredictor(make_encoder(), 11, width=8, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="made without order=True"):
        predictor.order_logits(predictor.hidden(random_tokens(12, 1, 5)))
    cut = make_encoder(axis_name="sequence")
    for options in ({"cls_token": 11}, {"order": True}):
        with pytest.raises(ValueError, match="cls_token and order can't have sequences cut"):
            nystrom.TokenPredictor(cut, 11, width=8, **options, rngs=nnx.Rngs(0))


@pytest.mark.unchecked
def test_dropout_keys_that_are_none_or_do_not_fit_are_refused():
    model, tokens = make_model(dropout_rate=0.5), random_tokens(15, 2, LENGTH)
    for key in (jax.random.PRNGKey(0), np.zeros(2, np.uint32), 3):
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


SHARDED = """
import jax, numpy as np
from functools import cache, partial
from jax.sharding import NamedSharding, PartitionSpec as P
from nystrom import nystrom_attention, softmax_attention
assert jax.device_count() == 4
inputs = [np.random.default_rng(i).normal(size=(8, 13, 2, 4)).astype(np.float32) for i in range(3)]
mask = np.arange(13) < np.arange(6, 14)[:, None]
mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
put = lambda x: jax.device_put(x, NamedSharding(mesh, P("batch")))
for attend in (partial(nystrom_attention, num_landmarks=4), softmax_attention):
    def grads(q, k, v, mask):
        loss = lambda *x: (attend(*x, query_mask=mask, key_mask=mask) ** 2).sum()
        return attend(q, k, v, query_mask=mask, key_mask=mask), jax.grad(loss, (0, 1, 2))(q, k, v)
    one = jax.jit(grads)(*inputs, mask)
    four = jax.jit(grads)(*map(put, inputs), put(mask))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four)):
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3)
"""


def test_sharded_over_the_batch_equals_one_device():
    run_python(SHARDED, JAX_NUM_CPU_DEVICES="4")


def test_import_pulls_in_no_data_library():
    run_python(
        "import sys, nystrom\n"
        "loaded = {'tensorflow', 'tensorflow_datasets', 'torch', 'lra_tasks'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )


def run_python(code, **environment):
    """Runs code in a fresh interpreter that sees this project; fails with what it printed."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.unchecked
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan"), 2, "0.1", True])
def test_dropout_rates_that_cannot_be_are_refused_when_made(rate):
    with pytest.raises(ValueError, match=r"dropout_rate=.*: expected a number of at least 0"):
        make_encoder(dropout_rate=rate)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([True] * 9, TypeError, "mask has type list: expected a bool array"),
        (np.ones((1, 9), np.float32), TypeError, "mask has dtype float32: expected a bool array"),
        (np.ones((1, 8), bool), ValueError, r"mask \(1, 8\) and tokens \(1, 9\)"),
    ],
)
def test_masks_that_cannot_be_are_refused(mask, error, message):
    with pytest.raises(error, match=message):
        make_encoder()(random_tokens(0, 1, 9), mask)
    with pytest.raises(TypeError, match="tokens have dtype float32: expected an array of integer"):
        make_encoder()(np.ones((1, 9), np.float32))


@pytest.mark.parametrize(
    "options",
    [{"position": "rotary", "make_attention": None}, {"position": "none"}, {"norm": "post"}],
)
def test_positions_and_norms(options):
    """Padding changes nothing with any of them, and each is a model of its own."""
    model = make_encoder(**options)
    tokens, mask = random_tokens(1, 1, 9), mask_with(9, 13, "holes")[None]
    padded = np.full((1, 13), 3, np.int32)
    padded[mask] = tokens[0]
    run = jitted(lambda tokens, mask: model(tokens, mask))
    alone = run(tokens, None)
    np.testing.assert_allclose(run(padded, mask)[mask], alone[0], atol=2e-5)
    default = jitted(lambda tokens: make_encoder()(tokens))(tokens)
    assert np.abs(default - alone).max() > 1e-3
    backwards = run(tokens[:, ::-1], None)[:, ::-1]
    assert np.abs(backwards - alone).max() > 1e-5  # the convolution and landmarks see the order


@pytest.mark.parametrize("filler", [-100, 12, 10_000])
def test_padding_may_hold_any_id(filler):
    graph, state = nnx.split(make_encoder())
    tokens = random_tokens(5, 2, LENGTH)
    mask = np.stack([mask_with(5, LENGTH, "holes"), mask_with(LENGTH, LENGTH, "trailing")])
    expected = apply_and_grads(graph, state, tokens, mask)
    found = apply_and_grads(graph, state, np.where(mask, tokens, filler), mask)
    assert_trees_close(found, expected)


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
    options = {"width": 8, "pooling": "cls", "cls_token": 256}
    model = nystrom.Classifier(encoder, 3, **options, rngs=nnx.Rngs(1))
    narrow = random_tokens(7, 1, LENGTH).astype(np.uint8)
    np.testing.assert_array_equal(model(narrow), model(narrow.astype(np.int32)))


@pytest.mark.unchecked
def test_places_of_a_narrow_dtype_count_the_token_put_first():
    encoder = nystrom.Encoder(20, 301, width=8, num_layers=1, mlp_width=8, rngs=nnx.Rngs(0))
    model = nystrom.TokenPredictor(encoder, 20, width=8, cls_token=19, rngs=nnx.Rngs(1))
    tokens, places = random_tokens(7, 1, 300), np.array([[255, 127, 299 - 256]])
    expected = model(tokens, None, places.astype(np.int32))
    np.testing.assert_array_equal(model(tokens, None, places.astype(np.uint8)), expected)
    from_end = places.astype(np.int32) - 300
    np.testing.assert_array_equal(model(tokens, None, from_end), expected)


def test_the_mean_of_many_halves_is_finite():
    x = np.full((1, 70_000, 1), 0.5, np.float16)
    np.testing.assert_allclose(pool(x, None), 0.5, rtol=1e-3)


def test_a_layer_alone_ignores_what_padding_holds():
    """Gradients of its parameters too, which a NaN times zero would spoil."""
    layer = nystrom.NystromSelfAttention(
        8, 2, num_landmarks=4, conv_kernel_size=5, rotary=True, rngs=nnx.Rngs(0)
    )
    graph, state = nnx.split(layer)
    mask = mask_with(9, LENGTH, "holes")[None]
    x = np.random.default_rng(8).normal(size=(1, LENGTH, 8)).astype(np.float32)

    def loss(state, x):
        out = nnx.merge(graph, state)(x, mask)
        return (jnp.where(mask[..., None], out, 0) ** 2).sum()

    run = jitted(jax.value_and_grad(loss, (0, 1)))
    expected = run(state, np.where(mask[..., None], x, 0))
    assert_trees_close(run(state, np.where(mask[..., None], x, np.nan)), expected)


def test_the_order_of_halves_is_told_by_the_first_real_token():
    encoder = nystrom.Encoder(11, 12, width=8, num_layers=1, mlp_width=8, rngs=nnx.Rngs(0))
    model = nystrom.TokenPredictor(encoder, 9, width=8, order=True, rngs=nnx.Rngs(1))
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
