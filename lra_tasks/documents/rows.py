"""Rows of tokens from documents: [CLS] text [SEP], or [CLS] half [SEP] half [SEP]."""

import random
from collections.abc import Iterator

import numpy as np

from lra_tasks.documents.tokenizer import CLS, SEP

SHORT_SHARE = 0.1  # of pairs that are cut to a random length, as in the authors' pretraining
SHORTEST = 16


def cut(segments: list[np.ndarray], max_length: int) -> Iterator[np.ndarray]:
    """A document in rows of up to `max_length` tokens, one after another."""
    ids = np.concatenate(segments)
    for start in range(0, len(ids), max_length - 2):
        yield framed(ids[start : start + max_length - 2])


def pairs(
    segments: list[np.ndarray], max_length: int, rng: random.Random
) -> Iterator[tuple[np.ndarray, int]]:
    """Pairs of a document's neighbouring texts, and 1 for those that changed places, half of them.

    Segments, those longer than a row in pieces, fill a row; a boundary between two of them, drawn
    at random, makes its halves. A row of one segment is cut at a random token.
    """
    room = max_length - 3
    segments = [x[start : start + room] for x in segments for start in range(0, len(x), room)]
    waiting, target = [], draw_length(room, rng)
    for i, segment in enumerate(segments):
        waiting.append(segment)
        if sum(map(len, waiting)) < target and i + 1 < len(segments):
            continue
        if len(waiting) > 1:
            boundary = 1 + int(rng.random() * (len(waiting) - 1))
            a, b = np.concatenate(waiting[:boundary]), np.concatenate(waiting[boundary:])
        elif len(segment) > 1:
            boundary = 1 + int(rng.random() * (len(segment) - 1))
            a, b = segment[:boundary], segment[boundary:]
        else:
            a = b = segment[:0]
        if len(a):
            a, b = shortened(a, b, target, rng)
            swapped = int(rng.random() < 0.5)
            yield framed(*((b, a) if swapped else (a, b))), swapped
        waiting, target = [], draw_length(room, rng)


def draw_length(room: int, rng: random.Random) -> int:
    """The length of a pair: all the room, or with SHORT_SHARE anything from SHORTEST."""
    if rng.random() >= SHORT_SHARE or room <= SHORTEST:
        return room
    return SHORTEST + int(rng.random() * (room - SHORTEST + 1))


def shortened(a: np.ndarray, b: np.ndarray, room: int, rng: random.Random):
    """Both, cut so that they fit: the longer one loses tokens, each in front or at the end."""
    starts, stops = [0, 0], [len(a), len(b)]
    while sum(stops) - sum(starts) > room:
        longer = int(stops[1] - starts[1] > stops[0] - starts[0])
        if rng.random() < 0.5:
            starts[longer] += 1
        else:
            stops[longer] -= 1
    return a[starts[0] : stops[0]], b[starts[1] : stops[1]]


def framed(*texts: np.ndarray) -> np.ndarray:
    """[CLS] and each text with [SEP] after it, uint16."""
    parts = [[CLS]]
    for text in texts:
        parts += [text, [SEP]]
    return np.concatenate([np.asarray(part, np.uint16) for part in parts])
