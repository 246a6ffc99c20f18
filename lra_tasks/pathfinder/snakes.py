"""Generator of Pathfinder images: two marked circles, are they on one dashed contour?

The procedure is that of the public generator behind the LRA release (Linsley et al. 2018, arXiv
1805.08315, github.com/drewlinsley/pathfinder), written anew for arrays: hundreds of images grow in
step, each by one dash at a time, from the tables of `snake_sprites`. Terms: a *snake* is a contour
made of straight *dashes*; the two long ones are *targets*, the short ones *distractors*.

It departs from the public generator in three points. That one rounds coordinates up for pivots and
down for dash ends, which makes contours drift to the upper left (their ends by 27 of 128 pixels on
average); here both go to the nearest pixel, which changes the lit fraction and the turns by less
than 4 %. Its targets may grow over each other's tips, so that a circle touches both and the label
is moot (5 % of images at 32, 0.2 % at 128); here such pairs start over. And it forgets to mark one
target's last dash as occupied.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from lra_tasks.parallel import ordered_map
from lra_tasks.pathfinder.snake_sprites import DEGREES, OVERLAP, Recipe, Sprites, sprites

# Part of what a seed means:
CHUNK = {32: 256, 128: 64}  # images made together, by one worker
_ATTEMPTS = {32: 1024, 128: 256}  # pairs of targets tried at once
_PROBES = 48  # cells tried before the free ones are listed


@dataclasses.dataclass(frozen=True)
class Snakes:
    """Snakes of n images, as grown.

    Attributes:
      position: int [n, snakes, dashes], index into a field (see Sprites): the tail of a snake's
        first dash, the heads of the others.
      direction: int [n, snakes, dashes], index into Sprites.angles.
      count: int [n], how many of an image's snakes exist.
    """

    position: np.ndarray
    direction: np.ndarray
    count: np.ndarray

    def dashes(self, table: Sprites, length: int) -> np.ndarray:
        """Dashes in pixels: float [n, snakes, dashes, 2 (tail, head), 2 (y, x)]; NaN: none."""
        anchor = np.stack([c - table.pad for c in divmod(self.position, table.stride)], -1)
        angle = table.angles[self.direction]
        along = length * np.stack([np.sin(angle), np.cos(angle)], -1)
        first = (np.arange(anchor.shape[2]) == 0)[:, None]
        ends = np.stack(
            [np.where(first, anchor, anchor - along), np.where(first, anchor + along, anchor)], 3
        )
        ends[np.arange(anchor.shape[1]) >= self.count[:, None]] = np.nan
        return ends


@dataclasses.dataclass(frozen=True)
class Pictures:
    """n images with how they came about.

    Attributes:
      images: uint8 [n, size, size]
      labels: uint8 [n], 1: both circles are on one target.
      markers: int [n, 2, 2], (y, x) of the circles' centres: a target's start, a target's end.
      marked: int [n, 2], the target that each circle is on.
      targets, distractors: ends of dashes, see `Snakes.dashes`.
    """

    images: np.ndarray
    labels: np.ndarray
    markers: np.ndarray
    marked: np.ndarray
    targets: np.ndarray
    distractors: np.ndarray


def make(recipe: Recipe, *seed: int) -> Pictures:
    """A chunk of CHUNK[recipe.size] images, a function of the recipe and the seed alone."""
    bits = np.random.PCG64(np.random.SeedSequence(seed))
    count = CHUNK[recipe.size]
    labels = _integers(bits, 2, count)
    origin = _integers(bits, 2, count)
    marked = np.stack([origin, np.where(labels == 1, origin, 1 - origin)], 1)
    margins = _integers(bits, len(recipe.margins), count)
    parts, order = [], []
    for index, margin in enumerate(recipe.margins):
        chosen = np.flatnonzero(margins == index)
        order.append(chosen)
        parts.append(_make(sprites(recipe, margin), recipe, bits, marked[chosen]))
    back = np.argsort(np.concatenate(order))
    images, markers, targets, distractors = (
        np.concatenate(arrays)[back] for arrays in zip(*parts, strict=True)
    )
    return Pictures(images, labels.astype(np.uint8), markers, marked, targets, distractors)


def generate(
    recipe: Recipe, count: int, *seed: int, num_workers: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields `count` examples: (pixels uint8 [size * size] in raster order, label 0 or 1).

    Independent of the number of workers (None: one a core; 0: in this process), and of `count`:
    fewer are the first of more.
    """
    size = CHUNK[recipe.size]
    chunks = ((recipe, *seed, index) for index in range(-(-count // size)))
    made = 0
    for images, labels in ordered_map(_chunk, chunks, num_workers):
        for image, label in zip(images[: count - made], labels, strict=False):
            yield image, int(label)
        made += len(images)


def _chunk(item):
    pictures = make(*item)
    return pictures.images.reshape(len(pictures.images), -1), pictures.labels


def _make(table, recipe, bits, marked):
    """(images, markers, targets, distractors) of `Pictures` for circles on the `marked` targets."""
    targets, fields = _targets(table, recipe, bits, len(marked))
    distractors = _distractors(table, recipe, bits, fields)
    ends = targets.position[np.arange(len(marked))[:, None], marked, [0, -1]]
    images = _render(table, recipe, targets, distractors, ends)
    markers = np.stack([c - table.pad for c in divmod(ends, table.stride)], -1)
    dashes = (snakes.dashes(table, recipe.dash_length) for snakes in (targets, distractors))
    return images, markers, *dashes


def _uniform(bits, *shape):
    """Float64 in [0, 1). NumPy promises the raw stream never to change, but not its Generator's."""
    return (bits.random_raw(math.prod(shape)) >> np.uint64(11)).reshape(shape) * 2.0**-53


def _integers(bits, stop, *shape):
    return (_uniform(bits, *shape) * stop).astype(int)


def _stamp(field, rows, position, direction, table):
    """Maximum of `field` uint8 [n, cells] at `rows` and one sprite each, in place."""
    offsets, values = table
    cells = position[:, None] + offsets[direction]
    flat = field.reshape(-1)
    cells += rows[:, None] * field.shape[1]
    flat[cells] = np.maximum(flat[cells], values[direction])


def _extend(table, recipe, bits, mask, reach, rows, pivot, direction):
    """One more dash for the snakes at `rows`: [n] arrays (succeeded, pivot, head, direction)."""
    base = rows * mask.shape[1]
    pivot = pivot + table.step[direction]
    ends = pivot[:, None] + table.candidates
    taken = reach.reshape(-1)[base[:, None] + ends] / np.float32(255)
    chances = np.cumsum(table.weights[direction] * (1 - taken), axis=1)
    draws = _uniform(bits, recipe.redraws + 1, len(rows)) * chances[:, -1]
    chosen, fits = np.zeros(len(rows), int), np.zeros(len(rows), bool)
    waiting = np.flatnonzero(chances[:, -1] > 1e-4)
    offsets, values = table.core
    for draw in draws:
        pick = np.argmax(chances[waiting] > draw[waiting, None], axis=1)
        cells = (base[waiting] + ends[waiting, pick])[:, None] + offsets[DEGREES + pick]
        overlap = mask.reshape(-1)[cells].astype(np.uint16) + values[DEGREES + pick]
        fit = overlap.max(axis=1) < OVERLAP
        chosen[waiting], fits[waiting] = pick, fit
        waiting = waiting[~fit]
    return fits, pivot, ends[np.arange(len(rows)), chosen], DEGREES + chosen


def _grow(table, recipe, bits, mask, reach, position, direction, length):
    """Snakes grown in turn from their first dashes [attempts, snakes], to `length` dashes.

    Marks them in `mask` and `reach`, each dash after the next one is placed. Returns (alive,
    positions, directions): the attempts that had room for all dashes, and those.
    """
    count, snakes = position.shape
    positions = np.zeros((count, snakes, length), np.int64)
    directions = np.zeros_like(positions)
    positions[:, :, 0], directions[:, :, 0] = position, direction
    pivots = position + table.pivot[direction]
    alive = np.arange(count)

    def mark(snake, dash):
        where, way = positions[alive, snake, dash], directions[alive, snake, dash]
        _stamp(mask, alive, where, way, table.mask)
        _stamp(reach, alive, where, way, table.reach)

    for dash in range(1, length):
        for snake in range(snakes):
            last = directions[alive, snake, dash - 1]
            fits, pivot, head, way = _extend(
                table, recipe, bits, mask, reach, alive, pivots[alive, snake], last
            )
            alive = alive[fits]
            positions[alive, snake, dash], directions[alive, snake, dash] = head[fits], way[fits]
            pivots[alive, snake] = pivot[fits]
            mark(snake, dash - 1)
    for snake in range(snakes):
        mark(snake, length - 1)
    return alive, positions[alive], directions[alive]


def _first_dashes(table, recipe, bits, count):
    """First dashes of both targets in `count` attempts: (position, direction) [possible, 2]."""
    low, high = 2 * recipe.seed_distance, recipe.size - 2 * recipe.seed_distance - 1
    direction = _integers(bits, DEGREES, count, 2)
    least_y, most_y, least_x, most_x = table.extent[direction[:, 0]].T
    rooms = [(low - least_y, high - most_y), (low - least_x, high - most_x)]
    share = _uniform(bits, 2, count)
    y, x = (
        first + (u * np.maximum(last - first + 1, 0)).astype(int)
        for u, (first, last) in zip(share, rooms, strict=True)
    )
    turn = _integers(bits, DEGREES, count) * np.pi / 180
    away_y, away_x = (np.rint(recipe.seed_distance * f(turn)).astype(int) for f in (np.sin, np.cos))
    possible = np.ones(count, bool)
    for first, last in rooms:
        possible &= first <= last
    ys, xs = np.stack([y, y + away_y], 1), np.stack([x, x + away_x], 1)
    position = (ys + table.pad) * table.stride + xs + table.pad
    for offset in (table.head, table.pivot):
        tip = position + offset[direction]
        tip_y, tip_x = tip // table.stride - table.pad, tip % table.stride - table.pad
        possible &= (
            (tip_y >= 0) & (tip_y < recipe.size) & (tip_x >= 0) & (tip_x < recipe.size)
        ).all(1)
    return position[possible], direction[possible]


def _targets(table, recipe, bits, count):
    """`count` pairs of targets: (Snakes, (mask, reach)). Pairs that get stuck start over."""
    kept, total = [], 0
    while total < count:
        start, direction = _first_dashes(table, recipe, bits, _ATTEMPTS[recipe.size])
        mask, reach = (np.tile(field, (len(start), 1)) for field in table.border)
        alive, positions, directions = _grow(
            table, recipe, bits, mask, reach, start, direction, recipe.contour_length
        )
        snakes = Snakes(positions, directions, np.full(len(alive), 2))
        clear = _tips_are_clear(snakes.dashes(table, recipe.dash_length))
        kept.append((positions[clear], directions[clear], mask[alive[clear]], reach[alive[clear]]))
        total += np.count_nonzero(clear)
    positions, directions, *fields = (
        np.concatenate(parts)[:count] for parts in zip(*kept, strict=True)
    )
    return Snakes(positions, directions, np.full(count, 2)), fields


def _tips_are_clear(dashes):
    """Whether each target's tips are a pixel or more from the other's dashes: bool [n]."""
    points = np.concatenate([dashes, dashes.mean(3, keepdims=True)], 3)  # tail, head, middle
    points = points.reshape(len(dashes), 2, 3 * dashes.shape[2], 2)
    tips = np.stack([dashes[:, :, 0, 0], dashes[:, :, -1, 1]], 2)
    apart = np.linalg.norm(tips[:, :, :, None] - points[:, ::-1, None], axis=-1)
    return (apart >= 1).all((1, 2, 3))


def _distractors(table, recipe, bits, fields):
    """Distractors for images with the given (mask, reach): fewer where no room is found."""
    mask, reach = fields
    count, length = len(mask), recipe.distractor_length
    positions = np.zeros((count, recipe.num_distractors, length), np.int64)
    directions, found = np.zeros_like(positions), np.zeros(count, int)
    for _ in range(recipe.num_distractors):
        waiting = np.arange(count)
        for _ in range(recipe.distractor_retries + 1):
            direction = _integers(bits, DEGREES, len(waiting))
            start = _free_cells(table, recipe, bits, mask, waiting, direction)
            begun = start >= 0
            rows = waiting[begun]
            trial = mask[rows], reach[rows]
            first = start[begun, None], direction[begun, None]
            alive, grown, ways = _grow(table, recipe, bits, *trial, *first, length)
            done = rows[alive]
            mask[done], reach[done] = trial[0][alive], trial[1][alive]
            positions[done, found[done]], directions[done, found[done]] = grown[:, 0], ways[:, 0]
            found[done] += 1
            waiting = np.setdiff1d(waiting, done, assume_unique=True)
    return Snakes(positions, directions, found)


def _free_cells(table, recipe, bits, mask, rows, direction):
    """Positions of first dashes, uniform over those where the dash's core is free; -1: none is."""
    cells = np.arange(recipe.size)
    cells = ((cells[:, None] + table.pad) * table.stride + cells + table.pad).ravel()
    ring = table.border[0] != 0
    offsets = table.core[0]
    position = np.full(len(rows), -1)

    def is_free(row, cell, way):
        covered = cell[..., None] + offsets[way]
        return ~((mask[row[..., None], covered] > 0.3 * 255) | ring[covered]).any(-1)

    room = (mask[np.ix_(rows, cells)] <= 0.3 * 255).mean(1) >= recipe.min_free
    waiting = np.flatnonzero(room)
    probes = cells[_integers(bits, len(cells), len(waiting), _PROBES)]
    free = is_free(rows[waiting, None], probes, direction[waiting, None])
    lucky = free.any(1)
    position[waiting[lucky]] = probes[lucky, free[lucky].argmax(1)]
    for i, share in zip(waiting[~lucky], _uniform(bits, np.count_nonzero(~lucky)), strict=True):
        every = cells[is_free(rows[i], cells, direction[i])]
        if len(every):
            position[i] = every[int(share * len(every))]
    return position


def _render(table, recipe, targets, distractors, markers):
    """Images uint8 [n, size, size]: dashes at their contrasts and discs, stretched to 0..255."""
    count = len(markers)
    rows = np.arange(count)
    layers = np.zeros((3, count, table.stride**2), np.uint8)
    for layer, snakes in zip(layers, (targets, distractors), strict=False):
        for snake in range(snakes.position.shape[1]):
            some = rows[snakes.count > snake]
            for dash in range(snakes.position.shape[2]):
                where, way = (a[some, snake, dash] for a in (snakes.position, snakes.direction))
                _stamp(layer, some, where, way, table.dash)
    for marker in markers.T:
        _stamp(layers[2], rows, marker, np.zeros(count, int), table.marker)
    layers = layers.reshape(3, count, table.stride, table.stride)
    layers = layers[:, :, table.pad : -table.pad, table.pad : -table.pad]
    image = np.maximum(layers[0] * np.float32(recipe.target_contrast), layers[2])
    image = np.maximum(image, layers[1] * np.float32(recipe.distractor_contrast))
    low, high = image.min((1, 2), keepdims=True), image.max((1, 2), keepdims=True)
    return ((image - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
