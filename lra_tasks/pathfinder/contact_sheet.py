"""A sheet of Pathfinder images to look at: label 1 in the upper half, 0 in the lower.

docs/ has two, made by
    python -m lra_tasks.pathfinder.contact_sheet docs/pathfinder.png
    python -m lra_tasks.pathfinder.contact_sheet docs/pathx.png --size=128 --per_label=4 \
        --columns=4 --scale=2
"""

import argparse

import numpy as np
from PIL import Image

from lra_tasks.pathfinder import snakes
from lra_tasks.pathfinder.snake_sprites import CONTOUR_LENGTHS, recipe


def contact_sheet(
    pictures: snakes.Pictures, per_label: int, columns: int, scale: int
) -> Image.Image:
    """The first `per_label` images of each label, enlarged by whole pixels, between grey lines."""
    rows = []
    for label in (1, 0):
        images = pictures.images[pictures.labels == label]
        if len(images) < per_label:
            raise ValueError(f"{len(images)} images of label {label}, {per_label} wanted")
        images = images[:per_label].repeat(scale, axis=1).repeat(scale, axis=2)
        images = np.pad(images, ((0, -per_label % columns), (1, 1), (1, 1)), constant_values=96)
        side = images.shape[1]
        grid = images.reshape(-1, columns, side, side).swapaxes(1, 2)
        rows.append(grid.reshape(-1, columns * side))
        rows.append(np.full((4, columns * side), 255, np.uint8))
    return Image.fromarray(np.concatenate(rows[:-1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="the PNG to write")
    parser.add_argument("--size", type=int, choices=sorted(snakes.CHUNK), default=32)
    parser.add_argument("--difficulty", choices=CONTOUR_LENGTHS, default="hard")
    parser.add_argument("--per_label", type=int, default=16)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pictures = snakes.make(recipe(args.size, args.difficulty), args.seed)
    sheet = contact_sheet(pictures, args.per_label, args.columns, args.scale)
    sheet.save(args.path, optimize=True)


if __name__ == "__main__":
    main()
