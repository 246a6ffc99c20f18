"""What Pathfinder images are made of: recipes (the release's parameters) and tables of sprites.

As dashes start at whole pixels and point in few directions, every dash is one of a few hundred
sprites, and every step from dash to dash an offset known beforehand.
"""

import dataclasses
import functools
import math

import numpy as np
from PIL import Image, ImageDraw

CONTOUR_LENGTHS = {"easy": 6, "intermediate": 9, "hard": 14}
OVERLAP = 1.8 * 255  # sum of two masks from which their dashes overlap
CORE = 204  # a mask's least value that can make one
RIPPLE = 8  # of the Lanczos filter round a mask; less is left out
DEGREES = 360  # directions 0..359 are whole degrees, the following ones point to a circle's pixels


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Parameters of a set of images, lengths in pixels; the defaults are common to all sets."""

    size: int
    contour_length: int  # dashes of a target
    dash_length: int
    thickness: float
    margins: tuple[int, ...]  # one is drawn per image; half the gap between two dashes
    marker_radius: float
    seed_distance: int  # between the first dashes of the two targets
    continuity: float  # larger is straighter
    num_distractors: int
    target_contrast: float
    distractor_contrast: float
    padding: int = 1
    antialias: int = 2
    redraws: int = 2  # of a dash that would overlap another
    distractor_retries: int = 4
    min_free: float = 0.01  # share of free pixels below which no distractor is begun

    @property
    def distractor_length(self):
        return self.contour_length // 3


def recipe(size, difficulty="hard"):
    """The release's parameters for images of `size` 32 or 128 and a difficulty of CONTOUR_LENGTHS.

    At 32 a target's contrast is snake 2 times dash 0.75, a distractor's the snake's alone, as the
    public generator has it. At 128, where the release's list leaves room, dashes are 5 pixels (the
    generator's default) and continuity is 1.8 throughout (the value that the list assigns).

    Raises ValueError for another size or difficulty.
    """
    if difficulty not in CONTOUR_LENGTHS:
        raise ValueError(f"difficulty={difficulty!r}: expected one of {', '.join(CONTOUR_LENGTHS)}")
    length = CONTOUR_LENGTHS[difficulty]
    common = {"size": size, "contour_length": length}
    if size == 32:
        return Recipe(
            **common,
            dash_length=2,
            thickness=0.5,
            margins=(1,),
            marker_radius=1.5,
            seed_distance=7,
            continuity=1.0,
            num_distractors=20 // (length // 3),
            target_contrast=2 * 0.75,
            distractor_contrast=2.0,
        )
    if size == 128:
        return Recipe(
            **common,
            dash_length=5,
            thickness=1.5,
            margins=(2, 3),
            marker_radius=3,
            seed_distance=20,
            continuity=1.8,
            num_distractors=35 // (length // 3),
            target_contrast=0.9,
            distractor_contrast=0.9,
        )
    raise ValueError(f"size={size}: Pathfinder images are made at 32 or 128")


def _shrink(canvas, side):
    """Square uint8 [n, n] to [side, side] by Pillow's Lanczos filter."""
    return np.asarray(Image.fromarray(canvas).resize((side, side), Image.Resampling.LANCZOS))


def _disc(radius):
    span = np.arange(-radius, radius + 1)
    return span[:, None] ** 2 + span**2 <= radius**2


def _dilate(image, disc):
    """Largest value in a boolean disc [2r+1, 2r+1] round each pixel: [n, n] -> [n+2r, n+2r]."""
    reach = len(disc) - 1
    out = np.zeros((image.shape[0] + reach, image.shape[1] + reach), image.dtype)
    for y, x in zip(*np.nonzero(disc), strict=True):
        window = out[y : y + image.shape[0], x : x + image.shape[1]]
        np.maximum(window, image, out=window)
    return out


def _draw_dash(recipe, margin, angle):
    """(dash, mask): uint8 [w, w], of a dash from the window's centre along `angle` radians."""
    half = recipe.dash_length + math.ceil(recipe.thickness) + margin
    centre, scale = half * recipe.antialias, recipe.antialias
    end = [round(centre + scale * recipe.dash_length * f(angle)) for f in (math.cos, math.sin)]
    canvas = Image.new("L", (2 * centre + 1,) * 2)
    width = round(recipe.thickness * scale)
    ImageDraw.Draw(canvas).line([(centre, centre), tuple(end)], fill=255, width=width)
    fine, reach = np.asarray(canvas), margin * scale
    mask = _dilate(fine, _disc(reach))[reach:-reach, reach:-reach]
    return _shrink(fine, 2 * half + 1), _shrink(np.ascontiguousarray(mask), 2 * half + 1)


def _draw_marker(recipe):
    half = math.ceil(recipe.marker_radius) + 3  # the filter reaches 3 pixels further
    span = np.arange(-half * recipe.antialias, half * recipe.antialias + recipe.antialias)
    fine = span[:, None] ** 2 + span**2 <= (recipe.marker_radius * recipe.antialias) ** 2
    return _shrink(np.where(fine, 255, 0).astype(np.uint8), 2 * half + 1)


def _sparse(sprites, stride, threshold=1):
    """Offsets, values [n, p] of a sprite's pixels >= threshold; short rows repeat their first."""
    half = sprites.shape[1] // 2
    found = [np.nonzero(sprite >= threshold) for sprite in sprites]
    longest = max(len(y) for y, _ in found)
    picks = [np.r_[np.arange(len(y)), np.zeros(longest - len(y), int)] for y, _ in found]
    y = np.stack([y[p] for (y, _), p in zip(found, picks, strict=True)]) - half
    x = np.stack([x[p] for (_, x), p in zip(found, picks, strict=True)]) - half
    values = sprites[np.arange(len(sprites))[:, None], y + half, x + half]
    return y * stride + x, values


@dataclasses.dataclass(frozen=True)
class Sprites:
    """Tables by direction for one recipe and margin.

    A field is an image with `pad` pixels round it, flat, so that an offset is one number. Where two
    arrays are in a tuple, they are the offsets of a sprite's pixels and their values, [n, p].
    """

    pad: int
    stride: int
    border: tuple  # (mask, reach): the field's start, uint8 [stride**2]
    candidates: np.ndarray  # [K] offsets of the next dash's end from its pivot
    angles: np.ndarray  # [360 + K] radians
    weights: np.ndarray  # [360 + K, K] of each candidate after each direction
    step: np.ndarray  # [360 + K] offset from a dash's pivot to the next dash's
    head: np.ndarray  # [360 + K] offset from tail to head, first dashes only
    pivot: np.ndarray  # [360 + K] offset from tail to pivot, first dashes only
    extent: np.ndarray  # [360, 4] the core's least and largest y, least and largest x
    dash: tuple
    mask: tuple
    reach: tuple  # the mask dilated by `margin`
    core: tuple  # the mask's pixels that can make an overlap
    marker: tuple


@functools.lru_cache(maxsize=8)
def sprites(recipe, margin):
    """The tables for a recipe and one of its margins."""
    length = recipe.dash_length
    half = length + math.ceil(recipe.thickness) + margin
    pad = max(half + margin, 2 * length + 4 * margin)
    stride = recipe.size + 2 * pad
    radius = length + margin
    turn = np.arange(0, 2 * np.pi, 1 / radius)  # one pixel of arc apart
    circle = np.unique(
        np.rint(radius * np.stack([np.sin(turn), np.cos(turn)], 1)).astype(int), axis=0
    )
    degrees = np.arange(-180, 180) * np.pi / 180
    angles = np.r_[degrees, np.arctan2(circle[:, 0], circle[:, 1])]
    delta = np.abs(angles[:, None] - angles[None, DEGREES:])
    delta = np.minimum(delta, 2 * np.pi - delta)
    weights = np.cos(np.minimum(recipe.continuity * delta, np.pi / 2)) ** 2

    def along(distance):
        move = np.rint(distance * np.stack([np.sin(angles), np.cos(angles)])).astype(int)
        return move[0] * stride + move[1]

    head = along(length)
    drawn = [_draw_dash(recipe, margin, a) for a in degrees]
    drawn += [_draw_dash(recipe, margin, a + np.pi) for a in angles[DEGREES:]]  # from head to tail
    dash, mask = (np.stack(images) for images in zip(*drawn, strict=True))
    reach = np.stack([_dilate(image, _disc(margin)) for image in mask])
    cores = [np.nonzero(image >= CORE) for image in mask[:DEGREES]]
    extent = [(y.min() - half, y.max() - half, x.min() - half, x.max() - half) for y, x in cores]

    inside = np.zeros((stride, stride), bool)
    inside[pad:-pad, pad:-pad] = True
    free = np.zeros_like(inside)
    free[
        pad + recipe.padding : -pad - recipe.padding, pad + recipe.padding : -pad - recipe.padding
    ] = True
    ring = np.where(inside & ~free, 255, 0).astype(np.uint8)
    ring_reach = np.where(inside, _dilate(ring, _disc(margin))[margin:-margin, margin:-margin], 255)
    return Sprites(
        pad,
        stride,
        (ring.ravel(), ring_reach.astype(np.uint8).ravel()),
        circle[:, 0] * stride + circle[:, 1],
        angles,
        weights.astype(np.float32),
        along(length + 2 * margin),
        head,
        head - along(length + margin),
        np.array(extent),
        _sparse(dash, stride),
        _sparse(mask, stride, threshold=RIPPLE),
        _sparse(reach, stride, threshold=RIPPLE),
        _sparse(mask, stride, threshold=CORE),
        _sparse(_draw_marker(recipe)[None], stride),
    )
