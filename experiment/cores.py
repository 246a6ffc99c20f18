"""A CPU's cores as devices, over which a run's batches are cut as over any others."""

import os

import jax

from experiment.config_checks import check_fields
from lra_tasks.parallel import available_cores


def use_every_core(config) -> None:
    """Has JAX take a CPU for `cpu_devices(config)` devices; to be called before JAX starts."""
    if number := cpu_devices(config):
        jax.config.update("jax_num_cpu_devices", number)


def cpu_devices(config) -> int | None:
    """How many CPU devices to ask JAX for, one a core; None: leave its default.

    One device hardly uses a second core: the arrays of a step are too small for XLA to cut. There
    are as many as config.mesh asks for, or fewer than cores for a batch to be cut evenly. Nothing
    changes where the user has counted the devices, where one example bears on another, or where
    JAX has an accelerator.
    """
    if check_fields(config):
        return None  # train.py says what is wrong with them
    counted = jax.config.jax_num_cpu_devices != -1
    counted |= "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if counted or config.model.padding == "authors":
        return None
    parts, sequence = max(config.accumulate_steps, 1), max(config.mesh.sequence, 1)
    most = available_cores() // sequence  # pieces of a batch
    even = [n for n in range(1, most + 1) if config.batch_size % (n * parts) == 0]
    data = config.mesh.data or max(even, default=1)
    return data * sequence if 0 < data <= most else available_cores()  # refused, by its number
