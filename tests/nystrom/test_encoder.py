"""The encoder's modules."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import jitted, mask_with
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

DATA = Path(__file__).parents[1] / "data"


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


def test_padded_hidden_states_are_zeros():
    graph, state = nnx.split(make_encoder())
    mask = np.stack([mask_with(n, LENGTH, "holes") for n in (LENGTH, 6, 0)])
    out, grads = apply_and_grads(graph, state, random_tokens(2, 3, LENGTH), mask)
    np.testing.assert_array_equal(out[~mask], 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


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


def test_embeddings_start_with_the_std_asked_for():
    for options, std in (({}, 0.02), ({"embedding_std": 0.5}, 0.5)):
        encoder = nystrom.Encoder(500, 500, rngs=nnx.Rngs(0), **options)
        for table in (encoder.token_embed.embedding, encoder.position_embed):
            assert np.std(table[...]) == pytest.approx(std, rel=0.03)


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
    with pytest.raises(ValueError, match=r"x has shape \(8,\): expected \*B N C with C = 8"):
        layer(x[0, 0])
    for other in (x.astype(int), x.astype(bool), x.astype(complex), x.tolist()):
        for call in (layer, nnx.jit(lambda layer, x: layer(x)).__get__(layer)):
            with pytest.raises(TypeError, match=r"x has .*expected an array of floating-point"):
                call(other)
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
    for cls_token, error in ((12, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=rf"cls_token={cls_token}: "):
            make_model(cls_token=cls_token)
    for size in ("num_classes", "head_width"):
        with pytest.raises(ValueError, match=f"{size}=0: at least 1"):
            nystrom.Classifier(make_encoder(), **{"num_classes": 3} | {size: 0}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="vocab_size=13: the encoder has embeddings of 12 ids"):
        nystrom.TokenPredictor(make_encoder(), 13, rngs=nnx.Rngs(0))
    predictor = nystrom.TokenPredictor(make_encoder(), 11, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="made without order=True"):
        predictor.order_logits(predictor.hidden(random_tokens(12, 1, 5)))
    cut = make_encoder(axis_name="sequence")
    for options in ({"cls_token": 11}, {"order": True}):
        with pytest.raises(ValueError, match="cls_token and order can't have sequences cut"):
            nystrom.TokenPredictor(cut, 11, **options, rngs=nnx.Rngs(0))


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
    ("std", "error"),
    [(-0.1, ValueError), (float("nan"), ValueError), ("a", TypeError), (True, TypeError)],
)
def test_a_spread_of_embeddings_that_cannot_be_is_refused_when_made(std, error):
    with pytest.raises(error, match=r"embedding_std=.*at least 0"):
        make_encoder(embedding_std=std)


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


def test_filters_start_uniform_within_one_over_the_root_of_their_taps():
    layer = nystrom.NystromSelfAttention(64, 64, conv_kernel_size=35, rngs=nnx.Rngs(0))
    filters = np.asarray(layer.filters[...])
    assert np.abs(filters).max() <= 35**-0.5
    assert np.std(filters) == pytest.approx((35 * 3) ** -0.5, rel=0.1)


def test_rotary_positions_need_an_even_number_of_features():
    with pytest.raises(ValueError, match="rotary positions with 3 features a head: expected an e"):
        nystrom.NystromSelfAttention(6, 2, rotary=True, rngs=nnx.Rngs(0))
