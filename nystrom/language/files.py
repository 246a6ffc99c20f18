"""Weights from files and back: safetensors, and PyTorch's own only where asked for."""

import json
import os
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"
INDEX = "model.safetensors.index.json"  # of weights in several files


def read_arrays(folder: Path, torch_file: str | None = None) -> dict[str, np.ndarray]:
    """The named arrays of a model's folder, as stored.

    Raises:
      FileNotFoundError: no weights, or only pickled ones that were not asked for.
      ImportError: safetensors (or, for `torch_file`, PyTorch) is not installed.
      ValueError: a file that can't be read.
    """
    if torch_file is not None:
        return _read_torch(folder / torch_file)
    if (folder / WEIGHTS).is_file():
        return _read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        arrays: dict[str, np.ndarray] = {}
        for name in _parts(folder / INDEX):
            part = _read_safetensors(folder / name)
            if twice := arrays.keys() & part.keys():
                raise ValueError(f"{folder / name} holds {min(twice)}, as does another part")
            arrays |= part
        return arrays
    hint = ""
    if (folder / PICKLE).is_file():
        hint = (
            f"; {PICKLE} is a pickle, read only when asked for and then by torch's weights-only "
            f"loader: from_pretrained(..., torch_file={PICKLE!r})"
        )
    elif (folder / f"{PICKLE}.index.json").is_file():
        hint = f"; pickles in several files are not read: save the model anew as {WEIGHTS}"
    raise FileNotFoundError(f"{folder} has no {WEIGHTS}{hint}")


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes them as model.safetensors, whole or not at all."""
    safetensors = _safetensors()
    from safetensors.numpy import save_file

    part = folder / f"{WEIGHTS}.part"
    try:
        save_file(arrays, part, metadata={"format": "pt"})  # which transformers insists on
        os.replace(part, folder / WEIGHTS)
    except safetensors.SafetensorError as error:
        raise OSError(f"{folder / WEIGHTS} can't be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def _read_safetensors(path):
    safetensors = _safetensors()
    try:
        if not path.is_file():
            raise FileNotFoundError(f"{path}, which {INDEX} names, is missing")
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} holds numbers of a type that NumPy lacks: {error}") from None


def _parts(path):
    """The names of the files that an index tells of, each once."""
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of weights: {error!r}") from None
    if outside:
        raise ValueError(f"{path} names {outside[0]}: expected names of files in the same folder")
    return names


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise ImportError(f"{path} needs PyTorch to be read: pip install torch") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file fails in as many ways as a pickle has
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # where torch advises to run what it holds
            reason = "it is broken, or holds more than tensors"
        raise ValueError(f"{path} can't be read by torch's weights-only loader: {reason}") from None
    state = state.get("model_state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in state.items()
    ):
        raise ValueError(f"{path} holds no dictionary of named tensors")
    try:
        return {name: _from_torch(tensor.detach(), torch) for name, tensor in state.items()}
    except (TypeError, RuntimeError) as error:  # sparse ones, of eight bits, or views of others
        raise ValueError(f"{path} holds tensors of a kind that NumPy lacks: {error}") from None


def _from_torch(tensor, torch):
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(jnp.bfloat16)
    return tensor.numpy()


def _safetensors():
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            "the language model's weights need safetensors: pip install safetensors"
        ) from None
    return safetensors
