"""A folder to break."""

import shutil
from pathlib import Path

import pytest
from language_folders import DATA


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture with the masked-language head."""
    return Path(shutil.copytree(DATA / "masked_lm", tmp_path / "model"))
