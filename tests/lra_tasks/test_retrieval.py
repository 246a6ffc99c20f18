"""Retrieval: the official TSV files in every layout, malformed rows, bounded memory, fuzzing."""

import io
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from official_files import damage, read_all, tar_bytes, tsv_files, tsv_row, unpack

import lra_tasks
from lra_tasks import retrieval
from lra_tasks.store import SPLITS

BIG_FILE_MB, ALLOWED_GROWTH_MB = 300, 100


@pytest.fixture
def make_retrieval(make_config):
    fields = {"source": "release", "max_length": 4000, "padded_length": 4096}
    return lambda **changes: make_config("retrieval", **fields | changes)


def load(config, cache_dir):
    return lra_tasks.load(config, cache_dir, progress=False)


def pairs(split):
    names = ("inputs", "inputs2")
    return [(*(e[name].tobytes().decode() for name in names), e["label"]) for e in read_all(split)]


def read(data, max_length=4000, num_expected=2000):
    notes = {"malformed_rows": {}, "empty_texts": {}}
    rows = retrieval.read_pairs(io.BytesIO(data), "x.tsv", num_expected, max_length, notes)
    return list(rows), notes


def test_every_layout_gives_the_same_pairs_in_order(make_retrieval, tmp_path):
    places = []
    for number, folder in enumerate(
        ("", "tsv_data/", "lra_release/tsv_data/", "lra_release/lra_release/tsv_data/")
    ):
        names = {f"{folder}{n.rsplit('/', 1)[1]}": data for n, data in tsv_files().items()}
        places.append(unpack(names, tmp_path / str(number)))
    for number, folder in enumerate(("lra_release/tsv_data", "lra_release/lra_release/tsv_data")):
        files = {f"{folder.split('/')[0]}/listops-1000/basic_train.tsv": b"other"}
        files |= tsv_files(folder=folder)
        places.append(tmp_path / f"archive{number}")
        places[-1].mkdir()
        (places[-1] / "lra_release.gz").write_bytes(tar_bytes(files))
    for place in places:
        task = load(make_retrieval(data_dir=str(place)), tmp_path / "cache")
        assert (task.num_documents, task.source, task.comparable_to_lra) == (2, "release", False)
        assert "147086" in task.why_not_comparable
        for split, name in (("train", "train"), ("validation", "eval"), ("test", "test")):
            assert pairs(task.splits[split]) == [
                (f"{name} {row} a", f"{name} {row} b" * 3, row % 2) for row in range(12)
            ]


def test_what_compares_with_lra(make_retrieval):
    whole = {"pairs": retrieval.OFFICIAL_ROWS}
    assert retrieval.why_not_comparable(make_retrieval(), "release", whole) == ""
    fewer = {"pairs": retrieval.OFFICIAL_ROWS | {"test": 17_436}}
    assert "17436" in retrieval.why_not_comparable(make_retrieval(), "release", fewer)
    for changes in ({"max_length": 1000}, {"num_train": 5}, {"num_validation": 5}):
        assert retrieval.why_not_comparable(make_retrieval(**changes), "release", whole)


def test_texts_are_cut_in_bytes_and_an_empty_one_becomes_a_space():
    rows, notes = read(tsv_row("0", "caf\u00e9" * 9, "") + tsv_row("1.0", "", "")[:-1], 5)
    documents = [(e["inputs"].tobytes(), e["inputs2"].tobytes(), e["label"]) for e in rows]
    assert documents == [("caf\u00e9".encode(), b" ", 0), (b" ", b" ", 1)]
    assert notes == {"malformed_rows": {"x.tsv": 0}, "empty_texts": {"x.tsv": 3}}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"1.0\tP1\tP2\tone text\n", "4 columns, expected 5"),
        (b"1.0\tP1\tP2\ta\tb\tc\td\n", "6 or more columns, expected 5"),
        (b"\n", "1 columns"),
        (b"2.0\tP1\tP2\ta\tb\n", r"label b'2.0', expected 0 or 1"),
        (b"nan\tP1\tP2\ta\tb\n", r"label b'nan'"),
        (b"\tP1\tP2\ta\tb\n", r"label b''"),
        (b"1.0\tP1\tP2\ta\t\xff\n", r"not UTF-8 at byte 12"),
        (b"1.0\tP1\tP2\ta\t" + b"x" * (40 << 20) + b"\n", r"longer than 16,777,216 bytes"),
        (b"x" * (40 << 20), r"longer than 16,777,216 bytes"),
    ],
)  # fmt: skip
def test_malformed_rows_are_named_left_out_and_fail_beyond_a_small_share(row, problem):
    good = tsv_row()
    many = good * 1997
    before, after = (good * 2, many) if row.endswith(b"\n") else (good * 2 + many, b"")
    line = before.count(b"\n") + 1
    with pytest.warns(UserWarning, match=rf"x.tsv, line {line}: {problem}"):
        rows, notes = read(before + row + after)
    assert len(rows) == 1999
    assert notes["malformed_rows"] == {"x.tsv": 1}
    too_many = good * 998 + (row * 2 if row.endswith(b"\n") else b"bad\n" + row)
    for data in (too_many, row):
        with pytest.raises(ValueError, match=rf"x.tsv: .* malformed(.|\n)*line \d+: {problem}"):
            read(data)
    with pytest.raises(ValueError, match=r"At most 0.1% may be. Expected label, id1, id2"):
        read(b"text\n" * 200_000, num_expected=147_086)  # noticed long before the end


def test_a_byte_order_mark_costs_no_row_and_is_counted():
    data = tsv_row("1.0") + tsv_row("0.0")
    rows, notes = read(b"\xef\xbb\xbf" + data)
    assert [row["label"] for row in rows] == [row["label"] for row in read(data)[0]] == [1, 0]
    assert notes["byte_order_marks"] == {"x.tsv": 1} and notes["malformed_rows"] == {"x.tsv": 0}
    assert "byte_order_marks" not in read(data)[1]
    with pytest.raises(ValueError, match=r"line 2: label b'\\xef\\xbb\\xbf1.0'"):
        read(tsv_row() + b"\xef\xbb\xbf" + tsv_row(), num_expected=2)  # of the file, not of a row


def test_an_empty_file_is_an_error():
    with pytest.raises(ValueError, match=r"x.tsv: empty"):
        read(b"")


def test_a_failed_preparation_leaves_nothing_and_the_next_starts_afresh(make_retrieval, tmp_path):
    files = tsv_files(folder="tsv_data")
    unpack(files | {"tsv_data/new_aan_pairs.test.tsv": b"half a row"}, tmp_path / "data")
    config = make_retrieval(data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"new_aan_pairs.test.tsv, line 1: 1 columns"):
        load(config, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.array_record*"))
    unpack(files, tmp_path / "data")
    assert len(load(config, tmp_path / "cache").splits["test"].examples) == 12


def test_sizes_are_the_first_rows_of_each_file(make_retrieval, tmp_path):
    unpack(tsv_files(), tmp_path)
    config = make_retrieval(data_dir=str(tmp_path), num_train=3, num_test=12)
    task = load(config, tmp_path / "cache")
    assert [row[0] for row in pairs(task.splits["train"])] == [f"train {i} a" for i in range(3)]
    with pytest.raises(ValueError, match=r"num_test=13: .*test.tsv has 12 well-formed rows"):
        load(make_retrieval(data_dir=str(tmp_path), num_test=13), tmp_path / "cache")


def test_missing_files_are_named(make_retrieval, tmp_path):
    with pytest.raises(ValueError, match=r"lra_release.gz.*config.task.data_dir"):
        load(make_retrieval(source="auto"), tmp_path / "cache")
    (problem,) = lra_tasks.check(make_retrieval(source="auto", data_dir=str(tmp_path)))
    for expected in (
        "config.task.data_dir",
        "new_aan_pairs.train.tsv",
        "tsv_data",
        "lra_release.gz",
    ):
        assert expected in problem
    files = tsv_files()
    files.pop("lra_release/lra_release/tsv_data/new_aan_pairs.eval.tsv")
    unpack(files, tmp_path)
    (problem,) = lra_tasks.check(make_retrieval(data_dir=str(tmp_path)))
    assert "lacks new_aan_pairs.eval.tsv" in problem
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "lra_release.gz").write_bytes(tar_bytes(files))
    with pytest.raises(ValueError, match=r"no member lra_release/tsv_data/new_aan_pairs.eval.tsv"):
        load(make_retrieval(data_dir=str(tmp_path / "sub")), tmp_path / "cache")
    (problem,) = lra_tasks.check(make_retrieval(source="generated"))
    assert "release, synthetic" in problem


def test_memory_does_not_grow_with_the_file(tmp_path):
    """A file larger than what the process may grow by, prepared in full."""
    document = "a paper about parsing " * 1500
    row = tsv_row(text1=document, text2=document)
    with open(tmp_path / "new_aan_pairs.train.tsv", "wb") as file:
        for _ in range(BIG_FILE_MB * 10**6 // (100 * len(row)) + 1):
            file.write(row * 100)
    for split in ("eval", "test"):
        (tmp_path / f"new_aan_pairs.{split}.tsv").write_bytes(row)
    assert (tmp_path / "new_aan_pairs.train.tsv").stat().st_size > BIG_FILE_MB * 10**6
    program = """
        import resource, sys
        import lra_tasks
        from configs import base

        def load(**changes):
            config = base.get_config().task
            config.update(name="retrieval", source="release", data_dir=sys.argv[1],
                          max_length=4000, padded_length=4096, **changes)
            lra_tasks.load(config, sys.argv[2], progress=False)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

        before = load(num_train=1)  # so that everything is imported
        print(load() - before)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(program), tmp_path, tmp_path / "cache"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(result.stdout) < ALLOWED_GROWTH_MB < BIG_FILE_MB


def test_fuzzed_rows_give_pairs_or_a_clean_error():
    rng = np.random.default_rng(0)
    data = b"".join(tsv_row(f"{i % 2}.0", f"caf\u00e9 {i}", "b" * i) for i in range(2000))
    outcomes = {"whole": 0, "some left out": 0, "refused": 0}
    for _ in range(60):
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                rows, notes = read(damage(data, rng))
            bad = sum(notes["malformed_rows"].values())
            assert len(warned) == (bad > 0)
            assert all(0 < len(row["inputs"]) <= 4000 for row in rows)
            outcomes["some left out" if bad else "whole"] += 1
        except ValueError as error:
            assert type(error) is ValueError and "x.tsv" in str(error), repr(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 2, outcomes


def test_synthetic_topics_decide_the_label(make_retrieval, tmp_path):
    task = load(make_retrieval(source="synthetic"), tmp_path)

    def topic(paper):
        first = paper.split(" ")[0]
        matches = {i for i, words in enumerate(retrieval.TOPICS) if first in words}
        assert len(matches) == 1, paper
        return matches.pop()

    for first, second, label in pairs(task.splits["train"]):
        assert (topic(first) == topic(second)) == (label == 1)
    example = read_all(task.splits["train"])[0]
    assert (
        retrieval.decode(example["inputs"].astype(int) + 1) == example["inputs"].tobytes().decode()
    )


def test_the_fingerprint_is_of_tokens_labels_and_where_documents_end(
    make_config, tmp_path, monkeypatch
):
    def fingerprint_of(first, second, label):
        texts = {"inputs": first, "inputs2": second}
        row = {name: np.frombuffer(text, np.uint8) for name, text in texts.items()}
        made = dict.fromkeys(SPLITS, lambda: [row | {"label": label}])
        monkeypatch.setattr(retrieval, "examples", lambda *_: made)
        cache = tmp_path / f"{first.decode()}-{label}"
        return lra_tasks.load(make_config("retrieval"), cache, progress=False).fingerprint

    examples = ((b"ab", b"c", 0), (b"a", b"bc", 0), (b"ab", b"c", 1))
    assert len({fingerprint_of(*example) for example in examples}) == 3
