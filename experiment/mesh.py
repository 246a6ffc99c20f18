"""The mesh of devices of a run: examples are cut along `data`, sequences along `sequence`."""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nystrom.gradients import vary_over

AXES = ("data", "sequence")


def mesh_problems(config, num_devices: int) -> list[str]:
    """Why the devices can't be arranged as config.mesh says; [] if they can."""
    sequence, data = config.mesh.sequence, config.mesh.data
    problems = []
    if sequence < 1 or num_devices % sequence:
        problems.append(
            f"config.mesh.sequence={sequence}: expected a divisor of the number of devices, "
            f"{num_devices}"
        )
    elif data and data * sequence != num_devices:
        problem = (
            f"config.mesh.data={data}: expected {num_devices // sequence}, for all {num_devices} "
            f"devices with config.mesh.sequence={sequence}, or 0 for what remains"
        )
        if config.batch_size % data == 0:
            count = f"JAX_NUM_CPU_DEVICES={data * sequence}"
            problem += f". On a CPU, {count} before the command of one process makes as many"
        problems.append(problem)
    return problems


def make_mesh(config) -> Mesh:
    """All devices, in the shape that config.mesh says."""
    shape = (jax.device_count() // config.mesh.sequence, config.mesh.sequence)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2)


def sequence_axis(mesh: Mesh | None) -> str | None:
    """The name by which the model knows that sequences are cut; None where they are whole."""
    return "sequence" if mesh is not None and mesh.shape["sequence"] > 1 else None


def batch_specs(batch) -> dict[str, PartitionSpec]:
    """How each array of a batch is cut: its examples, and the positions of inputs and masks."""
    return {
        name: PartitionSpec("data", *[None] * (np.ndim(x) - 2), "sequence")
        if name in ("inputs", "mask")
        else PartitionSpec("data")
        for name, x in batch.items()
    }


@functools.cache  # asked for with every batch
def own_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Places in a batch of the examples that this process's devices hold, ascending."""
    process, rows = jax.process_index(), np.arange(batch_size).reshape(mesh.shape["data"], -1)
    own = [any(d.process_index == process for d in devices) for devices in mesh.devices]
    return rows[own].reshape(-1)


def put_batch(mesh: Mesh, batch):
    """A batch's arrays on the mesh; those given hold the rows of this process's devices."""
    own = len(own_rows(mesh, mesh.shape["data"]))  # of as many pieces as `data` has
    count = len(batch["label"]) // own * mesh.shape["data"]
    return {
        name: jax.make_array_from_process_local_data(
            NamedSharding(mesh, spec), batch[name], (count, *batch[name].shape[1:])
        )
        for name, spec in batch_specs(batch).items()
    }


def put_whole(mesh: Mesh, tree):
    """Arrays that all processes have alike, whole on every device."""
    place = NamedSharding(mesh, PartitionSpec())
    # device_put would gather every array from all processes, and compare them.
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, lambda _: x), tree)


def vary(tree):
    """Inside shard_map, arrays as ones that vary over both axes: each device's own."""
    return jax.tree.map(lambda x: vary_over(x, AXES), tree)


def over_mesh(mesh: Mesh | None, function, batch, *others):
    """`function(batch, *others)` summed over the mesh: each device has its piece of the batch.

    `function` returns what its examples add up to, alike on all devices of a row of `sequence`;
    `others` are whole on every device. One collective sums everything.
    """
    if mesh is None:
        return function(batch, *others)

    def local(batch, *others):
        return jax.lax.psum(vary(function(batch, *vary(others))), AXES)

    specs = (batch_specs(batch), *[PartitionSpec()] * len(others))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(
        batch, *others
    )
