"""Which form runs where none is named, and where one is. On a CPU, as tests run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import nystrom
from nystrom.kernels import choose

FORMS = {"plain": 1, "tiled": 2, "cut": 3, "cuda": 5, "tpu": 7, "pallas": 11}


def chosen(implementation=None, *given, x=None, **options):
    """The name of the form that ran."""
    forms = {name: lambda x, factor=factor: factor * x for name, factor in FORMS.items()}
    plain, tiled = forms.pop("plain"), forms.pop("tiled")
    x = jnp.ones(4) if x is None else x
    named = {name: form for name, form in forms.items() if name in given}
    found = np.asarray(choose(implementation, plain, tiled, x, **named, **options))
    return next(name for name, factor in FORMS.items() if factor == found[0])


def test_a_form_that_is_named_runs_and_kernels_only_on_a_tpu():
    assert chosen("plain", "cut", "cuda", "tpu") == "plain"
    assert chosen("tiled", "cut", "cuda", "tpu", logits=(2, 2)) == "tiled"
    assert chosen("pallas", "pallas") == "plain"
    assert chosen(None, "cuda", "tpu", "pallas") == "tiled"


@pytest.mark.parametrize(
    ("logits", "form"),
    [
        ((2**9, 2**8), "plain"),  # 2^17, in one head
        ((2**9, 2**8 + 1), "tiled"),
        ((2**5, 2**7, 2**7), "plain"),  # 2^19, in heads of 2^14
        ((2**5 + 1, 2**7, 2**7), "tiled"),
        ((2**4, 2**7, 2**7 + 1), "tiled"),
        ((2**3, 2**2, 2**7, 2**7), "plain"),
    ],
)
def test_few_logits_get_the_plain_form(logits, form):
    assert math.prod(logits) <= 2**20 and chosen(logits=logits) == form


def test_sizes_that_are_not_known_get_the_plain_form_where_tiles_would_need_them():
    (n,) = jax.export.symbolic_shape("n")
    names = []

    def function(x):
        forms = (lambda x, name=name: (names.append(name), x)[1] for name in ("plain", "tiled"))
        return choose(None, *forms, x, logits=(n, 2**20))

    jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct((n,), jnp.float32))
    assert names == ["plain"]


@pytest.mark.parametrize(("kind", "form"), [(AxisType.Auto, "tiled"), (AxisType.Explicit, "plain")])
def test_a_mesh_of_one_device_cuts_nothing_but_explicit_types_would_say_how(kind, form):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert chosen(None, "cut", x=jax.device_put(jnp.ones(4), place)) == form
    assert chosen("tiled", "cut", x=jax.device_put(jnp.ones(4), place)) == "tiled"


def test_attentions_count_their_logits():
    """Of softmax N x M, of eq. 9 those of tokens and landmarks."""

    def has_choice(attend, length, **options):
        x = jax.ShapeDtypeStruct((length, 1, 4), jnp.float32)
        program = jax.make_jaxpr(lambda x: attend(x, x, x, **options))(x)
        return "platform_index" in str(program)

    assert not has_choice(nystrom.softmax_attention, 2**8)
    assert has_choice(nystrom.softmax_attention, 2**9)
