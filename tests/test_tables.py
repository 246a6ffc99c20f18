"""CSV files of benchmarks: what is measured is kept, and what others have of it stays."""

import subprocess
import sys

import pytest

from benchmarks import (
    attention_versions,
    authors_curves,
    convolution,
    forms,
    language_length,
    sharding,
    tables,
)


def test_figures_of_another_processor_stay(tmp_path, monkeypatch):
    path = tmp_path / "figures.csv"
    for processor, length, value in (
        ("EPYC", 8, 1),
        ("Xeon", 8, 2),
        ("EPYC", 9, 3),
        ("EPYC", 8, 4),
    ):
        about = {"commit": "a", "processor": processor}
        monkeypatch.setattr(tables, "made_by", lambda about=about: about)
        tables.write_signed(path, [{"length": length, "value": value}], ("length",))
    rows = "8,2,a,Xeon\n9,3,a,EPYC\n8,4,a,EPYC\n"
    assert path.read_text() == f"length,value,commit,processor\n{rows}"


def test_other_lengths_of_sharding_stay_and_are_drawn(tmp_path, monkeypatch):
    def measure(length, dtype):
        if length == 256:
            raise KeyboardInterrupt
        figures = {"temporary_bytes": 8 * length, "collective_bytes": 64, "apart": ""}
        yield dict(zip(sharding.NAMES, (length, dtype, "forward", 8), strict=True)) | figures

    monkeypatch.setattr(sharding, "measure", measure)
    path = tmp_path / "sharding.csv"
    for processor, lengths in (("Xeon", [32]), ("EPYC", [64]), ("EPYC", [128])):
        about = {"commit": "a", "processor": processor}
        for module in (sharding, tables):
            monkeypatch.setattr(module, "made_by", lambda about=about: about)
        sharding.fill_table(lengths, path)
    with pytest.raises(KeyboardInterrupt):
        sharding.fill_table([64, 256], path)
    rows = sharding.rows_of_here(path)
    assert [(row["tokens"], row["dtype"]) for row in rows] == [
        (128, "float64"), (128, "float32"), (64, "float64"), (64, "float32")
    ]  # fmt: skip
    assert len(path.read_text().splitlines()) == 1 + 6
    sharding.draw(rows, tmp_path / "sharding.png")
    assert (tmp_path / "sharding.png").stat().st_size


@pytest.mark.parametrize(
    ("module", "measuring", "arguments", "kept"),
    [
        (forms, "measure", ("--sizes=1x8x1x4x4",), 1),
        (convolution, "measure", ("--sizes=1x8x1x4x3",), 1),
        (attention_versions, "in_turns", (".", "--cases=8/4", "--rounds=1"), 1),
        (language_length, "parse", ("--lengths=8,16", "--only=ours", "--rounds=2"), 2),
    ],
)
def test_what_is_measured_before_an_interruption_is_kept(
    module, measuring, arguments, kept, tmp_path, monkeypatch
):
    found = {"in_turns": [(1.0, 1.0)] * 2, "parse": {"seconds": 1.0, "peak_gb": 1.0}}
    results = iter([found.get(measuring, {"length": 8})] * kept)

    def measure(*_):
        for result in results:
            return result
        raise KeyboardInterrupt

    monkeypatch.setattr(module, measuring, measure)
    monkeypatch.setattr(module, "use_cores", lambda _: None, raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: None)
    monkeypatch.setattr(tables, "made_by", lambda: {"commit": "a", "processor": "EPYC"})
    path = tmp_path / "figures.csv"
    monkeypatch.setattr(sys, "argv", ["it", *arguments, f"--output={path}"])
    with pytest.raises(KeyboardInterrupt):
        module.main()
    assert len(path.read_text().splitlines()) == 1 + kept


def test_a_csv_that_can_not_be_written_whole_stays_as_it_was(tmp_path):
    def rows():
        yield {"length": 9}
        raise OSError("disk full")

    path = tmp_path / "link.csv"
    path.symlink_to(tmp_path / "figures.csv")
    tables.write_csv(path, [{"length": 8}])
    with pytest.raises(OSError, match="disk full"):
        tables.write_csv(path, rows(), ["length"])
    assert path.read_text() == "length\n8\n" and path.is_symlink()


def test_curves_of_before_stay_until_there_are_new_ones(tmp_path):
    def pairs():
        yield 2.0, 1.0
        raise KeyboardInterrupt

    path = tmp_path / "curves.csv"
    authors_curves.write([(3.0, 3.0)], path)
    before = path.read_text()
    with pytest.raises(KeyboardInterrupt):
        authors_curves.write(pairs(), path)
    assert path.read_text() == before == "step,ours,pytorch\n1,3.00000,3.00000\n"
    begun = tmp_path / "curves.partial.csv"
    assert begun.read_text() == "step,ours,pytorch\n1,2.00000,1.00000\n"
