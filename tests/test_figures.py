"""Tables of README and docs/ have the figures of the results that are committed."""

import csv
import json
import statistics
from pathlib import Path

import pytest

from experiment.results import LRA_TASKS, PAPER

ROOT = Path(__file__).parent.parent
NEWER = "AVX-512"  # in the name of the processor that tables are of; the older is AMD EPYC alone
TORCH = ("transformers", "nystrom-attention")
BOTH = "forward+backward"


def read_csv(name):
    text = (ROOT / "results" / "benchmarks" / name).read_text()
    return list(csv.DictReader(text.splitlines()))


def table(page, header):
    """The rows of cells of the table in a page that begins with `header`."""
    text = (ROOT / page).read_text()
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell):
    return float(cell.replace(",", ""))


def says(cell, value):
    """Whether a cell is the value, rounded as the cell is."""
    decimals = len(cell.partition(".")[2])
    return abs(number(cell) - value) <= 0.5001 * 10**-decimals


def accuracies(runs):
    """Test accuracies in % of the runs of a pattern."""
    files = sorted((ROOT / "results").glob(f"{runs}/result.json"))
    return [100 * json.loads(file.read_text())["test_accuracy"] for file in files]


def says_mean(cell, values):
    """Whether a cell is the mean of three runs and their deviation, or one run's value."""
    mean, _, deviation = cell.partition(" %")[0].partition(" ± ")
    assert len(values) == (3 if deviation else 1)
    return says(mean, statistics.fmean(values)) and (
        not deviation or says(deviation, statistics.stdev(values))
    )


@pytest.mark.parametrize(
    ("row", "name", "task", "runs"),
    [
        (0, "ListOps, the paper's recipe", "listops", "listops-nystrom-paper-seed*"),
        (1, "tuned, the same size", "", "listops-nystrom-tuned-seed*"),
        (2, "begun on short expressions", "", "listops-nystrom-best-seed*"),
        (3, "and for longer", "", "listops-nystrom-best-steps5000-seed*"),
        (4, "Text, the paper's recipe", "text", "text-package-nystrom-paper-seed*"),
        (5, "tuned, the same size", "", "text-package-nystrom-best-seed*"),
        (6, "and for longer", "", "text-package-nystrom-best-steps5000-seed*"),
    ],
)
def test_results_of_readme(row, name, task, runs):
    found, ours, paper = table("README.md", "| | ours | paper |")[row]
    assert found == name
    assert says_mean(ours, accuracies(runs))
    papers = dict(zip(LRA_TASKS, PAPER["nystrom"], strict=False))
    assert says(paper, papers[task]) if task else not paper


SHORT = "listops_short/max-std1-rotary-4heads"
SEEDS = "", "-seed1", "-seed2"
TUNED = "| run | data | steps | validation | test |\n"
LONGER = "| `:best` for longer, with the convolution"


@pytest.mark.parametrize(
    ("header", "row", "column", "runs"),
    [
        ("| `:short` | with", 0, 1, [SHORT + seed for seed in SEEDS]),
        ("| `:short` | with", 0, 2, [f"{SHORT}-noconvolution{seed}" for seed in SEEDS]),
        ("| `:short` | with", 1, 1, [f"{SHORT}-softmax-convolution{seed}" for seed in SEEDS]),
        ("| `:short` | with", 1, 2, [f"{SHORT}-softmax{seed}" for seed in SEEDS]),
        ("| `:short` | with", 2, 1, [f"{SHORT}-linear-convolution{seed}" for seed in SEEDS]),
        ("| `:short` | with", 2, 2, [f"{SHORT}-linear{seed}" for seed in SEEDS]),
        ("| `:short` | with", 3, 1, [f"{SHORT}-none-convolution{seed}" for seed in SEEDS]),
        ("| `:short` | with", 3, 2, [f"{SHORT}-none{seed}" for seed in SEEDS]),
        ("| `:best`, test |", 0, 1, ["text-package-nystrom-best-seed*"]),
        ("| `:best`, test |", 0, 2, ["text-package-nystrom-best-conv0-seed*"]),
        ("| `:best`, test |", 1, 1, ["text-package-linear-convolution-best-seed*"]),
        ("| `:best`, test |", 1, 2, ["text-package-linear-best-seed*"]),
        ("| `:best`, test |", 2, 1, ["text-package-none-convolution-best-seed*"]),
        ("| `:best`, test |", 2, 2, ["text-package-none-best-seed*"]),
        (TUNED, 25, 4, ["text-package-linear-convolution-best-steps5000-seed*"]),
        ("| `:best`, Nyström 32 |", 3, 2, ["listops-nystrom-best-seed*"]),
        ("| `:best` for longer", 3, 2, ["listops-nystrom-best-steps5000-seed*"]),
        (LONGER, 0, 2, ["listops-linear-convolution-best-steps5000-seed*"]),
        (LONGER, 0, 3, [f"{SHORT}-linear-convolution-steps4000{seed}" for seed in SEEDS]),
        (LONGER, 1, 2, ["listops-none-convolution-best-steps5000-seed*"]),
        (LONGER, 1, 3, [f"{SHORT}-none-convolution-steps4000{seed}" for seed in SEEDS]),
        ("| `:best`, seeds 0, 1, 2 |", 0, 2, ["listops-softmax-convolution-best-seed*"]),
        ("| `:best`, seeds 0, 1, 2 |", 1, 2, ["listops-linear-convolution-best-seed*"]),
        ("| `:best`, seeds 0, 1, 2 |", 2, 2, ["listops-none-convolution-best-seed*"]),
        ("| `:best`, seeds 0, 1, 2 |", 3, 2, ["listops-linear-best-seed*"]),
        ("| `:best`, seeds 0, 1, 2 |", 4, 2, ["listops-softmax-best-seed*"]),
        ("| `:best`, seeds 0, 1, 2 |", 5, 2, ["listops-nystrom-best-conv0-seed*"]),
    ],
)
def test_means_of_results(header, row, column, runs):
    values = [value for pattern in runs for value in accuracies(pattern)]
    assert says_mean(table("docs/results.md", header)[row][column], values)


def attention_figures(is_newer):
    """Milliseconds and MB by tokens, landmarks, mode and contender, on one of two processors."""
    return {
        (int(row["length"]), int(row["num_landmarks"]), row["mode"], row["contender"]): (
            float(row["milliseconds"]),
            float(row["extra_megabytes"]),
        )
        for row in read_csv("attention.csv")
        if (NEWER in row["processor"]) == is_newer
    }


def over_ours(figures, case, *names):
    """The time of the fastest contender of these over ours."""
    return min(figures[*case, name][0] for name in names) / figures[*case, "ours"][0]


def test_speed_of_readme():
    newer, older = attention_figures(True), attention_figures(False)
    for length, ours, torch, before, eq_9, exact in table("README.md", "| tokens | ours, ms"):
        case = int(number(length)), 64, BOTH
        assert says(ours, newer[*case, "ours"][0])
        assert says(torch, over_ours(newer, case, *TORCH))
        assert says(before, over_ours(older, case, *TORCH))
        assert says(eq_9, over_ours(newer, case, "eq. 9 in JAX"))
        assert not exact or says(exact, over_ours(newer, case, "exact, PyTorch"))


def test_attention_of_benchmarks():
    figures = attention_figures(True)
    *rows, means = table("docs/benchmarks.md", "| N | landmarks | forward, ms")
    assert len(rows) == 10
    columns = {3: [], 4: [], 6: [], 7: []}
    for row in rows:
        length, landmarks = (int(number(cell)) for cell in row[:2])
        for first, mode in ((2, "forward"), (5, BOTH)):
            case = length, landmarks, mode
            assert says(row[first], figures[*case, "ours"][0])
            for column, names in ((first + 1, TORCH), (first + 2, ["eq. 9 in JAX"])):
                ratio = over_ours(figures, case, *names)
                columns[column].append(ratio)
                assert says(row[column], ratio)
        ours, eq_9 = (figures[length, landmarks, BOTH, x][1] for x in ("ours", "eq. 9 in JAX"))
        assert says(row[8], ours) and says(row[9], ours / eq_9)
    for column, ratios in columns.items():
        assert says(means[column], statistics.geometric_mean(ratios))


def test_times_of_version_0_1():
    ratios = {
        (row["landmarks"], row["what"], row["length"]): row["ratio"]
        for row in read_csv("attention_versions.csv")
        if NEWER in row["processor"]
    }
    header, lengths = "| times version 0.1's |", ("1024", "2048", "4096", "16384", "65536")
    names = [(landmarks, what) for landmarks in ("64", "256") for what in ("forward", BOTH)]
    for name, (_, *cells) in zip(names, table("docs/benchmarks.md", header), strict=True):
        assert cells == [ratios[*name, length] for length in lengths]


def test_the_op_is_as_fast_as_when_it_was_measured():
    rows = read_csv("attention_since.csv")
    assert len(rows) == 7 and all(row["before_mib"] == row["now_mib"] for row in rows)
    ratios = [row["ratio"] for row in rows]
    page = (ROOT / "docs/benchmarks.md").read_text()
    assert f"the op takes {min(ratios)} to {max(ratios)} times as long" in page


def test_times_of_lengths_that_nothing_divides():
    found = {
        (row["length"], row["what"]): row
        for row in read_csv("attention_any_length.csv")
        if row["landmarks"] == "64"
    }
    for name, *cells in table("docs/benchmarks.md", "| tokens | forward, times before |"):
        length, *words = name.replace(",", "").split()
        for what in ("forward", BOTH):
            row = found[length, ", ".join([*words, what])]
            assert cells[0] == row["ratio"]
            assert cells[1] == f"{row['now_mib']}, {row['before_mib']}"
            cells = cells[2:]


def test_when_tiles_pay():
    found = {
        (row["batch"], row["length"], row["heads"], row["depth"], row["landmarks"], row["pass"]): (
            float(row["ratio"]),
            float(row["plain_compile_s"]) / float(row["tiled_compile_s"]),
        )
        for row in read_csv("forms.csv")
    }
    for name, _, *cells in table("docs/benchmarks.md", "| batch x tokens x heads x features"):
        shape, _, landmarks = name.replace(",", "").rpartition(" ")
        batch, length, heads, depth = shape.split(" x ")
        landmarks = "0" if landmarks == "exact" else landmarks
        forward, both = (
            found[batch, length, heads, depth, landmarks, what]
            for what in ("forward", "forward and backward")
        )
        assert says(cells[0], forward[0]) and says(cells[1], both[0])
        assert abs(number(cells[2]) - both[1]) < 0.02  # of seconds that are rounded


def test_times_of_the_convolution():
    names = ("batch", "length", "heads", "depth", "taps", "what", "pass")
    found = {
        tuple(row[name] for name in names): {
            name: float(row[f"{name}_ms"]) for name in ("ours", "one_sum", "xla")
        }
        for row in read_csv("convolution.csv")
    }
    header = "| batch x tokens x heads x features, taps |"
    for name, *cells in table("docs/benchmarks.md", header):
        shape, taps = name.replace(",", "").rsplit(" ", 1)
        size = *shape.split(" x "), taps
        alone, together = found[*size, "alone", "forward"], found[*size, "attention too", "forward"]
        both = found[*size, "attention too", "forward and backward"]
        expected = [alone["ours"], alone["one_sum"] / alone["ours"], alone["xla"] / alone["ours"]]
        for times in (together, both):
            expected += [times["ours"], times["one_sum"] / times["ours"]]
        assert all(map(says, cells, expected)), name


@pytest.mark.parametrize(
    ("file", "header", "topology", "columns"),
    [
        (
            "tpu_aot.csv",
            "| | tokens | ours, accesses | with a mask |",
            "v5e:2x2",
            {2: "ours", 3: "ours, padded", 4: "eq. 9 in JAX", 5: "exact, JAX"},
        ),
        (
            "tpu_aot.csv",
            "| | tokens | kernels, accesses |",
            "v5e:2x2",
            {
                2: "ours, kernels, joined",
                3: "ours, kernels, joined, padded",
                4: "ours, joined",
                5: "eq. 9 in JAX, joined",
            },
        ),
        (
            "gpu_aot.csv",
            "| | tokens | ours, accesses | eq. 9 | exact |",
            "h100",
            {2: "ours", 3: "eq. 9 in JAX", 4: "exact, JAX"},
        ),
    ],
)
def test_plans(file, header, topology, columns):
    accessed = {}
    for row in read_csv(file):
        if row["topology"] == topology and row["accessed_mb"]:
            *kinds, what = row["pass"].split(", ")
            program = ", ".join((row["program"], *kinds))
            accessed[program, row["dtype"], what, row["length"]] = float(row["accessed_mb"])
    rows = table("docs/benchmarks.md", header)
    assert len(rows) == 12
    for row in rows:
        dtype, what = row[0].split(", ")
        case = dtype, what, str(int(number(row[1])))
        for column, program in columns.items():
            if (program, *case) in accessed:
                assert says(row[column], accessed[program, *case]), (program, *case)
            else:
                assert row[column] in ("", "does not fit")


def test_plans_by_another_compiler():
    rows = read_csv("tpu_aot_jax_0_12.csv")
    found = {(row["program"], row["dtype"], row["length"], row["pass"]): row for row in rows}
    memory = {case: float(row["memory_mb"]) for case, row in found.items()}
    told = table("docs/benchmarks.md", "| memory | ours | kernels | eq. 9 |")
    assert len(told) == 4
    for name, *cells in told:
        dtype, what = name.split(", ")
        ours, kernels = "ours", "ours, kernels"
        cases = (ours, what), (kernels, what), ("eq. 9 in JAX", what)
        cases += (ours, f"joined, {what}"), (kernels, f"joined, {what}")
        for cell, (program, case) in zip(cells, cases, strict=True):
            assert says(cell, memory[program, dtype, "65536", case])
    eq_9 = {case: value for case, value in memory.items() if case[0] == "eq. 9 in JAX"}
    assert len(eq_9) == 12
    assert all(memory["ours", *case[1:]] <= value for case, value in eq_9.items())
    assert sum(row["program"].startswith("ours") for row in rows) == 96
    for row in read_csv("tpu_aot.csv"):
        case = row["program"], row["dtype"], row["length"], row["pass"]
        if row["topology"] == "v5e:2x2" and case in found:
            assert row["accessed_mb"] == found[case]["accessed_mb"]


@pytest.mark.parametrize(
    ("file", "header", "topology", "last"),
    [
        ("tpu_aot.csv", "| v5e | accesses, GB |", "v5e:2x2", ("gflops", "compile_s")),
        ("gpu_aot.csv", "| H100 | accesses, GB |", "h100", ("kernels",)),
    ],
)
def test_plans_of_training_steps(file, header, topology, last):
    rows = {row["program"]: row for row in read_csv(file) if row["topology"] == topology}
    told = table("docs/benchmarks.md", header)
    assert len(told) == 4
    for name, accessed, memory, *others in told:
        task, attention = name.lower().replace("ö", "o").replace("`", "").split(", ")
        row = rows[f"{task} step, {attention}"]
        assert says(accessed, float(row["accessed_mb"]) / 1e3)
        assert says(memory, float(row["memory_mb"]) / 1e3)
        for cell, column in zip(others, last, strict=True):
            assert says(cell, float(row[column]))
