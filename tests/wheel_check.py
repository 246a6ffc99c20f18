"""Builds the wheel and uses it as a user does: in a new environment, with the core alone.

    python tests/wheel_check.py [pip install's arguments, e.g. -c requirements-pins.txt]

Exits with an error if the wheel holds more or less than its packages, if `import nystrom` imports
more than its dependencies do, if attention can't be computed, or if lra_tasks, whose extra is not
there, doesn't say so.
"""

import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nystrom", "lra_tasks")
MODULES = {
    str(path.relative_to(ROOT))
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.suffix == ".py" or path.name == "py.typed"
}

LEFT_OUT = (".*", "*.egg-info", "__pycache__", "build", "results", "runs")

USE = """
import sys
import flax.nnx, jax, jaxtyping, numpy  # bring what they need themselves, optax among it

before = {name.partition(".")[0] for name in sys.modules}
import nystrom

more = {name.partition(".")[0] for name in sys.modules} - before
assert more == {"nystrom"}, f"import nystrom imports {sorted(more)} too"
for name in ("tensorflow_datasets", "orbax.checkpoint", "ml_collections", "safetensors"):
    assert name not in sys.modules, f"import nystrom imports {name}"

x = jax.random.normal(jax.random.key(0), (2, 100, 2, 8))
out = nystrom.nystrom_attention(x, x, x, num_landmarks=10)
assert out.shape == x.shape and numpy.isfinite(out).all()
assert "nystrom.kernels.pallas" not in sys.modules, "attention imports Pallas, unasked"
try:
    import lra_tasks
except ImportError as error:
    assert "pip install '.[lra]' in the folder of the repository" in str(error), error
else:
    sys.exit("lra_tasks was imported without its extra")
print("jax", jax.__version__, "flax", flax.__version__, "numpy", numpy.__version__)
"""


def main(pip_arguments):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # From a copy: a build folder left in the sources would put what is gone into the wheel.
        shutil.copytree(ROOT, folder / "sources", ignore=shutil.ignore_patterns(*LEFT_OUT))
        wheel = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder)
        run(*wheel, folder / "sources")
        (wheel,) = folder.glob("*.whl")
        held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        if held != MODULES:
            sys.exit(f"the wheel's files and the packages' differ in {sorted(held ^ MODULES)}")
        venv.create(folder / "env")
        python = folder / "env" / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", python)
        run(*pip, "install", "-q", "--no-compile", *pip_arguments, wheel)
        run(python, "-W", "error", "-c", USE, cwd=folder)  # away from the sources
    print("the wheel works with the core alone")


def run(*command, cwd=ROOT):
    subprocess.run(list(map(str, command)), cwd=cwd, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
