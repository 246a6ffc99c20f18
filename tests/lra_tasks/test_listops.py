"""ListOps: values, distribution, vocabulary, determinism."""

import collections
import itertools
import os
import random
import re
import statistics
import subprocess
import sys

import numpy as np
import pytest

from lra_tasks import listops

INNERMOST = re.compile(r"\[(MIN|MAX|MED|SM)((?: \d)+) \]")


def value_by_rewriting(text):
    """Value of an expression by replacing innermost applications until a digit is left."""

    def replace(match):
        arguments = [int(digit) for digit in match[2].split()]
        functions = {
            "MIN": min,
            "MAX": max,
            "MED": lambda values: int(statistics.median(values)),
            "SM": lambda values: sum(values) % 10,
        }
        return str(functions[match[1]](arguments))

    while " " in text:
        text, count = INNERMOST.subn(replace, text)
        assert count, f"not an expression: {text}"
    return int(text)


def draw(split, size, *, seed=0, min_length=500, max_length=2000, num_workers=0):
    made = listops.generate(
        split,
        size,
        seed=seed,
        min_length=min_length,
        max_length=max_length,
        seen=set(),
        num_workers=num_workers,
    )
    return [(example["inputs"].tobytes(), example["label"]) for example in made]


@pytest.fixture(scope="module")
def sample():
    """5,000 expressions at LRA's lengths."""
    return draw("train", 5000, seed=7)


def test_labels_are_the_values_by_an_independent_evaluator(sample):
    for ids, label in sample[:300]:
        assert value_by_rewriting(listops.decode(ids)) == label


def test_sums_of_narrow_integers_do_not_wrap():
    """As `encode` makes them, which evaluates too."""
    text = "[SM " + "9 " * 30 + "]"
    assert listops.evaluate(listops.encode(text)) == 0


def test_evaluate_agrees_with_the_independent_evaluator_on_all_shapes():
    rng = random.Random(3)
    trees = [listops.draw_tree(rng, 10**6) for _ in range(500)]
    for ids, label in trees:
        assert listops.evaluate(ids) == label == value_by_rewriting(listops.decode(ids))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("[MED 1 2 ]", 1),
        ("[MED 9 1 4 8 ]", 6),
        ("[SM 9 8 7 ]", 4),
        ("[MIN 4 [MAX 1 2 ] 9 ]", 2),
    ],
)
def test_values_by_hand(text, value):
    assert listops.evaluate(listops.encode(text)) == value


@pytest.mark.parametrize("text", ["", "1 2", "[MIN 1 2", "1 ]", "[SM ]", "[MAX 1 2 ] ]"])
def test_evaluate_refuses_what_is_not_one_expression(text):
    with pytest.raises(ValueError):
        listops.evaluate(listops.encode(text))


def test_lengths_are_those_of_lra(sample):
    lengths = np.array([len(ids) for ids, _ in sample])
    assert lengths.min() > 500 and lengths.max() < 2000
    # Tolerances are four standard errors of a sample of 5,000 (standard deviation 400).
    assert abs(lengths.mean() - 1036) < 4 * 400 / 5000**0.5
    np.testing.assert_allclose(np.percentile(lengths, [25, 50, 75]), [702, 956, 1313], atol=4 * 11)


def test_label_shares_are_those_of_lra(sample):
    shares = np.bincount([label for _, label in sample], minlength=10) / len(sample)
    tolerance = 4 * (0.17 * 0.83 / 5000) ** 0.5
    assert abs(shares[0] - 0.172) < tolerance
    assert abs(shares[9] - 0.167) < tolerance
    assert (shares[1:9] > 0.07 - tolerance).all() and (shares[1:9] < 0.09 + tolerance).all()


def test_trees_have_the_stated_depth_arguments_and_operators():
    # Without bounds on length, each node is drawn independently of all others.
    rng = random.Random(11)
    operators, arguments, depths = collections.Counter(), collections.Counter(), []
    nodes = collections.Counter()  # (depth, is an operator)
    for _ in range(1500):
        ids, _ = listops.draw_tree(rng, 10**6)
        open_counts, deepest = [], 1
        for token in listops.decode(ids).split():
            if token == "]":
                arguments[open_counts.pop()] += 1
                continue
            depth = len(open_counts) + 1
            deepest = max(deepest, depth)
            if open_counts:
                open_counts[-1] += 1
            nodes[depth, token.startswith("[")] += 1
            if token.startswith("["):
                operators[token] += 1
                open_counts.append(0)
        depths.append(deepest)
    assert max(depths) == 10 and nodes[10, True] == 0
    count = sum(operators.values())
    for counts, size in ((operators, 4), (arguments, 9)):
        assert len(counts) == size and sum(counts.values()) == count
        error = (count / size * (1 - 1 / size)) ** 0.5
        assert all(abs(n - count / size) < 4.5 * error for n in counts.values()), counts
    assert set(arguments) == set(range(2, 11))
    for depth in range(1, 10):
        total = nodes[depth, True] + nodes[depth, False]
        assert abs(nodes[depth, True] / total - 0.25) < 4.5 * (0.25 * 0.75 / total) ** 0.5


def test_about_eight_percent_of_trees_qualify():
    kept = [len(listops.draw_chunk((0, 0, n, 500, 2000))) for n in range(10)]
    assert abs(sum(kept) / (10 * listops.DRAWS_PER_CHUNK) - 0.08) < 0.01


def test_expressions_are_the_same_for_any_number_of_workers():
    alone = draw("test", 200, num_workers=0)
    assert draw("test", 200, num_workers=1) == alone
    assert draw("test", 200, num_workers=3) == alone


def test_seed_and_split_change_the_expressions():
    base = set(draw("test", 50))
    assert draw("test", 50) == draw("test", 50)
    assert not base & set(draw("test", 50, seed=1))
    assert not base & set(draw("validation", 50))


def test_no_expression_twice_in_any_split(make_config):
    # There are 10 digits and 400 applications of at most 4 tokens, hence many collisions.
    config = make_config(min_length=0, max_length=5, num_train=250, num_validation=60, num_test=60)
    makers = listops.examples(config, "synthetic", [], {})
    made = {split: [e["inputs"].tobytes() for e in make()] for split, make in makers.items()}
    together = list(itertools.chain(*made.values()))
    assert len(together) == 370 == len(set(together))


def test_asking_for_more_than_there_are_says_so():
    with pytest.raises(ValueError, match=r"found 4\d\d distinct.*num_train"):
        draw("train", 500, min_length=0, max_length=5)


def test_small_splits_do_not_depend_on_the_size_of_train(make_config):
    def validation(num_train):
        config = make_config(num_train=num_train)
        makers = listops.examples(config, "synthetic", [], {})
        made = {split: [e["inputs"].tobytes() for e in make()] for split, make in makers.items()}
        return made["validation"]

    assert validation(10) == validation(50)


def test_ids_are_the_same_in_every_process():
    code = (
        "from lra_tasks import listops; import hashlib;"
        "print(listops.TOKENS, sorted(listops.IDS.items()),"
        "hashlib.sha256(repr(listops.draw_chunk((0, 0, 0, 10, 2000))).encode()).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_ids_are_fixed():
    # Checkpoints hold embeddings by id: changing this order breaks every one of them.
    assert " ".join(listops.TOKENS) == "<pad> 0 1 2 3 4 5 6 7 8 9 [MIN [MAX [MED [SM ]"
    assert listops.encode("[MIN 9 ]").tolist() == [11, 10, 15]
    assert listops.encode("( ( [MIN 9 ) ] )").tolist() == [11, 10, 15]
    assert listops.decode([11, 1, 2, 15, 0, 0]) == "[MIN 0 1 ]"


@pytest.mark.parametrize("text", ["[MAX 1 2", "] ] [MAX", "1 2"])
def test_encode_refuses_what_is_not_one_expression(text):
    with pytest.raises(ValueError, match=r"closed|closes|expected"):
        listops.encode(text)


def test_encode_refuses_unknown_tokens():
    for text in ("10", "<pad>", "[AVG 1 2 ]"):
        with pytest.raises(ValueError, match="unknown token"):
            listops.encode(text)


def shuffled(expressions, seed):
    """Expressions, token ids one after another, with arguments in a random order."""
    ids = np.concatenate([np.frombuffer(x, np.uint8) for x in expressions])
    keys = np.random.Generator(np.random.Philox(seed)).integers(0, 2**64, len(ids), np.uint64)
    out = listops.augment(ids, keys)
    assert len(out) == len(ids)
    return [x.tobytes() for x in np.split(out, np.cumsum([len(x) for x in expressions])[:-1])]


def tree(ids):
    """The expression as nested tuples, arguments sorted: equal if they differ in order alone."""
    stack = [[]]
    for token in ids:
        if token == listops.CLOSE:
            operator, *arguments = stack.pop()
            stack[-1].append((operator, *sorted(arguments, key=repr)))
        elif token >= listops.FIRST_OPERATOR:
            stack.append([token])
        else:
            stack[-1].append(token)
    assert len(stack) == len(stack[0]) == 1
    return stack[0][0]


def test_arguments_in_another_order_make_the_same_tree(sample):
    expressions = [ids for ids, _ in sample[:300]]
    changed = shuffled(expressions, 0)
    for before, after, (_, label) in zip(expressions, changed, sample[:300], strict=True):
        assert tree(after) == tree(before) and after != before
        assert listops.evaluate(after) == label
    # Each alone as among others, and digits alone as they are.
    keys = np.arange(len(expressions[0]), dtype=np.uint64)[::-1].copy()
    alone = listops.augment(np.frombuffer(expressions[0], np.uint8), keys)
    assert tree(alone) == tree(expressions[0])
    digit = np.array([listops.FIRST_DIGIT], np.uint8)
    assert listops.augment(digit, np.zeros(1, np.uint64)).tolist() == digit.tolist()
    assert listops.augment(digit[:0], np.zeros(0, np.uint64)).shape == (0,)


def test_all_orders_of_arguments_come_as_often():
    expression = listops.encode("[MIN 1 [SM 2 3 ] 4 ]").tobytes()
    counts = collections.Counter(listops.decode(x) for x in shuffled([expression] * 12_000, seed=1))
    assert len(counts) == 12  # of three arguments, and of the two in one of them
    assert max(abs(n - 1_000) for n in counts.values()) < 150  # five standard deviations
