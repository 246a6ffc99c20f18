"""What tells whether a checkpoint is as it was written: its record, and digests of its arrays."""

import hashlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from lra_tasks.disk import digest_of
from lra_tasks.errors import first_line


class Damaged(Exception):
    """A step's folder isn't whole, or not as it was written."""


def state_digest(state) -> str:
    """sha256 over the names, types, shapes and bytes of all leaves of a pytree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(_title(path, leaf))
        digest.update(np.ascontiguousarray(_on_host(leaf)).tobytes())
    return digest.hexdigest()


def layout_digest(state) -> str:
    """The same over names, types and shapes alone, also of jax.ShapeDtypeStructs."""
    titles = [_title(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]
    return hashlib.sha256(b"".join(titles)).hexdigest()


def _title(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{name} {np.dtype(leaf.dtype).name} {tuple(leaf.shape)}\n".encode()


def _on_host(leaf):
    """The whole array; where it is replicated, from one device of this process's own."""
    if isinstance(leaf, jax.Array) and leaf.is_fully_replicated:
        leaf = leaf.addressable_data(0)
    return np.asarray(leaf)


def read_record(folder):
    """What is known of a step, checked against its digest; Damaged if that can't be."""
    try:
        if not ocp.path.step.is_checkpoint_finalized(folder):
            raise Damaged("its writing was not finished")
        if (folder / "record").exists():
            record = _read_json(folder / "record")
            if record["digest"] != digest_of(record):
                raise Damaged("its record is not as it was saved")
        else:  # of a version without digests, or half of it is gone
            found = _read_json(folder / "metrics", filename="metrics")
            record = {name: found[name] for name in ("step", "accuracy")}
            record |= {"progress": _read_json(folder / "progress")}
            record |= {"layout": None, "state": None, "best_step": None}
    except FileNotFoundError as error:
        raise Damaged("parts of it are missing") from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Damaged(f"its record can't be read: {first_line(error)}") from error
    if record["step"] != int(folder.name):
        raise Damaged(f"it is that of step {record['step']}")
    return record


def _read_json(folder, **name):
    return ocp.JsonCheckpointHandler(**name).restore(folder)
