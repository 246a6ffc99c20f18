"""Which form runs where one is named and where none is. test_exports.py has sizes and platforms."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nystrom.kernels import choose

FORMS = {"plain": 1, "tiled": 2, "cut": 3, "cuda": 5, "tpu": 7, "pallas": 11}


def chosen(implementation, *given, x=1.0):
    """The name of the form that ran, of those that have to be there and those given."""
    forms = {name: lambda x, factor=factor: factor * x for name, factor in FORMS.items()}
    plain, tiled = forms.pop("plain"), forms.pop("tiled")
    named = {name: form for name, form in forms.items() if name in given}
    factor = choose(implementation, plain, tiled, jnp.asarray(x), **named)
    return next(name for name in FORMS if FORMS[name] == factor)


def test_a_form_that_is_named_runs_and_kernels_only_on_a_tpu():
    assert chosen("plain", "cut", "cuda", "tpu") == "plain"
    assert chosen("tiled", "cut", "cuda", "tpu") == "tiled"
    assert chosen("pallas", "pallas") == "plain"
    assert chosen(None, "cuda", "tpu", "pallas") == "tiled"


@pytest.mark.parametrize(
    ("platform", "named", "operation"),
    [
        ("cpu", None, "cosine"),
        ("cuda", None, "tan"),
        ("tpu", None, "tanh"),
        ("rocm", None, "sine"),
        ("cuda", "tiled", "cosine"),
        ("tpu", "plain", "sine"),
        ("cuda", "pallas", "sine"),
        ("tpu", "pallas", "exponential"),
    ],
)
def test_each_platform_has_its_form_unless_one_is_named(platform, named, operation):
    forms = {"cuda": jnp.tan, "tpu": jnp.tanh, "pallas": jnp.exp}
    function = jax.jit(lambda x: choose(named, jnp.sin, jnp.cos, x, **forms))
    program = jax.export.export(function, platforms=[platform])(jnp.ones(4)).mlir_module()
    operations = ("cosine", "sine", "tan", "tanh", "exponential")
    assert [each for each in operations if f"stablehlo.{each} " in program] == [operation]


@pytest.mark.parametrize(("kind", "form"), [(AxisType.Auto, "tiled"), (AxisType.Explicit, "plain")])
def test_a_mesh_of_one_device_cuts_nothing_but_explicit_types_would_say_how(kind, form):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
    x = jax.device_put(1.0, NamedSharding(mesh, PartitionSpec()))
    assert chosen(None, "cut", x=x) == form
    assert chosen("tiled", "cut", x=x) == "tiled"
