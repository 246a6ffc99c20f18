"""Sharded attention on one device: its options and masks. eight_devices.py has more devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from inputs import mask_with, random_inputs
from jax.sharding import AxisType

import nystrom


@pytest.mark.unchecked
def test_sharded_attention_takes_nystrom_attentions_options_and_masks():
    q, k, v = random_inputs(0, 2)
    mask = np.stack([mask_with(n, 13, "holes") for n in (13, 7)])
    mesh = jax.make_mesh((1, 1), ("data", "sequence"), axis_types=(AxisType.Auto,) * 2)
    options = {"num_landmarks": 4, "pinv_iterations": 5}
    expected = nystrom.nystrom_attention(q, k, v, mask=mask, scale=0.3, **options)
    whole = {"sequence_axis": None}
    for axes in ({"batch_axis": "data"}, whole, whole | {"batch_axis": "data"}):
        for scale in (0.3, jnp.asarray(0.3), np.asarray(0.3, np.float32)):
            attend = nystrom.sharded_attention(mesh, scale=scale, **axes, **options)
            np.testing.assert_allclose(attend(q, k, v, mask=mask), expected, atol=1e-5)
    for name in options:
        attend = nystrom.sharded_attention(mesh, **options | {name: jnp.asarray(options[name])})
        assert attend(q, k, v, mask=mask).shape == q.shape
        with pytest.raises(ValueError, match=f"{name}=0: at least 1"):
            nystrom.sharded_attention(mesh, **{name: 0})
    with pytest.raises(TypeError, match=r"^mask: masks are arguments of the result; options are"):
        nystrom.sharded_attention(mesh, mask=mask)
    with pytest.raises(TypeError, match=r"^landmarks: options are implementation, is_causal, num_"):
        nystrom.sharded_attention(mesh, landmarks=4)
    with pytest.raises(TypeError, match=r"^a, b, key_mask, mask, tokens: masks are arguments of "):
        nystrom.sharded_attention(mesh, tokens=4, key_mask=mask, b=1, mask=mask, a=2)
    with pytest.raises(ValueError, match="'rows' is no axis of the mesh: it has data, sequence"):
        nystrom.sharded_attention(mesh, batch_axis="rows")
    with pytest.raises(ValueError, match="scale=nan: expected a finite number"):
        nystrom.sharded_attention(mesh, scale=float("nan"))


@pytest.mark.unchecked
def test_a_scale_of_zero_is_an_average_as_a_number_and_as_an_array():
    q, k, v = random_inputs(0, 2)
    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(AxisType.Auto,))
    expected = nystrom.nystrom_attention(q, k, v, scale=0.0, num_landmarks=4)
    for scale in (0, 0.0, jnp.asarray(0.0), np.float32(0)):
        attend = nystrom.sharded_attention(mesh, scale=scale, num_landmarks=4)
        np.testing.assert_allclose(attend(q, k, v), expected, atol=1e-5)


def test_of_no_tokens_the_result_has_the_dtype_of_queries():
    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(AxisType.Auto,))
    q = jnp.zeros((0, 2, 4), jnp.bfloat16)
    out = nystrom.sharded_attention(mesh)(q, q, q)
    assert out.shape == q.shape and out.dtype == q.dtype


def test_arrays_without_examples_need_no_axis_for_them():
    mesh = jax.make_mesh((1,), ("sequence",), axis_types=(AxisType.Auto,))
    q, k, v = random_inputs(0)
    expected = nystrom.nystrom_attention(q, k, v, num_landmarks=4)
    attend = nystrom.sharded_attention(mesh, num_landmarks=4)
    np.testing.assert_allclose(attend(q, k, v), expected, atol=1e-5)
