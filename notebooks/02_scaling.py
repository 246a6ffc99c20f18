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
# # Time and memory against length
#
# What you will see here: how time and memory of every attention of this package grow with the
# sequence length $N$, forward alone and with the backward pass, with the exponent of the growth.
# An exponent of 1 is linear growth (twice the length costs twice as much), 2 is quadratic.
#
# One sequence, two heads of 32 features as in the Long Range Arena models, float32; the attention
# alone, without projections. Settings are the defaults of `nystrom.self_attention_maker`:
# 64 landmarks, 256 random features, a projection to 256, two rounds of hashing. `flax softmax` is
# `flax.nnx.dot_product_attention`, which forms the N × N matrix; our `softmax` works in tiles.

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

import nystrom
from experiment import provenance

SHORT = "NOTEBOOK_SHORT" in os.environ  # tiny sizes: only a check that the notebook runs
LENGTHS = (128,) if SHORT else (512, 1024, 2048, 4096, 8192)
FLAX = "flax softmax"
NAMES = (*nystrom.ATTENTIONS, FLAX)
EXACT_UP_TO = 4096  # beyond, exact attention takes long
ROUNDS = 1 if SHORT else 5
WIDTH, HEADS = 64, 2
plt.rcParams.update({"figure.dpi": 90, "axes.spines.top": False, "axes.spines.right": False})
hardware = provenance.hardware()
print(f"{hardware['platform']}: {hardware['processor']}, {hardware['num_cores']} cores")


# %% [markdown]
# A measured program is compiled once. Its memory is what XLA's `memory_analysis` gives for the
# compiled program: temporary buffers, without inputs and results. Programs of one length take
# turns, and the fastest turn counts. On a CPU the time is that of the processor, summed over its
# cores, which other work on the machine hardly changes; on a GPU or TPU it is the clock's.


# %%
def program(name, length, backward):
    """The compiled attention of that name and its arguments."""
    rngs = nnx.Rngs(0)
    attention, shared_query_key = nnx.dot_product_attention, False
    if name != FLAX:
        make = nystrom.self_attention_maker(name, WIDTH, HEADS, max_length=length, rngs=rngs)
        layer = make(rngs)
        attention, shared_query_key = layer.attention, layer.shared_query_key
    keys = jax.random.split(jax.random.key(0), 3)
    shape = (1, length, HEADS, WIDTH // HEADS)
    query, key, value = (jax.random.normal(k, shape) for k in keys)

    def forward(query, key, value):
        return attention(query, query if shared_query_key else key, value)

    def loss(*arrays):
        return jnp.sum(forward(*arrays) ** 2)

    function = jax.grad(loss, argnums=(0, 1, 2)) if backward else forward
    return jax.jit(function).lower(query, key, value).compile(), (query, key, value)


ON_CPU = jax.default_backend() == "cpu"
clock = time.process_time if ON_CPU else time.perf_counter


def seconds(compiled, arrays, calls):
    start = clock()
    for _ in range(calls):
        out = compiled(*arrays)
    jax.block_until_ready(out)
    return (clock() - start) / calls


MODES = {"forward": False, "forward and backward": True}
times, memory = {}, {}
for length in LENGTHS:
    names = [n for n in NAMES if "softmax" not in n or length <= EXACT_UP_TO]
    cases = {
        (mode, name): program(name, length, backward)
        for mode, backward in MODES.items()
        for name in names
    }
    calls = {}
    for case, (compiled, arrays) in cases.items():
        memory[*case, length] = compiled.memory_analysis().temp_size_in_bytes
        seconds(compiled, arrays, 1)
        calls[case] = max(1, min(20, int(0.02 / (seconds(compiled, arrays, 1) + 1e-6))))
    turns = [{c: seconds(*cases[c], calls[c]) for c in cases} for _ in range(ROUNDS)]
    for case in cases:
        times[*case, length] = min(turn[case] for turn in turns)

# %% [markdown]
# ## Time


# %%
def series(values, mode, name, unit):
    """Lengths and values of one attention, without those that are nothing."""
    found = [(n, values[mode, name, n] / unit) for n in LENGTHS if values.get((mode, name, n))]
    return np.array(found).reshape(-1, 2).T


def exponent(lengths, values):
    """The slope of a line through the points of the three largest lengths, both in logarithms.

    None where the values do not grow all along: what falls and rises is no power of N.
    """
    lengths, values = np.log(lengths[-3:]), np.log(values[-3:])
    if len(values) < 2 or np.any(np.diff(values) <= 0):
        return None
    return np.polyfit(lengths, values, 1)[0]


def draw(values, unit, label):
    _, all_axes = plt.subplots(1, 2, figsize=(10, 5.6), layout="constrained", sharey=True)
    for axis, mode in zip(all_axes, MODES, strict=True):
        for i, name in enumerate(NAMES):
            x, y = series(values, mode, name, unit)
            if len(x):
                style = {"nystrom": "o-", "softmax": "s-", FLAX: "^-"}.get(name, ".--")
                width = 2.2 if name in ("nystrom", "softmax") else 1.2
                power = None if name == "none" else exponent(x, y)
                text = name if power is None else f"{name}: N^{power:.2f}"
                axis.plot(x, y, style, lw=width, color=f"C{i}", label=text)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
        axis.minorticks_off()
        axis.set_title(mode, fontsize=10)
        axis.set_xlabel("length N (tokens)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.14), ncols=2)
    all_axes[0].set_ylabel(label)
    plt.show()


def table(values, unit, digits):
    for mode in MODES:
        print(f"{mode:22}" + "".join(f"{n:>10,}" for n in LENGTHS) + "  exponent")
        for name in NAMES:
            cells = [values.get((mode, name, n)) for n in LENGTHS]
            row = "".join(f"{'–' if c is None else f'{c / unit:.{digits}f}':>10}" for c in cells)
            power = exponent(*series(values, mode, name, unit))
            print(f"  {name:20}{row}{'–' if power is None else f'{power:.2f}':>10}")


draw(times, 1e-3, "processor time (ms)" if ON_CPU else "time (ms)")

# %% [markdown]
# Time of one call, on logarithmic axes; the legend gives the exponent over the three largest
# lengths of each. Both forms of softmax grow with the square of the length; where another's line
# passes below theirs, that method pays off on this hardware. `reformer` lies between linear and
# quadratic: the number of buckets it hashes to grows with the length. `none` passes the values
# through, so its time is that of a call and of a copy. All times, in ms:

# %%
table(times, 1e-3, 2)
for mode in MODES:
    x, exact = series(times, mode, "softmax", 1e-3)
    _, ours = series(times, mode, "nystrom", 1e-3)
    ratio = exact / ours[: len(exact)]
    listed = ", ".join(f"{r:.1f} at N = {n:,.0f}" for n, r in zip(x, ratio, strict=True))
    print(f"{mode}, softmax's time over Nyström's: {listed}")

# %% [markdown]
# ## Memory

# %%
draw(memory, 2**20, "temporary buffers of the compiled program (MiB)")

# %% [markdown]
# Temporary buffers of the compiled program, by XLA's account; what needs none at all has no point.
# Flax's softmax, which holds the N × N matrix, is the steep line. Our softmax goes through the
# queries in tiles and keeps no such matrix: exact attention need not be quadratic in memory, only
# in time. What does not grow all along has no exponent. In MiB:

# %%
table(memory, 2**20, 2)
