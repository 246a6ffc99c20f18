"""The legend of dimensions."""

import re

from nystrom import array_typing
from tests.conftest import ROOT


def test_every_letter_of_a_signature_is_in_the_legend():
    legend = set(re.findall(r"^\| [*]?([A-Z]) ", array_typing.__doc__, re.M))
    used = set()
    for path in (ROOT / "nystrom").rglob("*.py"):
        shapes = re.findall(r'(?:Float|Int|Bool)\[(?:jax\.)?Array, "(.*?)"\]', path.read_text())
        used |= set(re.findall(r"\b[A-Z]\b", " ".join(shapes)))
    assert {"B", "N", "L"} <= used <= legend
