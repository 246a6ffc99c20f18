"""The optimiser, one training step and the evaluation of a split: what train.py's loop calls."""

import functools
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import lra_tasks
from experiment import metrics
from experiment.mesh import over_mesh, put_batch, vary
from experiment.objectives import classify, nothing_hidden
from experiment.processes import compile_together

STEPS_AHEAD = 2  # steps handed to the device before an earlier one is waited for


def make_schedule(config) -> optax.Schedule:
    """Learning rate by the number of steps taken: peak/25, up to the peak, down to peak/25e4."""
    peak = config.learning_rate
    return up_and_down(config, peak / 25, peak, peak / 25 / 1e4)


def up_and_down(config, start: float, peak: float, end: float) -> optax.Schedule:
    """Linear from `start` to `peak` after the warm-up, and to `end` at the last step.

    PyTorch's OneCycleLR, of the authors, has its peak one step earlier.
    """
    warmup = config.warmup_steps
    decay = max(config.num_train_steps - 1 - warmup, 1)
    up, down = optax.linear_schedule(start, peak, warmup), optax.linear_schedule(peak, end, decay)
    return optax.join_schedules([up, down], [warmup])


def make_optimizer(config) -> optax.GradientTransformation:
    """AdamW at the rates of `make_schedule`, its b1 constant or in a cycle against them."""
    make, b1 = optax.adamw, config.adam_b1
    if config.adam_b1_cycle:
        make = optax.inject_hyperparams(
            optax.adamw, static_args=("b2", "eps", "eps_root", "weight_decay")
        )
        high, low = config.adam_b1_cycle
        b1 = up_and_down(config, high, low, high)
    return make(
        make_schedule(config),
        b1=b1,
        b2=config.adam_b2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )


def initial_state(optimizer: optax.GradientTransformation, params) -> dict:
    """What `train_step` begins with and checkpoints hold."""
    return {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}


@functools.partial(
    jax.jit,
    static_argnames=("graph", "optimizer", "accumulate_steps", "mesh", "objective"),
    donate_argnames="state",
)
def train_step(
    graph, optimizer, state, batch, key, accumulate_steps=1, mesh=None, objective=classify
):
    """One optimiser step on the mean loss of a batch: the new state, and the batch's metrics.

    The batch is taken in `accumulate_steps` parts, one after another, whose gradients add up. All
    randomness comes from (key, state["step"]) and an example's place in the batch, so neither the
    parts nor a mesh, over which the batch is cut (see mesh.py), changes more than rounding.
    """
    step_key = jax.random.fold_in(key, state["step"])
    summed = functools.partial(summed_gradients, graph, accumulate_steps, mesh, objective)
    summed = with_votes(summed) if "stop" in batch else summed
    grads, totals = over_mesh(mesh, summed, batch, state["params"], step_key)
    share = 1 / jnp.maximum(totals["loss"][1], 1)
    grads = jax.tree.map(lambda g: g * share, grads)
    totals["gradient_norm"] = (optax.tree.norm(grads), 1)
    updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
    new_state = {
        "params": optax.apply_updates(state["params"], updates),
        "opt_state": opt_state,
        "step": state["step"] + 1,
    }
    return new_state, totals


def with_votes(summed):
    """`summed`, and among the metrics how many rows vote for SIGTERM, for any: see processes.py."""

    def voted(batch, *others):
        stop = batch["stop"]
        grads, totals = summed({name: x for name, x in batch.items() if name != "stop"}, *others)
        counts = jnp.sum(stop == 2, dtype=jnp.float32), jnp.sum(stop > 0, dtype=jnp.float32)
        return grads, totals | {"stop": counts}

    return voted


def summed_gradients(graph, num_parts, mesh, objective, batch, params, step_key):
    """Gradients of the summed loss, and metrics, of this device's piece of a batch."""
    rows, copies = len(batch["label"]), 1
    first = 0
    if mesh is not None:
        copies = mesh.shape["sequence"]  # devices that count the same examples
        first = jax.lax.axis_index("data") * rows
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, first + jnp.arange(rows))

    def loss(params, part, keys):
        found = objective(nnx.merge(graph, params), part, keys, copies)
        return found["loss"][0], found

    gradient = jax.grad(loss, has_aux=True)
    if num_parts == 1:
        return gradient(params, batch, keys)
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), (batch, keys))

    def add_part(total, part):
        result = gradient(params, *part)
        result = result if mesh is None else vary(result)
        return jax.tree.map(jnp.add, total, result), None

    shapes = jax.eval_shape(gradient, params, *jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add_part, zeros if mesh is None else vary(zeros), parts)[0]


def not_finite(step: int, totals: dict, saved_step: int | None, config) -> str:
    """'' if a step's metrics are finite; else what isn't, what is kept and what may help."""
    if all(math.isfinite(total) for total, _ in totals.values()):
        return ""
    found = ", ".join(f"{name} {value}" for name, value in metrics.means(totals).items())
    kept = f"The checkpoint of step {saved_step} is kept." if saved_step else "None was saved yet."
    if step == 1:  # no rate has had a part in it
        return f"step 1: not finite: {found}, with the weights that the run begins with."
    return (
        f"step {step}: not finite: {found}. {kept} A lower config.learning_rate (now "
        f"{config.learning_rate}) or longer config.warmup_steps may help."
    )


@functools.partial(jax.jit, static_argnames=("graph", "mesh", "objective"))
def eval_step(graph, params, batch, mesh=None, objective=classify):
    """Metrics of a batch without dropout."""
    copies = 1 if mesh is None else mesh.shape["sequence"]

    def local(batch, params):
        return objective(nnx.merge(graph, params), batch, None, copies)

    return over_mesh(mesh, local, batch, params)


def evaluate(
    graph, params, batches, log=None, mesh=None, num_workers=1, objective=classify
) -> dict[str, float]:
    """Mean metrics over every example of a split, and examples per second.

    `log` is a metrics.Reporter, which tells of compilations; their time does not count. Without
    one, nothing is said. Batches are built in `num_workers` threads.

    Raises:
      ValueError: nothing is asked of the split: no token of it is hidden.
    """
    log = log or metrics.Silence()
    log.doing("evaluating")
    start = log.seconds()
    # On CPUs of several processes nothing orders the collectives of steps that are under way
    # together; in training, a step waits for the state of the one before.
    alone = jax.process_count() == 1 or jax.default_backend() != "cpu"
    ahead = STEPS_AHEAD if alone else 0
    parts = []
    for _, batch in lra_tasks.prefetch(batches, 0, len(batches), num_workers):
        with log.compiling("evaluation", batch) as is_new:
            batch = batch if mesh is None else put_batch(mesh, batch)
            if is_new:
                compile_together(eval_step, graph, params, batch, mesh, objective)
            parts.append(eval_step(graph, params, batch, mesh, objective))
        jax.block_until_ready(parts[-1 - ahead :][0])
    total = functools.reduce(metrics.merge, jax.device_get(parts), {})
    if not total["loss"][1]:
        raise ValueError(nothing_hidden(batches))
    seconds = log.seconds() - start
    return metrics.means(total) | {"examples_per_second": len(batches.split.lengths) / seconds}
