"""Image: grey levels, the official binary files, splits, fuzzing."""

import hashlib

import numpy as np
import pytest
from official_files import cifar_files, damage, read_all, tar_bytes, unpack

import lra_tasks
from lra_tasks import image

# tf.image.rgb_to_grayscale of TensorFlow 2.21, on all colours 0x000000 .. 0xffffff in order.
TENSORFLOW_SHA256 = "824a76d81dad2c5a2cf1fa0b2c0a5afe7d871ec2970e4fa2809b53ddbecdca93"


@pytest.fixture
def make_image(make_config):
    fields = {"source": "release", "max_length": 1024, "padded_length": 1024}
    return lambda **changes: make_config("image", **fields | changes)


def load(config, cache_dir):
    return lra_tasks.load(config, cache_dir, progress=False)


def test_grey_is_tensorflows_for_every_colour():
    digest = hashlib.sha256()
    green, blue = (axis.astype(np.uint8) for axis in np.mgrid[:256, :256])
    for red in range(256):
        digest.update(image.grey(np.full_like(green, red), green, blue).tobytes())
    assert digest.hexdigest() == TENSORFLOW_SHA256


def test_planes_are_red_green_blue_in_raster_order():
    planes = np.zeros((3, 32, 32), np.uint8)
    planes[0, 0, 1], planes[1, 1, 0], planes[2, 31, 31] = 255, 255, 255
    pixels, labels = image.read_records(b"\x07" + planes.tobytes(), "x")
    assert labels.tolist() == [7] and pixels.shape == (1, 1024)
    lit = {1: 76, 32: 149, 1023: 29}  # 0.2989, 0.587, 0.114 of 255.5, cut
    assert {int(i): int(pixels[0, i]) for i in np.flatnonzero(pixels[0])} == lit


def test_every_layout_gives_the_same_images_in_the_official_order(make_image, tmp_path):
    files = cifar_files()
    unpack(files, tmp_path / "parent")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / image.ARCHIVE).write_bytes(tar_bytes(files))
    (tmp_path / "backwards.tar").write_bytes(tar_bytes(dict(reversed(files.items())), (), False))
    records = [
        np.frombuffer(files[f"{image.FOLDER}/{name}"], np.uint8).reshape(-1, 3073)
        for name in image.FILES
    ]
    train = np.concatenate(records[:5])
    expected = {"train": train[:90], "validation": train[90:], "test": records[5]}
    places = ["parent", f"parent/{image.FOLDER}", "archive", "backwards.tar"]
    for place in places:
        task = load(make_image(source="auto", data_dir=str(tmp_path / place)), tmp_path / "cache")
        assert task.source == "release" and not task.comparable_to_lra
        for split, rows in expected.items():
            examples = read_all(task.splits[split])
            assert [example["label"] for example in examples] == rows[:, 0].tolist()
            planes = rows[:, 1:].reshape(-1, 3, 1024).swapaxes(0, 1)
            np.testing.assert_array_equal([e["inputs"] for e in examples], image.grey(*planes))
    parent = str(tmp_path / "parent")
    task = load(make_image(data_dir=parent, num_train=7), tmp_path / "cache")
    assert len(task.splits["train"].examples) == 7
    with pytest.raises(ValueError, match=r"config.task.num_test=21: the files have 20"):
        load(make_image(data_dir=parent, num_test=21), tmp_path / "cache")


def test_what_compares_with_lra(make_image):
    whole = {"different_archive": "", "images": image.SIZES}
    assert image.why_not_comparable(make_image(), "release", whole) == ""
    assert image.why_not_comparable(make_image(num_train=9), "release", whole)
    few = whole | {"images": {"train": 1}}
    assert image.why_not_comparable(make_image(), "release", few)
    other = whole | {"different_archive": "another"}
    assert image.why_not_comparable(make_image(), "release", other) == "another"


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("data_batch_2.bin", lambda data: data[:-1], r"data_batch_2.bin: 61,459 bytes, expected"),
        ("test_batch.bin", lambda data: b"", r"test_batch.bin: 0 bytes, expected records of 3,073"),
        ("data_batch_5.bin", lambda data: data[:3073] + b"\x0a" + data[3074:],
         r"data_batch_5.bin: record 1 has the label 10, expected 0 to 9"),
    ],
)  # fmt: skip
def test_malformed_files_are_named_and_nothing_is_left(make_image, tmp_path, name, change, problem):
    files = cifar_files()
    path = f"{image.FOLDER}/{name}"
    bad = files | {path: change(files[path])}
    unpack(bad, tmp_path / "folder")
    (tmp_path / "x.tar").write_bytes(tar_bytes(bad))
    for data_dir in (tmp_path / "folder", tmp_path / "x.tar"):
        with pytest.raises(ValueError, match=problem):
            load(make_image(data_dir=str(data_dir)), tmp_path / "cache")
        assert not list((tmp_path / "cache").rglob("*.array_record*"))
    (tmp_path / "folder" / path).write_bytes(files[path])
    load(make_image(data_dir=str(tmp_path / "folder")), tmp_path / "cache")


def test_missing_files_are_named(make_image, tmp_path):
    files = cifar_files()
    del files[f"{image.FOLDER}/data_batch_3.bin"]
    unpack(files, tmp_path / "folder")
    (problem,) = lra_tasks.check(make_image(source="auto", data_dir=str(tmp_path / "folder")))
    assert f"lacks {image.FOLDER}/data_batch_3.bin" in problem
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    with pytest.raises(ValueError, match=r"x.tar: lacks .*data_batch_3.bin"):
        load(make_image(source="auto", data_dir=str(tmp_path / "x.tar")), tmp_path / "cache")
    (problem,) = lra_tasks.check(make_image(source="auto", data_dir=str(tmp_path)))
    assert image.ARCHIVE in problem and image.URL in problem
    (problem,) = lra_tasks.check(make_image(source="package"))
    assert "release, synthetic" in problem
    (problem,) = lra_tasks.check(make_image(max_length=1000))
    assert "max_length=1000: expected 1024" in problem


def test_without_network_or_files_the_error_says_what_to_fetch(make_image, tmp_path, monkeypatch):
    monkeypatch.setattr(image, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with pytest.raises(ValueError, match=r"can't be reached.*cifar-10-binary.*data_dir"):
        load(make_image(source="auto"), tmp_path)


def test_fuzzed_archives_give_images_or_a_clean_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "x"
    data = tar_bytes(cifar_files(2), compress=False)
    whole = 0
    for _ in range(100):
        path.write_bytes(damage(data, rng))
        try:
            image.release_splits([path], {})
            whole += 1
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error), repr(error)
    assert 5 < whole < 95


def test_synthetic_classes_can_be_told_apart_by_their_spectrum(make_image, tmp_path):
    task = load(make_image(source="synthetic"), tmp_path)

    def spectra(split):
        examples = read_all(task.splits[split])
        pictures = np.array([e["inputs"] for e in examples], float).reshape(-1, 32, 32)
        labels = np.array([e["label"] for e in examples])
        return np.abs(np.fft.rfft2(pictures - 128)).reshape(len(labels), -1), labels

    (train, train_labels), (test, test_labels) = spectra("train"), spectra("test")
    means = np.array([train[train_labels == label].mean(0) for label in range(10)])
    nearest = ((test[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == test_labels).mean() > 0.95


def test_a_file_that_is_there_twice_is_refused(make_image, tmp_path):
    files = cifar_files()
    files["data_batch_1.bin"] = files[f"{image.FOLDER}/data_batch_1.bin"]
    (tmp_path / "x.tar").write_bytes(tar_bytes(files))
    config = make_image(data_dir=str(tmp_path / "x.tar"))
    with pytest.raises(ValueError, match=r"x\.tar: data_batch_1\.bin: is there twice"):
        lra_tasks.load(config, tmp_path / "cache", progress=False)
