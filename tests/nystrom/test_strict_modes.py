"""Every public function in JAX's strict modes, in half precision, and called without jit."""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import MODES, normal
from public_functions import MASK, PUBLIC, SMALL

import nystrom
from nystrom import language


@pytest.mark.parametrize("name", PUBLIC)
def test_strict_modes(name):
    """Values in every mode, gradients in all at once (but those that only look)."""
    expected = PUBLIC[name](*SMALL)
    for mode in MODES.values():
        with mode():
            out = PUBLIC[name](*SMALL)
            assert out.dtype == jnp.float32
            np.testing.assert_allclose(out, expected, atol=1e-5)
    with MODES["promotion"](), MODES["rank"](), MODES["nans"]():
        arrays = map(jnp.asarray, SMALL)
        grads = jax.grad(lambda *a: PUBLIC[name](*a).sum(), (0, 1))(*arrays)
        assert all(np.isfinite(g).all() for g in grads)
    with MODES["promotion"](), MODES["rank"](), MODES["x64"]():
        for dtype in (np.float32, np.float64):
            arrays = [jnp.asarray(x, dtype) for x in SMALL]
            out, grad = jax.value_and_grad(lambda x, f: PUBLIC[name](x, f).sum())(*arrays)
            assert np.isfinite(out) and out.dtype == grad.dtype == dtype


@pytest.mark.parametrize("name", PUBLIC)
def test_numpys_float64_is_taken_as_float32_in_silence(name):
    """As JAX takes it; the arrays of `np.random` are float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = PUBLIC[name](*(x.astype(np.float64) for x in SMALL))
    np.testing.assert_allclose(out, PUBLIC[name](*SMALL), atol=1e-5)


@pytest.mark.parametrize("name", PUBLIC)
def test_strict_modes_in_half_precision(name):
    x, f = (jnp.asarray(x, jnp.bfloat16) for x in SMALL)
    with MODES["promotion"](), MODES["rank"]():
        out, grad = jax.value_and_grad(lambda x: PUBLIC[name](x, f).sum(dtype=jnp.float32))(x)
    assert jnp.isfinite(out) and jnp.isfinite(grad).all() and grad.dtype == jnp.bfloat16


def test_tiles_leak_no_tracer():
    x = normal(2, 3, 300, 8, 4)
    with jax.checking_leaks():
        grads = jax.grad(lambda x: nystrom.nystrom_attention(x, x, x, implementation="tiled").sum())
        assert np.isfinite(grads(x)).all()


@pytest.mark.parametrize("position", nystrom.POSITIONS)
@pytest.mark.parametrize("mode", MODES)
def test_an_encoder_in_strict_modes(mode, position):
    tokens, mask = np.arange(12, dtype=np.int32)[None], MASK[None]
    sizes = {"width": 8, "num_heads": 2, "mlp_width": 8, "num_layers": 1, "dropout_rate": 0.1}
    with MODES[mode]():
        encoder = nystrom.Encoder(12, 12, **sizes, position=position, rngs=nnx.Rngs(0))
        leaves = jax.tree.leaves(nnx.state(encoder, nnx.Param))
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
        out = jax.jit(lambda t, m: encoder(t, m, jax.random.key(0)))(tokens, mask)
    assert out.dtype == jnp.float32


def test_models_in_strict_modes_in_half_precision():
    tokens, mask = np.arange(12, dtype=np.int32)[None], MASK[None]
    sizes = {"width": 8, "num_heads": 2, "mlp_width": 8, "num_layers": 1, "dropout_rate": 0.1}
    half = {"dtype": jnp.bfloat16, "rngs": nnx.Rngs(0)}
    encoder = nystrom.Encoder(12, 12, **sizes, **half)
    classifier = nystrom.Classifier(encoder, 2, head_width=8, **half)
    config = language.LanguageConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=12, num_landmarks=4, segment_means_seq_len=12,
    )  # fmt: skip
    for model in (classifier, language.MaskedLM(config, **half)):
        graph, state = nnx.split(model)

        def loss(state, graph=graph):
            out = nnx.merge(graph, state)(tokens, mask)
            return out.astype(jnp.float32).sum()

        with MODES["promotion"](), MODES["rank"]():
            grads = jax.tree.leaves(jax.jit(jax.grad(loss))(state))
        assert all(np.isfinite(grad).all() for grad in grads)


def eager_models():
    """Calls of models as the documentation has them, and of a gradient, without jit."""
    tokens, mask = np.arange(12, dtype=np.int32)[None], MASK[None]
    sizes = {"width": 8, "num_heads": 2, "mlp_width": 8, "num_layers": 1, "dropout_rate": 0.1}
    encoder = nystrom.Encoder(12, 12, **sizes, rngs=nnx.Rngs(0))
    classifier = nystrom.Classifier(encoder, 2, head_width=8, rngs=nnx.Rngs(0))
    small = language.LanguageConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=12, num_landmarks=4, conv_kernel_size=3,
    )  # fmt: skip
    masked_lm, key = language.MaskedLM(small, rngs=nnx.Rngs(0)), jax.random.key(0)
    mesh, sharded = jax.make_mesh((1,), ("sequence",)), nystrom.sharded_attention
    return {
        "sharded, made anew": lambda x, f: sharded(
            mesh, scale=np.array(2.0), num_landmarks=jnp.array(4)
        )(x, x, x, mask=MASK),
        "encoder": lambda x, f: encoder(tokens, mask, key),
        "encoder's gradient": lambda x, f: nnx.grad(lambda model: model(tokens, mask).sum())(
            encoder
        ),
        "classifier": lambda x, f: classifier(tokens, mask),
        "masked_lm": lambda x, f: masked_lm(tokens, mask),
    }


def test_a_second_eager_call_compiles_nothing():
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    for name, function in (PUBLIC | eager_models()).items():
        function(*SMALL)
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            jax.block_until_ready(jax.jit(lambda x: x + 1)(np.ones(3)))
            assert compiled, "JAX tells of compilations by another name"
            compiled.clear()
            for _ in range(2):
                jax.block_until_ready(function(*SMALL))
        finally:
            with contextlib.suppress(AttributeError):
                jax.monitoring.clear_event_listeners()
        assert not compiled, name


def test_a_flax_mask_under_strict_promotion():
    x, real = jnp.ones((1, 4, 1, 2)), jnp.array([[True, True, True, False]])
    expected = nystrom.nystrom_attention(x, x, x, mask=real, num_landmarks=2)
    with MODES["promotion"]():
        found = nystrom.attention_fn(num_landmarks=2)(x, x, x, mask=real[:, None, None])
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=1e-6)
