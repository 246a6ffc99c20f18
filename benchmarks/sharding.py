"""A sequence cut over devices: what each holds, what they exchange, and that values are right.

    python -m benchmarks.sharding

One head of 64 features and 64 landmarks, on eight virtual devices of the CPU. For each number of
tokens and devices the program is compiled and its plan read: bytes that a device holds beyond its
inputs and outputs, and bytes of all collectives' results on a device. On eight devices it also
runs, and values and gradients are compared with one device's: the largest difference, beside the
largest entry, in float64 at the shorter length and in float32 at both. Virtual devices share the
machine's cores, so that times would say nothing: none are taken. Writes
results/benchmarks/sharding.csv, where rows of other lengths stay, and docs/sharding.png of all of
this processor.
"""

import csv
import os
import platform
from functools import partial

from benchmarks.command_line import count, make_parser, run, writable_folder
from benchmarks.tables import made_by, write_signed

LENGTHS = (65_536, 1_048_576)
DEVICES = (1, 2, 4, 8)
NAMES = ("tokens", "dtype", "mode", "devices")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", type=count, nargs="+", default=LENGTHS)
    parser.add_argument("--output_dir", type=writable_folder, default="results/benchmarks")
    parser.add_argument("--plots_dir", type=writable_folder, default="docs")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    path = arguments.output_dir / "sharding.csv"
    fill_table(arguments.lengths, path)
    arguments.plots_dir.mkdir(parents=True, exist_ok=True)
    draw(rows_of_here(path), arguments.plots_dir / "sharding.png")
    print(f"{path}, with jax {jax.__version__} on {platform.machine()}")


def fill_table(lengths, path):
    """Measures these lengths, and writes after each; rows of others stay."""
    import jax

    rows = []
    for length in lengths:
        for dtype in ("float64", "float32") if length == min(lengths) else ("float32",):
            with jax.enable_x64(dtype == "float64"):
                rows += measure(length, dtype)
            write_signed(path, rows, NAMES)


def rows_of_here(path) -> list[dict]:
    """What the CSV has of this processor, numbers as such."""
    here = made_by()["processor"]
    rows = csv.DictReader(path.read_text().splitlines())
    numbers = ("tokens", "devices", "temporary_bytes", "collective_bytes")
    return [
        row | {name: int(row[name]) for name in numbers} for row in rows if row["processor"] == here
    ]


def measure(length, dtype):
    """A row for each mode and number of devices."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    import nystrom
    from benchmarks.traffic import collective_bytes

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((length, 1, 64)).astype(dtype) for _ in range(4)]

    def forward(attend, query, key, value, d_out):
        return attend(query, key, value)

    def gradient(attend, query, key, value, d_out):
        return jax.vjp(attend, query, key, value)[1](d_out)

    for mode, function in (("forward", forward), ("gradient", gradient)):
        one = jax.jit(partial(function, nystrom.nystrom_attention))(*arrays)
        for devices in DEVICES:
            mesh = Mesh(
                np.array(jax.devices()[:devices]), ("sequence",), axis_types=(AxisType.Auto,)
            )
            cut = NamedSharding(mesh, PartitionSpec("sequence"))
            attend = nystrom.sharded_attention(mesh, num_landmarks=64)
            compiled = (
                jax.jit(partial(function, attend), in_shardings=cut, out_shardings=cut)
                .lower(*arrays)
                .compile()
            )
            row = {
                "tokens": length,
                "dtype": dtype,
                "mode": mode,
                "devices": devices,
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                "collective_bytes": collective_bytes(compiled.as_text()),
                "apart": "",
                "largest": "",
            }
            if devices == max(DEVICES):
                out = compiled(*(jax.device_put(x, cut) for x in arrays))
                pairs = list(zip(jax.tree.leaves(out), jax.tree.leaves(one), strict=True))
                row["apart"] = max(float(np.abs(np.asarray(x) - y).max()) for x, y in pairs)
                row["largest"] = max(float(np.abs(y).max()) for _, y in pairs)
            print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
            yield row


def draw(rows, path):
    """Memory of a device against devices, and what they exchange beside the whole sequence."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["dtype"] == "float32"]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    memory, traffic = figure.subplots(1, 2)
    for length in sorted({row["tokens"] for row in rows}):
        for mode, style in (("forward", "--"), ("gradient", "-")):
            case = [row for row in rows if (row["tokens"], row["mode"]) == (length, mode)]
            devices = [row["devices"] for row in case]
            label = f"{length:,} tokens, {mode}"
            sizes = [row["temporary_bytes"] / 2**20 for row in case]
            memory.loglog(devices, sizes, style, marker="o", label=label)
            several = [row for row in case if row["devices"] > 1]
            sizes = [row["collective_bytes"] / 1e3 for row in several]
            devices = [row["devices"] for row in several]
            traffic.semilogx(devices, sizes, style, marker="o", label=label)
    memory.set(title="Temporary memory of a device", ylabel="MiB", xlabel="devices")
    memory.yaxis.set_major_formatter("{x:,g}")
    traffic.set(
        title="What a device receives, at either length",
        ylabel="kB",
        xlabel="devices",
        ylim=(0, None),
    )
    traffic.set_xlim(memory.get_xlim())
    for panel in (memory, traffic):
        panel.set_xticks(DEVICES, DEVICES)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    handles, labels = memory.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(main)
