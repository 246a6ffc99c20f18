"""The attentions beside Nyström: the contract, and each against an independent reference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import AttentionContract
from flax import nnx
from inputs import DEPTH, HEADS, jitted, mask_with, normal, random_inputs, softmax

import nystrom
from nystrom.attention import nystrom_attention
from nystrom.baselines.linear import linear_attention
from nystrom.baselines.linformer import linformer_attention
from nystrom.baselines.performer import orthogonal_features, performer_attention
from nystrom.baselines.reformer import random_rotations, reformer_attention
from nystrom.baselines.shared_scale import authors_attention
from nystrom.registry import Setting

# What a method by nature can't do. An entry of the registry that is not here passes all of it.
BY_NATURE = {
    "none": {"supports_cross_lengths": False, "reads_queries": False},
    "linformer": {
        # The registry's own projection is small at first; this one has 72 columns.
        "attend": staticmethod(partial(linformer_attention, projection=normal(1, 2, 6, 72))),
        "heads_alike": False,  # a projection per head
        "is_average": False,  # the projection's rows don't add up to 1
        "tolerance": 2e-4,  # projected keys and values are of size sqrt(13)
    },
    "reformer": {"supports_cross_lengths": False},
}
SMALL = {"num_features": 24, "bucket_size": 4}  # thirteen tokens hash into six buckets of these
ELSEWHERE = {"nystrom", "softmax"}  # in test_attention.py, each of their forms


def contract_of(name):
    """The contract as tests of the registry's attention of that name, up to 72 tokens."""
    entry, by_nature = nystrom.ATTENTIONS[name], BY_NATURE.get(name, {})
    setting = Setting(DEPTH, HEADS, 72, seed=0, axis_name=None, rngs=nnx.Rngs(0))
    options = {o: SMALL.get(o, v) for o, v in entry.options.items()}
    attend = staticmethod(entry.make(setting, **options))
    return type(f"Test{name.title()}", (AttentionContract,), {"attend": attend} | by_nature)


for _name in nystrom.ATTENTIONS:
    if _name not in ELSEWHERE:
        globals()[f"Test{_name.title()}"] = contract_of(_name)


class TestPerformerSoftmax(AttentionContract):
    attend = staticmethod(
        partial(
            performer_attention, projection=orthogonal_features(24, 4), feature_kernel="softmax"
        )
    )
    gradient_tolerance = 1e-3  # the factor that keeps exponents small is held constant


def test_linear_is_a_kernel_average():
    """N x M weights phi(q) phi(k), formed and normalised in NumPy."""
    q, k, v = random_inputs(0, length=9, key_length=12, dtype=np.float64)
    phi = [np.where(x > 0, x + 1, np.exp(x)) for x in (q, k)]
    weights = np.einsum("nhd,mhd->hnm", *phi)
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("hnm,mhd->nhd", weights, v)
    with jax.enable_x64(True):
        np.testing.assert_allclose(linear_attention(q, k, v), expected, atol=1e-12)


def test_linear_survives_large_negative_inputs():
    """elu + 1 underflows to zero: zeros then, and finite gradients."""
    q, k, v = random_inputs(1)
    loss = jitted(jax.grad(lambda *x: linear_attention(*x).sum(), (0, 1, 2)))
    assert all(np.isfinite(grad).all() for grad in loss(q - 500, k - 500, v))


@pytest.mark.parametrize("kernel", ["linear", "relu", "softmax"])
def test_a_key_that_is_no_number_is_not_hidden(kernel):
    q, k, v = random_inputs(1)
    k[2, 0, 1] = np.nan
    if kernel == "linear":
        out = linear_attention(q, k, v)
    else:
        out = performer_attention(
            q, k, v, projection=orthogonal_features(8, 4), feature_kernel=kernel
        )
    assert np.isnan(out[:, 0]).all() and np.isfinite(out[:, 1]).all()


def test_linformer_is_attention_to_projected_tokens():
    q, k, v = random_inputs(1, length=9, key_length=12, dtype=np.float64)
    projection = normal(2, 2, 6, 15, dtype=np.float64)
    k, v = (np.einsum("hlm,mhd->hld", projection[..., :12], x) for x in (k, v))
    expected = np.einsum("hnl,hld->nhd", softmax(np.einsum("nhd,hld->hnl", q, k) / 2), v)
    q, k, v = random_inputs(1, length=9, key_length=12, dtype=np.float64)
    with jax.enable_x64(True):
        out = linformer_attention(q, k, v, projection=projection)
    np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("kernel", ["relu", "softmax"])
def test_performer_is_a_kernel_average(kernel):
    q, k, v = random_inputs(2, length=9, key_length=12, dtype=np.float64)
    projection = orthogonal_features(24, 4, seed=1)
    features = []
    for x in (q, k):
        x = x / 4**0.25
        logits = np.einsum("nhd,fd->nhf", x, projection)
        if kernel == "relu":
            features.append(np.maximum(logits, 0) + 1e-3)
        else:
            features.append(np.exp(logits - 0.5 * (x**2).sum(-1, keepdims=True)))
    weights = np.einsum("nhf,mhf->hnm", *features)
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("hnm,mhd->nhd", weights, v)
    with jax.enable_x64(True):
        out = performer_attention(q, k, v, projection=projection, feature_kernel=kernel)
    np.testing.assert_allclose(out, expected, atol=1e-4)  # the softmax features' small number


def test_softmax_features_approach_softmax_attention():
    """The kernel's expectation is exp(q k / sqrt D): with many features, softmax attention."""
    q, k, v = (x / 2 for x in random_inputs(3, length=9, key_length=12))
    exact = np.einsum("hnm,mhd->nhd", softmax(np.einsum("nhd,mhd->hnm", q, k) / 2), v)
    attend = jitted(partial(performer_attention, feature_kernel="softmax"))
    errors = [
        np.abs(attend(q, k, v, projection=orthogonal_features(n, 4)) - exact).mean()
        for n in (32, 2048, 32768)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_relu_features_have_the_arc_cosine_kernel():
    """E relu(w x) relu(w y) = |x| |y| (sin t + (pi - t) cos t) / 2 pi, t the angle between."""
    x, y = normal(4, 2, 6)
    features = orthogonal_features(200_000, 6)
    mean = (np.maximum(features @ x, 0) * np.maximum(features @ y, 0)).mean()
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    angle = np.arccos(x @ y / lengths)
    expected = lengths * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
    np.testing.assert_allclose(mean, expected, rtol=0.02)


def test_orthogonal_features_are_orthogonal_and_normal():
    features = orthogonal_features(20_000, 8, seed=3)
    blocks = features.reshape(-1, 8, 8)
    gram = blocks @ np.swapaxes(blocks, 1, 2)
    off_diagonal = gram - gram * np.eye(8)
    np.testing.assert_allclose(off_diagonal, 0, atol=2e-5)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(features.T), np.eye(8), atol=0.06)
    np.testing.assert_allclose((features**4).mean(), 3, atol=0.15)  # a normal's kurtosis
    assert orthogonal_features(10, 8).shape == (10, 8)
    np.testing.assert_array_equal(features, orthogonal_features(20_000, 8, seed=3))
    assert np.abs(features - orthogonal_features(20_000, 8, seed=4)).max() > 1


@pytest.mark.unchecked
@pytest.mark.parametrize("draw", [orthogonal_features, partial(random_rotations, 2)])
def test_sizes_of_what_is_drawn_are_whole_numbers(draw):
    np.testing.assert_array_equal(draw(jnp.asarray(4), np.int64(3)), draw(4, 3))
    with pytest.raises(TypeError, match=r"=4\.0: expected an integer"):
        draw(4.0, 3)
    with pytest.raises(ValueError, match="=0: at least 1"):
        draw(4, 0)
    with pytest.raises(ValueError, match="seed=-1: at least 0"):
        draw(4, 3, seed=-1)


def test_orthogonal_features_beat_independent_ones():
    """Lower error of the softmax kernel over many draws: the paper's reason for them."""
    x, y = 0.3 * normal(5, 2, 8)
    exact = np.exp(x @ y)

    def error(features):
        phi = [np.exp(features @ z - z @ z / 2) for z in (x, y)]
        return ((phi[0] * phi[1]).reshape(-1, 8).mean(axis=1) - exact).var()

    independent = normal(6, 40_000, 8)
    assert error(orthogonal_features(40_000, 8)) < 0.95 * error(independent)


def test_options_change_something():
    q, k, v = random_inputs(12, length=40)
    one = performer_attention(q, k, v, projection=orthogonal_features(24, 4))
    for other in (
        performer_attention(q, k, v, projection=orthogonal_features(24, 4, seed=1)),
        performer_attention(q, k, v, projection=orthogonal_features(32, 4)),
        performer_attention(
            q, k, v, projection=orthogonal_features(24, 4), feature_kernel="softmax"
        ),
    ):
        assert np.abs(other - one).max() > 1e-2
    one = reformer_attention(q, q, v, rotations=random_rotations(2, 4, 10), bucket_size=4)
    for rotations, bucket_size in (
        (random_rotations(2, 4, 10), 8),
        (random_rotations(1, 4, 10), 4),
        (random_rotations(2, 4, 10, seed=1), 4),
    ):
        other = reformer_attention(q, q, v, rotations=rotations, bucket_size=bucket_size)
        assert np.abs(other - one).max() > 1e-2


@pytest.mark.unchecked
def test_errors():
    q, k, v = random_inputs(13)
    with pytest.raises(ValueError, match=r"projection has shape \(3, 6, 20\): expected 2 L P"):
        linformer_attention(q, k, v, projection=normal(0, 3, 6, 20))
    with pytest.raises(ValueError, match=r"key has 13 positions: the projection takes at most 12"):
        linformer_attention(q, k, v, projection=normal(0, 2, 6, 12))
    with pytest.raises(ValueError, match="feature_kernel='exp': expected one of relu, softmax"):
        performer_attention(q, k, v, projection=orthogonal_features(8, 4), feature_kernel="exp")
    with pytest.raises(ValueError, match=r"projection has shape \(8, 5\): expected F D with D = 4"):
        performer_attention(q, k, v, projection=orthogonal_features(8, 5))
    with pytest.raises(ValueError, match="bucket_size=0: at least 1"):
        reformer_attention(q, q, v, rotations=random_rotations(2, 4, 9), bucket_size=0)
    with pytest.raises(ValueError, match=r"rotations have 2 columns: 13 tokens in chunks of 4"):
        reformer_attention(q, q, v, rotations=random_rotations(2, 4, 2), bucket_size=4)
    with pytest.raises(ValueError, match=r"rotations have shape \(2, 5, 3\)"):
        reformer_attention(q, q, v, rotations=random_rotations(2, 5, 3), bucket_size=4)
    with pytest.raises(ValueError, match=r"rotations have shape \(0, 4, 9\).*R at least 1"):
        reformer_attention(q, q, v, rotations=random_rotations(2, 4, 9)[:0], bucket_size=4)
    for attend, name, constants in (
        (linformer_attention, "projection", normal(0, 2, 6, 20)),
        (performer_attention, "projection", orthogonal_features(8, 4)),
        (reformer_attention, "rotations", random_rotations(2, 4, 9)),
    ):
        for other in (constants.tolist(), constants.astype(np.complex64)):
            with pytest.raises(TypeError, match=rf"{name} has .*: expected an array of floating"):
                attend(q, q, v, **{name: other})
    with pytest.raises(ValueError, match=r"projection has shape \(2, 0, 20\): expected 2 L P"):
        linformer_attention(q, k, v, projection=normal(0, 2, 0, 20))
    with pytest.raises(ValueError, match=r"shape \(0, 4\): expected F D with D = 4 and F of at le"):
        performer_attention(q, k, v, projection=np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="num_features=0: at least 1"):
        orthogonal_features(0, 4)


@pytest.mark.parametrize("x", [0.5, -2.0, -16.0, -20.0, -60.0, -500.0])
def test_linear_keeps_its_features_at_negative_inputs(x):
    """Keys x, x, x - 1/2, x with q = 0: where phi is exp their common factor cancels."""
    q = np.zeros((1, 1, 1), np.float32)
    k = np.array([x, x, x - 0.5, x], np.float32)[:, None, None]
    v = np.arange(1, 5, dtype=np.float32)[:, None, None]

    def attend(k):
        return linear_attention(q, k, v)[0, 0, 0]

    phi = np.array([max(y, 0) + np.exp(min(y, 0) - min(x, 0)) for y in k.ravel().tolist()])
    out, grads = jax.jit(jax.value_and_grad(attend))(k)
    np.testing.assert_allclose(out, (phi * v.ravel()).sum() / phi.sum(), rtol=1e-5)
    if x < 0:
        np.testing.assert_allclose(out, 2.4455, atol=1e-4)
        assert np.abs(grads).min() > 1e-2


def test_linear_is_the_mean_where_all_weights_are_alike():
    x, v = np.full((5, 1, 2), -300.0, np.float32), np.arange(10, dtype=np.float32).reshape(5, 1, 2)
    mask = np.array([1, 1, 0, 1, 1], bool)
    out = linear_attention(x, x, v, mask=mask)
    np.testing.assert_allclose(out[0, 0], v[mask].mean(axis=0)[0], rtol=1e-6)


def test_the_authors_attention_has_landmarks_over_padding():
    """Their code's steps in NumPy, in float64: padding counts, and the batch has one scale."""
    query, key, value = random_inputs(11, 2, length=12)
    mask = np.arange(12) < np.array([[12], [5]])
    found = authors_attention(query, key, value, mask=mask, num_landmarks=4)

    q, k, v = (np.swapaxes(np.asarray(x, float), 1, 2) for x in (query, key, value))
    real = mask[:, None, :, None]
    q, k = q * real / np.sqrt(2), k * real / np.sqrt(2)  # each by the fourth root of 4
    q_marks, k_marks = (x.reshape(2, 2, 4, 3, 4).mean(axis=3) for x in (q, k))
    f = softmax(q @ np.swapaxes(k_marks, -1, -2))
    a = softmax(q_marks @ np.swapaxes(k_marks, -1, -2))
    g = softmax(q_marks @ np.swapaxes(k, -1, -2) - 1e9 * (1 - mask[:, None, None, :]))
    z = np.swapaxes(a, -1, -2) / (a.sum(axis=-2).max() * a.sum(axis=-1).max())
    eye = np.eye(4)
    for _ in range(6):
        az = a @ z
        z = z / 4 @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    expected = np.swapaxes(f @ z @ g @ v, 1, 2) * mask[..., None, None]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    inert = nystrom_attention(query, key, value, mask=mask, num_landmarks=4)
    assert np.abs(found - inert)[1].max() > 1e-3


def test_constants_that_all_share_cannot_be_written_to():
    for constants in (orthogonal_features(8, 4), random_rotations(2, 4, 3)):
        with pytest.raises(ValueError, match="read-only"):
            constants[0] = 0


def test_identity_has_zeros_for_padded_queries():
    q, k, v = random_inputs(3)
    mask = mask_with(8, 13, "holes")
    out = nystrom.identity_attention(q, k, v, query_mask=mask)
    np.testing.assert_array_equal(out, np.where(mask[:, None, None], v, 0))


@pytest.mark.unchecked
@pytest.mark.parametrize("name", ["nystrom", "softmax", "linear", "identity"])
def test_queries_have_keys_of_some_head(name):
    attend = getattr(nystrom, f"{name}_attention")
    q, k, v = random_inputs(31)
    with pytest.raises(ValueError, match="query has 2 heads and key 0"):
        attend(q, k[:, :0], v[:, :0])
