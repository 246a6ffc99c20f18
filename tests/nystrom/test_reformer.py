"""Reformer's attention beside an independent reference."""

from functools import partial

import jax
import numpy as np
import pytest
from inputs import jitted, mask_with, normal, random_inputs, softmax

from nystrom.baselines.reformer import random_rotations, reformer_attention


def lsh_reference(q, v, mask, rotations, bucket_size):
    """One head in NumPy: softmax over the union of what a query reaches in any round."""
    real = np.flatnonzero(mask)
    columns = max(1, len(real) // bucket_size)
    reach = np.zeros((len(q), len(q)), bool)
    for rotation in rotations:
        rotated = q[real] @ rotation[:, :columns]
        bucket = np.argmax(np.concatenate([rotated, -rotated], axis=1), axis=1)
        order = real[np.argsort(bucket, kind="stable")]
        for place, i in enumerate(order):
            for other, j in enumerate(order):
                if place // bucket_size - other // bucket_size in (0, 1):
                    reach[i, j] = True
    k = q / np.linalg.norm(q, axis=1, keepdims=True)
    logits = np.where(reach, q @ k.T, -np.inf)
    np.fill_diagonal(logits, -1e5)
    return softmax(logits) @ v * mask[:, None]


@pytest.mark.parametrize(("num_hashes", "bucket_size"), [(1, 4), (2, 4), (3, 2), (2, 5)])
def test_reformer_is_softmax_over_what_is_within_reach(num_hashes, bucket_size):
    q, _, v = random_inputs(7, length=23, dtype=np.float64)
    rotations = random_rotations(num_hashes, 4, 12, seed=1)
    mask = mask_with(19, 23, "holes")
    with jax.enable_x64(True):
        out = jitted(partial(reformer_attention, bucket_size=bucket_size))(
            q, q, v, query_mask=mask, key_mask=mask, rotations=rotations
        )
    for head in range(2):
        expected = lsh_reference(q[:, head], v[:, head], mask, rotations, bucket_size)
        np.testing.assert_allclose(out[:, head], expected, atol=1e-6)


def test_reformer_with_one_chunk_is_full_attention():
    """All within reach: softmax attention with shared, unit-length keys, oneself left out."""
    q, _, v = random_inputs(8, dtype=np.float64)
    k = q / np.linalg.norm(q, axis=-1, keepdims=True)
    logits = np.einsum("nhd,mhd->hnm", q, k)
    logits[:, np.arange(13), np.arange(13)] = -1e5
    expected = np.einsum("hnm,mhd->nhd", softmax(logits), v)
    for bucket_size in (13, 64):
        with jax.enable_x64(True):
            out = reformer_attention(
                q, q, v, rotations=random_rotations(2, 4, 1), bucket_size=bucket_size
            )
        np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e25])
def test_the_length_of_reformers_keys_is_of_no_account(factor):
    q, k, v = random_inputs(8)
    attend = partial(reformer_attention, q, rotations=random_rotations(2, 4, 3), bucket_size=4)
    np.testing.assert_allclose(attend(factor * k, v), attend(k, v), atol=1e-5)
    gradient = jitted(jax.grad(lambda k: (attend(k, v) ** 2).sum()))
    expected = gradient(k)
    scaled = gradient(np.float32(factor) * k) * factor
    np.testing.assert_allclose(scaled, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.unchecked
def test_more_places_than_one_sort_can_number_are_refused():
    tokens = jax.ShapeDtypeStruct((65_536, 1, 4), np.float32)
    for bucket_size, is_refused in ((4, True), (8, False)):
        rotations = jax.ShapeDtypeStruct((1, 4, 65_536 // bucket_size), np.float32)
        run = partial(jax.eval_shape, partial(reformer_attention, bucket_size=bucket_size))
        if is_refused:
            with pytest.raises(ValueError, match="65536 tokens in chunks of 4: expected longer"):
                run(tokens, tokens, tokens, rotations=rotations)
        else:
            assert run(tokens, tokens, tokens, rotations=rotations).shape == tokens.shape


def test_a_lone_token_attends_to_itself():
    q, _, v = random_inputs(9, length=1)
    out = reformer_attention(q, q, v, rotations=random_rotations(2, 4, 1))
    np.testing.assert_allclose(out, v, atol=1e-6)


def test_reformer_finds_near_neighbours():
    """Sharp clusters far from each other: hashing finds what full attention would attend to."""
    rng = np.random.default_rng(10)
    centres = 6 * rng.normal(size=(16, 8))
    q = centres[rng.permutation(np.repeat(np.arange(16), 8))] + 0.1 * rng.normal(size=(128, 8))
    q = q[:, None].astype(np.float32)
    v = normal(11, 128, 1, 8)
    full = reformer_attention(q, q, v, rotations=random_rotations(1, 8, 1), bucket_size=128)
    errors = [
        np.abs(
            reformer_attention(q, q, v, rotations=random_rotations(n, 8, 8), bucket_size=16) - full
        ).mean()
        for n in (1, 4)
    ]
    assert errors[1] <= errors[0]
    assert errors[1] < 0.1 * np.abs(full).mean()


def test_of_shared_queries_and_keys_one_may_be_masked_alone():
    """What a key's mask hides is read by no query, though the queries there are real."""
    q, _, v = random_inputs(7, length=23)
    rotations, mask = random_rotations(2, 4, 6), mask_with(15, 23, "holes")
    attend = partial(reformer_attention, rotations=rotations, bucket_size=4)
    for given in ({"key_mask": mask}, {"query_mask": mask}):
        np.testing.assert_allclose(
            attend(q, q, v, **given), attend(q, q.copy(), v, **given), atol=1e-5
        )
    hidden = np.where(mask[:, None, None], v, np.nan)
    assert np.isfinite(attend(q, q, hidden, key_mask=mask)).all()
