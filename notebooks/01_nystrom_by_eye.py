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
import functools
import os
import sys

sys.path.insert(0, "..")  # the repository's root, for train.py and configs/

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.ticker import MaxNLocator

import lra_tasks
import nystrom
from configs import lra_listops
from experiment import metrics, training
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
config = lra_listops.get_config()
config.update_from_flattened_dict(
    {
        "num_train_steps": 3 if SHORT else 500,
        "warmup_steps": 1 if SHORT else 60,
        "learning_rate": 1e-3,
        "model.attention": "softmax",
        "model.num_layers": 1 if SHORT else 2,
        "task.source": "generated",
        "task.min_length": 20,
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
optimizer = training.make_optimizer(config)
state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
batches = lra_tasks.Batches(task, "train", config.batch_size, seed=config.seed)
dropout_key = jax.random.key(1)
for step in range(config.num_train_steps):
    state, _ = training.train_step(graph, optimizer, state, batches[step], dropout_key)

total = {}
for batch in lra_tasks.Batches(task, "validation", 100):
    total = metrics.merge(total, training.eval_step(graph, state["params"], batch))
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


# %% [markdown]
# ## The matrix and its Nyström form
#
# `nystrom_factors` returns $F$, $A^+$ and $G$. With every token its own landmark $F$ is the softmax
# matrix itself, which gives us the exact one.


# %%
@jax.jit
def exact_matrix(query, key):
    return nystrom.nystrom_factors(query, key, num_landmarks=query.shape[-3]).f


@functools.partial(jax.jit, static_argnames="num_landmarks")
def nystrom_matrix(query, key, num_landmarks):
    factors = nystrom.nystrom_factors(query, key, num_landmarks=num_landmarks)
    return factors.rows(jnp.arange(query.shape[-3]))


@jax.jit
def relative_error(approximation, exact):
    """Frobenius norm of the difference over that of `exact`: one number a matrix."""
    difference = jnp.linalg.norm(approximation - exact, axis=(-2, -1))
    return difference / jnp.linalg.norm(exact, axis=(-2, -1))


LANDMARKS = 16
EXAMPLE = 0
names = list(INPUTS)
shown = [("random", 0), (names[1], 0), (names[1], 1), (names[-1], 1)]
figure, all_axes = plt.subplots(
    len(shown), 3, figsize=(8.4, 9.4), dpi=72, layout="constrained", sharex=True, sharey=True
)
for axes, (name, head) in zip(all_axes, shown, strict=True):
    query, key, _ = INPUTS[name]
    exact = exact_matrix(query, key)[EXAMPLE, head]
    close = nystrom_matrix(query, key, LANDMARKS)[EXAMPLE, head]
    error = float(relative_error(close, exact))
    top = float(jnp.quantile(exact, 0.99))
    pictures = (
        (f"{name}, head {head + 1}", exact, 0, "viridis"),
        (f"Nyström, {LANDMARKS} landmarks", close, 0, "viridis"),
        (f"difference: {100 * error:.0f} %", close - exact, -top, "RdBu"),
    )
    for axis, (title, matrix, bottom, colours) in zip(axes, pictures, strict=True):
        image = axis.imshow(matrix, vmin=bottom, vmax=top, cmap=colours, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        if axis is not axes[0]:
            bar = figure.colorbar(image, ax=axis, fraction=0.046, label="attention weight")
            bar.locator = MaxNLocator(4)
    axes[0].set_ylabel("query position\n(tokens)")
for axis in all_axes[-1]:
    axis.set_xlabel("key position (tokens)")
plt.show()

# %% [markdown]
# Each row is a head: the weights of exact attention, those of Nyström attention, and their
# difference, with its norm in % of that of the exact matrix. Colours end at the 99 % quantile of
# the exact weights. Random queries and keys give weights without structure, of which few landmarks
# keep little. In the trained heads columns (keys that many queries attend to) and bands (queries
# that attend alike) come out much as they are; what is lost is what single tokens have to
# themselves.
#
# ## The factors

# %%
name = "trained, layer 1"
query, key, _ = INPUTS[name]
factors = nystrom.nystrom_factors(query, key, num_landmarks=LANDMARKS)


def landmark_matrix(query, key, num_landmarks):
    """A: the softmax matrix of the landmarks."""
    query_landmarks, _ = nystrom.segment_means(query, num_landmarks)
    key_landmarks, _ = nystrom.segment_means(key, num_landmarks)
    return exact_matrix(query_landmarks, key_landmarks)


a = landmark_matrix(query, key, LANDMARKS)
figure = plt.figure(figsize=(8.4, 4.6), layout="constrained")
axes = figure.subplot_mosaic([["F", "A", "A⁺"], ["F", "G", "G"]], width_ratios=(1, 1.6, 1.6))
pictures = {
    "F": (factors.f, "key landmark", "query position (tokens)"),
    "A": (a, "key landmark", "query landmark"),
    "A⁺": (factors.a_pinv, "query landmark", "key landmark"),
    "G": (factors.g, "key position (tokens)", "query landmark"),
}
for title, (stack, x, y) in pictures.items():
    axis, matrix = axes[title], stack[EXAMPLE, 0]
    signed = title == "A⁺"
    limit = float(jnp.quantile(jnp.abs(matrix), 0.99))
    image = axis.imshow(
        matrix,
        vmin=-limit if signed else 0,
        vmax=limit,
        cmap="RdBu" if signed else "viridis",
        aspect="auto",
    )
    axis.set_title(f"{title} ({matrix.shape[0]} × {matrix.shape[1]})", fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    figure.colorbar(image, ax=axis, label="entry" if signed else "attention weight")
plt.show()
stored = sum(np.prod(x.shape[-2:]) for x in factors)
print(f"{name}, head 1: the factors have {stored:,} entries, the softmax matrix {LENGTH**2:,}")

# %% [markdown]
# $F$ says which landmarks a query attends to, $G$ which keys a landmark attends to, and the small
# signed $A^+$ joins the two. Only these are needed: with a fixed number of landmarks their size
# grows with $N$, that of the softmax matrix with $N^2$.
#
# ## Error against the number of landmarks
#
# For comparison: the least error that any matrix of that rank can have (from the singular values),
# and the error of plain averaging, weight $1/N$ everywhere.

# %%
counts = (4, LENGTH) if SHORT else (2, 4, 8, 16, 32, 64, LENGTH)
figure, axes = plt.subplots(
    1, len(INPUTS), figsize=(3.4 * len(INPUTS), 3.4), layout="constrained", sharey=True
)
print("error in % of the norm, median over expressions, by number of landmarks")
print(f"{'':34}" + "".join(f"{m:>6}" for m in counts))
for axis, (name, (query, key, _)) in zip(axes, INPUTS.items(), strict=True):
    exact = exact_matrix(query, key)
    errors = np.stack([relative_error(nystrom_matrix(query, key, m), exact) for m in counts])
    power = np.linalg.svd(np.asarray(exact), compute_uv=False) ** 2
    best = [(power[..., m:].sum(-1) / power.sum(-1)) ** 0.5 for m in counts]
    mean = relative_error(jnp.full_like(exact, 1 / LENGTH), exact)
    for head in (0, 1):
        middle = 100 * np.median(errors[:, :, head], axis=1)
        lowest = 100 * np.median(np.stack(best)[:, :, head], axis=1)
        axis.plot(counts, middle, "o-", color=f"C{head}", label=f"Nyström, head {head + 1}")
        axis.plot(counts, lowest, "--", color=f"C{head}", lw=1, label="best of that rank")
        average = 100 * float(jnp.median(mean[:, head]))
        axis.axhline(average, ls=":", color=f"C{head}", label="plain averaging")
        for label, row in (("Nyström", middle), ("best of rank", lowest)):
            print(f"{f'{name}, head {head + 1}, {label}':34}" + "".join(f"{x:6.1f}" for x in row))
        print(f"{f'{name}, head {head + 1}, averaging':34}{average:6.1f}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, map(str, counts))
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("number of landmarks")
axes[0].set_ylabel("error of the matrix (% of its norm)")
axes[0].set_ylim(0)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
plt.show()

# %% [markdown]
# Medians over the expressions. On random queries and keys the error goes down slowly, and far from
# the best of that rank: a mean of a few independent vectors resembles none of them. On trained ones
# far fewer landmarks do, though heads differ. The last point has as many landmarks as tokens;
# what error is left there is the pseudo-inverse's, which we turn to now.
#
# ## Error against pseudo-inverse iterations
#
# $A^+$ comes from a fixed number of steps of matrix products (eq. 7 of the paper). Two measures:
# how good a pseudo-inverse $Z$ is, $|AZA - A| / |A|$, and what matters in the end, the error of
# $F Z G$.

# %%
ITERATIONS = (1, 6) if SHORT else (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30)
figure, all_axes = plt.subplots(
    2, len(INPUTS), figsize=(3.4 * len(INPUTS), 5.4), layout="constrained", sharex=True
)
print("error of the matrix in % of its norm, median, by iterations")
print(f"{'':32}" + "".join(f"{n:>6}" for n in ITERATIONS) + "   least at")
for axes, (name, (query, key, _)) in zip(all_axes.T, INPUTS.items(), strict=True):
    exact = exact_matrix(query, key)
    for i, m in enumerate(counts[-1:] if SHORT else (8, 32, LENGTH)):
        factors = nystrom.nystrom_factors(query, key, num_landmarks=m)
        a = landmark_matrix(query, key, m)
        residuals, errors = [], []
        inverses = [nystrom.iterative_pinv(a, n) for n in ITERATIONS]
        for inverse in inverses:
            residuals.append(100 * float(jnp.median(relative_error(a @ inverse @ a, a))))
            close = factors._replace(a_pinv=inverse).rows(jnp.arange(LENGTH))
            errors.append(100 * float(jnp.median(relative_error(close, exact))))
        label = f"{m} landmarks"
        axes[0].plot(ITERATIONS, residuals, "o-", ms=4, color=f"C{i}", label=label)
        axes[1].plot(ITERATIONS, errors, "o-", ms=4, color=f"C{i}", label=label)
        row = "".join(f"{x:6.1f}" for x in errors)
        print(f"{f'{name}, {label}':32}{row}{ITERATIONS[np.argmin(errors)]:11}")
    axes[0].set_title(name, fontsize=10)
    axes[0].set_yscale("log")
    axes[1].set_yscale("log")
    axes[1].set_xlabel("iterations")
    for axis in axes:
        axis.axvline(6, ls=":", color="grey", lw=1)
all_axes[0, 0].set_ylabel("residual |AZA − A|\n(% of |A|)")
all_axes[1, 0].set_ylabel("error of the matrix\n(% of its norm)")
all_axes[0, 0].legend(fontsize=8)
plt.show()

# %% [markdown]
# Above the inverse alone, below the matrix; the dotted line is at the default of six. The inverse
# gets better step by step until float32's rounding takes over. The matrix doesn't always follow:
# with fewer landmarks than tokens, on random queries and keys its error is least near six
# iterations and far above that of plain averaging later on, and the trained first layer goes the
# same way more slowly. The small singular values of $A$ that late iterations invert carry
# little of $S$, and inverting them amplifies what $F$ and $G$ have wrong. Few iterations leave
# them small: the truncation *regularises*. Where landmarks fit the matrix well, as with one for
# every token, or in the second layer with its near-equal rows, more iterations help, until rounding
# ends it.
