"""Imported first: an ImportError that names the extra where its packages are not installed."""

import importlib.util

PACKAGES = ("PIL", "array_record", "importlib_resources", "tensorflow_datasets", "tqdm")

if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
    raise ImportError(
        f"lra_tasks needs {', '.join(missing)}, which the core of nystrom does not install: "
        "pip install '.[lra]' in the folder of the repository"
    )
