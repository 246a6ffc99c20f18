"""Batches: every example once, a pure function of (seed, step), padding marked."""

import dataclasses
import threading

import numpy as np
import pytest

import lra_tasks
from lra_tasks.task import Batches, Split, Task, prefetch, seeded_permutation


class InMemory:
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitems__(self, indices):
        assert all(type(i) is int for i in indices)
        return [self.examples[i] for i in indices]


def make_task(count=103, buckets=(), num_documents=1, id_offset=1, longest=60, seed=0):
    """Documents whose label is their index, so that batches say which examples they hold."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, (count, num_documents)).astype(np.int32)
    examples = [
        {
            name: rng.integers(0, 256, n, dtype=np.uint8)
            for name, n in zip(("inputs", "inputs2"), row, strict=False)
        }
        | {"label": index}
        for index, row in enumerate(lengths)
    ]
    split = Split(InMemory(examples), lengths)
    return Task(
        name="made",
        num_classes=count,
        vocab_size=257,
        max_length=longest,
        num_documents=num_documents,
        id_offset=id_offset,
        splits={"train": split, "validation": split, "test": split},
        source="synthetic",
        fingerprint="",
        comparable_to_lra=False,
        why_not_comparable="",
        bucket_boundaries=buckets,
        padded_length=64,
    )


def labels_of_epoch(batches, epoch=0):
    steps = range(epoch * len(batches), (epoch + 1) * len(batches))
    return [batches[step]["label"][batches[step]["weight"] == 1] for step in steps]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name])


CASES = [
    pytest.param(buckets, documents, size, id=f"{len(buckets)}buckets-{documents}docs-batch{size}")
    for buckets in ((), (16, 32, 64))
    for documents in (1, 2)
    for size in (1, 8, 103, 200)
]


@pytest.mark.parametrize(("buckets", "num_documents", "batch_size"), CASES)
@pytest.mark.parametrize("seed", [None, 5])
def test_every_example_once_per_epoch(buckets, num_documents, batch_size, seed):
    task = make_task(buckets=buckets, num_documents=num_documents)
    batches = Batches(task, "train", batch_size, seed)
    assert len(batches) == -(-103 // batch_size)
    for epoch in (0,) if seed is None else (0, 1, 7):
        labels = np.concatenate(labels_of_epoch(batches, epoch))
        assert sorted(labels) == list(range(103))


@pytest.mark.parametrize(("buckets", "num_documents", "batch_size"), CASES)
def test_contents_of_batches(buckets, num_documents, batch_size):
    task = make_task(buckets=buckets, num_documents=num_documents)
    batches = Batches(task, "train", batch_size, seed=1)
    for step in range(len(batches)):
        batch = batches[step]
        inputs, mask, label, weight = (
            batch[name] for name in ("inputs", "mask", "label", "weight")
        )
        width = inputs.shape[-1]
        assert width in batches.shapes and batches.shapes <= set(buckets or (64,))
        shape = (batch_size, width) if num_documents == 1 else (batch_size, 2, width)
        assert inputs.shape == mask.shape == shape
        assert label.shape == weight.shape == (batch_size,)
        assert [a.dtype for a in (inputs, mask, label, weight)] == [
            np.int32,
            bool,
            np.int32,
            np.float32,
        ]
        assert (inputs[~mask] == 0).all() and (inputs[mask] >= 1).all()
        real = int(weight.sum())
        assert weight.tolist() == [1.0] * real + [0.0] * (batch_size - real)
        assert not mask[real:].any() and not label[real:].any()
        rows = inputs.reshape(batch_size, num_documents, width)
        for row in range(real):
            example = task.splits["train"].examples.examples[label[row]]
            for document, name in zip(rows[row], ("inputs", "inputs2"), strict=False):
                n = len(example[name])
                np.testing.assert_array_equal(document[:n], example[name].astype(np.int32) + 1)
                assert not document[n:].any()


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("buckets", [(), (16, 32, 64)])
def test_shapes_are_those_that_occur(seed, buckets):
    batches = Batches(make_task(count=500, buckets=buckets), "train", 8, seed)
    assert batches.shapes == {batches[i]["inputs"].shape[1] for i in range(len(batches))}


def test_ids_without_offset_keep_real_zeros_and_mark_them_real():
    task = make_task(id_offset=0)
    batch = Batches(task, "test", 103)[0]
    mask, inputs = batch["mask"], batch["inputs"]
    assert mask.sum() == task.splits["test"].lengths.sum()
    assert (inputs[mask] == 0).any() and inputs.max() == 255


def test_evaluation_is_in_order_within_buckets_and_ends():
    task = make_task(buckets=(16, 32, 64))
    batches = Batches(task, "validation", 8)
    longest = task.splits["validation"].lengths.max(axis=1)
    expected = sorted(range(103), key=lambda i: np.searchsorted((16, 32, 64), longest[i]))
    assert np.concatenate(labels_of_epoch(batches)).tolist() == expected
    unbucketed = Batches(make_task(), "validation", 8)
    assert np.concatenate(labels_of_epoch(unbucketed)).tolist() == list(range(103))
    assert len(list(batches)) == 13
    for step in (13, -1):
        with pytest.raises(IndexError, match="0 to 12"):
            batches[step]


def test_the_last_batch_alone_is_incomplete_without_buckets_in_evaluation():
    weights = [batch["weight"].sum() for batch in Batches(make_task(), "test", 10)]
    assert weights == [10] * 10 + [3]


@pytest.mark.parametrize("buckets", [(), (16, 32, 64)])
def test_batches_are_a_pure_function_of_seed_and_step(buckets):
    task = make_task(buckets=buckets)
    one = Batches(task, "train", 8, seed=3)
    forward = [one[step] for step in range(40)]
    other = Batches(task, "train", 8, seed=3)
    for step in reversed(range(40)):
        assert_equal(other[step], forward[step])


@pytest.mark.parametrize("buckets", [(), (16, 32, 64)])
def test_order_differs_by_seed_and_epoch(buckets):
    task = make_task(buckets=buckets)
    orders = [
        np.concatenate(labels_of_epoch(Batches(task, "train", 8, seed), epoch)).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4
    # and the composition of batches, not just their order
    first, second = (
        {frozenset(b.tolist()) for b in labels_of_epoch(Batches(task, "train", 8, 0), epoch)}
        for epoch in (0, 1)
    )
    assert len(first & second) <= 2


def test_buckets_hold_alike_lengths_and_widths_are_the_smallest_that_fit():
    task = make_task(count=1000, buckets=(16, 32, 64), num_documents=2)
    batches = Batches(task, "train", 8, seed=0)
    longest = task.splits["train"].lengths.max(axis=1)
    widths, mixed = [], 0
    for step in range(len(batches)):
        chosen, width = batches.indices(step)
        widths.append(width)
        fits = np.array([16, 32, 64])[np.searchsorted([16, 32, 64], longest[chosen])]
        assert fits.max() == width
        mixed += len(set(fits)) > 1
    assert mixed <= 2  # only batches of leftovers
    assert sum(abs(np.diff(widths)) > 0) > 10  # batches of all widths are interleaved


def test_every_number_of_leftovers_keeps_the_epoch_length():
    for count in range(1, 60):
        task = make_task(count=count, buckets=(16, 32, 64))
        batches = Batches(task, "train", 8, seed=0)
        for epoch in (0, 1):
            sizes = [len(labels) for labels in labels_of_epoch(batches, epoch)]
            assert sum(sizes) == count and min(sizes) >= 1
            assert sum(size < 8 for size in sizes) <= 1


def test_batches_from_many_threads(listops_task):
    batches = Batches(listops_task, "train", 8, seed=0)
    expected = [batches[step] for step in range(64)]
    results = {}

    def work(steps):
        for step in steps:
            results[step] = batches[step]

    threads = [threading.Thread(target=work, args=(range(i, 64, 4),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for step in range(64):
        assert_equal(results[step], expected[step])


def test_prefetch_equals_indexing(listops_task):
    batches = Batches(listops_task, "train", 8, seed=0)
    for step, batch in prefetch(batches, 30, 40):
        assert_equal(batch, batches[step])


def test_listops_batches_hold_true_expressions(listops_task):
    from lra_tasks import listops

    batch = Batches(listops_task, "train", 32, seed=0)[0]
    for inputs, mask, label in zip(batch["inputs"], batch["mask"], batch["label"], strict=True):
        assert listops.evaluate(inputs[mask]) == label


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1, "seed": -1}, "seed=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Batches(make_task(), "train", **arguments)


def test_documents_longer_than_the_padded_length_are_refused():
    for changes in ({"padded_length": 30}, {"bucket_boundaries": (16, 32)}):
        with pytest.raises(ValueError, match=r"60 tokens, longer than the padded length 3"):
            Batches(dataclasses.replace(make_task(), **changes), "train", 8)


def test_seeded_permutation_is_fixed():
    # The order of training examples follows from it; a change makes runs irreproducible.
    assert seeded_permutation(8, 0, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert sorted(seeded_permutation(1000, 1, 2)) == list(range(1000))
    assert seeded_permutation(0, 1).tolist() == []


def test_steps_a_long_way_on_need_no_earlier_ones():
    batches = Batches(make_task(buckets=(16, 32, 64)), "train", 8, seed=0)
    epoch = 10**9
    labels = np.concatenate(labels_of_epoch(batches, epoch))
    assert sorted(labels) == list(range(103))


def test_a_far_step_costs_one_plan_and_the_rest_of_its_epoch_none(monkeypatch):
    drawn = []

    def counted(num_items, *seed):
        drawn.append(seed[1])
        return seeded_permutation(num_items, *seed)

    monkeypatch.setattr(lra_tasks.task, "seeded_permutation", counted)
    batches = Batches(make_task(buckets=(16, 32, 64)), "train", 8, seed=0)
    epoch = 10**9
    for step in range(epoch * len(batches), (epoch + 1) * len(batches)):
        batches.indices(step)
    assert drawn == [epoch, epoch]  # the order of its examples, and that of its batches


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inputs", [1, 255, 2], r"inputs has the token id 255 at position 1, expected 0 to 254"),
        ("inputs", [1, 2, -1], r"inputs has the token id -1 at position 2"),
        ("inputs", [1, 1 << 40, 2], r"inputs has the token id 1099511627776"),  # wraps in int32
        ("inputs", [1, 2], r"inputs has 2 tokens, expected 3"),
        ("label", 103, r"label 103, expected 0 to 102"),
        ("label", -1, r"label -1"),
    ],
)
def test_what_a_model_would_turn_into_nan_or_another_example_is_refused(name, value, message):
    task = dataclasses.replace(make_task(), vocab_size=256)
    examples = [{"inputs": np.array([1, 2, 254]), "label": 5} for _ in range(4)]
    lengths = np.full((4, 1), 3, np.int32)
    task = dataclasses.replace(task, splits={"train": Split(InMemory(examples), lengths)})
    assert Batches(task, "train", 4)[0]["inputs"].max() == 255  # the last id, after the offset
    examples[2] = examples[2] | {name: value if name == "label" else np.array(value)}
    task = dataclasses.replace(task, splits={"train": Split(InMemory(examples), lengths)})
    with pytest.raises(ValueError, match=rf"made train, example 2: {message}"):
        Batches(task, "train", 4)[0]


def test_an_id_that_the_splits_dtype_cannot_hold_is_refused():
    examples = [{"inputs": np.array([1, 300, 2], np.uint16), "label": 5}]
    task = dataclasses.replace(
        make_task(), vocab_size=600, splits={"train": Split(InMemory(examples), np.array([[3]]))}
    )
    with pytest.raises(ValueError, match="the token id 300 at position 1, expected 0 to 255"):
        Batches(task, "train", 1)[0]


def test_augmented_batches(make_config, cache_dir):
    """Other orders of arguments in every epoch of training, the same trees; none in evaluation."""
    from lra_tasks import listops

    bounds = {"bucket_boundaries": (32, 64, 128)}
    plain, task = (
        lra_tasks.load(make_config(augment=augment, **bounds), cache_dir, progress=False)
        for augment in (False, True)
    )
    given, batches = (lra_tasks.Batches(x, "train", 8, seed=3) for x in (plain, task))
    changed = 0
    for step in range(len(batches)):
        batch, before = batches[step], given[step]
        for name in ("mask", "label", "weight"):
            np.testing.assert_array_equal(batch[name], before[name])
        changed += (batch["inputs"] != before["inputs"]).any(axis=1).sum()
        rows = zip(batch["inputs"], batch["mask"], batch["label"], batch["weight"], strict=True)
        for ids, mask, label, weight in rows:
            assert not weight or listops.evaluate(ids[mask]) == label
        assert not batch["inputs"][~batch["mask"]].any()
    assert changed > 0.9 * len(task.splits["train"].lengths)
    assert_equal(batches[5], lra_tasks.Batches(task, "train", 8, seed=3)[5])
    some = lra_tasks.Batches(task, "train", 8, seed=3, rows=[1, 6])[5]
    assert_equal(some, {name: x[[1, 6]] for name, x in batches[5].items()})
    validation = (lra_tasks.Batches(x, "validation", 8)[0] for x in (plain, task))
    assert_equal(*validation)


def test_augmenting_is_refused_where_there_is_no_such_thing(make_config):
    problems = lra_tasks.check(make_config("text", augment=True))
    assert problems == ["config.task.augment=True: expected False: text has nothing to change"]
