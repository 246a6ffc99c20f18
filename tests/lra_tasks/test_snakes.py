import itertools
import subprocess
import sys

import numpy as np
import pytest

from lra_tasks.pathfinder import snakes
from lra_tasks.pathfinder.contact_sheet import contact_sheet
from lra_tasks.pathfinder.snake_sprites import CONTOUR_LENGTHS, recipe, sprites

SETS = [(32, "easy"), (32, "intermediate"), (32, "hard"), (128, "hard")]


def make(size, difficulty, num_chunks, seed=0):
    chunks = [snakes.make(recipe(size, difficulty), seed, i) for i in range(num_chunks)]
    fields = vars(chunks[0])
    return snakes.Pictures(**{f: np.concatenate([vars(c)[f] for c in chunks]) for f in fields})


@pytest.fixture(scope="module", params=SETS, ids=lambda p: f"{p[0]}-{p[1]}")
def made(request):
    size, difficulty = request.param
    return recipe(size, difficulty), make(size, difficulty, 2 if size == 32 else 1)


@pytest.fixture(scope="module")
def many():
    """8,192 hard images."""
    return make(32, "hard", 32, seed=1)


def snakes_of(pictures):
    """Dashes [snakes, dashes, 2, 2] of all targets, and of all distractors that exist."""
    targets = pictures.targets.reshape(-1, *pictures.targets.shape[2:])
    distractors = pictures.distractors.reshape(-1, *pictures.distractors.shape[2:])
    return targets, distractors[~np.isnan(distractors).any((1, 2, 3))]


def cross(a, b):
    """Which segments [n, p, 2, 2] and [n, q, 2, 2] cross: bool [n, p, q]."""
    a, b = a[:, :, None], b[:, None]

    def side(p, q, r):
        (y1, x1), (y2, x2) = np.moveaxis(q - p, -1, 0), np.moveaxis(r - p, -1, 0)
        return y1 * x2 - x1 * y2

    a0, a1, b0, b1 = a[..., 0, :], a[..., 1, :], b[..., 0, :], b[..., 1, :]
    return (side(a0, a1, b0) * side(a0, a1, b1) < 0) & (side(b0, b1, a0) * side(b0, b1, a1) < 0)


# ---- what the label says


def test_circles_are_on_one_contour_exactly_when_the_label_says_so(made):
    _, pictures = made
    rows = np.arange(len(pictures.images))
    starts = pictures.targets[rows, pictures.marked[:, 0], 0, 0]
    ends = pictures.targets[rows, pictures.marked[:, 1], -1, 1]
    np.testing.assert_allclose(pictures.markers[:, 0], starts, atol=1e-9)
    np.testing.assert_allclose(pictures.markers[:, 1], ends, atol=1e-9)
    same = pictures.marked[:, 0] == pictures.marked[:, 1]
    np.testing.assert_array_equal(pictures.labels, same)
    assert set(np.unique(pictures.labels)) == {0, 1}
    # ... and no circle is on the other contour as well.
    for circle in (0, 1):
        other = pictures.targets[rows, 1 - pictures.marked[:, circle]]
        points = np.concatenate([other, other.mean(2, keepdims=True)], 2)
        gaps = np.linalg.norm(points - pictures.markers[:, circle, None, None], axis=-1)
        assert gaps.min() >= 1


def test_labels_are_balanced_and_either_target_may_be_marked(many):
    for share in (many.labels.mean(), many.marked[:, 0].mean(), many.marked[:, 1].mean()):
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(len(many.labels))


def accuracy_of_linear_probe(features, labels):
    """Ridge regression on three quarters, accuracy on the last."""
    features = np.c_[features, np.ones(len(features))]
    signs = labels * 2.0 - 1
    cut = len(signs) * 3 // 4
    gram = features[:cut].T @ features[:cut] + 10 * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features[:cut].T @ signs[:cut])
    return np.mean((features[cut:] @ weights > 0) == (signs[cut:] > 0))


def test_linear_probe_on_pixels_is_at_chance(many):
    pixels = many.images.reshape(len(many.images), -1) / 255
    limit = 3.5 * 0.5 / np.sqrt(len(pixels) // 4)  # 3.9 % of 2,048 held-out images
    assert abs(accuracy_of_linear_probe(pixels, many.labels) - 0.5) < limit
    leaky = pixels.copy()
    leaky[:, 500] += 0.2 * many.labels  # the probe would notice
    assert accuracy_of_linear_probe(leaky, many.labels) > 0.5 + limit


def test_classes_are_alike_in_lit_pixels_and_brightness(many):
    for statistic in ((many.images > 64).mean((1, 2)), many.images.mean((1, 2))):
        one, zero = (statistic[many.labels == label] for label in (1, 0))
        error = np.hypot(one.std() / np.sqrt(len(one)), zero.std() / np.sqrt(len(zero)))
        assert abs(one.mean() - zero.mean()) < 4 * error


# ---- what the procedure says of shapes


def test_dashes_have_the_recipe_length_spacing_and_curvature(made):
    parameters, pictures = made
    for group in snakes_of(pictures):
        vectors = group[:, :, 1] - group[:, :, 0]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), parameters.dash_length)
        if group.shape[1] == 1:
            continue
        gaps = np.linalg.norm(group[:, 1:, 0] - group[:, :-1, 1], axis=-1)
        low, high = 2 * min(parameters.margins), 2 * max(parameters.margins)
        assert low - 0.5 < gaps.mean() < high + 0.5
        assert gaps.max() < high + 2  # pivot and end are each at the nearest pixel
        angles = np.arctan2(vectors[..., 0], vectors[..., 1])
        turns = np.abs((np.diff(angles, axis=1) + np.pi) % (2 * np.pi) - np.pi)
        assert turns.max() < np.pi / 2 / parameters.continuity + 1e-6
    targets = pictures.targets
    first = np.linalg.norm(targets[:, 0, 0, 0] - targets[:, 1, 0, 0], axis=-1)
    assert np.abs(first - parameters.seed_distance).max() <= np.sqrt(0.5)


def test_turns_follow_the_squared_cosine(many):
    # Free growth alone would give the weights' mean; crowding turns contours further.
    table = sprites(recipe(32), 1)
    weights = table.weights[:360] / table.weights[:360].sum(1, keepdims=True)
    delta = table.angles[None, 360:] - table.angles[:360, None]
    delta = np.abs((delta + np.pi) % (2 * np.pi) - np.pi)
    free = (weights * delta).sum(1).mean()
    vectors = many.targets[:, :, :2, 1] - many.targets[:, :, :2, 0]
    angles = np.arctan2(vectors[..., 0], vectors[..., 1])
    turns = np.abs((np.diff(angles, axis=2) + np.pi) % (2 * np.pi) - np.pi)
    assert turns.mean() == pytest.approx(free, rel=0.15)


def test_numbers_of_dashes_and_distractors(made):
    parameters, pictures = made
    length = parameters.contour_length
    assert length in CONTOUR_LENGTHS.values()
    assert pictures.targets.shape[1:3] == (2, length)
    assert pictures.distractors.shape[2] == length // 3
    budget = {32: 20, 128: 35}[parameters.size]
    found = (~np.isnan(pictures.distractors[:, :, 0, 0, 0])).sum(1)
    assert found.max() == budget // (length // 3)
    assert found.mean() > 0.8 * found.max()


def test_nothing_crosses_the_border(made):
    parameters, pictures = made
    nearest = parameters.padding + min(parameters.margins)
    for group in snakes_of(pictures):
        heads = group[:, 1:, 1]
        if heads.size:
            assert heads.min() >= nearest
            assert heads.max() <= parameters.size - 1 - nearest
        assert group.min() >= parameters.padding - 0.5  # tails are not at whole pixels
        assert group.max() <= parameters.size - 0.5 - parameters.padding
    central = pictures.targets[:, 0, 0, 0]
    assert central.min() >= 2 * parameters.seed_distance
    assert central.max() < parameters.size - 2 * parameters.seed_distance


def test_snakes_do_not_cross_dashes_that_were_there_before(made):
    _, pictures = made
    count = len(pictures.images)
    targets, distractors = pictures.targets, pictures.distractors
    flat = distractors.reshape(count, -1, 2, 2)  # comparisons with NaN are False
    assert not cross(targets.reshape(count, -1, 2, 2), flat).any()
    for one, two in itertools.combinations(range(distractors.shape[1]), 2):
        assert not cross(distractors[:, one], distractors[:, two]).any()
    # Dashes of the two targets that are placed in the same or the next turn don't see each other.
    turns = np.arange(targets.shape[2])
    apart = np.abs(turns[:, None] - turns) > 1
    assert not (cross(targets[:, 0], targets[:, 1]) & apart).any()
    assert not (cross(targets[:, 0], targets[:, 0]) & apart).any()


# ---- what an image shows


def test_images_show_dashes_and_discs_on_black(made):
    parameters, pictures = made
    images = pictures.images.astype(float)
    rows = np.arange(len(images))
    assert (images.min((1, 2)) == 0).all()
    assert (images.max((1, 2)) == 255).all()
    assert (np.median(images, (1, 2)) < 32).all()

    def brightness(points):
        y, x = np.moveaxis(np.rint(points).astype(int), -1, 0)
        return images[rows[:, None], y, x]

    discs = brightness(pictures.markers)
    highest = max(255, 130 * parameters.distractor_contrast)  # before the stretch
    assert discs.min() > 0.85 * 255 * 255 / highest
    middles = pictures.targets.mean(3).reshape(len(rows), -1, 2)
    assert np.mean(brightness(middles) > 64) > 0.9
    # The discs' area, at full intensity, is what is brighter than any target's dash.
    area = sprites(parameters, parameters.margins[0]).marker[1].sum() / 255
    assert area == pytest.approx(np.pi * parameters.marker_radius**2, rel=0.1)


def test_lit_fraction_and_contrast_of_the_hard_set(many):
    # Measured with the public generator's rounding: 0.176 of pixels above 64, mean grey level 28.0.
    assert (many.images > 64).mean() == pytest.approx(0.18, abs=0.01)
    assert many.images.mean() == pytest.approx(28.3, abs=1.0)
    rows = np.arange(len(many.images))[:, None]

    def brightness(dashes):
        y, x = np.rint(np.moveaxis(dashes.mean(3).reshape(len(rows), -1, 2), -1, 0))
        good = ~np.isnan(y)
        picked = many.images[
            rows, np.where(good, y, 0).astype(int), np.where(good, x, 0).astype(int)
        ]
        return np.median(picked[good])

    # Dashes of targets have contrast 2 x 0.75, of distractors 2.
    ratio = brightness(many.targets) / brightness(many.distractors)
    assert ratio == pytest.approx(0.75, abs=0.06)


# ---- generation


def test_same_examples_for_any_number_of_workers_and_images():
    parameters = recipe(32, "easy")
    here = list(snakes.generate(parameters, 300, 5, 2, num_workers=0))
    spread = list(snakes.generate(parameters, 300, 5, 2, num_workers=2))
    fewer = list(snakes.generate(parameters, 20, 5, 2, num_workers=0))
    assert len(here) == len(spread) == 300
    for one, two in [*zip(here, spread, strict=True), *zip(here, fewer, strict=False)]:
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1] == two[1]
    assert here[0][0].shape == (1024,)
    assert here[0][0].dtype == np.uint8


def test_images_depend_on_every_part_of_the_seed_and_do_not_repeat():
    parameters = recipe(32, "easy")
    images = [snakes.make(parameters, *seed).images for seed in ((0, 0), (0, 1), (1, 0), (1, 1))]
    flat = np.concatenate(images).reshape(-1, 1024)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_workers_need_no_large_packages():
    code = (
        "import sys, lra_tasks.pathfinder.snakes; "
        "print({'jax', 'flax', 'tensorflow_datasets', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_recipe_refuses_other_sizes_and_difficulties():
    with pytest.raises(ValueError, match="size=64"):
        recipe(64)
    with pytest.raises(ValueError, match="easy, intermediate, hard"):
        recipe(32, "Hard")


def test_contact_sheet_shows_each_label_in_its_half():
    pictures = snakes.make(recipe(32, "easy"), 3)
    sheet = np.asarray(contact_sheet(pictures, per_label=4, columns=4, scale=2))
    assert sheet.shape == (2 * 66 + 4, 4 * 66)
    halves = (1, sheet[1:65, 1:65]), (0, sheet[71:135, 1:65])
    for label, top_left in halves:
        first = pictures.images[pictures.labels == label][0]
        np.testing.assert_array_equal(top_left[::2, ::2], first)
    with pytest.raises(ValueError, match="999 wanted"):
        contact_sheet(pictures, per_label=999, columns=4, scale=2)
