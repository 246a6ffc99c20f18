"""Plain and tiled alike: one function under every transformation, strict mode and platform."""

import contextlib
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import equations, jitted, mask_with, normal, random_inputs

import nystrom
from nystrom.attention import eq_9, make_options
from nystrom.kernels import tiled, tiles

FORMS = ("plain", "tiled", None)
MASK = mask_with(9, 13, "holes")
ROOT = Path(nystrom.__file__).parent


def attend(form, q, k, v):
    options = {"num_landmarks": 4, "pinv_iterations": 4, "implementation": form}
    return nystrom.nystrom_attention(q, k, v, mask=MASK[: q.shape[-3]], **options)


def convolve(form, q, k, v):
    filters = k[:3, :, 0].T
    return nystrom.depthwise_convolution(v, filters, MASK[: v.shape[-3]], implementation=form)


def exact(form, q, k, v):
    return nystrom.softmax_attention(q, k, v, mask=MASK[: q.shape[-3]], implementation=form)


OPS = {"nystrom": attend, "convolution": convolve, "softmax": exact}


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def inputs_64(*batch, length=13):
    return random_inputs(3, *batch, length=length, dtype=np.float64)


def assert_close(one, other, tolerance=1e-9):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), one, other
    )


def loss(op, form):
    return lambda *inputs: (op(form, *inputs) ** 2).sum()


@pytest.mark.parametrize("name", OPS)
class TestFormsAreOneFunction:
    """Everything is compared with the plain form, and that with finite differences."""

    def test_values_and_gradients(self, name, double):
        inputs = inputs_64()
        plain, *others = (
            jitted(jax.value_and_grad(loss(OPS[name], form), (0, 1, 2)))(*inputs) for form in FORMS
        )
        for other in others:
            assert_close(other, plain)

    def test_forward_mode_is_finite_differences(self, name, double):
        inputs, tangents = inputs_64(), random_inputs(5, dtype=np.float64)
        for form in FORMS:
            op = partial(OPS[name], form)
            run = jitted(op)
            ahead, back = (
                run(*(x + sign * 1e-5 * t for x, t in zip(inputs, tangents, strict=True)))
                for sign in (1, -1)
            )
            _, tangent = jitted(partial(jax.jvp, op))(inputs, tangents)
            np.testing.assert_allclose(tangent, (ahead - back) / 2e-5, atol=1e-7)

    def test_hessian_is_finite_differences_of_gradients(self, name, double):
        inputs, direction = inputs_64(length=5), random_inputs(6, length=5, dtype=np.float64)
        products = []
        for form in FORMS:
            gradient = jax.grad(loss(OPS[name], form), (0, 1, 2))
            run = jitted(gradient)
            ahead, back = (
                run(*(x + sign * 1e-5 * d for x, d in zip(inputs, direction, strict=True)))
                for sign in (1, -1)
            )
            _, forward_over_reverse = jitted(partial(jax.jvp, gradient))(inputs, direction)
            expected = jax.tree.map(lambda x, y: (x - y) / 2e-5, ahead, back)
            assert_close(forward_over_reverse, expected, 1e-5)

            def along(*inputs, gradient=gradient):
                parts = zip(gradient(*inputs), direction, strict=True)
                return sum((g * d).sum() for g, d in parts)

            products.append(jitted(jax.grad(along, (0, 1, 2)))(*inputs))
            assert_close(products[-1], forward_over_reverse, 1e-8)
        assert_close(products[1], products[0], 1e-8)

    def test_linearize_vmap_scan_and_remat(self, name, double):
        """Of the form that users get: a batch with shared keys, and the same one by one."""
        q, k, v = inputs_64(3)
        k, v = k[0], v[0]
        op = partial(OPS[name], None)
        expected = np.stack([jitted(op)(x, k, v) for x in q])

        def one_by_one(q, k, v):
            return sum((op(x, k, v) ** 2).sum() for x in q)

        expected_grads = jitted(jax.grad(one_by_one, (0, 1, 2)))(q, k, v)

        def mapped(q, k, v):
            return jax.vmap(op, in_axes=(0, None, None))(q, k, v)

        def scanned(q, k, v):
            return jax.lax.scan(lambda carry, x: (carry, op(x, k, v)), 0, q)[1]

        def rematerialised(q, k, v):
            return jnp.stack([jax.checkpoint(op)(x, k, v) for x in q])

        for function in (mapped, scanned, rematerialised):

            def total(*inputs, function=function):
                return (function(*inputs) ** 2).sum()

            assert_close(jitted(function)(q, k, v), expected)
            assert_close(jitted(jax.grad(total, (0, 1, 2)))(q, k, v), expected_grads, 1e-8)
        out, pushforward = jax.linearize(op, q[0], k, v)
        assert_close(out, expected[0])
        expected_tangent = jitted(partial(jax.jvp, op))((q[0], k, v), (q[0], k, v))[1]
        assert_close(pushforward(q[0], k, v), expected_tangent)


@pytest.mark.parametrize("name", ["nystrom", "softmax"])
def test_heads_that_share_keys_are_one_function_in_both_forms(name, double):
    inputs = random_inputs(7, heads=4, dtype=np.float64)[0], *inputs_64()[1:]
    plain, tiled_ = (
        jitted(jax.value_and_grad(loss(OPS[name], form), (0, 1, 2)))(*inputs)
        for form in ("plain", "tiled")
    )
    assert_close(tiled_, plain)


SMALL = normal(0, 12, 2, 4), normal(1, 2, 3)
PUBLIC = {
    "nystrom": lambda x, f: nystrom.nystrom_attention(x, x, x, mask=MASK[:12], num_landmarks=4),
    "unmasked": lambda x, f: nystrom.nystrom_attention(x, x, x, num_landmarks=5),
    "chebyshev": lambda x, f: nystrom.nystrom_attention(x, x, x, num_landmarks=4, pinv="chebyshev"),
    "softmax": lambda x, f: nystrom.softmax_attention(x, x, x, mask=MASK[:12]),
    "causal": lambda x, f: nystrom.softmax_attention(x, x, x, is_causal=True),
    "linear": lambda x, f: nystrom.linear_attention(x, x, x, mask=MASK[:12]),
    "linformer": lambda x, f: nystrom.linformer_attention(
        x, x, x, mask=MASK[:12], projection=np.ones((2, 3, 12), np.float32)
    ),
    "performer": lambda x, f: nystrom.performer_attention(
        x, x, x, mask=MASK[:12], projection=nystrom.orthogonal_features(8, 4)
    ),
    "favor+": lambda x, f: nystrom.performer_attention(
        x, x, x, projection=nystrom.orthogonal_features(8, 4), feature_kernel="softmax"
    ),
    "reformer": lambda x, f: nystrom.reformer_attention(
        x, x, x, mask=MASK[:12], rotations=nystrom.random_rotations(2, 4, 3), bucket_size=4
    ),
    "none": lambda x, f: nystrom.identity_attention(x, x, x, mask=MASK[:12]),
    "convolution": lambda x, f: nystrom.depthwise_convolution(x, f, MASK[:12]),
    "means": lambda x, f: nystrom.segment_means(x, 5, MASK[:12])[0],
    "pinv": lambda x, f: nystrom.iterative_pinv(jax.nn.softmax(x[:4, 0]), 8),
    "factors": lambda x, f: nystrom.nystrom_factors(x, x, mask=MASK[:12], num_landmarks=4).f,
}
MODES = {
    "promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank": lambda: jax.numpy_rank_promotion("raise"),
    "x64": lambda: jax.enable_x64(True),
    "leaks": jax.checking_leaks,
    "nans": lambda: jax.debug_nans(True),
}


@pytest.mark.parametrize(
    ("tile_bytes", "heads"), [(2**20, 8), (2**20, 4), (2**20, 2), (2**20, 1), (256, 8), (192, 2)]
)
def test_however_tokens_are_cut_into_tiles(tile_bytes, heads, monkeypatch, double):
    """Several examples at once or some heads of one, whole or in pieces that don't fit evenly."""
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(tiles, "HEADS_PER_TURN", heads)
    mask = np.stack([mask_with(count, 13, "holes") for count in (13, 7, 0, 9)])
    q, k, v = random_inputs(3, 4, heads=4, dtype=np.float64)
    q = np.where(mask[..., None, None], q, 0)
    options = make_options(q, k, 4, "iterative", 4, None)

    def attended(form):
        def total(q, k, v):
            out = form(q, k[..., :2, :], v[..., :2, :], mask, mask, options)
            return (jnp.where(mask[..., None, None], out, 0) ** 2).sum()

        return jitted(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)

    assert_close(attended(tiled.nystrom), attended(eq_9))


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
    from flax import nnx

    tokens, mask = np.arange(12, dtype=np.int32)[None], MASK[None, :12]
    sizes = {"width": 8, "num_heads": 2, "mlp_width": 8, "num_layers": 1, "dropout_rate": 0.1}
    with MODES[mode]():
        encoder = nystrom.Encoder(12, 12, **sizes, position=position, rngs=nnx.Rngs(0))
        leaves = jax.tree.leaves(nnx.state(encoder, nnx.Param))
        assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
        out = jax.jit(lambda t, m: encoder(t, m, jax.random.key(0)))(tokens, mask)
    assert out.dtype == jnp.float32


def test_a_second_eager_call_compiles_nothing():
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    for name, function in PUBLIC.items():
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


def test_no_module_asks_for_the_default_backend():
    sources = {path: path.read_text() for path in ROOT.rglob("*.py")}
    assert len(sources) > 20
    assert not [path for path, text in sources.items() if "default_backend" in text]


def lowered_text(function, shapes, platform):
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*shapes)
    return exported.mlir_module()


def test_each_export_holds_its_platforms_form():
    """From this CPU process: tiles, and so loops, for a CPU; none for others."""
    shapes = [jax.ShapeDtypeStruct((4096, 1, 64), jnp.float32)] * 3
    attention = nystrom.nystrom_attention
    gradient = jax.grad(lambda *a: attention(*a).sum(), (0, 1, 2))
    for function in (attention, gradient):
        loops = {p: lowered_text(function, shapes, p).count("stablehlo.while")
                 for p in ("cpu", "cuda", "tpu")}  # fmt: skip
        assert loops["cpu"] > 0
        assert loops["cuda"] == loops["tpu"] == 0
    all_at_once = jax.export.export(jax.jit(attention), platforms=["cpu", "cuda", "tpu"])(*shapes)
    assert all_at_once.platforms == ("cpu", "cuda", "tpu")
    q, k, v = random_inputs(0, length=4096, heads=1)
    inputs = [np.concatenate([x] * 16, axis=-1) for x in (q, k, v)]
    np.testing.assert_allclose(all_at_once.call(*inputs), attention(*inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "has_tiles"),
    [
        ((32, 128, 4, 16), False),  # a quick try's batch: 2^19 logits in small heads
        ((33, 128, 4, 16), True),
        ((1, 4096, 1, 64), False),  # 2^17 in one head
        ((1, 4128, 1, 64), True),
        ((2, 1024, 4, 16), True),  # 2^18 in heads of 2^15
    ],
)
def test_few_logits_are_plain_on_a_cpu(shape, has_tiles):
    attend = partial(nystrom.nystrom_attention, num_landmarks=32)
    text = lowered_text(attend, [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3, "cpu")
    plain = partial(attend, implementation="plain")
    at_once = lowered_text(plain, [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3, "cpu")
    assert (text.count("dot_general") != at_once.count("dot_general")) == has_tiles


def test_each_export_holds_its_platforms_convolution():
    """Products of blocks on a CPU, in a loop, and on a GPU; else XLA's grouped convolution."""
    shapes = jax.ShapeDtypeStruct((2, 128, 2, 4), jnp.float32), SMALL[1]
    convolve = nystrom.depthwise_convolution
    gradient = jax.grad(lambda *a: convolve(*a).sum(), (0, 1))
    counts = {
        platform: [
            lowered_text(function, shapes, platform).count(f"stablehlo.{operation}")
            for function, operation in [
                (convolve, "convolution"), (gradient, "convolution"), (gradient, "dot_general"),
            ]
        ]
        for platform in ("cpu", "cuda", "tpu")
    }  # fmt: skip
    assert counts == {"cpu": [0, 0, 1], "cuda": [0, 0, 1], "tpu": [1, 2, 0]}
    (n,) = jax.export.symbolic_shape("n")
    symbolic = jax.ShapeDtypeStruct((2, n, 2, 4), jnp.float32), SMALL[1]
    assert "stablehlo.convolution" not in lowered_text(convolve, symbolic, "cpu")
    assert "stablehlo.convolution" in lowered_text(convolve, symbolic, "tpu")


@pytest.mark.parametrize("name", ["nystrom", "softmax", "linear", "linformer", "performer",
                                  "reformer", "none", "convolution", "means"])  # fmt: skip
def test_symbolic_batch(name):
    (b,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((b, 12, 2, 4), jnp.float32)
    f = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    batched = {
        "convolution": lambda x, f: nystrom.depthwise_convolution(x, f),
        "means": lambda x, f: nystrom.segment_means(x, 5)[0],
        "linformer": lambda x, f: nystrom.linformer_attention(
            x, x, x, projection=np.ones((2, 3, 12), np.float32)
        ),
        "performer": PUBLIC["favor+"],
        "reformer": lambda x, f: nystrom.reformer_attention(
            x, x, x, rotations=nystrom.random_rotations(2, 4, 3), bucket_size=4
        ),
        "nystrom": PUBLIC["unmasked"],
    }
    function = batched.get(name) or (
        lambda x, f: getattr(nystrom, {"none": "identity"}.get(name, name) + "_attention")(x, x, x)
    )
    exported = jax.export.export(jax.jit(function), platforms=["cpu"])(x, f)
    example = normal(7, 3, 12, 2, 4)
    np.testing.assert_allclose(
        exported.call(example, SMALL[1]), function(example, SMALL[1]), atol=1e-5
    )


def test_symbolic_length_and_encoder():
    from flax import nnx

    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((2, n, 2, 4), jnp.float32)
    attention = partial(nystrom.nystrom_attention, num_landmarks=4)
    exported = jax.export.export(jax.jit(lambda x: attention(x, x, x)), platforms=["cpu"])(x)
    for length in (13, 16):
        example = normal(8, 2, length, 2, 4)
        expected = attention(example, example, example)
        np.testing.assert_allclose(exported.call(example), expected, atol=1e-5)
    for function in (attention, nystrom.softmax_attention):
        tiled = jax.jit(lambda x, f=function: f(x, x, x, implementation="tiled"))
        with pytest.raises(ValueError, match="implementation='tiled' with a length of n"):
            jax.export.export(tiled)(x)
    encoder = nystrom.Encoder(12, 12, width=8, num_heads=2, mlp_width=8, rngs=nnx.Rngs(0))
    graph, params = nnx.split(encoder)
    (b,) = jax.export.symbolic_shape("b")
    shapes = jax.ShapeDtypeStruct((b, 12), jnp.int32), jax.ShapeDtypeStruct((b, 12), jnp.bool_)

    def run(tokens, mask):
        return nnx.merge(graph, params)(tokens, mask)

    exported = jax.export.export(jax.jit(run), platforms=["cpu"])(*shapes)
    tokens, mask = np.arange(24, dtype=np.int32).reshape(2, 12) % 12, np.stack([MASK[:12]] * 2)
    np.testing.assert_allclose(exported.call(tokens, mask), jax.jit(run)(tokens, mask), atol=1e-5)


def test_mixed_precision():
    """Bfloat16 is multiplied as such, summed in float32; A and its inverse are float32."""
    inputs = [x.astype(jnp.bfloat16) for x in random_inputs(9, 2, length=64)]
    attention = partial(nystrom.nystrom_attention, num_landmarks=8, implementation="plain")
    with jax.default_matmul_precision("bfloat16"):
        found = list(equations(jax.make_jaxpr(attention)(*inputs).jaxpr, "dot_general"))
    of_tokens = [e for e in found if any(64 in x.aval.shape for x in e.invars)]
    of_landmarks = [e for e in found if e not in of_tokens]
    assert len(of_tokens) == 4 and len(of_landmarks) > 20
    assert {x.aval.dtype for e in of_tokens for x in e.invars} == {jnp.dtype(jnp.bfloat16)}
    assert {x.aval.dtype for e in of_landmarks for x in e.invars} == {jnp.dtype(jnp.float32)}
    assert {x.aval.dtype for e in found for x in e.outvars} == {jnp.dtype(jnp.float32)}
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert {e.params["precision"] for e in of_landmarks} == {highest}
    exact = [np.asarray(x, np.float64) for x in inputs]
    with jax.enable_x64(True):
        expected = np.asarray(nystrom.nystrom_attention(*exact, num_landmarks=8))
    scale = np.abs(expected).max()
    for form in FORMS:
        out = attention(*inputs, implementation=form) if form != "plain" else attention(*inputs)
        assert out.dtype == jnp.bfloat16
        assert np.abs(np.asarray(out, np.float64) - expected).max() < 1.5e-2 * scale
    with jax.default_matmul_precision("bfloat16"):
        assert "DEFAULT" in str(jax.make_jaxpr(attention)(*random_inputs(9)))


def test_unknown_forms_are_refused():
    q = normal(0, 4, 1, 2)
    with pytest.raises(ValueError, match="implementation='cudnn': expected one of plain, tiled"):
        nystrom.nystrom_attention(q, q, q, implementation="cudnn")
    with pytest.raises(ValueError, match="implementation='Plain': expected one of plain, tiled"):
        nystrom.depthwise_convolution(q, q[:1, :, 0], implementation="Plain")
    with pytest.raises(ValueError, match="no causal form"):
        nystrom.softmax_attention(q, q, q, is_causal=True, implementation="tiled")


def test_a_flax_mask_under_strict_promotion():
    x, real = jnp.ones((1, 4, 1, 2)), jnp.array([[True, True, True, False]])
    expected = nystrom.nystrom_attention(x, x, x, mask=real, num_landmarks=2)
    with MODES["promotion"]():
        found = nystrom.attention_fn(num_landmarks=2)(x, x, x, mask=real[:, None, None])
    np.testing.assert_allclose(found[:, :3], expected[:, :3], atol=1e-6)
