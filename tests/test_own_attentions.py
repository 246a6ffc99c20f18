"""Attentions of one's own in the trainers: their options are checked, and what they keep."""

import importlib
import math

import jax.numpy as jnp
import pytest
from flax import nnx

import nystrom
from configs import lra_listops
from experiment import config_checks
from experiment.model import make_model
from lra_tasks import without_data


@pytest.fixture
def checks_with(monkeypatch):
    """Checks of configs with an attention of one's own that has the fields given."""

    def checks(**given):
        own = nystrom.ATTENTIONS["linear"]._replace(**given)
        monkeypatch.setitem(nystrom.ATTENTIONS, "own", own)
        return importlib.reload(config_checks)

    yield checks
    monkeypatch.undo()
    importlib.reload(config_checks)


def test_an_option_may_be_that_of_several_attentions(checks_with):
    checks = checks_with(options={"num_features": 300}, allowed={"num_features": 300})
    assert checks.OWN_FIELDS["model.num_features"] == ("own", "performer")[::-1]
    config = lra_listops.get_config()
    assert not checks.check_config(config)
    config.model.attention = "own"
    expected = "config.model.num_features=256: expected 300 or more, of own"
    assert checks.check_config(config) == [expected]
    config.model.attention, config.model.num_features = "performer", 8
    assert not checks.check_config(config)


def test_an_option_may_not_be_a_field_of_every_model(checks_with):
    checks = checks_with(options={"dropout_rate": 0.1})
    assert "model.dropout_rate" not in checks.OWN_FIELDS
    config = lra_listops.get_config()
    every = {f"model.{name}" for name in checks.EVERY_MODELS}
    assert every | checks.OWN_FIELDS.keys() == {f"model.{name}" for name in config.model}
    config.model.attention = "own"
    expected = "its option dropout_rate is a field that every model reads; call it otherwise"
    assert checks.check_config(config) == [f"config.model.attention='own': {expected}"]


def test_a_number_of_an_own_field_that_is_none_is_named():
    config = lra_listops.get_config()
    with config.unlocked():
        config.model.temperature = math.nan
    problems = config_checks.check_numbers(config)
    assert problems == ["config.model.temperature=nan: expected a number"]


class Counting(nnx.Module):
    """An attention that counts its calls."""

    def __init__(self, setting):
        self.calls = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, query, key, value, **masks):
        self.calls += 1
        return value


class Dropping(nnx.Module):
    """An attention with a dropout of its own."""

    def __init__(self, setting):
        self.dropout = nnx.Dropout(0.1, rngs=setting.rngs)

    def __call__(self, query, key, value, **masks):
        return self.dropout(value)


@pytest.mark.parametrize(("attention", "kept"), [(Counting, "BatchStat"), (Dropping, "RngCount")])
def test_an_attention_with_other_state_than_parameters_is_refused(monkeypatch, attention, kept):
    monkeypatch.setitem(
        nystrom.ATTENTIONS, "own", nystrom.ATTENTIONS["linear"]._replace(make=attention)
    )
    config = lra_listops.get_config()
    config.model.attention = "own"
    with pytest.raises(ValueError, match=f"model.attention=own: keeps {kept}.*parameters alone"):
        make_model(config.model, without_data(config.task), 0)
