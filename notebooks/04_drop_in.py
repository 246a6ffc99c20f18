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
# # Nyström attention in your own model
#
# What you will see here:
#
# 1. how to put Nyström attention into a Flax model, NNX or Linen, in one argument;
# 2. what happens when softmax attention is swapped for it in a *trained* model without retraining,
#    by number of landmarks, and how much that depends on the order of the tokens;
# 3. how far some training with the new attention brings the model back.

# %%
import os
import sys

sys.path.insert(0, "..")  # the repository's root

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen, nnx

import nystrom

SHORT = "NOTEBOOK_SHORT" in os.environ  # tiny sizes: only a check that the notebook runs
LENGTH = 32 if SHORT else 256
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## One argument
#
# `nystrom.attention_fn` makes what both of Flax's multi-head attentions take as `attention_fn`. It
# has no parameters: weights of the layer fit with or without it. A padding mask has shape
# *batch, 1, 1, keys*.

# %%
rng = np.random.default_rng(0)
x = jnp.asarray(rng.normal(size=(1, LENGTH, 64)), jnp.float32)
is_real = jnp.arange(LENGTH)[None] < LENGTH - 7
mask = is_real[:, None, None, :]
attention_fn = nystrom.attention_fn(num_landmarks=16)

nnx_layer = nnx.MultiHeadAttention(4, 64, attention_fn=attention_fn, decode=False, rngs=nnx.Rngs(0))
print("NNX  ", nnx_layer(x, mask=mask).shape)

linen_layer = linen.MultiHeadDotProductAttention(4, attention_fn=attention_fn)
variables = linen_layer.init(jax.random.key(0), x, mask=mask)
print("Linen", linen_layer.apply(variables, x, mask=mask).shape)

softmax_layer = linen.MultiHeadDotProductAttention(4)  # the same variables fit
print("softmax, same variables", softmax_layer.apply(variables, x, mask=mask).shape)

# %% [markdown]
# What it can't honour it refuses, rather than ignore it:

# %%
causal = linen.make_causal_mask(x[..., 0])
try:
    linen_layer.apply(variables, x, mask=causal)
except ValueError as error:
    print(str(error).partition(";")[0])

# %% [markdown]
# ## A task in which attention is everything
#
# A sequence has 256 tokens, each a *word* with a *colour*. Every word has one colour, drawn anew
# for each sequence. A quarter of the colours is hidden, and is to be told from the other
# tokens of the same word: a model has to look those up. Without attention nothing is better
# than a guess, one in eight.
#
# The model below is a user's: nothing in it is from this package but `attention_fn`. It has no
# position embeddings, so softmax attention doesn't see the order of tokens. Nyström attention does:
# landmarks are means of *neighbours*. Hence two kinds of sequence, `grouped` (each word's tokens
# stand together) and `shuffled`. For softmax the two are the same task.

# %%
WORDS, COLOURS = 32, 8


def make_batch(rng, size, grouped=False):
    """Words, shown colours (COLOURS where hidden), true colours, which are hidden: size N each."""
    order = np.argsort(rng.random((size, LENGTH)), axis=-1) % WORDS
    words = np.sort(order, axis=-1) if grouped else order
    colours = np.take_along_axis(rng.integers(0, COLOURS, (size, WORDS)), words, axis=1)
    hidden = rng.random((size, LENGTH)) < 0.25
    return words, np.where(hidden, COLOURS, colours), colours, hidden


class LookupModel(nnx.Module):
    def __init__(self, attention_fn, *, width=64, num_heads=2, rngs):
        self.word = nnx.Embed(WORDS, width, rngs=rngs)
        self.colour = nnx.Embed(COLOURS + 1, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads, width, attention_fn=attention_fn, decode=False, rngs=rngs
        )
        self.hidden = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, COLOURS, rngs=rngs)

    def __call__(self, words, shown):
        x = self.word(words) + self.colour(shown)
        x = x + self.attention(self.norm(x))
        return self.out(nnx.relu(self.hidden(x)))


# %%
optimizer = optax.adam(3e-3)


def with_attention(attention_fn):
    """The model's structure with that attention, and new weights, equal for any attention."""
    return nnx.split(LookupModel(attention_fn, rngs=nnx.Rngs(0)))


def train(graph, params, num_steps, batches):
    """Adam on the mean loss of the hidden tokens of batches of 16."""

    @jax.jit
    def step(params, state, words, shown, colours, hidden):
        def mean_loss(params):
            logits = nnx.merge(graph, params)(words, shown)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, colours)
            return jnp.sum(loss * hidden) / hidden.sum()

        updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(num_steps):
        params, state = step(params, state, *batches())
    return params


def accuracies(graph, params):
    """Accuracy in % on hidden tokens of each test set."""
    predict = jax.jit(lambda words, shown: nnx.merge(graph, params)(words, shown).argmax(-1))
    found = {}
    for order, (words, shown, colours, hidden) in TEST.items():
        found[order] = 100 * float(np.mean((predict(words, shown) == colours)[hidden]))
    return found


def listed(values):
    return ", ".join(f"{order} {value:.1f} %" for order, value in values.items())


TEST = {
    "grouped": make_batch(np.random.default_rng(1), 64, grouped=True),
    "shuffled": make_batch(np.random.default_rng(2), 64),
}
rng = np.random.default_rng(0)
softmax_graph, params = with_attention(nnx.dot_product_attention)
params = train(softmax_graph, params, 2 if SHORT else 200, lambda: make_batch(rng, 16))
print(
    "softmax attention, trained on shuffled sequences:", listed(accuracies(softmax_graph, params))
)
none_graph, _ = with_attention(lambda query, key, value, **_: value)
print("its attention taken out:", listed(accuracies(none_graph, params)))

# %% [markdown]
# ## The swap
#
# The same weights, now with Nyström attention, nothing retrained.

# %%
COUNTS = (4, LENGTH) if SHORT else (4, 8, 16, 32, 64, 128, LENGTH)
swapped = {}
for count in COUNTS:
    graph, _ = with_attention(nystrom.attention_fn(num_landmarks=count))
    swapped[count] = accuracies(graph, params)
    print(f"{count:4} landmarks: {listed(swapped[count])}")

# %% [markdown]
# ## The swap, and some training after it
#
# For the shuffled sequences, the hard ones: from the softmax model's weights a few more steps with
# Nyström attention in place.

# %%
TUNED_STEPS = 2 if SHORT else 100
tuned = {}
for count in COUNTS[:1] if SHORT else (8, 16, 32, 64):
    graph, _ = with_attention(nystrom.attention_fn(num_landmarks=count))
    rng = np.random.default_rng(3)
    tuned_params = train(graph, params, TUNED_STEPS, lambda rng=rng: make_batch(rng, 16))
    tuned[count] = accuracies(graph, tuned_params)
    print(f"{count:4} landmarks, {TUNED_STEPS} steps on shuffled sequences: {listed(tuned[count])}")

# %%
figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
for order in TEST:
    y = [swapped[count][order] for count in COUNTS]
    axis.plot(COUNTS, y, "o-", label=f"{order}: Nyström swapped in")
y = [tuned[count]["shuffled"] for count in tuned]
label = f"shuffled: {TUNED_STEPS} steps of training after the swap"
axis.plot(list(tuned), y, "s--", color="C2", label=label)
exact = accuracies(softmax_graph, params)["shuffled"]
axis.axhline(exact, ls="--", color="black", lw=1, label="shuffled: softmax")
axis.axhline(100 / COLOURS, ls=":", color="grey", label="guessing")
axis.set_xscale("log", base=2)
axis.set_xticks(COUNTS, map(str, COUNTS))
axis.set_ylim(0, 103)
axis.set_xlabel(f"number of landmarks (of {LENGTH} tokens)")
axis.set_ylabel("accuracy on hidden colours (%)")
axis.grid(alpha=0.3)
axis.legend(fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# With every token a landmark the accuracy stays, though six iterations leave the inverse inexact:
# outputs differ by some percent, and Nyström attention is softmax attention as they converge.
# With fewer it depends on what a landmark is the mean of. Where neighbours are alike (grouped),
# about as many landmarks as there are different words do. Where they aren't (shuffled), each
# landmark is a mixture and much of the accuracy goes; a little training with Nyström attention in
# place brings back a good part of it. So before swapping, ask whether neighbours in your sequences
# resemble each other, and plan for some fine-tuning.
