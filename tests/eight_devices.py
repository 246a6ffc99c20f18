"""Attention and models on eight virtual devices, in a process that test_mesh.py starts."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import nystrom
from benchmarks.traffic import collective_bytes
from nystrom.kernels import tiled
from nystrom.landmarks import landmark_means, segment_sums
from nystrom.models import pool
from nystrom.numerics import zero_padded

RNG = np.random.default_rng(0)
IN_FLOAT64 = {"sharded_attention_is_attention", "convolution_and_means_are_those_of_the_whole"}


def assert_close(one, other, tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), one, other
    )


def sharded_attention_is_attention():
    """Values and gradients in float64: odd lengths, empty pieces, masks, both kinds of mesh."""
    options = {"num_landmarks": 4, "pinv_iterations": 3}
    whole = partial(nystrom.nystrom_attention, **options)
    for length, key_length, share, heads in ((32, 32, 1, 4), (29, 23, 0.4, 2), (3, 5, 1, 2)):
        q = RNG.normal(size=(2, length, heads, 4))
        k, v = RNG.normal(size=(2, key_length, 2, 4)), RNG.normal(size=(2, key_length, 2, 3))
        masks = {
            "query_mask": RNG.random((2, length)) < 0.6,
            "key_mask": RNG.random((2, key_length)) < share,
        }

        def results(attend, given, q=q, k=k, v=v):
            def loss(q, k, v):
                return (attend(q, k, v, **given) ** 2).sum()

            return jax.value_and_grad(loss, (0, 1, 2))(q, k, v)

        for given in (masks, {}):
            expected = results(whole, given)
            for kind in (AxisType.Auto, AxisType.Explicit):
                mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(kind,) * 2)
                sharded = nystrom.sharded_attention(mesh, batch_axis="data", **options)
                with jax.set_mesh(mesh):
                    found = results(sharded, given)
                assert_close(found, expected, 1e-10)


def arrays_on_a_mesh_of_explicit_axes_are_attended_to():
    """Examples cut over them, and heads where that can be; a CPU's tiles could not take them."""
    mesh = jax.make_mesh((4, 2), ("data", "heads"), axis_types=(AxisType.Explicit,) * 2)
    x, mask = RNG.normal(size=(4, 640, 2, 8)).astype(np.float32), RNG.random((4, 640)) < 0.7
    examples, heads = PartitionSpec("data"), PartitionSpec("data", None, "heads")
    taps = np.ones((2, 5), np.float32)
    for attend, places in (
        (partial(nystrom.nystrom_attention, num_landmarks=64), (examples, heads)),
        (partial(nystrom.nystrom_attention, num_landmarks=60), (examples, heads)),
        (nystrom.softmax_attention, (examples, heads)),
        (nystrom.linear_attention, (examples,)),
        (lambda q, k, v, mask: nystrom.depthwise_convolution(v, taps, mask), (examples,)),
    ):

        def results(x, mask, attend=attend):
            def loss(x):
                return (attend(x, x, x, mask=mask) ** 2).sum()

            return jax.jit(jax.value_and_grad(loss))(x)

        for given in (None, mask):
            whole = results(x, given)
            for place in places:
                with jax.set_mesh(mesh):
                    there = jax.device_put((x, given), (NamedSharding(mesh, place),
                                                        NamedSharding(mesh, examples)))  # fmt: skip
                    found = results(*there)
                assert found[1].sharding.is_equivalent_to(NamedSharding(mesh, place), x.ndim)
                np.testing.assert_allclose(found[0], whole[0], rtol=1e-5)
                np.testing.assert_allclose(found[1], whole[1], atol=1e-4)


def examples_on_auto_axes_stay_on_their_devices():
    """A CPU's tiles, an example after another, would bring all to each device."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    place = NamedSharding(mesh, PartitionSpec("data"))
    x, mask = RNG.normal(size=(8, 1024, 2, 16)).astype(np.float32), RNG.random((8, 1024)) < 0.7
    taps = np.ones((2, 5), np.float32)
    for attend in (
        nystrom.nystrom_attention,
        nystrom.softmax_attention,
        nystrom.linear_attention,
        lambda q, k, v, mask: nystrom.depthwise_convolution(v, taps, mask),
    ):

        def grad(x, mask, attend=attend):
            return jax.grad(lambda x: (attend(x, x, x, mask=mask) ** 2).sum())(x)

        for given in (None, mask):
            there = jax.device_put((x, given), place)
            program = jax.jit(grad).lower(*there).compile()
            with jax.set_mesh(mesh):  # of arrays that are not there yet
                to_be_cut = jax.jit(grad, in_shardings=place).lower(x, given).compile()
            for each in (program, to_be_cut):
                traffic = collective_bytes(each.as_text())
                assert traffic <= 2  # whether padding trails everywhere
            found = program(*there)
            assert found.sharding.is_equivalent_to(place, x.ndim)
            assert_close(found, grad(x, given), 1e-4)


def heads_of_keys_on_explicit_axes_may_be_shared():
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Explicit,))
    shapes = (4, 12, 8, 4), (4, 12, 4, 4), (4, 12, 4, 3)
    arrays = [RNG.normal(size=shape).astype(np.float32) for shape in shapes]
    for attend in (
        partial(nystrom.nystrom_attention, num_landmarks=4),
        partial(nystrom.nystrom_attention, num_landmarks=5),
        nystrom.softmax_attention,
    ):
        grads = jax.grad(lambda *x, attend=attend: (attend(*x) ** 2).sum(), (0, 1, 2))
        expected = grads(*arrays)
        for place in (PartitionSpec("devices"), PartitionSpec(None, None, "devices")):
            with jax.set_mesh(mesh):
                found = grads(*jax.device_put(arrays, NamedSharding(mesh, place)))
            assert_close(found, expected, 1e-3)
    # Queries of exact attention may be cut along their length, beside whole keys of as many heads.
    arrays = [arrays[0][:, :, :4], *arrays[1:]]
    specs = PartitionSpec(None, "devices"), PartitionSpec(), PartitionSpec()
    with jax.set_mesh(mesh):
        pairs = zip(arrays, specs, strict=True)
        found = grads(*(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in pairs))
    assert_close(found, grads(*arrays), 1e-3)


def models_take_arrays_on_explicit_axes_inside_auto_axes():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    encoder = nystrom.Encoder(12, 16, width=8, num_layers=1, mlp_width=8, rngs=nnx.Rngs(0))
    graph, state = nnx.split(nystrom.Classifier(encoder, 3, rngs=nnx.Rngs(1)))
    tokens = RNG.integers(0, 12, (8, 13))
    examples = PartitionSpec("data")

    def logits(state, tokens):
        return nnx.merge(graph, state)(tokens, tokens > 2)

    def loss(state, tokens, of=logits):
        return (of(state, tokens) ** 2).sum()

    with jax.set_mesh(mesh):
        cut = partial(loss, of=jax.sharding.auto_axes(logits, out_sharding=examples))
        place = NamedSharding(mesh, examples)
        found = jax.jit(jax.grad(cut))(state, jax.device_put(tokens, place))
    assert_close(found, jax.grad(loss)(state, tokens), 1e-5)


def dropout_of_cut_sequences_is_the_wholes_wherever_padding_stands():
    mesh = jax.make_mesh((4,), ("sequence",), axis_types=(AxisType.Auto,))
    cut, tokens = PartitionSpec(None, "sequence"), RNG.integers(0, 12, (2, 12))

    def encoder(axis_name):
        sizes = {"width": 8, "num_layers": 1, "mlp_width": 8, "embedding_std": 1.0}
        return nystrom.Encoder(
            12, 12, **sizes, dropout_rate=0.2, axis_name=axis_name, rngs=nnx.Rngs(0)
        )

    graph, state = nnx.split(encoder("sequence"))
    pieces = jax.shard_map(
        lambda state, *given: nnx.merge(graph, state)(*given),
        mesh=mesh,
        in_specs=(PartitionSpec(), cut, cut, PartitionSpec()),
        out_specs=cut,
    )
    for mask in (np.arange(12) < np.array([[12], [9]]), np.arange(12) != np.array([[3], [7]])):
        for key in (jax.random.key(3), jax.random.split(jax.random.key(3))):
            found = jax.jit(pieces)(state, tokens, mask, key)
            assert_close(found, encoder(None)(tokens, mask, key), 1e-5)


def sharded_attention_takes_axes_of_both_types_and_empty_arrays():
    q = RNG.normal(size=(2, 5, 2, 3)).astype(np.float32)
    auto, explicit = AxisType.Auto, AxisType.Explicit
    for kinds in ((auto, explicit), (explicit, auto), (explicit, explicit)):
        mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=kinds)
        for batch_axis in ("data", None):
            sharded = nystrom.sharded_attention(mesh, batch_axis=batch_axis, num_landmarks=2)
            assert_close(
                sharded(q, q, q), nystrom.nystrom_attention(q, q, q, num_landmarks=2), 1e-5
            )
            assert np.asarray(sharded(q[:, :0], q, q)).shape == (2, 0, 2, 3)


def no_more_landmarks_than_tokens_are_made():
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
    attend = nystrom.sharded_attention(mesh, num_landmarks=100_000)
    q = RNG.normal(size=(13, 2, 4)).astype(np.float32)
    assert_close(attend(q, q, q), nystrom.nystrom_attention(q, q, q, num_landmarks=13), 1e-4)


def axes_and_batches_that_are_not_there_are_refused():
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="'tokens' is no axis of the mesh: it has data, seq"):
        nystrom.sharded_attention(mesh, sequence_axis="tokens")
    with pytest.raises(ValueError, match="'data' is to cut sequences and examples"):
        nystrom.sharded_attention(mesh, sequence_axis="data", batch_axis="data")
    with pytest.raises(TypeError, match="axis_name is given by sequence_axis"):
        nystrom.sharded_attention(mesh, axis_name="data")
    attend, q = nystrom.sharded_attention(mesh, batch_axis="data"), RNG.normal(size=(8, 2, 4))
    with pytest.raises(ValueError, match=r"batch_axis='data': query \(8, 2, 4\) has no examples"):
        attend(q, q, q)
    with pytest.raises(ValueError, match="has 3 examples for 2 devices, which must divide them"):
        attend(*[RNG.normal(size=(3, 8, 2, 4))] * 3)


def convolution_and_means_are_those_of_the_whole():
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
    value, filters = RNG.normal(size=(3, 32, 2, 3)), RNG.normal(size=(2, 7))
    mask = RNG.random((3, 32)) < np.array([1, 0.5, 0.1])[:, None]
    cut, whole = PartitionSpec(None, "sequence"), PartitionSpec()

    def over_pieces(function, *specs, out=cut):
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out))

    def convolve(value, filters, mask):
        return nystrom.depthwise_convolution(value, filters, mask, axis_name="sequence")

    def loss(convolve, value, filters):
        return (convolve(value, filters, mask) ** 2).sum()

    pieces = over_pieces(convolve, cut, whole, cut)
    for taps in (7, 1):
        with jax.numpy_rank_promotion("raise"):
            found, alone = (
                jax.value_and_grad(partial(loss, f), (0, 1))(value, filters[:, :taps])
                for f in (pieces, nystrom.depthwise_convolution)
            )
        assert_close(found, alone, 1e-10)

    def means_of(x, mask):
        return landmark_means(zero_padded(x, mask), 5, mask, "sequence")

    means = over_pieces(means_of, cut, cut, out=whole)
    assert_close(means(value, mask), nystrom.segment_means(value, 5, mask), 1e-10)


def landmarks_of_cut_examples_are_those_of_the_whole():
    """Positions cut too, as those of Path-X are, or summed a part at a time; with and without
    masks."""
    mesh = jax.make_mesh((2, 4), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    x, mask = RNG.normal(size=(2, 64, 2, 3)), RNG.random((2, 64)) < 0.6
    tiled.PIECE = 20
    for axis, sums in (("sequence", segment_sums), (None, segment_sums), (None, tiled.sums)):
        cut = PartitionSpec("data", axis)

        def means(x, mask, axis=axis, sums=sums):
            found, valid = landmark_means(zero_padded(x, mask), 5, mask, axis, sums)
            return found, jnp.isfinite(found[..., 0, 0]) if valid is None else valid

        run = jax.shard_map(means, mesh=mesh, in_specs=(cut, cut), out_specs=PartitionSpec("data"))
        for given in (mask, None):
            found, whole = jax.jit(run)(x, given), nystrom.segment_means(x, 5, given)
            assert_close(found, whole, 1e-5)


def ties_of_the_maximum_go_to_the_first_as_on_one_device():
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
    x = RNG.integers(0, 3, (2, 32, 5)).astype(np.float32)
    weights = jnp.arange(1.0, 11).reshape(2, 5)

    def pooled(x):
        return pool(x, None, "max", "sequence")

    cut = PartitionSpec(None, "sequence")
    on_devices = jax.shard_map(pooled, mesh=mesh, in_specs=cut, out_specs=PartitionSpec())

    def gradient(function):
        return jax.jit(jax.grad(lambda x: (function(x) * weights).sum()))(x)

    whole = gradient(lambda x: pool(x, None, "max"))
    np.testing.assert_array_equal(gradient(on_devices), whole)
    assert (np.asarray(whole) != 0).sum() == 10


def traffic_does_not_grow_with_the_length():
    mesh = jax.make_mesh((8,), ("sequence",), axis_types=(AxisType.Auto,))
    attend = nystrom.sharded_attention(mesh)
    place = NamedSharding(mesh, PartitionSpec("sequence"))
    gradient = jax.grad(lambda *x: attend(*x).sum(), (0, 1, 2))
    seen = {}
    for name, function in (("forward", lambda *x: attend(*x)), ("gradient", gradient)):
        for length in (4_096, 65_536):
            token = jax.ShapeDtypeStruct((length, 1, 64), jnp.float32, sharding=place)
            compiled = jax.jit(function).lower(token, token, token).compile()
            seen[name, length] = collective_bytes(compiled.as_text())
    for name in ("forward", "gradient"):
        assert 0 < seen[name, 4_096] == seen[name, 65_536] < 2**17, seen
    print(seen)


def run_checks(checks, names):
    """Runs those named and prints each that holds."""
    jax.config.update("jax_compilation_cache_dir", None)
    assert jax.device_count() == 8
    for name in names:
        with jax.enable_x64(name in IN_FLOAT64):
            checks[name]()
        print(name, "ok", flush=True)


if __name__ == "__main__":
    run_checks(globals(), sys.argv[1:])
