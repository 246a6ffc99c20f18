"""The optimiser against AdamW written out, its rate and b1 in the cycle of the authors' code; what
is said of steps that are not finite."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, reading
from experiment.training import make_optimizer, not_finite

STEPS, WARMUP, PEAK = 12, 4, 1e-2


@pytest.mark.parametrize("cycle", [(), (0.95, 0.85)])
def test_adamw_with_its_cycles(cycle):
    config = reading.load("configs/lra_listops.py")
    with config.unlocked():
        config.update(
            num_train_steps=STEPS,
            warmup_steps=WARMUP,
            learning_rate=PEAK,
            weight_decay=0.1,
            adam_b1_cycle=cycle,
        )
    optimizer = make_optimizer(config)
    update = jax.jit(optimizer.update)
    gradients = np.random.default_rng(0).normal(size=(STEPS, 3))
    found = jnp.ones(3)
    state = optimizer.init(found)
    x, mean, square = np.ones(3), np.zeros(3), np.zeros(3)
    ends = WARMUP, STEPS - 1
    for step, gradient in enumerate(gradients):
        rate = np.interp(step, (0, *ends), (PEAK / 25, PEAK, PEAK / 25 / 1e4))
        b1 = np.interp(step, (0, *ends), (0.95, 0.85, 0.95)) if cycle else 0.9
        mean = b1 * mean + (1 - b1) * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - b1 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        x = x - rate * (unbiased[0] / (np.sqrt(unbiased[1]) + 1e-6) + 0.1 * x)
        change, state = update(jnp.asarray(gradient, jnp.float32), state, found)
        found = found + change
        np.testing.assert_allclose(found, x, rtol=2e-5)


def test_the_weights_that_a_run_begins_with_are_not_blamed_on_its_rate():
    totals = {"loss": (math.nan, 1)}
    first, second = (not_finite(step, totals, None, base.get_config()) for step in (1, 2))
    assert "begins with" in first and "learning_rate" not in first
    assert "learning_rate" in second


def test_a_gradient_that_is_not_finite_is_told_though_the_loss_is():
    totals = {"loss": (1.0, 8.0), "gradient_norm": (math.inf, 1)}
    assert "gradient_norm inf" in not_finite(2, totals, None, base.get_config())


def test_what_is_not_finite_and_which_checkpoint_is_kept_are_told():
    config, totals = base.get_config(), {"loss": (math.nan, 8.0), "accuracy": (4.0, 8.0)}
    said = not_finite(12, totals, 8, config)
    assert said.startswith("step 12: not finite: ") and "loss nan" in said
    assert " The checkpoint of step 8 is kept. " in said
    assert f"(now {config.learning_rate})" in said
    assert " None was saved yet. " in not_finite(2, totals, None, config)
    assert not_finite(2, {"loss": (1.0, 8.0)}, None, config) == ""
