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
# # The language model
#
# What you will see here:
#
# 1. weights that `transformers` wrote, loaded, and its numbers met;
# 2. a mask filled;
# 3. how far Nyström attention is from exact attention, by number of landmarks and by length;
# 4. what either costs from 512 to 16,384 tokens.
#
# It runs offline, on a tiny model with *random* weights of which the repository has a copy: two
# layers of 16 and a vocabulary of 40. What it says means nothing, how it is computed does. For
# a released model, download one and name its folder instead:
#
# ```
# hf download uw-madison/nystromformer-512 --local-dir nystromformer-512
# ```
# ```python
# model = language.from_pretrained("nystromformer-512", num_landmarks=64)
# ```
#
# (Where a repository has `pytorch_model.bin` alone, a pickle, `torch_file="pytorch_model.bin"`
# reads it by PyTorch's weights-only loader.) The tokeniser comes from `transformers`,
# `AutoTokenizer.from_pretrained("nystromformer-512")`; its mask is `[MASK]`, id 4.

# %%
import os
import sys
import time

sys.path.insert(0, "..")  # the repository's root

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

from nystrom import language

SHORT = "NOTEBOOK_SHORT" in os.environ  # tiny sizes: only a check that the notebook runs
FOLDER = "../tests/data/language/masked_lm"
MASK = 4
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The numbers of `transformers`
#
# Beside the weights lie its outputs for 24 tokens in float64, in Nyström mode with 8 landmarks.

# %%
model = language.from_pretrained(FOLDER)  # attention and landmarks as the file has them
stored = np.load(f"{FOLDER}/outputs.npz")
tokens, types = (jnp.asarray(stored[f"nystrom/{name}"]) for name in ("tokens", "types"))
logits = model(tokens, types=types)
print(type(model).__name__, model.config.attention, model.config.num_landmarks, "landmarks")
print(f"largest difference: {np.abs(logits - stored['nystrom/none/logits']).max():.1e}")

# %% [markdown]
# ## A mask filled
#
# Logits are wanted for the masked place alone, so the head is called on its hidden state.

# %%
place = 7
masked = tokens.at[:, place].set(MASK)
hidden = model.body(masked)
probabilities = jax.nn.softmax(model.logits(hidden[:, place]))[0]
for token in np.argsort(-probabilities)[:5]:
    print(f"id {token:2}  {100 * probabilities[token]:5.1f} %")

# %% [markdown]
# Padding changes nothing, wherever it stands:

# %%
where = jnp.asarray([i for i in range(30) if i % 5])  # 24 of 30 places
padded = jnp.zeros((1, 30), masked.dtype).at[:, where].set(masked)
mask = jnp.zeros((1, 30), bool).at[:, where].set(True)
longer = language.from_pretrained(FOLDER, max_length=30)  # repeats the table of positions
print(f"largest difference: {jnp.abs(longer.body(padded, mask)[:, where] - hidden).max():.1e}")

# %% [markdown]
# ## Exact and Nyström, the same weights
#
# Attention is chosen when weights are loaded: `attention="softmax"`, or `num_landmarks` of any
# number. The difference below is that of the last hidden states, as a share of their norm.


# %%
def forward(length, **options):
    """The last hidden states of random tokens, as a function compiled once."""
    encoder = language.from_pretrained(FOLDER, max_length=length, **options).body
    graph, state = nnx.split(encoder)
    return jax.jit(lambda tokens: nnx.merge(graph, state)(tokens))


LENGTHS = (32,) if SHORT else (64, 256, 1024)
COUNTS = (4, 32) if SHORT else (4, 8, 16, 32, 64)
difference = {}
for length in LENGTHS:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (1, length)))
    exact = forward(length, attention="softmax")(tokens)
    for count in COUNTS:
        found = forward(length, num_landmarks=count)(tokens)
        difference[length, count] = float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact))
    shown = ", ".join(f"{count}: {100 * difference[length, count]:.1f} %" for count in COUNTS)
    print(f"{length:5} tokens, by landmarks  {shown}")

# %%
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
for length in LENGTHS:
    y = [100 * difference[length, count] for count in COUNTS]
    axis.plot(COUNTS, y, "o-", label=f"{length:,} tokens")
axis.set_xscale("log", base=2)
axis.set_xticks(COUNTS, map(str, COUNTS))
axis.set_ylim(bottom=0)
axis.set_xlabel("number of landmarks")
axis.set_ylabel("difference from exact (%)")
axis.grid(alpha=0.3)
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# These are random tokens under random weights: neighbours have nothing in common, so a mean of them
# stands for none of them. It is the hard case, and no measure of a trained model on text.
#
# ## What it costs
#
# Two layers of 256 with 4 heads, random weights, batch 1. Exact attention's time grows with the
# square of the length, once it outweighs the dense layers.


# %%
def seconds(length, attention):
    """The fastest of a few calls after one that compiles."""
    config = language.LanguageConfig(
        hidden_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=length,
    ).with_attention(attention, 64)
    graph, state = nnx.split(language.NystromformerModel(config, rngs=nnx.Rngs(0)))
    call = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))
    tokens = jnp.zeros((1, length), jnp.int32)
    jax.block_until_ready(call(state, tokens))
    taken = []
    for _ in range(1 if SHORT else 3):
        start = time.perf_counter()
        jax.block_until_ready(call(state, tokens))
        taken.append(time.perf_counter() - start)
    return min(taken)


SIZES = (64, 128) if SHORT else (512, 1024, 2048, 4096, 8192, 16384)
times = {name: [seconds(n, name) for n in SIZES] for name in ("nystrom", "softmax")}
for n, ours, exact in zip(SIZES, *times.values(), strict=True):
    print(f"{n:6} tokens  Nyström {1e3 * ours:7.0f} ms  exact {1e3 * exact:7.0f} ms")

# %%
figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
for name, style in (("nystrom", "o-"), ("softmax", "s--")):
    label = "Nyström, 64 landmarks" if name == "nystrom" else "exact"
    axis.plot(SIZES, times[name], style, label=label)
axis.set_xscale("log", base=2)
axis.set_yscale("log")
axis.set_xticks(SIZES, [f"{n:,}" for n in SIZES])
axis.set_xlabel("tokens")
axis.set_ylabel("seconds, forward")
axis.grid(alpha=0.3)
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# `python -m benchmarks.language_length` measures the released size, 12 layers of 768, beside
# `transformers`; `python -m benchmarks.language_parity` how far the two are apart.
