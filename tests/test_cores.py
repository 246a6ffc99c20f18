"""Devices: a CPU's cores are some, unless something says otherwise; platforms without any."""

import json
import os
import subprocess
import sys
import types

import jax
import pytest

import sweep
from configs import base
from experiment import cores
from experiment.compiled import keep_compiled
from experiment.grid import make_runs
from lra_tasks.parallel import available_cores
from tests.conftest import ROOT, SMALL, SMALL_ONE_LENGTH, start_train


@pytest.fixture
def devices(monkeypatch):
    """The number of devices asked for with so many cores; None if JAX is left as it is."""
    jax_config = jax.config

    def asked(config, num_cores, set_before=-1):
        found = []
        settings = types.SimpleNamespace(
            jax_num_cpu_devices=set_before, update=lambda name, value: found.append((name, value))
        )
        monkeypatch.setattr(cores, "available_cores", lambda: num_cores)
        monkeypatch.setattr(cores.jax, "config", settings)
        cores.use_every_core(config)
        monkeypatch.setattr(cores.jax, "config", jax_config)
        assert all(name == "jax_num_cpu_devices" for name, _ in found)
        return found[0][1] if found else None

    return asked


def config_with(**values):
    config = base.get_config()
    config.update_from_flattened_dict(values)
    return config


def test_a_sweep_counts_devices_as_its_runs_do(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    arguments = ["--config=configs/lra_listops.py:quick", "--config.mesh.data=1,2,4"]
    runs = make_runs(arguments, tmp_path)
    (problem,) = sweep.find_problems(runs)
    assert "config.mesh.data=4" in problem and "in 1 of 3 runs" in problem
    assert sweep.num_devices(runs[1].config, "cpu", 1) == 2
    assert sweep.num_devices(runs[1].config, "gpu", 8) == 8


@pytest.mark.parametrize(
    ("num_cores", "values", "expected"),
    [
        (1, {}, 1),
        (2, {}, 2),
        (6, {}, 4),  # 32 examples can't be cut into 6 or 5
        (64, {}, 32),
        (2, {"batch_size": 3}, 1),
        (8, {"accumulate_steps": 8}, 4),  # 8 parts of 4 examples
        (8, {"batch_size": 0}, 8),  # refused later
        (2, {"mesh.data": 1}, 1),
        (4, {"mesh.data": 2}, 2),
        (2, {"mesh.data": 3}, 2),  # refused later
        (2, {"mesh.data": -1}, 2),
        (4, {"mesh.sequence": 4}, 4),
        (6, {"mesh.sequence": 2}, 4),  # 32 examples can't be cut into 3
        (2, {"mesh.sequence": 4}, 2),
        (2, {"mesh.sequence": 0}, 2),
        (2, {"model.padding": "authors"}, None),
    ],
)
def test_as_many_devices_as_cut_a_batch_evenly(devices, num_cores, values, expected):
    assert devices(config_with(**values), num_cores) == expected


def test_a_count_of_the_users_own_stays(devices, monkeypatch):
    assert devices(config_with(), 4, set_before=3) is None
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    assert devices(config_with(), 4) is None


def test_a_config_with_a_wrong_field_is_left_to_the_checks(devices):
    config = config_with()
    del config.batch_size
    assert devices(config, 4) is None


@pytest.mark.parametrize("given", [None, "1"])
def test_a_run_is_cut_over_the_cores(tmp_path, given):
    env = {"JAX_PLATFORMS": "cpu"} | ({"JAX_NUM_CPU_DEVICES": given} if given else {})
    process = start_train(*SMALL_ONE_LENGTH, f"--workdir={tmp_path}", env=env)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    result = json.loads((tmp_path / "result.json").read_text())
    batch_size = json.loads((tmp_path / "config.json").read_text())["batch_size"]
    cut = [n for n in range(1, available_cores() + 1) if batch_size % n == 0]
    assert result["hardware"]["num_devices"] == (int(given) if given else max(cut))


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--config=configs/lra_listops.py:quick"],
        ["sweep.py", "--config=configs/lra_listops.py:quick", "--config.seed=0,1"],
        ["-m", "experiment.evaluate"],
    ],
)
def test_a_platform_that_is_not_installed_is_one_line(command, tmp_path):
    option = "--runs_dir" if command[0] == "sweep.py" else "--workdir"
    done = subprocess.run(
        [sys.executable, *command, f"{option}={tmp_path / 'run'}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "rocm"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "JAX finds no devices, JAX_PLATFORMS='rocm'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_no_devices_at_all_are_named(run_train):
    done = run_train(*SMALL, check=False, env={"JAX_NUM_CPU_DEVICES": "0", "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "JAX_NUM_CPU_DEVICES=0: expected at least 1"


def test_compiled_programs_are_kept_where_they_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = [getattr(jax.config, name) for name in names]
    try:
        keep_compiled(str(tmp_path / "file"))
        assert jax.config.jax_compilation_cache_dir == before[0]
        keep_compiled(str(tmp_path))
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    finally:
        for name, value in zip(names, before, strict=True):
            jax.config.update(name, value)
