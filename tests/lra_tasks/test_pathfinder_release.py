import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pathfinder_files import FOLDER, NUM_EMPTY, PICTURES, config, png, write_release

import lra_tasks
from lra_tasks import pathfinder
from lra_tasks.pathfinder import release as reader

GOOD_PNG = png(PICTURES.images[0])
GOOD_LINE = b"imgs/1 sample_0.png 0 1 1.0 14 4 2 0.5 1 1"


@pytest.fixture
def release(tmp_path):
    write_release(tmp_path)
    return tmp_path


def write_archive(root, path, prefix="lra_release"):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root / "pathfinder32", f"{prefix}/pathfinder32")


def read_all(data_dir, **fields):
    asked = config(source="release", data_dir=str(data_dir), **fields)
    notes = {}
    makers = pathfinder.examples(asked, "release", pathfinder.find_files(asked, "release"), notes)
    return {split: list(make()) for split, make in makers.items()}, notes


@pytest.mark.parametrize(
    "layout",
    ["pathfinder32", "", "lra_release", "lra_release/lra_release", "tar", "file", "nested tar"],
)
def test_every_layout_gives_the_same_examples(layout, tmp_path):
    expected = write_release(tmp_path / "plain")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    if "tar" in layout or layout == "file":
        prefix = "lra_release/lra_release" if "nested" in layout else "lra_release"
        archive = data_dir / "lra_release.gz"
        write_archive(tmp_path / "plain", archive, prefix)
        data_dir = archive if layout == "file" else data_dir
    elif layout == "pathfinder32":
        data_dir = tmp_path / "plain" / "pathfinder32"
    else:
        shutil.copytree(tmp_path / "plain", data_dir / layout, dirs_exist_ok=True)
    splits, notes = read_all(data_dir)
    assert [len(examples) for examples in splits.values()] == [45, 6, 6]
    assert notes["images_listed"] == 60
    assert notes["images_empty"] == NUM_EMPTY
    examples = [example for split in splits.values() for example in split]
    found = {example["inputs"].tobytes(): example["label"] for example in examples}
    assert found == expected
    assert notes["share_of_label_1"] == round(np.mean(list(expected.values())), 4)
    # The order is that of metadata 2, 10, permuted by the seed, wherever the files are.
    plain, _ = read_all(tmp_path / "plain")
    for one, two in zip(examples, (e for split in plain.values() for e in split), strict=True):
        np.testing.assert_array_equal(one["inputs"], two["inputs"])


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_macos_and_byte_order_marks_are_skipped_and_counted(packed, release, tmp_path):
    expected, _ = read_all(release)
    metadata = release / FOLDER / "metadata"
    (metadata / "._0.npy").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (metadata / "._2.npy").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (metadata / "2.npy").write_bytes(b"\xef\xbb\xbf" + (metadata / "2.npy").read_bytes())
    if packed:
        write_archive(release, tmp_path / "lra_release.gz")
    splits, notes = read_all(tmp_path / "lra_release.gz" if packed else release)
    for name, examples in expected.items():
        for one, two in zip(examples, splits[name], strict=True):
            np.testing.assert_array_equal(one["inputs"], two["inputs"])
    skipped = {Path(where).name for where in notes["macos_files_skipped"]}
    assert skipped == {"._0.npy", "._2.npy"} and sum(notes["byte_order_marks"].values()) == 1


def test_a_folder_with_nothing_but_files_of_macos_has_no_metadata(release):
    for path in (release / FOLDER / "metadata").iterdir():
        path.rename(path.with_name("._" + path.name))
    with pytest.raises(ValueError, match=r"metadata has no \.npy files"):
        read_all(release)


def test_split_depends_on_the_seed_alone(release):
    def train(**fields):
        return [e["inputs"].tobytes() for e in read_all(release, **fields)[0]["train"]]

    assert train() == train()
    assert train() != train(data_seed=1)
    assert train(num_train=10) == train()[:10]


def test_load_gives_the_release_and_its_notes(release, tmp_path):
    asked = config(source="auto", data_dir=str(release))
    task = lra_tasks.load(asked, tmp_path / "cache", progress=False)
    assert task.source == "release"
    assert "lists 60 images" in task.why_not_comparable
    assert len(lra_tasks.Batches(task, "test", 4)) == 2


# ---- what is wrong with the files


def test_a_release_of_many_empty_images_is_refused(tmp_path):
    """As unpacking leaves one on a full disk."""
    write_release(tmp_path)
    folder = tmp_path / FOLDER
    lines = [f"imgs/3 empty_{i}.png {i} 1 1.0 14 4 2 0.5 1 1\n" for i in range(1_000)]
    (folder / "metadata" / "3.npy").write_text("".join(lines))
    (folder / "imgs" / "3").mkdir()
    for line in lines:
        (folder / "/".join(line.split()[:2])).touch()
    with pytest.raises(ValueError, match=r"1,003 of 1,060 images are empty files"):
        read_all(tmp_path)


def break_release(folder, how):
    image = folder / "imgs" / "10" / "sample_5.png"
    table = folder / "metadata" / "10.npy"
    if how == "truncated PNG":
        image.write_bytes(image.read_bytes()[:90])
    elif how == "not a PNG":
        image.write_bytes(b"GIF89a" + bytes(100))
    elif how == "larger image":
        image.write_bytes(png(np.zeros((64, 64), np.uint8)))
    elif how == "colour image":
        image.write_bytes(png(np.zeros((32, 32, 3), np.uint8)))
    elif how == "bomb":
        header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
        check = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        image.write_bytes(GOOD_PNG[:16] + header + check + GOOD_PNG[33:])
    elif how == "huge file":
        image.write_bytes(GOOD_PNG + bytes(reader.MAX_PNG_BYTES))
    elif how == "missing PNG":
        image.unlink()
    elif how == "NumPy metadata":
        np.save(table, np.array([["imgs/10", "sample_0.png"]]))
    elif how == "short line":
        table.write_bytes(table.read_bytes() + b"imgs/10 sample_99.png 1\n")
    elif how == "label 2":
        table.write_bytes(table.read_bytes() + b"imgs/10 sample_99.png 1 2\n")
    elif how == "path out":
        table.write_bytes(table.read_bytes() + b"imgs/.. metadata/2.png 1 1\n")
    elif how == "listed twice":
        table.write_bytes(table.read_bytes() * 2)
    elif how == "no metadata":
        shutil.rmtree(folder / "metadata")
    elif how == "empty metadata folder":
        for path in (folder / "metadata").iterdir():
            path.unlink()
    elif how == "no images":
        shutil.rmtree(folder / "imgs")
    elif how == "empty metadata":
        for path in (folder / "metadata").iterdir():
            path.write_bytes(b"\n")


PROBLEMS = {
    "truncated PNG": "imgs/10/sample_5.png: a damaged PNG",
    "not a PNG": "imgs/10/sample_5.png: not a PNG file, but begins with b'GIF89a",
    "larger image": "imgs/10/sample_5.png: 64x64 pixels.*expected 32x32",
    "colour image": "imgs/10/sample_5.png: 32x32.*colour type 2; expected.*grey",
    "bomb": "imgs/10/sample_5.png: 60000x60000 pixels",
    "huge file": "sample_5.png: more than 131,072 bytes",
    "missing PNG": "sample_5.png: listed in .*metadata.*No such file.*unpacked in full",
    "NumPy metadata": "10.npy: a NumPy file; the release's metadata is plain text",
    "short line": "10.npy, line 31: b'imgs/10 sample_99.png 1'; expected 'imgs/<n> name.png",
    "label 2": "10.npy, line 31:.*label 0 or 1",
    "path out": "10.npy, line 31:",
    "listed twice": r"10.npy, line \d+: lists imgs/10/sample_0.png a second time",
    "no metadata": "curv_contour_length_14 lacks the folder metadata",
    "empty metadata folder": "metadata has no .npy files",
    "no images": "curv_contour_length_14 lacks the folder imgs",
    "empty metadata": "lists no image that is not empty",
}


@pytest.mark.parametrize("how", PROBLEMS)
def test_damage_is_named_and_leaves_nothing(how, release, tmp_path):
    break_release(release / FOLDER, how)
    cache = tmp_path / "cache"
    with pytest.raises(ValueError, match=f"(?s){PROBLEMS[how]}"):
        lra_tasks.load(config(source="release", data_dir=str(release)), cache, progress=False)
    left = [path for path in cache.rglob("*") if path.suffix != ".lock" and path.is_file()]
    assert left == []


@pytest.mark.parametrize("part", ["imgs", "metadata"])
def test_files_unpacked_in_part_leave_the_archive_beside_them(part, release):
    expected, _ = read_all(release)
    write_archive(release, release / "lra_release.gz")
    shutil.rmtree(release / FOLDER / part)
    splits, _ = read_all(release)
    for one, two in zip(splits["test"], expected["test"], strict=True):
        np.testing.assert_array_equal(one["inputs"], two["inputs"])


def test_damaged_archive_is_named(release, tmp_path):
    archive = tmp_path / "lra_release.gz"
    write_archive(release, archive)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"lra_release\.gz"):
        read_all(archive)
    write_archive(release, archive)
    with pytest.raises(ValueError, match="curv_baseline/metadata"):
        read_all(archive, difficulty="easy")
    (release / FOLDER / "imgs" / "2" / "sample_7.png").unlink()
    write_archive(release, archive)
    with pytest.raises(ValueError, match=r"imgs/2/sample_7.png is listed, but not in the archive"):
        read_all(archive)


def test_missing_folder_says_where_it_looked(tmp_path):
    problems = lra_tasks.check(config(source="release", data_dir=str(tmp_path)))
    assert len(problems) == 1
    for place in ("pathfinder32", "lra_release/lra_release/pathfinder32"):
        assert str(tmp_path / place / "curv_contour_length_14") in problems[0]
    other = tmp_path / "cifar.tar.gz"
    other.write_bytes(b"x")
    assert "lra_release.gz" in lra_tasks.check(config(source="release", data_dir=str(other)))[0]


def test_more_images_asked_for_than_there_are(release):
    with pytest.raises(ValueError, match=r"num_test=7: the 80/10/10 split of 57 images has 6"):
        read_all(release, num_test=7)


def test_metadata_are_read_by_number(release):
    """2.npy before 10.npy: which images a split has follows from their order."""
    asked = config(source="release", data_dir=str(release))
    files = pathfinder.find_files(asked, "release")
    assert [path.name for path in files] == ["imgs", "2.npy", "10.npy"]


@pytest.mark.parametrize("label", "01")
def test_labels_that_are_not_balanced_are_refused(label, release, monkeypatch):
    monkeypatch.setattr(reader, "BALANCED_FROM", 50)
    read_all(release)
    for table in (release / FOLDER / "metadata").iterdir():
        lines = [line.split() for line in table.read_text().splitlines()]
        table.write_text("\n".join(" ".join([*line[:3], label, *line[4:]]) for line in lines))
    with pytest.raises(ValueError, match=rf"{100 * int(label)}\.0% of 57 labels are 1"):
        read_all(release)


def mutations(data):
    """Bytes near `data`: some overwritten, some removed, some put in, cut short or grown."""
    places = st.integers(0, len(data))
    edit = st.tuples(places, st.integers(0, 6), st.binary(max_size=6))

    def apply(edits):
        changed = data
        for place, removed, added in edits:
            changed = changed[:place] + added + changed[place + removed :]
        return changed

    return st.lists(edit, max_size=4).map(apply) | st.binary(max_size=200)


@settings(max_examples=400, deadline=None)
@given(mutations(GOOD_PNG))
def test_any_bytes_are_an_image_or_a_clean_error(data):
    try:
        pixels = reader.decode_png(data, 32, "imgs/1/a.png")
    except ValueError as error:
        assert str(error).startswith("imgs/1/a.png: ")
    else:
        assert pixels.shape == (32, 32)
        assert pixels.dtype == np.uint8


def with_right_checksums(data):
    """The same PNG with every chunk's checksum made right, so that decoding gets further."""
    out, place = data[:8], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        out += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return out


@settings(max_examples=300, deadline=None)
@given(mutations(GOOD_PNG[33:]))
def test_any_chunks_are_an_image_or_a_clean_error(rest):
    data = with_right_checksums(GOOD_PNG[:33] + rest)
    try:
        pixels = reader.decode_png(data, 32, "a.png")
    except ValueError as error:
        assert str(error).startswith("a.png: ")
    else:
        assert pixels.shape == (32, 32)


@settings(max_examples=400, deadline=None)
@given(mutations(GOOD_LINE + b"\n" + GOOD_LINE))
def test_any_metadata_is_safe_paths_or_a_clean_error(data):
    try:
        listed = list(reader.parse_metadata(data, "metadata/1.npy"))
    except ValueError as error:
        assert str(error).startswith("metadata/1.npy")
    else:
        for _, path, label in listed:
            assert Path(path).parts[0] == "imgs"
            assert ".." not in Path(path).parts
            assert len(Path(path).parts) == 3
            assert label in (0, 1)


def test_good_bytes_are_read_exactly():
    np.testing.assert_array_equal(reader.decode_png(GOOD_PNG, 32, ""), PICTURES.images[0])
    assert list(reader.parse_metadata(GOOD_LINE, "")) == [(1, "imgs/1/sample_0.png", 1)]
