"""Small text files, and the words they are of."""

import random

WORDS = (
    "the",
    "film",
    "story",
    "was",
    "moving",
    "dull",
    "and",
    "superb",
    "ünïcode",
    "日本",
    "cast",
)
SIZE = 320


def write_documents(folder, count=12, seed=0):
    """Files of several lines; returns their texts by name."""
    rng = random.Random(seed)
    found = {}
    for number in range(count):
        lines = [" ".join(rng.choices(WORDS, k=rng.randrange(5, 30))) for _ in range(6)]
        path = folder / f"part{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(lines))
        found[path.name] = lines
    (folder / ".hidden").write_bytes(b"\xff")
    return found
