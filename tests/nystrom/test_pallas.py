"""A TPU's kernels, interpreted: the plain form's values and derivatives, and what is made of them.

Here nothing else interprets them: off a TPU who asks for them gets the plain form.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import AttentionContract
from flax import nnx
from inputs import MODES, jitted, mask_with, random_inputs

import nystrom
from nystrom import attention, kernels
from nystrom.kernels import pallas


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    def choose(implementation, *arguments, **forms):
        if implementation == "pallas":
            return forms["pallas"](*arguments[2:])
        return kernels.choose(implementation, *arguments, **forms)

    monkeypatch.setattr(attention, "choose", choose)
    monkeypatch.setattr(pallas, "nystrom", partial(pallas.nystrom, interpret=True))
    attention._attention.clear_cache()
    yield
    attention._attention.clear_cache()


class TestContract(AttentionContract):
    attend = staticmethod(
        partial(nystrom.nystrom_attention, num_landmarks=8, implementation="pallas")
    )
    is_average = False
    multiplies_halves = True


def attend(form, num_landmarks, *inputs, **masks):
    return nystrom.nystrom_attention(
        *inputs, num_landmarks=num_landmarks, implementation=form, **masks
    )


def compare(inputs, num_landmarks, tolerance=1e-5, **masks):
    """Of the kernels and of the plain form: values and gradients, relative to the largest."""
    inputs = [jnp.asarray(x) for x in inputs]
    cotangent = jnp.asarray(np.random.default_rng(9).normal(size=inputs[0].shape[:-1])[..., None])

    def values_and_gradients(form):
        def total(*inputs):
            out = attend(form, num_landmarks, *inputs, **masks)
            return (out.astype(jnp.float32) * cotangent).sum(), out

        (_, out), gradients = jitted(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*inputs)
        return (out, *gradients)

    for found, expected in zip(
        values_and_gradients("pallas"), values_and_gradients("plain"), strict=True
    ):
        found, expected = (np.asarray(x, np.float32) for x in (found, expected))
        np.testing.assert_allclose(found, expected, atol=tolerance * max(1, np.abs(expected).max()))


def tokens(length, heads, depth, *batch, seed=0):
    return np.random.default_rng(seed).normal(size=(*batch, length, heads, depth)).astype("f")


@pytest.mark.parametrize(
    ("length", "others", "heads", "groups", "depth", "width", "count"),
    [
        (256, 256, 4, 4, 64, 64, 16),  # two heads a block
        (300, 200, 8, 2, 64, 64, 16),  # four heads of queries share keys
        (1300, 700, 3, 3, 20, 12, 9),  # all heads a block
        (1025, 1100, 2, 1, 128, 128, 130),  # a head a block, a last tile of one token
        (1, 2, 2, 2, 8, 8, 4),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_however_tokens_are_cut(length, others, heads, groups, depth, width, count, masked):
    """Padding holds NaN, and one example has no real key."""
    inputs = [
        tokens(length, heads, depth, 2),
        tokens(others, groups, depth, 2, seed=1),
        tokens(others, groups, width, 2, seed=2),
    ]
    masks = {}
    if masked:
        query_mask, key_mask = (np.random.default_rng(n).random((2, n)) > 0.3
                                for n in (length, others))  # fmt: skip
        key_mask[0] = False
        masks = {"query_mask": query_mask, "key_mask": key_mask}
        inputs = [
            np.where(mask[..., None, None], x, np.nan).astype("f")
            for x, mask in zip(inputs, (query_mask, key_mask, key_mask), strict=True)
        ]
    compare(inputs, count, **masks)


def test_bfloat16_is_multiplied_as_such():
    inputs = [tokens(700, 2, 64, seed=n).astype(jnp.bfloat16) for n in range(3)]
    compare(inputs, 32, 0.02, mask=np.arange(700) < 650)


def test_logits_far_from_zero():
    compare([30 * tokens(600, 2, 16, seed=n) for n in range(3)], 8, 1e-4)


def test_derivatives_of_every_order():
    inputs, tangents = random_inputs(3), random_inputs(4)
    mask = mask_with(9, 13, "holes")

    def derivatives(form):
        f = partial(attend, form, 4, mask=mask)

        def along(*inputs):
            parts = jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2))(*inputs)
            return sum((d * t).sum() for d, t in zip(parts, tangents, strict=True))

        ahead = jitted(partial(jax.jvp, f))(inputs, tangents)
        return (*ahead, *jitted(jax.grad(along, (0, 1, 2)))(*inputs))

    for found, expected in zip(derivatives("pallas"), derivatives("plain"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_batches_and_shared_keys():
    q, k, v = (tokens(40, 2, 8, 3, seed=n) for n in range(3))

    def total(form, q, k, v):
        out = jax.vmap(partial(attend, form, 8), in_axes=(0, None, None))(q, k, v)
        return (out**2).sum()

    found, expected = (
        jitted(jax.value_and_grad(partial(total, form), (0, 1, 2)))(q, k[0], v[0])
        for form in ("pallas", "plain")
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


def count_kernels(function, *shapes, platform="tpu"):
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("tpu_custom_call")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strict_modes(mode, dtype):
    """A last tile that is not full, with padding."""
    inputs = [tokens(300, 2, 8, 2, seed=n).astype(dtype) for n in range(3)]
    mask = np.random.default_rng(0).random((2, 300)) > 0.3

    def total(*inputs):
        out = attend("pallas", 8, *inputs, mask=mask)
        return out.sum(dtype=jnp.float32)

    with MODES[mode]():
        for gradient in jax.jit(jax.grad(total, (0, 1, 2)))(*map(jnp.asarray, inputs)):
            assert gradient.dtype == dtype and jnp.isfinite(gradient).all()


class TestPrograms:
    """What a program for a TPU holds, made here, of the function as users have it."""

    @pytest.fixture(autouse=True)
    def as_users(self, interpreted, monkeypatch):
        monkeypatch.setattr(attention, "choose", kernels.choose)
        monkeypatch.setattr(pallas, "nystrom", pallas.nystrom.func)

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_a_tpu_gets_kernels_when_asked(self, dtype):
        shapes = [jax.ShapeDtypeStruct((2, 300, 4, 64), dtype)] * 3
        asked, default = (partial(attend, form, 16) for form in ("pallas", None))
        assert count_kernels(asked, *shapes) == 4  # landmarks of queries and keys, G and F
        both = jax.value_and_grad(lambda *x: asked(*x).sum(), (0, 1, 2))
        assert count_kernels(both, *shapes) == 6
        assert count_kernels(asked, *shapes, platform="cuda") == 0
        assert count_kernels(default, *shapes) == 0

    @pytest.mark.parametrize("precision", ["default", "high", "tensorfloat32", "F32_F32_F32"])
    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
    def test_any_precision_can_be_asked_for(self, precision, dtype):
        shapes = [jax.ShapeDtypeStruct((2, 300, 4, 64), dtype)] * 3
        with jax.default_matmul_precision(precision):
            assert count_kernels(partial(attend, "pallas", 16), *shapes) == 4

    def test_modules_ask_for_them(self):
        layer = nystrom.NystromSelfAttention(
            128, 2, num_landmarks=16, implementation="pallas", rngs=nnx.Rngs(0)
        )
        flax_layer = nnx.MultiHeadAttention(
            2,
            128,
            attention_fn=nystrom.attention_fn(16, implementation="pallas"),
            decode=False,
            rngs=nnx.Rngs(0),
        )
        x = jax.ShapeDtypeStruct((2, 300, 128), jnp.float32)
        for each in (layer, flax_layer):
            graph, state = nnx.split(each)
            count = count_kernels(lambda s, x, g=graph: nnx.merge(g, s)(x), state, x)
            assert count == 4

    @pytest.mark.parametrize(("dtype", "count"), [(jnp.float16, 16), (jnp.float32, 1024)])
    def test_what_they_are_not_made_for_is_plain(self, dtype, count):
        shapes = [jax.ShapeDtypeStruct((2, 3000, 4, 64), dtype)] * 3
        assert count_kernels(partial(attend, "pallas", count), *shapes) == 0

    def test_a_symbolic_batch_is_plain(self):
        (b,) = jax.export.symbolic_shape("b")
        x = jax.ShapeDtypeStruct((b, 300, 2, 4), jnp.float32)
        exported = jax.export.export(jax.jit(partial(attend, "pallas", 8)), platforms=["tpu"])
        assert "tpu_custom_call" not in exported(x, x, x).mlir_module()

    def test_elsewhere_it_is_the_plain_form(self):
        inputs = random_inputs(0, 2)
        np.testing.assert_array_equal(attend("pallas", 8, *inputs), attend("plain", 8, *inputs))

    def test_a_length_must_be_known(self):
        (n,) = jax.export.symbolic_shape("n")
        x = jax.ShapeDtypeStruct((2, n, 2, 4), jnp.float32)
        with pytest.raises(ValueError, match="implementation='pallas' with a length of n"):
            jax.export.export(jax.jit(partial(attend, "pallas", 4)), platforms=["tpu"])(x, x, x)

    def test_others_have_no_such_form(self):
        q, k, v = random_inputs(0)
        with pytest.raises(ValueError, match="implementation='pallas': expected one of plain"):
            nystrom.softmax_attention(q, k, v, implementation="pallas")
        with pytest.raises(ValueError, match="implementation='pallas': expected one of plain"):
            nystrom.depthwise_convolution(v, v[:3, :, 0].T, implementation="pallas")


@pytest.mark.parametrize(
    ("heads", "depth", "landmarks", "size"),
    [(8, 64, 512, 4), (16, 128, 1024, 2), (16, 128, 64, 2), (64, 20, 16, 4), (3, 96, 33, 4)],
)
def test_fast_memory_holds_what_a_kernel_takes(heads, depth, landmarks, size):
    """Blocks twice, as they are fetched and written while others are used, and a head's weights."""
    assert pallas._fits(heads, landmarks, (depth, depth))
    tokens_ = jax.ShapeDtypeStruct((1, 4096, heads, depth), f"f{size}")
    tiling = pallas._Tiling.of((1, heads, landmarks, depth), tokens_)
    tile = tiling.tokens * tiling.heads * depth * size
    short = tiling.heads * landmarks * max(depth, 128) * 4
    weights = landmarks * tiling.tokens * 4
    assert 2 * (3 * tile + 5 * short) + 6 * weights < 16 * 2**20
    assert tiling.tokens % 128 == 0
    assert not pallas._fits(heads, 2048, (depth, depth))


def test_features_far_from_zero_cost_halves_no_digits():
    """As the plain form: `test_precision` has that beside float64."""
    q, k, v = (tokens(384, 2, 64, 1, seed=seed) for seed in range(3))
    q, k = (x + 40 * (np.arange(64) < 2).astype("f") for x in (q, k))
    compare([jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)], 32, tolerance=2e-2)


def test_what_values_share_costs_no_digits():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, 256, 2, 64)) for _ in range(4)]
    q, k, v, cotangent = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
    v += 30

    def gradients(form, *inputs):
        def total(*inputs):
            out = attend(form, 16, *inputs)
            return (out.astype(jnp.float32) * cotangent.astype(jnp.float32)).sum()

        return jax.grad(total, (0, 1))(*inputs)

    wide = gradients("plain", *(x.astype(jnp.float32) for x in (q, k, v)))
    for found, exact in zip(gradients("pallas", q, k, v), wide, strict=True):
        error = jnp.linalg.norm(found.astype(jnp.float32) - exact) / jnp.linalg.norm(exact)
        assert error < 2**-6
