"""What a report's tables say of runs: each value in its own column, in its own unit."""

import pytest

import report
from experiment.read_runs import read_runs
from experiment.records import lra_records
from tests.written_runs import changed, rows_of, write_run

APART = {"comparable_to_lra": False, "why_not_comparable": "for a reason"}


@pytest.mark.parametrize(("last", "average"), [("pathfinder", "50.00"), ("image", "–")])
def test_path_x_is_not_in_the_average_and_no_substitute(last, average, tmp_path):
    tasks = ("listops", "text", "retrieval", "image", "pathfinder")
    for task in tasks[: tasks.index(last) + 1]:
        write_run(tmp_path, task, 0.5, task=task)
    write_run(tmp_path, "pathx", 0.9, task="pathx")
    ours = next(row for row in rows_of("lra", tmp_path) if row["attention"].startswith("nystrom"))
    assert ours["Path-X"] == "90.00 (1)" and ours["average without Path-X"] == average


def test_attentions_that_the_paper_does_not_have_get_rows_too(tmp_path):
    write_run(tmp_path, "a", 0.6, changed(model__attention="linear"))
    rows = [(row["attention"], row[""], row["Text"]) for row in rows_of("lra", tmp_path)]
    assert rows[-1] == ("linear", "ours", "60.00 (1)")


def test_numbers_of_the_paper_stand_at_their_tasks():
    found = {(record["attention"], record["task"]): record["mean"] for record in lra_records([])}
    assert found["nystrom", "ListOps"] == 37.15 and found["nystrom", "Pathfinder"] == 70.94
    assert found["softmax", "Text"] == 65.02


def test_speeds_are_of_so_many_devices_and_in_the_units_that_are_said(tmp_path):
    gpus = {"platform": "gpu", "device": "H100", "num_devices": 4}
    for seed, commit in enumerate("dc"):
        write_run(tmp_path, commit, seed=seed, commit=40 * commit)
    write_run(tmp_path, "unknown", seed=2, examples_per_second=None)
    write_run(tmp_path, "four", seed=3, hardware=gpus, num_parameters=2_000)
    one, four = rows_of("speed", tmp_path)
    assert (one["hardware"], four["hardware"]) == ("1 x H100", "4 x H100")
    assert (one["runs"], one["examples/s"], one["hours"]) == ("3", "100.0", "1.00")
    assert (one["peak memory (MiB)"], one["of"]) == ("1,024", "process")
    assert (one["parameters"], four["parameters"]) == ("1,000", "2,000")
    assert one["commit"] == "cccccccc dddddddd"


def test_rows_say_steps_taps_and_whether_they_compare(tmp_path):
    for landmarks in (32, 64):
        config = changed(model__num_landmarks=landmarks, model__conv_kernel_size=35)
        write_run(tmp_path, f"{landmarks}", 0.6, config)
        config.num_train_steps = 2_000
        write_run(tmp_path, f"{landmarks}-short", 0.6, config, **APART)
    fields = {"model__attention": "linear", "model__baseline_conv_kernel_size": 3}
    write_run(tmp_path, "linear", 0.6, changed(num_train_steps=2_000, **fields), **APART)
    assert {row["steps"] for row in rows_of("apart", tmp_path)} == {"2,000"}
    rows = rows_of("landmarks", tmp_path)
    compare = {"steps=2000" not in row["attention"]: row["comparable to LRA"] for row in rows}
    assert len(rows) == 4 and compare == {True: "yes", False: "no"}
    rows = {row["attention"]: row for row in rows_of("attentions", tmp_path)}
    assert rows["linear"]["convolution"] == "3"
    assert rows["nystrom, num_landmarks=32"]["convolution"] == "35"
    config = changed(objective="masked", num_train_steps=3_000)
    write_run(tmp_path / "masked", "a", 0.5, config, test_loss=3.0)
    assert [row["steps"] for row in rows_of("masked", tmp_path / "masked")] == ["3,000"]


def test_curves_are_of_validation_and_each_of_its_seed(tmp_path):
    folder = write_run(tmp_path, "a", seed=3, reports=[(500, 0.6)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "split": "test", "accuracy": 0.9}\n')
    (record,) = report.curves_records(read_runs([tmp_path]))
    assert (record["seed"], record["step"], record["accuracy"]) == (3, 500, 60)


def test_truths_are_written_as_words(tmp_path):
    report.write_csv([{"a": True, "b": float("inf")}, {"a": False, "b": 1.5}], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().split() == ["a,b", "true,", "false,1.5"]


def test_lines_that_are_no_reports_leave_the_others(tmp_path):
    folder = write_run(tmp_path, "a", reports=[(500, 0.6)])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\n{"step": 1' + 400 * b"0" + b', "split": "validation"}\n')
        file.write(b'{"step": 600, "split": "validation", "loss": "low"}\n')
        file.write(b'{"step": 750.0, "split": "validation", "accuracy": 0.7}\n')
    found = read_runs([tmp_path])
    (run,) = found.groups[0].runs
    assert run.curve("validation", "accuracy") == ([500, 750], [0.6, 0.7]) and type(run.step) is int
    ((_, why),) = found.skipped
    assert why == "3 unreadable lines of 5 were left out"
