"""However the tokens are cut into tiles, the two inner attentions are the same."""

import jax
import numpy as np
import pytest
from inputs import normal

from nystrom import landmark_attention
from nystrom.landmark_attention import attend_from_landmarks, attend_to_landmarks

B, N, H, L, D = 10, 29, 2, 3, 5
EXAMPLE_BYTES = 2 * N * L * 4  # logits and weights of one head of an example
# Tiles of: all examples, two examples, one, five pieces of two (30 = 5 x 6: the last is padded).
CUTS = {"all": (B, 1), "two": (2, 1), "one": (1, 1), "pieces": (2, 0.21)}


def set_tiles(monkeypatch, examples, share):
    """On CPU at most so many examples a tile, and of each at most that share."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(landmark_attention, "HEADS_PER_TURN", examples * H)
    monkeypatch.setattr(landmark_attention, "TILE_BYTES", {"cpu": int(share * EXAMPLE_BYTES)})


def results(attend, inputs, masks):
    """Output and gradients, compiled anew."""

    def output_and_gradients(inputs, masks, cotangent):
        out, pull_back = jax.vjp(lambda *inputs: attend(*inputs, *masks), *inputs)
        return out, *pull_back(cotangent)

    shape = jax.eval_shape(lambda *inputs: attend(*inputs, *masks), *inputs).shape
    return jax.jit(output_and_gradients)(inputs, masks, normal(9, *shape))


TOKENS = normal(0, B, N, H, D), normal(1, B, N, H, D)
LANDMARKS = normal(2, B, H, L, D), normal(3, B, H, L, D)
REAL = np.random.default_rng(4).random((B, N)) < 0.7
REAL[3] = False
VALID = np.arange(L) < np.array([3, 2, 3, 1, 3, 3, 2, 1, 3, 3])[:, None]
CASES = {
    "to": (attend_to_landmarks, (TOKENS[0], *LANDMARKS), (None, None)),
    "to, masked": (attend_to_landmarks, (TOKENS[0], *LANDMARKS), (REAL, VALID)),
    "from": (attend_from_landmarks, (LANDMARKS[0], *TOKENS), (None,)),
    "from, masked": (attend_from_landmarks, (LANDMARKS[0], *TOKENS), (REAL,)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tiles", ["two", "one", "pieces"])
def test_tiles_change_nothing(monkeypatch, case, tiles):
    set_tiles(monkeypatch, *CUTS["all"])
    whole = results(*CASES[case])
    set_tiles(monkeypatch, *CUTS[tiles])
    for one, other in zip(results(*CASES[case]), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("budget", [2 * H * EXAMPLE_BYTES, H * EXAMPLE_BYTES // 5])
def test_the_program_for_accelerators_is_the_same(monkeypatch, case, budget):
    """All heads at once, as they run elsewhere than on CPU: two examples a tile, or pieces."""
    set_tiles(monkeypatch, *CUTS["all"])
    whole = results(*CASES[case])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(landmark_attention, "DEFAULT_TILE_BYTES", budget)
    for one, other in zip(results(*CASES[case]), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_cases_are_cut_as_their_names_say(monkeypatch):
    cut = {}
    for name, limits in CUTS.items():
        set_tiles(monkeypatch, *limits)
        tiling = landmark_attention._Tiling.of(TOKENS[0], LANDMARKS[0])
        cut[name] = tiling.batch, tiling.steps, tiling.length
    assert cut == {"all": (10, 1, N), "two": (2, 1, N), "one": (1, 1, N), "pieces": (2, 5, 6)}
