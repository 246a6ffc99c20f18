"""The GPU kit and the campaign run as a whole, on what there is here."""

import csv
import json

import jax
import pytest

from benchmarks import campaign, gpu, gpu_aot, gpu_attention
from tests.conftest import SMALL_ONE_LENGTH


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


def test_without_a_gpu_it_says_so(capsys):
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "JAX finds no GPU" in capsys.readouterr().err


def test_the_campaign_gives_whole_results_and_goes_on(tmp_path, capsys, cache_home):
    small = [x for x in SMALL_ONE_LENGTH[2:] if "num_train_steps" not in x and "every" not in x]
    arguments = [f"--out={tmp_path}", "--tasks", "listops", "image", "--scale=0.001", *small]
    assert campaign.main([*arguments, "--config.task.source=synthetic", "--minutes=10"]) == 0
    summary = json.loads((tmp_path / "results/campaign.json").read_text())
    assert list(summary["runs"].values()) == ["finished"] * 2
    assert list(summary["left_out"]) == ["image"]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["finished"] == 2 and {"test_accuracy", "run"} <= set(lines[-2])
    results = [json.loads(x.read_text()) for x in tmp_path.glob("results/*/result.json")]
    assert {x["config"]["model"]["attention"] for x in results} == {"nystrom", "softmax"}
    # Again: nothing is left to do, and with no time left nothing is begun.
    assert campaign.main([*arguments, "--config.task.source=synthetic", "--minutes=0.01"]) == 0
    assert "finished" in capsys.readouterr().out


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
