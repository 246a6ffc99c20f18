"""Programs made for another platform, or for sizes that are not known: each holds its own form."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import normal, random_inputs
from public_functions import MASK, PUBLIC, SMALL

import nystrom

ROOT = Path(nystrom.__file__).parent


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
                                  "reformer", "none", "convolution", "means", "tiled"])  # fmt: skip
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
        "tiled": lambda x, f: nystrom.nystrom_attention(
            x, x, x, num_landmarks=5, implementation="tiled"
        ),
    }
    function = batched.get(name) or (
        lambda x, f: getattr(nystrom, {"none": "identity"}.get(name, name) + "_attention")(x, x, x)
    )
    exported = jax.export.export(jax.jit(function))(x, f)
    example = normal(7, 3, 12, 2, 4)
    np.testing.assert_allclose(
        exported.call(example, SMALL[1]), function(example, SMALL[1]), atol=1e-5
    )


def test_a_convolution_of_any_number_and_length_has_its_gradients():
    b, n = jax.export.symbolic_shape("b, n")
    x, filters = jax.ShapeDtypeStruct((b, n, 2, 4), jnp.float32), normal(8, 2, 5)
    gradient = jax.jit(
        jax.grad(lambda x, f: (nystrom.depthwise_convolution(x, f) ** 2).sum(), (0, 1))
    )
    shape = jax.ShapeDtypeStruct(filters.shape, jnp.float32)
    exported = jax.export.export(gradient, platforms=["cpu", "cuda", "tpu"])(x, shape)
    example = normal(7, 3, 70, 2, 4)
    for found, expected in zip(
        exported.call(example, filters), gradient(example, filters), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_symbolic_length_and_encoder():
    from flax import nnx

    (n,) = jax.export.symbolic_shape("n")
    x = jax.ShapeDtypeStruct((2, n, 2, 4), jnp.float32)
    attention = partial(nystrom.nystrom_attention, num_landmarks=4)
    exported = jax.export.export(jax.jit(lambda x: attention(x, x, x)))(x)
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

    exported = jax.export.export(jax.jit(run))(*shapes)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12) % 12
    mask = np.stack([MASK] * 2)
    np.testing.assert_allclose(exported.call(tokens, mask), jax.jit(run)(tokens, mask), atol=1e-5)
