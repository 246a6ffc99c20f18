"""Reading the release's ListOps files: all layouts, and damage of all kinds."""

import hashlib
import io
import os
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lra_tasks
from lra_tasks import listops
from lra_tasks.listops import release

FOLDER, FILES = release.FOLDER, release.FILES
HEADER = b"Source\tTarget\n"
SIZES = {"train": 12, "validation": 5, "test": 4}


def bracketed(text):
    """An expression as the release writes it, every application in round brackets."""
    tokens = iter(text.split())

    def node(token):
        if not token.startswith("["):
            return token
        tree = token
        while (token := next(tokens)) != "]":
            tree = f"( {tree} {node(token)} )"
        return f"( {tree} ] )"

    return node(next(tokens))


def draw(count, seed, max_length=100):
    rng = random.Random(seed)
    made = []
    while len(made) < count:
        tree = listops.draw_tree(rng, max_length)
        if tree and len(tree[0]) > 10:
            made.append(tree)
    return made


def as_tsv(trees):
    rows = [f"{bracketed(listops.decode(ids))}\t{value}\n" for ids, value in trees]
    return HEADER + "".join(rows).encode()


TREES = {split: draw(size, seed) for seed, (split, size) in enumerate(SIZES.items())}
TSV = {FILES[split]: as_tsv(trees) for split, trees in TREES.items()}


def write_folder(folder, files=TSV):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path, prefix, files=TSV, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        # Another task's file first and between, and a name that only looks like ours.
        for name, content in [
            ("lra_release/pathfinder32/x", b"0" * 999),
            *((f"{prefix}{FOLDER}/{name}", content) for name, content in files.items()),
            (f"{prefix}other/basic_train.tsv", b"junk"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def assert_same(task):
    for split, trees in TREES.items():
        examples = task.splits[split].examples.__getitems__(range(SIZES[split]))
        assert [(e["inputs"].tobytes(), e["label"]) for e in examples] == trees
        assert len(task.splits[split].examples) == SIZES[split]


@pytest.mark.parametrize(
    "below", ["", FOLDER, f"lra_release/{FOLDER}", f"lra_release/lra_release/{FOLDER}"]
)
@pytest.mark.parametrize("source", ["release", "auto"])
def test_unpacked_layouts(make_config, tmp_path, below, source):
    write_folder(tmp_path / "data" / below)
    config = make_config(source=source, data_dir=str(tmp_path / "data"))
    task = lra_tasks.load(config, tmp_path / "cache", progress=False)
    assert task.source == "release"
    assert_same(task)


@pytest.mark.parametrize("prefix", ["", "lra_release/", "./lra_release/lra_release/"])
@pytest.mark.parametrize("inside", [True, False])
def test_archive(make_config, tmp_path, prefix, inside):
    archive = tmp_path / "lra_release.gz"
    write_archive(archive, prefix, dict(reversed(TSV.items())))
    config = make_config(source="release", data_dir=str(tmp_path if inside else archive))
    task = lra_tasks.load(config, tmp_path / "cache", progress=False)
    assert_same(task)
    assert task.fingerprint == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "lra_release.gz"]


def test_uncompressed_archive_and_home(make_config, tmp_path, monkeypatch):
    write_archive(tmp_path / "lra_release.tar", "lra_release/", mode="w")
    monkeypatch.setenv("HOME", str(tmp_path))
    config = make_config(source="release", data_dir="~")
    task = lra_tasks.load(config, tmp_path / "cache", progress=False)
    assert_same(task)


def test_prepared_release_is_found_without_data_dir(make_config, tmp_path):
    write_folder(tmp_path / "data")
    first = lra_tasks.load(
        make_config(source="release", data_dir=str(tmp_path / "data")), tmp_path, progress=False
    )
    shutil.rmtree(tmp_path / "data")
    for source in ("auto", "release"):
        task = lra_tasks.load(make_config(source=source), tmp_path, progress=False)
        assert (task.source, task.fingerprint) == ("release", first.fingerprint)


def test_changed_files_are_read_again(make_config, tmp_path):
    write_folder(tmp_path / "data")
    config = make_config(source="release", data_dir=str(tmp_path / "data"))
    first = lra_tasks.load(config, tmp_path, progress=False)
    changed = {**TSV, "basic_val.tsv": as_tsv(draw(3, 99))}
    write_folder(tmp_path / "data", changed)
    second = lra_tasks.load(config, tmp_path, progress=False)
    assert len(second.splits["validation"].examples) == 3
    assert first.fingerprint != second.fingerprint
    with pytest.warns(UserWarning, match="2 prepared listops sets"):
        newest = lra_tasks.load(make_config(source="release"), tmp_path, progress=False)
    assert newest.fingerprint == second.fingerprint
    config = make_config(source="release")
    asked = lra_tasks.load(config, tmp_path, progress=False, fingerprint=first.fingerprint)
    assert asked.fingerprint == first.fingerprint
    with pytest.warns(UserWarning, match="2 prepared listops sets"):
        other = lra_tasks.load(config, tmp_path, progress=False, fingerprint="of none")
    assert other.fingerprint == second.fingerprint


def test_auto_without_release_generates_with_one_warning(make_config, tmp_path):
    config = make_config(source="auto", num_train=5, num_validation=5, num_test=5)
    with pytest.warns(UserWarning) as caught:
        task = lra_tasks.load(config, tmp_path, progress=False)
    assert task.source == "generated" and len(caught) == 1
    assert "using source 'generated'" in str(caught[0].message)


def test_numbers_and_lengths_of_the_config_hold(make_config, tmp_path):
    write_folder(tmp_path / "data")
    lengths = sorted(len(ids) for ids, _ in TREES["train"])
    bound = lengths[8]
    config = make_config(
        source="release", data_dir=str(tmp_path / "data"), max_length=bound, num_train=3
    )
    task = lra_tasks.load(config, tmp_path, progress=False)
    kept = [tree for tree in TREES["train"] if len(tree[0]) < bound][:3]
    examples = task.splits["train"].examples.__getitems__([0, 1, 2])
    assert [(e["inputs"].tobytes(), e["label"]) for e in examples] == kept
    assert not task.comparable_to_lra and "tokens" in task.why_not_comparable
    config.min_length, config.num_train = bound - 2, 0
    fields = f"config.task.min_length={bound - 2} and max_length={bound}: basic_train.tsv has 0 ex"
    lengths = f"more than {bound - 2} and less than {bound} tokens"
    with pytest.raises(ValueError, match=f"{fields}.*{lengths}"):
        lra_tasks.load(config, tmp_path, progress=False)
    config.min_length, config.num_train = 10, 50
    with pytest.raises(ValueError, match=r"num_train=50: basic_train.tsv has \d expressions"):
        lra_tasks.load(config, tmp_path, progress=False)


def test_only_the_whole_release_is_comparable(make_config):
    config = make_config(source="release", min_length=500, max_length=2000, padded_length=2048)
    assert listops.why_not_comparable(config, "release", {"sizes": listops.FULL_SIZES}) == ""
    fewer = {**listops.FULL_SIZES, "test": 1999}
    assert "1999" in listops.why_not_comparable(config, "release", {"sizes": fewer})
    assert listops.why_not_comparable(config, "generated", {}) == ""
    assert "smoke" in listops.why_not_comparable(config, "synthetic", {})


MALFORMED = [
    (b"( ( ( [MIN 1 ) 2 ) ] )\t1\textra", "3 fields"),
    (b"( ( ( [MIN 1 ) 2 ) ] )", "1 fields"),
    (b"", "1 fields"),
    (b"( ( ( [MIN 1 ) 2 ) ] )\t11", "value '11': expected a digit"),
    (b"( ( ( [MIN 1 ) 2 ) ] )\tone", "expected a digit"),
    (b"( ( ( [MIN 1 ) 2 ) ] )\t2", "value 2, but the expression's is 1"),
    (b"( ( ( [AVG 1 ) 2 ) ] )\t1", r"unknown token '\[AVG'"),
    (b"( ( ( [MIN 1 ) 12 ) ] )\t1", "unknown token '12'"),
    (b"( ( [MIN 1 ) 2 )\t1", "not closed"),
    (b"1 ]\t1", "without an operator"),
    (b"\t1", "0 expressions"),
    ("[MIN \N{SUPERSCRIPT TWO} ]\t1".encode(), "unknown token"),
]


@pytest.mark.parametrize(("row", "message"), MALFORMED)
def test_malformed_rows_are_reported_with_file_and_line(make_config, tmp_path, row, message):
    lines = TSV["basic_test.tsv"].splitlines()
    lines[2] = row
    write_folder(tmp_path / "data", {**TSV, "basic_test.tsv": b"\n".join(lines)})
    config = make_config(source="release", data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=f"basic_test.tsv, line 3: .*{message}"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").rglob("set.json"))


def test_a_file_without_end_is_refused(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(release, "MAX_LINES", 3)
    write_folder(tmp_path / "data", TSV)
    config = make_config(source="release", data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"basic_train\.tsv, line 4: expected at most 3 lines"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("content", [b"", b"\n", b"1\t1\n", TSV["basic_val.tsv"][1:]])
def test_missing_header(make_config, tmp_path, content):
    write_folder(tmp_path / "data", {**TSV, "basic_val.tsv": content})
    config = make_config(source="release", data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match=r"basic_val.tsv, line 1: .*expected the header"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("write", [write_folder, lambda d, f: write_archive(d, "lra_release/", f)])
def test_a_byte_order_mark_is_skipped_and_counted(make_config, tmp_path, write):
    marked = FILES["train"]
    data_dir = tmp_path / "lra_release.tar.gz" if write is not write_folder else tmp_path / "data"
    write(data_dir, TSV | {marked: b"\xef\xbb\xbf" + TSV[marked]})
    config = make_config(source="release", data_dir=str(data_dir))
    notes = {}
    makers = release.examples(config, release.find_files(config), notes)
    found = [(e["inputs"].tobytes(), e["label"]) for e in makers["train"]()]
    assert found == [(bytes(ids), value) for ids, value in TREES["train"]]
    [(where, count)] = notes["byte_order_marks"].items()
    assert marked in where and count == 1


def test_empty_split(make_config, tmp_path):
    write_folder(tmp_path / "data", {**TSV, "basic_val.tsv": HEADER})
    config = make_config(source="release", data_dir=str(tmp_path / "data"))
    with pytest.raises(ValueError, match="no examples for the validation split"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)


def test_windows_line_ends(make_config, tmp_path):
    write_folder(tmp_path, {name: content.replace(b"\n", b"\r\n") for name, content in TSV.items()})
    config = make_config(source="release", data_dir=str(tmp_path))
    assert_same(lra_tasks.load(config, tmp_path / "cache", progress=False))


def test_missing_file_and_folder(make_config, tmp_path):
    config = make_config(source="release", data_dir=str(tmp_path))
    [problem] = lra_tasks.check(config, tmp_path)
    assert str(tmp_path / "lra_release" / FOLDER) in problem and "lra_release.gz" in problem
    write_folder(tmp_path / FOLDER, {"basic_train.tsv": b""})
    [problem] = lra_tasks.check(config, tmp_path)
    assert "lacks basic_val.tsv, basic_test.tsv" in problem
    [problem] = lra_tasks.check(make_config(source="release"), tmp_path)
    assert "config.task.data_dir" in problem and "fetch lra_release.gz" in problem


def test_archive_without_the_files(make_config, tmp_path):
    write_archive(tmp_path / "lra_release.gz", "", {"basic_val.tsv": TSV["basic_val.tsv"]})
    config = make_config(source="release", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"does not hold .*basic_train.tsv.*basic_test.tsv"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_truncated_archive(make_config, tmp_path, share):
    archive = tmp_path / "lra_release.gz"
    write_archive(archive, "lra_release/")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * share)])
    config = make_config(source="release", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"truncated or damaged|does not hold"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(make_config, tmp_path):
    write_folder(tmp_path)
    (tmp_path / "basic_val.tsv").chmod(0)
    [problem] = lra_tasks.check(make_config(source="release", data_dir=str(tmp_path)))
    assert "cannot read" in problem


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that can't be read")
def test_a_disk_that_fails_is_not_the_cache_s(make_config, tmp_path):
    """Its error names no file."""
    write_folder(tmp_path)
    (tmp_path / "basic_val.tsv").unlink()
    (tmp_path / "basic_val.tsv").symlink_to("/proc/self/mem")
    config = make_config(source="release", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"basic_val\.tsv: can't be read: .*Input/output error"):
        lra_tasks.prepare_set(config, tmp_path / "cache", progress=False)


def mutate(draw_value, content):
    """Cuts, repeats, or overwrites a few pieces of `content`."""
    data = bytearray(content)
    for _ in range(draw_value(st.integers(1, 4))):
        start = draw_value(st.integers(0, len(data)))
        length = draw_value(st.integers(0, 8))
        new = draw_value(st.binary(max_size=8) | st.sampled_from([b"\t", b"\n", b"]", b"(", b" "]))
        data[start : start + length] = new
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_rows_give_whole_expressions_or_a_value_error(data):
    content = mutate(data.draw, TSV["basic_test.tsv"])
    try:
        rows = list(release.read_rows(io.BytesIO(content), "f.tsv"))
    except ValueError as error:
        assert str(error).startswith("f.tsv, line ")
        return
    for ids, value in rows:
        assert listops.evaluate(ids) == value
        assert np.frombuffer(ids, np.uint8).min() >= 1


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_archives_give_rows_or_a_value_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mutated")
    mode = data.draw(st.sampled_from(["w:gz", "w"]))
    write_archive(folder / "lra_release.gz", "", mode=mode)
    mutated = mutate(data.draw, (folder / "lra_release.gz").read_bytes())
    (folder / "lra_release.gz").write_bytes(mutated)
    try:
        rows = release._read_archive(folder / "lra_release.gz")
    except ValueError as error:
        assert "lra_release.gz" in str(error)
        return
    assert set(rows) == set(SIZES)


def test_bounds_of_length_are_exclusive(make_config):
    asked, notes = make_config(min_length=4, max_length=7, num_train=0), {}
    rows = [(bytes(length), 0) for length in (4, 5, 6, 7)]
    kept = release._select("train", lambda: rows, asked, notes)
    assert [len(example["inputs"]) for example in kept] == [5, 6]
    assert notes["train_left_out_by_length"] == 2
