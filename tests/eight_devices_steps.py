"""Training steps on eight virtual devices, in a process that test_mesh.py starts."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lra_tasks
import nystrom
from benchmarks.traffic import collective_bytes
from configs import reading
from experiment import mesh as meshes
from experiment import training
from experiment.model import head_of, make_model
from experiment.objectives import make_objective
from tests.eight_devices import assert_close, run_checks

KEY = jax.random.key(3)
OPTIMIZER = training.make_optimizer(reading.load("configs/lra_listops.py"))


def small_task(**model):
    config = reading.load("configs/lra_listops.py")
    config.batch_size = 8
    config.task.update(source="synthetic", min_length=4, max_length=60, padded_length=64)
    config.task.bucket_boundaries = (64,)
    small = {"num_landmarks": 8, "pinv_iterations": 3, "width": 16, "mlp_width": 32}
    small |= {"num_layers": 1, "projection_length": 8, "num_features": 16, "bucket_size": 16}
    config.model.update(small | model)
    return config, lra_tasks.load(config.task)


def start(config, task, num_data, num_sequence):
    """Graph, state and batch of a step on a mesh of these sizes."""
    devices = np.array(jax.devices()[: num_data * num_sequence]).reshape(num_data, num_sequence)
    mesh = Mesh(devices, meshes.AXES)
    axis = meshes.sequence_axis(mesh)
    graph, params = nnx.split(make_model(config.model, task, 0, axis, head_of(config)))
    state = {"params": params, "opt_state": OPTIMIZER.init(params), "step": jnp.int32(0)}
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    batch = lra_tasks.Batches(task, "train", config.batch_size, seed=0)[0]
    return mesh, graph, state, meshes.put_batch(mesh, batch)


def a_step_on_any_mesh_is_the_same():
    few, more = ((1, 1, 1), (2, 4, 2)), ((1, 1, 1), (8, 1, 1), (2, 4, 2), (1, 8, 4))
    rotary = {"position": "rotary", "pooling": "last"}
    for model, shapes in (({}, more), (rotary, few), ({"pooling": "max"}, few)):
        config, task = small_task(dropout_rate=0.2, **model)
        seen = {}
        for shape in shapes:
            *sizes, parts = shape
            mesh, graph, state, batch = start(config, task, *sizes)
            for _ in range(2):
                state, totals = training.train_step(
                    graph, OPTIMIZER, state, batch, KEY, parts, mesh
                )
            evaluated = training.eval_step(graph, state["params"], batch, mesh)
            seen[shape] = jax.device_get((totals, evaluated))
            assert_close(seen[shape], seen[1, 1, 1], 1e-5)


def hidden_tokens_are_the_same_on_any_mesh():
    config, task = small_task(dropout_rate=0.2)
    config.objective = "masked"
    config.masked.share = 0.5
    objective = make_objective(config, task)
    seen = []
    for shape in ((1, 1, 1), (2, 4, 2)):
        *sizes, parts = shape
        mesh, graph, state, batch = start(config, task, *sizes)
        for _ in range(2):
            state, totals = training.train_step(
                graph, OPTIMIZER, state, batch, KEY, parts, mesh, objective
            )
        evaluated = training.eval_step(graph, state["params"], batch, mesh, objective)
        seen.append(jax.device_get((totals, evaluated)))
    assert seen[0][0]["loss"][1] > 10  # there are hidden tokens
    assert_close(*seen, 1e-5)


def a_data_parallel_step_moves_its_gradients():
    for attention in nystrom.ATTENTIONS:
        config, task = small_task(attention=attention, conv_kernel_size=5)
        mesh, graph, state, batch = start(config, task, 8, 1)
        step = training.train_step.lower(graph, OPTIMIZER, state, batch, KEY, 1, mesh).compile()
        moved = collective_bytes(step.as_text())
        size = sum(x.nbytes for x in jax.tree.leaves(state["params"]))
        assert size <= moved <= 1.1 * size + 64, (attention, moved, size)


if __name__ == "__main__":
    run_checks(globals(), sys.argv[1:])
