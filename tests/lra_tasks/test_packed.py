"""Batches gathered from a split's arrays are those laid down record by record, to the bit."""

import dataclasses
import errno

import numpy as np
import pytest
from test_task import make_task

import lra_tasks
from lra_tasks import packed
from lra_tasks.task import Batches


def from_records(batches, step):
    """`batches[step]`, its examples read and laid down one by one."""
    task, split = batches.task, batches.split
    chosen, width = batches.indices(step)
    shape = (batches.batch_size, task.num_documents, width)
    inputs, lengths = np.zeros(shape, np.int32), np.zeros(shape[:2], np.int32)
    label = np.zeros(batches.batch_size, np.int32)
    for row, example in enumerate(split.examples.__getitems__(chosen.tolist())):
        label[row] = example["label"]
        for document, name in enumerate(("inputs", "inputs2")[: task.num_documents]):
            inputs[row, document, : len(example[name])] = example[name]
    lengths[: len(chosen)] = split.lengths[chosen]
    mask = np.arange(width) < lengths[..., None]
    inputs += task.id_offset * mask
    if task.num_documents == 1:
        inputs, mask = inputs[:, 0], mask[:, 0]
    weight = (np.arange(batches.batch_size) < len(chosen)).astype(np.float32)
    return {"inputs": inputs, "mask": mask, "label": label, "weight": weight}


def assert_same(batches):
    assert len(batches) > 1
    for step in range(len(batches)):
        gathered, expected = batches[step], from_records(batches, step)
        assert list(gathered) == list(expected)
        for name in expected:
            np.testing.assert_array_equal(gathered[name], expected[name], strict=True)


@pytest.fixture(scope="module")
def retrieval_task(make_config, cache_dir):
    config = make_config("retrieval", bucket_boundaries=(16, 50, 128))
    return lra_tasks.load(config, cache_dir, progress=False)


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("task", ["listops_task", "retrieval_task"])
def test_the_same_batches_as_record_by_record(task, seed, request):
    task = request.getfixturevalue(task)
    assert_same(Batches(task, "train", 24, seed))
    assert_same(Batches(dataclasses.replace(task, bucket_boundaries=()), "test", 24, seed))


def test_arrays_that_are_too_large_for_memory_are_mapped(retrieval_task, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(packed, "READ_AT_ONCE", 100)
    split = dataclasses.replace(retrieval_task.splits["train"], folder=tmp_path)
    batches = Batches(dataclasses.replace(retrieval_task, splits={"train": split}), "train", 24)
    assert_same(batches)
    assert list(tmp_path.iterdir()) == []  # nothing to be left behind
    mapped = batches._packed.tokens
    while isinstance(mapped, np.ndarray):
        mapped = mapped.base
    assert type(getattr(mapped, "obj", mapped)).__name__ == "mmap"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_folder_that_is_no_folder_is_replaced_by_the_systems(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "MEMORY_SHARE", 0.0)
    (tmp_path / "file").write_text("")
    mapped = packed._allocate(1_000, tmp_path / "file" / "below", dtype)
    assert mapped.shape == (1_000,) and mapped.dtype == dtype and not mapped.any()
    mapped[:] = 1


def test_a_full_disk_is_an_error_that_names_the_place(listops_task, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(packed.os, "posix_fallocate", full)
    split = dataclasses.replace(listops_task.splits["train"], folder=tmp_path)
    batches = Batches(dataclasses.replace(listops_task, splits={"train": split}), "train", 24)
    with pytest.raises(OSError, match=r"no room for a file of .*No space left") as caught:
        batches[0]
    assert str(tmp_path) in str(caught.value) and list(tmp_path.iterdir()) == []


def test_arrays_are_made_once_a_split(listops_task):
    first, second = (Batches(listops_task, "train", size, 0) for size in (8, 24))
    assert first[0]["inputs"].shape != second[0]["inputs"].shape
    assert first._packed is second._packed


def test_a_record_that_is_not_as_it_was_written_is_named_at_the_first_batch(make_config, tmp_path):
    small = make_config(num_train=40, num_validation=5, num_test=5)
    directory = lra_tasks.prepare_set(small, tmp_path, progress=False)
    other = make_config(num_train=40, num_validation=5, num_test=5, data_seed=1)
    [theirs] = lra_tasks.prepare_set(other, tmp_path, progress=False).glob("lra-train.array_rec*")
    [ours] = directory.glob("lra-train.array_record*")
    ours.write_bytes(theirs.read_bytes())
    batches = Batches(lra_tasks.open_set(small, directory), "train", 4, 0)
    with pytest.raises(ValueError, match=r"damaged \(train: example 0 is not as it was written"):
        batches[0]


def test_longer_rows_are_packed_anew():
    task = make_task(8, longest=60)
    wide = dataclasses.replace(task, padded_length=2_000)
    short, long = (Batches(each, "train", 8)[0] for each in (task, wide))
    np.testing.assert_array_equal(long["inputs"][:, :64], short["inputs"])
    assert not long["mask"][:, 64:].any()


def test_the_least_foreign_id_is_named():
    ids = np.array([255], np.uint8)
    assert packed.foreign_ids(ids, 256) == ""
    assert packed.foreign_ids(ids, 255) == "the token id 255 at position 0, expected 0 to 254"
