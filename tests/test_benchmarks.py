"""The GPU kit runs as a whole on what there is here; what is measured is so once a commit."""

import argparse
import csv
import shutil
import subprocess
from pathlib import Path

import jax
import pytest

from benchmarks import (
    attention,
    attention_versions,
    gpu,
    gpu_aot,
    gpu_attention,
    self_pretraining,
    tpu_aot,
)
from benchmarks.traffic import collective_bytes


def test_the_gpu_kit_in_quick(tmp_path, capsys):
    output = tmp_path / "gpu.csv"
    arguments = ["--quick", f"--output={output}", f"--trace={tmp_path / 'trace'}"]
    assert gpu.main(arguments) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert {row["part"] for row in rows} == {"values", "attention", "training step"}
    values = [row for row in rows if row["part"] == "values"]
    assert {row["program"] for row in values} >= {"ours", "eq. 9 in JAX"}
    for row in values:
        limit = {"float32": 1e-5, "bfloat16": 3e-2}[row["dtype"]]
        assert 0 < float(row["relative_error"]) < limit
    for row in rows:
        assert row["device"] and row["jax"]
        if row["part"] != "values":
            assert float(row["milliseconds"]) > 0 and float(row["memory_mb"]) > 0
    (step,) = [row for row in rows if row["part"] == "training step"]
    assert float(step["examples_per_second"]) > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))
    if "cpu" in rows[0]["device"]:  # what isn't there is said, once for each pass and length
        assert said.count("skipped: exact, cuDNN, forward, bfloat16") == 1


def test_a_wrong_value_is_an_error(tmp_path, monkeypatch, capsys):
    plain = gpu_attention.contenders.plain

    def wrong(*arguments, num_landmarks):
        return 1.1 * plain(*arguments, num_landmarks=num_landmarks)

    monkeypatch.setattr(gpu_attention.nystrom, "nystrom_attention", wrong)
    bench = gpu.Bench(60, 1, tmp_path / "gpu.csv")
    gpu_attention.check_values(bench, gpu.QUICK[1])
    assert len(bench.wrong) == 2 and all(x.startswith("ours, float32") for x in bench.wrong)

    def broken(*_, **__):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu_attention.nystrom, "nystrom_attention", broken)
    gpu_attention.check_values(bench, gpu.QUICK[1])
    assert bench.wrong[2:] == ["ours, float32: failed"]


def test_on_a_tpu_our_kernels_are_checked_and_timed_too(tmp_path, monkeypatch):
    plain, asked = gpu_attention.contenders.plain, []

    def attention(*arguments, num_landmarks, implementation=None):
        asked.append(implementation)
        factor = 1.1 if implementation == "pallas" else 1
        return factor * plain(*arguments, num_landmarks=num_landmarks)

    monkeypatch.setattr(gpu_attention.nystrom, "nystrom_attention", attention)
    monkeypatch.setattr(gpu_attention.jax, "default_backend", lambda: "tpu")
    bench = gpu.Bench(60, 1, tmp_path / "tpu.csv")
    gpu_attention.check_values(bench, gpu.QUICK[1])
    assert len(bench.wrong) == 2 and all(x.startswith("ours, kernels") for x in bench.wrong)
    bench.rows.clear()
    gpu_attention.time_attentions(bench, gpu.QUICK[0])
    assert [row["program"] for row in bench.rows[:3]] == ["ours", "ours, kernels", "eq. 9 in JAX"]
    assert set(asked) == {None, "pallas"}


def test_time_is_kept_and_failures_are_skipped(tmp_path, capsys):
    bench = gpu.Bench(0, 1, tmp_path / "gpu.csv")
    gpu_attention.time_attentions(bench, gpu.QUICK[0])
    with bench.skipping("it"):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")
    assert capsys.readouterr().out.splitlines() == [
        "skipped: forward of bfloat16 at 64: no time left",
        "skipped: it: RuntimeError: RESOURCE_EXHAUSTED: out of memory",
    ]
    assert bench.rows == []


def test_rows_that_are_not_measured_again_stay(tmp_path):
    path = tmp_path / "gpu.csv"
    for value in (1, 2):
        bench = gpu.Bench(60, 1, path)
        bench.add(part="attention", program="ours", length=64, milliseconds=value)
        if value == 1:
            bench.add(part="training step", program="ours", length=64, milliseconds=value)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["part"], row["milliseconds"]) for row in rows] == [
        ("training step", "1"),
        ("attention", "2"),
    ]


def test_quick_rows_are_not_put_beside_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "check_values", lambda bench, size: bench.add(part="values"))
    assert gpu.main(["--quick", "--parts", "values"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    path = Path(said.rpartition(" in ")[2])
    assert path.is_file() and not (tmp_path / "results").exists()
    shutil.rmtree(path.parent)


def test_the_card_is_the_one_that_jax_uses(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout="580.1\n580.1\n")
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(gpu, "code_version", lambda: "")
    found = gpu.machine()
    assert (found["device"], found["driver"]) == (jax.devices()[0].device_kind, "580.1")


def test_plans_are_made_again_one_by_one(tmp_path, monkeypatch):
    path = tmp_path / "aot.csv"
    columns = [name for name in tpu_aot.COLUMNS if name != "commit"]
    old = [["ours", "float32", str(n), "forward", *"1234", "5", "v5e:2x2", "0"] for n in (64, 128)]
    path.write_text("".join(",".join(row) + "\n" for row in [columns, *old]))  # before commits
    made = {"memory_mb": 9}
    flags = argparse.Namespace(output=path, topology="v5e:2x2", fresh=False, only=["*"])

    def fill(*lengths):
        each = [(("ours", "float32", n, "forward"), lambda: ((),)) for n in lengths]
        monkeypatch.setattr(tpu_aot, "programs", lambda _: each)
        tpu_aot.fill_table(flags, tpu_aot.COLUMNS, lambda _: made)
        rows = csv.DictReader(path.read_text().splitlines())
        return [(int(row["length"]), row["memory_mb"], row["commit"]) for row in rows]

    monkeypatch.setattr(tpu_aot, "code_version", lambda: "a")
    assert fill(64, 256) == [(128, "1", ""), (64, "9", "a"), (256, "9", "a")]
    made["memory_mb"] = 8
    monkeypatch.setattr(tpu_aot, "code_version", lambda: "a+changes")
    assert fill(64) == [(128, "1", ""), (64, "9", "a"), (256, "9", "a")]
    monkeypatch.setattr(tpu_aot, "code_version", lambda: "b")
    assert fill(64) == [(128, "1", ""), (256, "9", "a"), (64, "8", "b")]
    flags.fresh, made["memory_mb"] = True, 7
    assert fill(64) == [(128, "1", ""), (256, "9", "a"), (64, "7", "b")]
    flags.only, made["memory_mb"] = ["ours, *256, f*", "eq. 9*"], 6
    assert fill(64, 256) == [(128, "1", ""), (64, "7", "b"), (256, "6", "b")]
    flags.only = ["our"]
    with pytest.raises(SystemExit, match="--only: no program is named like our"):
        fill(64)


def test_without_a_gpu_it_says_so(capsys):
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "JAX finds no GPU" in capsys.readouterr().err


def test_attention_is_measured_again_at_other_threads_and_commits(tmp_path, monkeypatch, capsys):
    measured = []

    def measure_pair(length, num_landmarks, names, arguments):
        measured.append((arguments.threads, length))
        row = {"length": length, "num_landmarks": num_landmarks, "contender": attention.OURS}
        row |= {"milliseconds": 1.0, "extra_megabytes": 1.0, **attention.setting_of(arguments)}
        return [row | {"mode": mode} for mode in attention.MODES]

    def grid(threads, commit, lengths=(64, 128), processor="EPYC"):
        about = {"commit": commit, "processor": processor}
        monkeypatch.setattr(attention, "made_by", lambda: about)
        measured.clear()
        folders = {"output_dir": tmp_path, "plots_dir": tmp_path}
        flags = {"threads": threads, "lengths": lengths, "landmarks": (8,), "fresh": False}
        attention.grid(argparse.Namespace(**flags, **folders))
        return list(measured)

    monkeypatch.setattr(attention, "measure_pair", measure_pair)
    for name in ("print_table", "print_summary", "draw"):
        monkeypatch.setattr(attention, name, lambda *_: None)
    old = measure_pair(64, 8, (), argparse.Namespace(threads=2))  # of a time without commits
    old = [row | {"processor": "EPYC"} for row in old]
    attention.write_csv(tmp_path / "attention.csv", old)
    assert grid(2, "a") == [(2, 64), (2, 128)]
    assert grid(2, "a+changes") == []
    assert grid(1, "a", (64,)) == [(1, 64)]
    assert grid(2, "b", (64,)) == [(2, 64)]
    rows = list(csv.DictReader((tmp_path / "attention.csv").read_text().splitlines()))
    found = {(row["threads"], row["length"], row["commit"]) for row in rows}
    assert found == {("1", "64", "a"), ("2", "64", "b"), ("2", "128", "a")} and len(rows) == 6
    assert grid(2, "b", (64,), "Xeon") == [(2, 64)]  # beside the other's, not in its place
    kept = list(csv.DictReader((tmp_path / "attention.csv").read_text().splitlines()))
    assert kept[:6] == rows and {row["processor"] for row in kept[6:]} == {"Xeon"}


def test_two_checkouts_take_turns_call_by_call(monkeypatch):
    monkeypatch.setattr(attention_versions, "CALLS", 3)
    checkouts = (attention_versions.ROOT,) * 2
    case = 64, 8, True, "bfloat16", "forward+backward"
    for ms, mib in attention_versions.in_turns(checkouts, case):
        assert ms > 0 and mib > 0
    with pytest.raises(SystemExit, match=r"a process of .* ended"):  # it refuses no landmarks
        attention_versions.in_turns(checkouts[:1], (64, 0, False, "float32", "forward"))


def test_self_pretraining_asks_train_whether_finished_runs_are_those_asked_for(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "linear-seed0-pretrain").mkdir()
    (tmp_path / "linear-seed0-pretrain" / "result.json").write_text('{"test_accuracy": 0.5}')
    refused = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(self_pretraining.subprocess, "run", lambda *_, **__: refused)
    arguments = ["--attentions=linear", "--seeds=0", f"--runs={tmp_path}"]
    assert self_pretraining.main([*arguments, f"--out={tmp_path / 'out'}"]) == 1
    assert "linear-seed0-pretrain ended with 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_program_text_is_read_for_its_traffic():
    """Arguments and results of each kernel; of branches the larger one, of a loop its body once."""
    text = """
HloModule jit_f

%small (x.1: f32[4]) -> f32[4] {
  %x.1 = f32[4]{0} parameter(0)
  ROOT %negate = f32[4]{0} fusion(%x.1), kind=kLoop, calls=%fused
}

%large (x.2: f32[4]) -> f32[4] {
  %x.2 = f32[4]{0} parameter(0)
  %sorted = (f32[4]{0}, s64[4]{0}) custom-call(%x.2), custom_call_target="sort"
  ROOT %first = f32[4]{0} get-tuple-element(%sorted), index=0
}

ENTRY %main (x: f32[4], y: bf16[2,4], p: pred[]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = bf16[2,4]{1,0} parameter(1)
  %p = pred[] parameter(2)
  %sum = f32[4]{0} fusion(%x, %y), kind=kLoop, calls=%fused.1, metadata={op_name="jit(f)/add"}
  %either = f32[4]{0} conditional(%p, %sum, %sum), true_computation=%small, false_computation=%large
  ROOT %loop = f32[4]{0} while(%either), condition=%small, body=%small
}
"""
    numbers, large, small = 4 * 4 + 8 * 2 + 4 * 4, 4 * 4 + 4 * 4 + 4 * 8, 4 * 4 + 4 * 4
    assert gpu_aot.traffic(text) == (numbers + large + small, 3)
    two = "true_computation=%small, false_computation=%large"
    switch = text.replace(two, "branch_computations={%small, %large, %small}")
    assert gpu_aot.traffic(switch) == gpu_aot.traffic(text)
    turns = ', body=%small, backend_config={"known_trip_count":{"n":"5"}}'
    assert gpu_aot.traffic(text.replace(", body=%small", turns)) == (numbers + large + small, 7)


def test_collectives_of_any_type_are_counted():
    text = "  %x = (u8[16]{0}, s16[2]{0}) all-gather(%a, %b), dimensions={0}"
    assert collective_bytes(text) == 16 + 4
