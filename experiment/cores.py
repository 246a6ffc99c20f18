"""A CPU's cores as devices, over which a run's batches are cut as over any others."""

import os

import jax

from experiment.config_checks import check_fields
from lra_tasks.parallel import available_cores


def use_every_core(config) -> None:
    """Has JAX take a CPU for as many devices as it has cores; to be called before JAX starts.

    One device hardly uses a second core: the arrays of a step are too small for XLA to cut. There
    may be fewer devices, for a batch to be cut evenly. Nothing changes where the user has counted
    or arranged the devices, where one example bears on another, or where JAX has an accelerator.
    """
    if check_fields(config):
        return  # train.py says what is wrong with them
    counted = jax.config.jax_num_cpu_devices != -1
    counted |= "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    arranged = (config.mesh.data, config.mesh.sequence) != (0, 1)
    if counted or arranged or config.model.padding == "authors":
        return
    parts = max(config.accumulate_steps, 1)
    even = [n for n in range(1, available_cores() + 1) if config.batch_size % (n * parts) == 0]
    jax.config.update("jax_num_cpu_devices", max(even, default=1))
