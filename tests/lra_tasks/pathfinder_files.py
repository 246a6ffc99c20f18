"""A small copy of the release's Pathfinder folder, and task configs to read it with."""

import io
import types

from PIL import Image

from configs import base
from lra_tasks import pathfinder
from lra_tasks.pathfinder import snakes
from lra_tasks.pathfinder.snake_sprites import recipe

FOLDER = "pathfinder32/curv_contour_length_14"
NUM_EMPTY = 3


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


PICTURES = snakes.make(recipe(32, "easy"), 0)


def write_release(root, count=60):
    """A small release: two metadata files, a few images empty. Returns {pixels: label}."""
    folder = root / FOLDER
    expected = {}
    for part in ("2", "10"):
        (folder / "imgs" / part).mkdir(parents=True)
        (folder / "metadata").mkdir(exist_ok=True)
        lines = []
        for index in range(count // 2):
            row = index + (count // 2 if part == "10" else 0)
            label, path = int(PICTURES.labels[row]), f"imgs/{part}/sample_{index}.png"
            empty = row < NUM_EMPTY
            (folder / path).write_bytes(b"" if empty else png(PICTURES.images[row]))
            if not empty:
                expected[PICTURES.images[row].tobytes()] = label
            lines.append(f"imgs/{part} sample_{index}.png {index} {label} 1.0 14 4 2 0.5 1 1\n")
        (folder / "metadata" / f"{part}.npy").write_text("".join(lines))
    return expected


def config(name="pathfinder", **fields):
    pixels = pathfinder.SIDES[name] ** 2
    own = {
        "name": name,
        "source": "synthetic",
        "max_length": pixels,
        "padded_length": pixels,
        "difficulty": "hard" if name == "pathfinder" else "",
    }
    return types.SimpleNamespace(**base.get_config().task.to_dict() | own | fields)
