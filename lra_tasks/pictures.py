"""Pictures that users bring, as the pixels that the tasks of pixels have."""

from pathlib import Path

import numpy as np


def read_picture(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Grey levels, uint8 `shape` (height, width), of a picture file; colours as in `image`.

    Raises ValueError for a file that is no picture, or one of another size.
    """
    from PIL import Image

    from lra_tasks.image import grey

    data = path.open("rb")  # its own errors name the file
    try:
        with data, Image.open(data) as picture:
            size = picture.height, picture.width
            if picture.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of kind {picture.mode}; save it with 8 bits a channel")
            if size == shape:  # known before any pixel is unpacked
                is_grey = picture.mode in ("1", "L", "LA")
                pixels = np.asarray(picture.convert("L" if is_grey else "RGB"))
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise ValueError(f"{path}: not a picture that can be read ({error})") from error
    if size != shape:
        raise ValueError(
            f"{path}: {size[1]} x {size[0]} pixels, expected {shape[1]} x {shape[0]}; crop or "
            "scale it first"
        )
    return pixels if pixels.ndim == 2 else grey(*np.moveaxis(pixels, -1, 0))
