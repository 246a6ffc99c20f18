"""What GPU programs of the attentions and training steps need, compiled ahead of time: no GPU.

    pip install -r benchmarks/requirements-gpu-aot.txt
    python -m benchmarks.gpu_aot [--lengths=4096,16384,65536] [--steps]

The programs of `benchmarks/tpu_aot.py`, by XLA's compiler for one H100: temporary memory, what the
kernels read and write, how many kernels are started, and the CPU time that compiling took. The
compiler gives no count of bytes here, so they are those of every kernel's arguments and results in
the program's text: loop bodies once, of branches the largest, libraries' kernels like all others.
Kernels of a loop are counted as often as it turns, where the text tells.
Nothing is run or tuned, so this says nothing of time: `benchmarks/gpu.py` does, on a GPU. What the
CSV has of this commit is not compiled again without --fresh.
"""

import re
from functools import partial

from benchmarks import tpu_aot
from benchmarks.command_line import run
from benchmarks.traffic import num_bytes

FIGURES = ("memory_mb", "accessed_mb", "kernels", "compile_s")
TARGETS = {  # what the compiler asks of a device
    "h100": """
        platform_name: "CUDA" device_description_str: "H100"
        dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 }
        gpu_device_info {
            cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128
            threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
            registers_per_block_limit: 65536 registers_per_core_limit: 65536
            shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
            shared_memory_per_core: 233472 l2_cache_size: 52428800
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            memory_bandwidth: 3352320000000 device_memory_size: 84929347584 clock_rate_ghz: 1.98
        }"""
}
NO_KERNEL = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')  # of a loop
CALLED = re.compile(r"(?:body|to_apply|\w+_computations?)=(\{.*?\}|\S+)")


def main():
    arguments = tpu_aot.options(__doc__, "h100", "results/benchmarks/gpu_aot.csv")
    if arguments.topology not in TARGETS:
        raise SystemExit(f"--topology={arguments.topology}: expected {', '.join(TARGETS)}")
    target = TARGETS[arguments.topology]
    place = tpu_aot.first_device(platform="cuda", target_config=target, topology="1x1x1")
    columns = (*tpu_aot.NAMES[:4], *FIGURES, "topology", "jax", "commit")
    tpu_aot.fill_table(arguments, columns, partial(plan, place=place))


def plan(function, arrays, place):
    """Memory (MB), bytes read and written (MB), kernels, and CPU seconds of compiling."""
    compiled, seconds = tpu_aot.compile_for("cuda", place, function, arrays)
    accessed, kernels = traffic(compiled.as_text())
    return {
        "memory_mb": round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 2),
        "accessed_mb": round(accessed / 1e6, 1),
        "kernels": kernels,
        "compile_s": round(seconds, 1),
    }


def traffic(text):
    """Bytes that a compiled program's kernels read and write, and how many are started."""
    computations, entry = {}, ""
    for line in text.splitlines():
        if start := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            entry = start[1]  # in the end the last one, which ENTRY is
            computations[entry] = []
        elif found := INSTRUCTION.match(line):
            computations[entry].append(found.groups())

    def count(name):
        sizes, accessed, kernels = {}, 0, 0
        for result, shape, operation, operands, rest in computations[name]:
            sizes[result] = num_bytes(shape)
            if operation in ("while", "call", "conditional"):
                called = " ".join(CALLED.findall(rest))
                more = max(map(count, re.findall(r"[\w.-]+", called)))
                turns = int((TURNS.findall(rest) or [1])[0])
                accessed, kernels = accessed + more[0], kernels + turns * more[1]
            elif operation not in NO_KERNEL:
                read = (sizes.get(operand, 0) for operand in re.findall(r"%([\w.-]+)", operands))
                accessed, kernels = accessed + sizes[result] + sum(read), kernels + 1
        return accessed, kernels

    return count(entry)


if __name__ == "__main__":
    run(main)
