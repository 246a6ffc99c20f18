"""Seconds and memory of the released model's forward pass by length, beside `transformers`.

    python -m benchmarks.language_length [--lengths=4096,8192,16384] [--rounds=3] [--only=ours]

12 layers of 768, the released size, with random weights, a batch of one in float32. Ours has 64
landmarks; the peer runs every released checkpoint as exact softmax, and its Nyström form is
measured too, made for just that length. Each row is a process of its own on the same cores; they
take turns round by round, and a call after an uncounted one is what is timed. The peer may have the
memory that was free at the start, less a tenth: what asks for more is written down as such.
`share` is the median over one proportional to the length, from the first. With `--only` the rows
of the others stay in the CSV as they are. Needs what requirements-language.txt lists.
"""

import argparse
import csv
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.command_line import add_output, count, make_parser, run, several, use_cores
from benchmarks.tables import signed, write_csv

CONTENDERS = ("ours, Nyström", "transformers, exact", "transformers, Nyström")


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", type=several(count), default="4096,8192,16384")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--only", default="", help="contenders whose names have this in them")
    parser.add_argument("--threads", type=count, default=2)
    add_output(parser, "results/benchmarks/language_length.csv")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)  # what a process is to do
    arguments = parser.parse_args()
    use_cores(arguments.threads)
    if arguments.measure:
        contender, length, limit = arguments.measure
        print(json.dumps(measure(contender, int(length), int(limit), arguments.threads)))
        return
    names = [name for name in CONTENDERS if arguments.only in name]
    if not names:
        parser.error(f"--only={arguments.only}: expected a part of {'; '.join(CONTENDERS)}")
    limit = int(0.9 * free_bytes())
    lengths = arguments.lengths
    found = {(name, length): [] for name in names for length in lengths}
    for _ in range(arguments.rounds):
        for (name, length), results in found.items():
            if results and "seconds" not in results[-1]:
                continue  # what did not fit the memory will not do so now
            command = [sys.executable, "-m", "benchmarks.language_length"]
            command += [
                f"--threads={arguments.threads}",
                f"--output={arguments.output}",
                "--measure",
                name,
                str(length),
                str(limit),
            ]
            out = subprocess.run(command, capture_output=True, text=True)
            results.append(parse(out, limit))
            print(name, length, results[-1], flush=True)
        write(arguments.output, names, lengths, found)


def write(path, names, lengths, found):
    """Writes the rows of some contenders in place of those that the CSV has of them."""
    rows = signed([row for name in names for row in rows_of(name, lengths, found)])
    if path.exists():
        with path.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["contender"] not in names]
    rows.sort(key=lambda row: (CONTENDERS.index(row["contender"]), int(row["length"])))
    write_csv(path, rows)


def measure(contender, length, limit, threads) -> dict:
    """Seconds of a call after the first, and the process's peak memory in GB."""
    import numpy as np

    tokens = np.random.default_rng(0).integers(0, 30000, (1, length))
    if contender == "ours, Nyström":
        call = our_call(tokens)
    else:  # JAX maps more than it uses, so that a limit says nothing of it
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        call = peer_call(tokens, contender.endswith("Nyström"), threads)
    call()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "peak_gb": peak}


def our_call(tokens):
    import jax
    from flax import nnx

    from nystrom import language

    config = language.LanguageConfig(max_position_embeddings=tokens.shape[1])
    config = config.with_attention("nystrom", 64)
    graph, state = nnx.split(language.NystromformerModel(config, rngs=nnx.Rngs(0)))
    forward = jax.jit(lambda state, tokens: nnx.merge(graph, state)(tokens))
    return lambda: jax.block_until_ready(forward(state, tokens))


def peer_call(tokens, is_nystrom, threads):
    import torch
    import transformers

    torch.set_num_threads(threads)
    length = tokens.shape[1]
    config = transformers.NystromformerConfig(
        max_position_embeddings=length, segment_means_seq_len=length if is_nystrom else 64
    )
    model = transformers.NystromformerModel(config).eval()
    ids, mask = torch.tensor(tokens), torch.ones(tokens.shape)

    def call():
        with torch.no_grad():
            model(ids, attention_mask=mask)

    return call


def parse(process, limit) -> dict:
    """What a measuring process found, or why it found nothing."""
    if process.returncode == 0:
        return json.loads(process.stdout.strip().split("\n")[-1])
    asked = re.search(r"tried to allocate (\d+) bytes", process.stderr)
    if asked is None and "MemoryError" not in process.stderr:
        raise RuntimeError(process.stderr)
    one = f", {int(asked[1]) / 1e9:.1f} GB of it in one array" if asked else ""
    return {"note": f"needs more than {limit / 1e9:.0f} GB{one}"}


def rows_of(name, lengths, found):
    """The CSV's rows of a contender."""
    rows = []
    for length in lengths:
        timed = [result for result in found[name, length] if "seconds" in result]
        row = {"contender": name, "length": length, "rounds": len(found[name, length])}
        if timed:
            seconds = [result["seconds"] for result in timed]
            row |= {"seconds": statistics.median(seconds), "least": min(seconds)}
            row |= {"most": max(seconds), "peak_gb": max(result["peak_gb"] for result in timed)}
            first = next(x for x in [*rows, row] if "seconds" in x)
            row["share"] = row["seconds"] / (first["seconds"] * length / first["length"])
        else:
            row["note"] = found[name, length][-1]["note"]
        rows.append(row)
    return [
        {key: f"{x:.3f}" if isinstance(x, float) else x for key, x in row.items()} for row in rows
    ]


def free_bytes() -> int:
    """Memory that may be had without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024


if __name__ == "__main__":
    run(main)
