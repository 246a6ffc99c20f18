"""Compiled programs that later processes take from a folder."""

import jax

import lra_tasks


def keep_compiled(cache_dir: str) -> None:
    """Has JAX keep what it compiles beside the prepared data, and look there first."""
    folder = lra_tasks.store.datasets_dir(cache_dir or None).parent / "compiled"
    if lra_tasks.disk.is_writable(folder):  # else JAX warns of each program
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
