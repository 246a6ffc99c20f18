"""What is said of a step's record that is not whole, whatever is wrong with it."""

import contextlib
import shutil

import jax.numpy as jnp
import pytest

from experiment.checkpoints import Checkpoints
from experiment.digests import Damaged, read_record


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a step."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        checkpoints.save(4, {"x": jnp.zeros(3)}, {"seconds": 1.5}, 0.5)
    return folder / "4"


def replace_by_a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "^parts of it are missing$"),
        (lambda file: shutil.rmtree(file.parent), "^parts of it are missing$"),
        (lambda file: file.write_text("{}"), "^its record can't be read: 'digest'$"),
        (lambda file: file.write_text("[]"), "^its record can't be read: list indices"),
        (lambda file: file.write_text("{"), "^its record can't be read: Expecting"),
        (replace_by_a_folder, "^its record can't be read: .*[Dd]irectory"),
    ],
)
def test_a_record_that_cannot_be_read_is_damage_with_a_reason(damage, said, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "4")
    assert read_record(folder)["progress"] == {"seconds": 1.5}
    damage(folder / "record" / "metadata")
    with pytest.raises(Damaged, match=said):
        read_record(folder)
