# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Nyström attention by eye
#
# What you will see here:
#
# 1. the softmax matrix of one attention head, its Nyström form $F A^+ G$, and the factors;
# 2. how far the two are apart for few and for many landmarks, on random queries and keys and on
#    those of a trained model;
# 3. what the iterations of the pseudo-inverse do, and why more of them are not always better.
#
# The softmax matrix of $N$ queries and keys is $S = \mathrm{softmax}(QK^\top/\sqrt d)$. With
# $\tilde Q, \tilde K$ the means over $m$ segments of the queries and of the keys, the *landmarks*,
#
# $$S \approx F A^+ G,\quad F = \mathrm{softmax}(Q\tilde K^\top/\sqrt d),\quad
# A = \mathrm{softmax}(\tilde Q\tilde K^\top/\sqrt d),\quad
# G = \mathrm{softmax}(\tilde Q K^\top/\sqrt d).$$

# %%
import os
import sys

sys.path.insert(0, "..")  # the repository's root, for train.py and configs/

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import lra_tasks
import nystrom
import train
from configs import lra_listops
from experiment import metrics
from experiment.model import make_model

SHORT = "NOTEBOOK_SHORT" in os.environ  # tiny sizes: only a check that the notebook runs
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Queries and keys: random ones, and those of a trained model
#
# The trained ones are from a model with *softmax* attention, taught short ListOps expressions
# (nested MIN, MAX, MED and SM of digits) with the steps and the config that `train.py` uses.

# %%
LENGTH = 32 if SHORT else 120  # tokens of the expressions that we look at
config = lra_listops.get_config("quick")
config.update_from_flattened_dict(
    {
        "num_train_steps": 3 if SHORT else 500,
        "warmup_steps": 1 if SHORT else 60,
        "model.attention": "softmax",
        "model.num_layers": 1 if SHORT else 2,
        "task.source": "generated",
        "task.max_length": LENGTH + 8,
        "task.padded_length": LENGTH + 8,
        "task.bucket_boundaries": (),
        "task.num_train": 200 if SHORT else 20_000,
        "task.num_validation": 200 if SHORT else 2_000,
        "task.num_test": 10,
    }
)
task = lra_tasks.load(config.task, progress=False)
graph, params = nnx.split(make_model(config.model, task, config.seed))
optimizer = train.make_optimizer(config)
state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
batches = lra_tasks.Batches(task, "train", config.batch_size, seed=config.seed)
dropout_key = jax.random.key(1)
for step in range(config.num_train_steps):
    state, _ = train.train_step(graph, optimizer, state, batches[step], dropout_key)

total = {}
for batch in lra_tasks.Batches(task, "validation", 100):
    total = metrics.merge(total, train.eval_step(graph, state["params"], batch))
print(f"validation accuracy after {config.num_train_steps} steps: ", end="")
print(f"{100 * metrics.means(total)['accuracy']:.1f} %")

# %% [markdown]
# Any attention of this package can be put into a layer. Here is one that keeps what it is given and
# hands it on to `softmax_attention`. It is run on held-out expressions of one length.

# %%
validation = task.splits["validation"]
chosen = np.flatnonzero(validation.lengths[:, 0] == LENGTH)[:8]
tokens = np.stack([e["inputs"] for e in validation.examples.__getitems__(chosen.tolist())])
print(f"{len(tokens)} expressions of {LENGTH} tokens")

model = nnx.merge(graph, state["params"])
seen = []


def recorder(query, key, value, **masks):
    seen.append((query, key, value))
    return nystrom.softmax_attention(query, key, value, **masks)


for block in model.encoder.blocks:
    block.attention.attention = recorder
model(jnp.asarray(tokens, jnp.int32))

rng = np.random.default_rng(0)
random = tuple(jnp.asarray(rng.normal(size=seen[0][0].shape), jnp.float32) for _ in range(3))
INPUTS = {"random": random} | {f"trained, layer {i + 1}": qkv for i, qkv in enumerate(seen)}
HEADS = seen[0][0].shape[-2]


# %% [markdown]
# ## The matrix and its Nyström form
#
# `nystrom_factors` returns $F$, $A^+$ and $G$. With every token its own landmark $F$ is the softmax
# matrix itself, which gives us the exact one.


# %%
def exact_matrix(query, key):
    return nystrom.nystrom_factors(query, key, num_landmarks=query.shape[-3]).f


def nystrom_matrix(query, key, num_landmarks, pinv_iterations=6):
    factors = nystrom.nystrom_factors(
        query, key, num_landmarks=num_landmarks, pinv_iterations=pinv_iterations
    )
    return factors.rows(jnp.arange(query.shape[-3]))


def relative_error(approximation, exact):
    """Frobenius norm of the difference over that of `exact`: one number a matrix."""
    difference = jnp.linalg.norm(approximation - exact, axis=(-2, -1))
    return difference / jnp.linalg.norm(exact, axis=(-2, -1))


LANDMARKS = 16
EXAMPLE, HEAD = 0, 0
figure, all_axes = plt.subplots(
    len(INPUTS), 3, figsize=(10, 3.3 * len(INPUTS)), layout="constrained", squeeze=False
)
for axes, (name, (query, key, _)) in zip(all_axes, INPUTS.items(), strict=True):
    exact = exact_matrix(query, key)[EXAMPLE, HEAD]
    close = nystrom_matrix(query, key, LANDMARKS)[EXAMPLE, HEAD]
    error = float(relative_error(close, exact))
    top = float(jnp.quantile(exact, 0.995))
    pictures = (
        (f"{name}: softmax", exact, 0, "viridis"),
        (f"Nyström, {LANDMARKS} landmarks", close, 0, "viridis"),
        (f"difference: {100 * error:.0f} % of the norm", close - exact, -top, "RdBu"),
    )
    for axis, (title, matrix, bottom, colours) in zip(axes, pictures, strict=True):
        image = axis.imshow(matrix, vmin=bottom, vmax=top, cmap=colours)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("key position (tokens)")
        axis.set_ylabel("query position (tokens)")
        figure.colorbar(image, ax=axis, shrink=0.75, label="attention weight")
plt.show()

# %% [markdown]
# Each row is a head: the weights of exact attention, those of Nyström attention, and their
# difference. Colours end at the 99.5 % quantile of the exact weights. Random queries and keys give
# a matrix without structure, which a few landmarks can't repeat: what is left is close to a mean.
# Trained ones make columns and bands that the landmarks largely keep.
#
# ## The factors

# %%
name, (query, key, _) = list(INPUTS.items())[-1]
factors = nystrom.nystrom_factors(query, key, num_landmarks=LANDMARKS)
query_landmarks, _ = nystrom.segment_means(query, LANDMARKS)
key_landmarks, _ = nystrom.segment_means(key, LANDMARKS)
a = exact_matrix(query_landmarks, key_landmarks)
size = query.shape[-3]
figure, axes = plt.subplots(
    1, 4, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.2, 1.2, 2.2)
)
pictures = (
    ("F", factors.f, "landmark of the keys", "query position (tokens)"),
    ("A", a, "landmark of the keys", "landmark of the queries"),
    ("A⁺, 6 iterations", factors.a_pinv, "landmark of the queries", "landmark of the keys"),
    ("G", factors.g, "key position (tokens)", "landmark of the queries"),
)
for axis, (title, stack, x, y) in zip(axes, pictures, strict=True):
    matrix = stack[EXAMPLE, HEAD]
    limit = float(jnp.quantile(jnp.abs(matrix), 0.995))
    signed = title.startswith("A⁺")
    image = axis.imshow(
        matrix,
        vmin=-limit if signed else 0,
        vmax=limit,
        cmap="RdBu" if signed else "viridis",
        aspect="auto" if title == "F" else "equal",
    )
    axis.set_title(f"{title}: {matrix.shape[0]} × {matrix.shape[1]}", fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    place = "right" if title == "F" else "bottom"
    figure.colorbar(image, ax=axis, location=place, label="entry" if signed else "weight")
plt.show()
stored = sum(np.prod(x.shape[-2:]) for x in factors)
print(f"{name}: the factors have {stored:,} entries, the softmax matrix {size * size:,}")

# %% [markdown]
# The tall $F$ says which landmarks a query attends to, the wide $G$ which keys a landmark attends
# to, and the small signed $A^+$ joins them. Only these are needed, and their size grows with $N$,
# not with $N^2$.
#
# ## Error against the number of landmarks
#
# For comparison the best that any matrix of that rank can do (singular value decomposition), and
# what plain averaging over all tokens does.

# %%
counts = [m for m in (2, 4, 8, 16, 32, 64) if m < LENGTH] + [LENGTH]
figure, axes = plt.subplots(
    1, len(INPUTS), figsize=(3.9 * len(INPUTS), 3.7), layout="constrained", sharey=True
)
print("median error in % of the norm, by landmarks")
print(f"{'':18}" + "".join(f"{m:>7}" for m in counts))
for axis, (name, (query, key, _)) in zip(axes, INPUTS.items(), strict=True):
    exact = exact_matrix(query, key)
    errors = [relative_error(nystrom_matrix(query, key, m), exact) for m in counts]
    errors = 100 * np.stack(errors).reshape(len(counts), -1)
    power = np.linalg.svd(np.asarray(exact), compute_uv=False).reshape(-1, LENGTH) ** 2
    best = [100 * np.median((power[:, m:].sum(-1) / power.sum(-1)) ** 0.5) for m in counts]
    mean = 100 * np.median(relative_error(jnp.full_like(exact, 1 / LENGTH), exact))
    axis.plot(counts, np.median(errors, axis=1), "o-", label="Nyström, median")
    axis.fill_between(counts, errors.min(1), errors.max(1), alpha=0.2, label="least to largest")
    axis.plot(counts[:-1], best[:-1], "s--", color="C2", ms=4, label="best of that rank (SVD)")
    axis.axhline(mean, ls=":", color="grey", label="mean over all tokens")
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, map(str, counts))
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("number of landmarks")
    print(f"{name:18}" + "".join(f"{x:7.1f}" for x in np.median(errors, axis=1)))
    print(f"{'  best of the rank':18}" + "".join(f"{x:7.1f}" for x in best))
axes[0].set_ylabel("error of the matrix (% of its norm)")
axes[0].set_ylim(0)
axes[0].legend(fontsize=8)
plt.show()
