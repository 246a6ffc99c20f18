"""What tests share: a cache of their own, and train.py run as users run it."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import jax
import jaxtyping
import pytest

# Before anything imports it: the annotations of nystrom's functions are enforced in all tests, but
# for those that are marked as giving it what it has an error of its own for.
jaxtyping.install_import_hook("nystrom", "beartype.beartype")

ROOT = Path(__file__).resolve().parent.parent

# A small ListOps of its own, made in a second; a model that compiles fast.
SMALL = (
    "--config=configs/lra_listops.py",
    "--config.task.source=synthetic",
    "--config.task.num_train=256",
    "--config.task.num_validation=64",
    "--config.task.num_test=64",
    "--config.task.min_length=4",
    "--config.task.max_length=60",
    "--config.task.padded_length=64",
    "--config.task.bucket_boundaries=(32,64)",
    "--config.model.num_landmarks=8",
    "--config.model.pinv_iterations=2",
    "--config.model.width=16",
    "--config.model.mlp_width=32",
    "--config.model.num_layers=1",
    "--config.learning_rate=0.003",
    "--config.warmup_steps=2",
    "--config.batch_size=8",
    "--config.accumulate_steps=1",
    "--config.num_train_steps=12",
    "--config.eval_every=4",
    "--config.log_every=2",
)
# The same with one length to compile for. (A tuple given twice would be joined, not replaced.)
SMALL_ONE_LENGTH = tuple(
    argument.replace("(32,64)", "(64,)") if "bucket_boundaries" in argument else argument
    for argument in SMALL
)

# Programs of the tests, and of the processes that they start, compile in a quarter of the time:
# XLA's passes are as ever, but LLVM's, which change no result beyond rounding, are left out, and
# loops are written by the older of its two emitters, where it is there: jaxlib 0.11 ends at a flag
# that it doesn't know.
COMPILE_FAST = "--xla_backend_optimization_level=0"
if metadata.version("jaxlib").startswith("0.10."):
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_FAST}"
# They import much, which is to be compiled once: else it takes each of them two seconds.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items):
    """The long files first, most of them of whole runs, so that the workers end together."""
    of_attention = ("test_pallas.py", "test_strict_modes.py", "test_transforms.py")
    long = ROOT / "tests", *(ROOT / "tests/nystrom" / name for name in of_attention)
    items.sort(key=lambda item: item.path.parent not in long and item.path not in long)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Prepared data and compiled programs of the tests stay out of the user's cache."""
    home = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(home)
    return home


@pytest.fixture(scope="module", autouse=True)
def let_programs_go():
    """Before a process has as many pieces of memory as Linux allows, 65,530, of which each compiled
    program has some: XLA crashes there. The whole suite in one process would come to more."""
    yield
    pieces = Path("/proc/self/maps")
    if pieces.exists() and pieces.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def annotations(request):
    """Annotations are enforced unless a test is marked `unchecked`."""
    jaxtyping.config.update("jaxtyping_disable", "unchecked" in request.keywords)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def run_train(cache_home):
    """Runs `python train.py` with arguments; returns the finished process, output as text."""

    def run(*arguments, check=True, env=None, timeout=300):
        process = start_train(*arguments, env=env)
        out, err = process.communicate(timeout=timeout)
        if check and process.returncode:
            pytest.fail(f"train.py {arguments} exited with {process.returncode}:\n{out}\n{err}")
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    return run


def start_train(*arguments, env=None) -> subprocess.Popen:
    """Starts `python train.py` with arguments, in the repository's root."""
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
