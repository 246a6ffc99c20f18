"""What `benchmarks/gpu.py` does with attentions: compares them with float64, and times them."""

import contextlib
import statistics
import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import nystrom
from benchmarks import attention_contenders as contenders
from benchmarks.attention_contenders import forward_and_backward

CUDNN, KERNELS = "exact, cuDNN", "ours, kernels"
OURS, PLAIN = contenders.OURS, contenders.PLAIN
JAX_NAMES = (OURS, KERNELS, PLAIN, CUDNN)
TORCH_NAMES = (contenders.TORCH_EXACT, *contenders.TORCH_NYSTROM)
SLOW = 0.5  # seconds of a call, beyond which two calls are enough
# Relative to the largest entry; the inputs' own rounding is 4e-3 in bfloat16.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


class Sizes(NamedTuple):
    """What attention is measured on."""

    dtype: str
    batch: int
    heads: int
    depth: int
    landmarks: int
    lengths: tuple[int, ...]


def has_torch():
    """PyTorch if it is installed and sees a GPU, else None."""
    with contextlib.suppress(ImportError):
        import torch

        return torch if torch.cuda.is_available() else None
    return None


def make_inputs(size: Sizes, length: int):
    """Query, key, value and the output's cotangent, B N H D, on the device."""
    shape = size.batch, length, size.heads, size.depth
    keys = jax.random.split(jax.random.key(length), 4)
    return [jax.random.normal(key, shape, size.dtype) for key in keys]


def jax_names(size: Sizes) -> tuple[str, ...]:
    """Our contenders and JAX's; cuDNN has no float32, and kernels of ours only a TPU."""
    if jax.default_backend() == "tpu":
        return OURS, KERNELS, PLAIN
    return (OURS, PLAIN, CUDNN) if size.dtype == "bfloat16" else (OURS, PLAIN)


def jax_attention(name: str, landmarks: int):
    """A function of query, key and value, B N H D."""
    ours = partial(nystrom.nystrom_attention, num_landmarks=landmarks)
    return {
        OURS: ours,
        KERNELS: partial(ours, implementation="pallas"),
        PLAIN: partial(contenders.plain, num_landmarks=landmarks),
        CUDNN: partial(jax.nn.dot_product_attention, implementation="cudnn"),
    }[name]


def check_values(bench, size: Sizes) -> None:
    """Outputs and gradients against those of the equations in float64 on the same numbers."""
    size = size._replace(batch=1, heads=2)
    inputs = make_inputs(size, length=16 * size.landmarks)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in inputs]
        references = {
            attention: jax.jit(partial(forward_and_backward, attention))(*wide)
            for attention in (jax_attention(PLAIN, size.landmarks), jax.nn.dot_product_attention)
        }
        nystrom_reference, exact_reference = (
            [np.asarray(x) for x in values] for values in references.values()
        )
    for name in jax_names(size):
        expected = exact_reference if name == CUDNN else nystrom_reference
        done = False
        with bench.skipping(f"values of {name}, {size.dtype}"):
            attention = jax_attention(name, size.landmarks)
            found = jax.jit(partial(forward_and_backward, attention))(*inputs)
            found = [np.asarray(x, np.float64) for x in found]
            errors = [
                float(np.abs(a - b).max() / np.abs(b).max())
                for a, b in zip(found, expected, strict=True)
            ]
            for what, error in (("forward", errors[0]), ("gradient", max(errors[1:]))):
                shape = size._asdict() | {"length": inputs[0].shape[1]}
                del shape["lengths"]
                bench.add(part="values", program=name, **{"pass": what}, **shape,
                          relative_error=f"{error:.2g}")  # fmt: skip
                if name in (OURS, KERNELS) and not error < TOLERANCE[size.dtype]:
                    bench.wrong.append(f"{name}, {size.dtype}, {what}: {error:.2g} of float64")
            done = True
        if name in (OURS, KERNELS) and not done:
            bench.wrong.append(f"{name}, {size.dtype}: failed")


def time_attentions(bench, size: Sizes) -> None:
    """Every contender at every length; one that fails is not tried on longer sequences."""
    names = jax_names(size) + (TORCH_NAMES if has_torch() else ())
    failed = set()
    for length in size.lengths:
        for backward in (False, True):
            what = "forward and backward" if backward else "forward"
            if not bench.has_time(f"{what} of {size.dtype} at {length:,}"):
                return
            inputs = make_inputs(size, length)[: 4 if backward else 3]
            calls, compiling, memory = {}, {}, {}
            for name in [name for name in names if (name, backward) not in failed]:
                failed.add((name, backward))
                with bench.skipping(f"{name}, {what}, {size.dtype} at {length:,}"):
                    make = compile_jax if name in JAX_NAMES else torch_call
                    start = time.perf_counter()
                    call, memory[name] = make(name, size, inputs)
                    compiling[name] = round(time.perf_counter() - start, 1)
                    call()
                    calls[name] = call
                    failed.remove((name, backward))
            for name, values in take_turns(bench, calls).items():
                bench.add(part="attention", program=name, **{"pass": what}, dtype=size.dtype,
                          batch=size.batch, heads=size.heads, depth=size.depth,
                          landmarks=size.landmarks, length=length, **statistics_of(values),
                          compile_s=compiling[name], memory_mb=memory[name])  # fmt: skip


def compile_jax(name, size, inputs):
    """A call that returns when its results are there, and the MB that it needs beyond inputs."""
    attention = jax_attention(name, size.landmarks)
    function = partial(forward_and_backward, attention) if len(inputs) == 4 else attention
    compiled = jax.jit(function).lower(*inputs).compile()
    return lambda: jax.block_until_ready(compiled(*inputs)), megabytes(compiled)


def megabytes(compiled) -> float:
    """What a compiled program needs beyond its arguments."""
    plan = compiled.memory_analysis()
    needed = plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return round(needed / 1e6, 2)


def torch_call(name, size, inputs):
    """The same for PyTorch's attention on the same numbers, whose memory nothing tells ahead."""
    import torch

    length = inputs[0].shape[1]
    *tokens, last = (torch.from_dlpack(x).flatten(2) for x in inputs)
    backward = len(inputs) == 4
    tokens = tokens if backward else [*tokens, last]
    if name == contenders.LUCIDRAINS:
        tokens = [torch.cat(tokens, dim=-1)]  # what its one projection returns
    tokens = [x.detach().requires_grad_(backward) for x in tokens]
    attention = contenders.torch_attention(name, length, size.landmarks, size.heads, size.depth)

    def call():
        # Their eye() is float32 whatever the inputs are; autocast is how one runs them in bfloat16.
        with torch.autocast("cuda", torch.bfloat16, enabled=size.dtype == "bfloat16"):
            out = attention(*tokens)
        if backward:
            torch.autograd.grad(out, tokens, last.to(out.dtype))
        torch.cuda.synchronize()

    return call, ""


def take_turns(bench, calls: dict) -> dict[str, list[float]]:
    """Milliseconds of each call, a value a round."""
    estimates = {name: timed(call) for name, call in calls.items()}
    times = {name: [1e3 * x] if x > SLOW else [] for name, x in estimates.items()}
    for number in range(bench.rounds):
        for name, call in calls.items():
            slow = estimates[name] > SLOW
            if times[name] and (time.monotonic() > bench.end or (slow and number > 0)):
                continue
            count = min(max(1, int(0.05 / estimates[name])), 50)
            times[name].append(1e3 * timed(call, count) / count)
    return times


def timed(call, count: int = 1) -> float:
    """Seconds of so many calls."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


def statistics_of(values: list[float]) -> dict:
    """Median, smallest and largest of milliseconds."""
    median, low, high = (f"{f(values):.4g}" for f in (statistics.median, min, max))
    return {"milliseconds": median, "min": low, "max": high, "rounds": len(values)}
