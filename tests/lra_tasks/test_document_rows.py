"""Rows of documents' tokens, and pairs of neighbouring segments."""

import random

import numpy as np
import pytest
from document_files import SIZE, write_documents

from lra_tasks.documents import rows, tokenizer

pytest.importorskip("sentencepiece")


def test_pairs_are_neighbours_and_half_of_them_change_places(tmp_path):
    texts = write_documents(tmp_path).values()
    known = tokenizer.Tokenizer(tokenizer.train([line for lines in texts for line in lines], SIZE))
    rng = random.Random(1)
    swapped = []
    for lines in [*texts] * 4:
        segments = known.segments("\n".join(lines))
        whole = np.concatenate(segments).tolist()
        for row, label in rows.pairs(segments, 64, rng):
            assert row.dtype == np.uint16 and row[0] == tokenizer.CLS and len(row) <= 64
            first, second = np.flatnonzero(row == tokenizer.SEP)
            assert second == len(row) - 1
            a, b = row[1:first].tolist(), row[first + 1 : second].tolist()
            before, after = (b, a) if label else (a, b)
            assert starts(whole, before)[0] <= starts(whole, after)[-1]
            swapped.append(label)
    assert len(swapped) > 150 and 0.4 < np.mean(swapped) < 0.6


def starts(whole, part):
    """Where a list of ids stands in another."""
    assert part
    found = [i for i in range(len(whole)) if whole[i : i + len(part)] == part]
    assert found
    return found


def test_pairs_of_long_lines_lose_little():
    ids = np.arange(100, 2_100, dtype=np.uint16)
    found = [row for row, _ in rows.pairs([ids, ids[:3]], 64, random.Random(0))]
    assert all(len(row) <= 64 for row in found)
    assert sum(len(row) - 3 for row in found) > 0.9 * len(ids)
    assert max(map(len, found)) == 64


@pytest.mark.parametrize("size", [5, 61])  # many lines in a row, or one
def test_where_a_row_is_cut_in_two_is_drawn(size):
    segments = [np.arange(100 + i, 100 + i + size, dtype=np.uint16) for i in range(0, 2_000, size)]
    found = [row for row, _ in rows.pairs(segments, 64, random.Random(0))]
    assert len({row.tolist().index(tokenizer.SEP) for row in found}) > 8


def test_a_tenth_of_the_pairs_are_short():
    rng = random.Random(0)
    drawn = np.array([rows.draw_length(61, rng) for _ in range(2_000)])
    assert 0.07 < np.mean(drawn < 61) < 0.13 and drawn.min() == 16
    assert {rows.draw_length(9, rng) for _ in range(100)} == {9}


def test_the_longer_half_is_cut():
    a, b = np.arange(100, 150, dtype=np.uint16), np.arange(10, dtype=np.uint16)
    cut_a, cut_b = rows.shortened(a, b, 40, random.Random(0))
    assert len(cut_a) == 30 and cut_b.tolist() == b.tolist()
    assert np.diff(cut_a.astype(int)).tolist() == [1] * 29
    assert cut_a[0] > 100 and cut_a[-1] < 149  # of both ends


@pytest.mark.parametrize("length", [1, 62, 63, 124, 125])
def test_rows_lose_no_token(length):
    ids = np.arange(5, 5 + length, dtype=np.uint16)
    cut = list(rows.cut([ids[:1], ids[1:]], 64))
    assert np.concatenate([row[1:-1] for row in cut]).tolist() == ids.tolist()
    assert max(map(len, cut)) <= 64
