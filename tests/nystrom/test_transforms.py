"""Plain and tiled alike: one function under every transformation, strict mode and platform."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import equations, jitted, mask_with, normal, random_inputs

import nystrom
from nystrom.attention import eq_9, make_options
from nystrom.kernels import tiled, tiles

FORMS = ("plain", "tiled", None)
MASK = mask_with(9, 13, "holes")


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


@pytest.mark.parametrize("name", ["convolution", "softmax"])
def test_a_tangent_is_linear_in_each_of_its_parts_alone(name, double):
    inputs, tangents = inputs_64(), random_inputs(5, dtype=np.float64)
    op = partial(OPS[name], "tiled")

    def along(at):
        def tangent(one):
            return jax.jvp(op, inputs, (*tangents[:at], one, *tangents[at + 1 :]))[1]

        return jitted(partial(jax.jvp, tangent))((tangents[at],), (tangents[at],))[1]

    def back(at):
        """The transpose of the gradient by one input, which is linear too."""

        def part(cotangent):
            return (jax.vjp(op, *inputs)[1](cotangent)[at] * tangents[at]).sum()

        return jitted(jax.grad(part))(np.zeros_like(inputs[0]))

    for at, tangent in enumerate(tangents):
        alone = [np.zeros_like(x) for x in inputs]
        alone[at] = tangent
        expected = jitted(partial(jax.jvp, op))(inputs, tuple(alone))[1]
        assert_close(along(at), expected)
        assert_close(back(at), expected)


@pytest.mark.parametrize("name", ["convolution", "softmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_derivatives_are_mapped_over_any_axis(name, axis, double):
    """Gradients and tangents of each example, of which some inputs are shared."""
    (q, k, v), others = inputs_64(3), random_inputs(5, 3, dtype=np.float64)
    op = partial(OPS[name], "tiled")

    def derivatives(q, v, d_q, k=k[0]):
        gradients = jax.grad(loss(OPS[name], "tiled"), (0, 1, 2))(q, k, v)
        return gradients, jax.jvp(op, (q, k, v), (d_q, k, v))[1]

    batch = q, v, others[0]
    expected = [jitted(derivatives)(*each) for each in zip(*batch, strict=True)]
    mapped = jax.vmap(derivatives, in_axes=axis, out_axes=axis)
    found = jitted(mapped)(*(np.moveaxis(x, 0, axis) for x in batch))
    for number, each in enumerate(expected):
        assert_close(jax.tree.map(lambda x, at=number: np.take(x, at, axis), found), each)


@pytest.mark.parametrize("name", ["nystrom", "softmax"])
def test_heads_that_share_keys_are_one_function_in_both_forms(name, double):
    inputs = random_inputs(7, heads=4, dtype=np.float64)[0], *inputs_64()[1:]
    plain, tiled_ = (
        jitted(jax.value_and_grad(loss(OPS[name], form), (0, 1, 2)))(*inputs)
        for form in ("plain", "tiled")
    )
    assert_close(tiled_, plain)


@pytest.mark.parametrize(("length", "keys"), [(5, 13), (13, 5)])
@pytest.mark.parametrize("tile_bytes", [2**20, 192])
def test_exact_tiles_are_of_whichever_is_longer(length, keys, tile_bytes, monkeypatch, double):
    monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
    q = random_inputs(4, 2, heads=4, length=length, dtype=np.float64)[0]
    _, k, v = random_inputs(5, 2, length=keys, dtype=np.float64)
    masks = [np.stack([mask_with(m, n, "holes") for m in (n - 2, n)]) for n in (length, keys)]
    q[~masks[0]] = k[~masks[1]] = v[~masks[1]] = np.nan

    def attended(form):
        def total(q, k, v):
            options = {"query_mask": masks[0], "key_mask": masks[1], "implementation": form}
            return (nystrom.softmax_attention(q, k, v, **options) ** 2).sum()

        return jax.value_and_grad(total, (0, 1, 2))(q, k, v)

    assert_close(attended("tiled"), attended("plain"))


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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_cut_into_tiles(dtype, monkeypatch):
    q, k, v = (x.astype(dtype) for x in random_inputs(3, 2))
    mask = np.stack([mask_with(count, 13, "holes") for count in (13, 7)])
    options = make_options(q, k, 4, "iterative", 4, None)

    def attended(tile_bytes, piece):
        monkeypatch.setattr(tiles, "TILE_BYTES", tile_bytes)
        monkeypatch.setattr(tiled, "PIECE", piece)

        def total(q, k, v):
            out = tiled.nystrom(q, k, v, mask, mask, options)
            assert out.dtype == dtype
            return (out.astype(np.float32) ** 2).sum()

        found = jitted(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)
        return jax.tree.map(lambda x: x.astype(np.float32), found)

    assert_close(attended(192, 40), attended(2**20, 2**20), 0.02)


def test_mixed_precision():
    """Bfloat16 is multiplied as such, summed in float32; A and its inverse are float32."""
    inputs = [x.astype(jnp.bfloat16) for x in random_inputs(9, 2, length=64)]
    attention = partial(nystrom.nystrom_attention, num_landmarks=8, implementation="plain")
    with jax.default_matmul_precision("bfloat16"):
        found = list(equations(jax.make_jaxpr(attention)(*inputs).jaxpr, "dot_general"))
    of_tokens = [e for e in found if any(64 in x.aval.shape for x in e.invars)]
    of_landmarks = [e for e in found if e not in of_tokens]
    # F, G, their products with what they weigh, of F a TPU's apart, and a TPU's landmarks of
    # queries and of keys. Of F, whose result is rounded next, it is rounded at once elsewhere.
    assert len(of_tokens) == 7 and len(of_landmarks) > 20
    rounded = [e for e in of_tokens if e.outvars[0].aval.dtype == jnp.bfloat16]
    assert len(rounded) == 1
    assert {x.aval.dtype for e in of_tokens for x in e.invars} == {jnp.dtype(jnp.bfloat16)}
    assert {x.aval.dtype for e in of_landmarks for x in e.invars} == {jnp.dtype(jnp.float32)}
    others = [e for e in found if e not in rounded]
    assert {x.aval.dtype for e in others for x in e.outvars} == {jnp.dtype(jnp.float32)}
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


def test_a_sequence_cut_over_devices_has_the_plain_form_alone():
    q = normal(0, 4, 1, 2)
    for form in ("tiled", "pallas"):
        said = f"implementation='{form}' can't be used with axis_name"
        with pytest.raises(ValueError, match=said):
            jax.vmap(
                lambda x, form=form: nystrom.nystrom_attention(
                    x, x, x, implementation=form, axis_name="sequence"
                ),
                axis_name="sequence",
            )(q[None])
        with pytest.raises(ValueError, match=said):
            nystrom.NystromSelfAttention(
                8, 2, implementation=form, axis_name="sequence", rngs=nnx.Rngs(0)
            )
