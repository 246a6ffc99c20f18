"""What README.md says can be run as it stands."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

DOCS = sorted((ROOT / "docs").glob("*.md"))


def blocks_of(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    return blocks


def python_of(page):
    """The names that each Python block of a page leaves behind."""
    for block in blocks_of(page):
        names = {}
        exec(compile(block, page, "exec"), names)
        yield names


@pytest.mark.parametrize("page", ["docs/index.md", "docs/library.md"])
def test_the_python_of_pages_for_the_library_runs(page):
    for names in python_of(page):
        assert names["out"].shape[-2:] == (8, 64)


def test_the_python_in_readme_runs():
    for names in python_of("README.md"):
        assert names["out"].shape == names["x"].shape
        assert names["hidden"].shape == (2, 1000, 64)
        padded = names["x"].at[1, 700:].set(float("nan"))
        again = names["nystrom"].nystrom_attention(padded, padded, padded, mask=names["is_real"])
        assert (again == names["out"]).all()


def test_the_python_in_readme_is_right_by_the_packages_types(tmp_path):
    jax_arrays = "first = out.at[0].get(), hidden.at[0].get()\n"
    block = "\n".join([*blocks_of("README.md"), jax_arrays])
    (tmp_path / "block.py").write_text(block)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", f"{tmp_path}/block.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_sentence_of_readme_has_more_than_two_numbers():
    text = re.sub(
        r"```.*?```|^[|].*?$|^    .*?$", "", (ROOT / "README.md").read_text(), flags=re.S | re.M
    )
    sentences = re.split(r"(?<=[.:])\s+(?=[A-Z*`\[])|\n\n", re.sub(r"\]\([^)]*\)", "]", text))
    assert len(sentences) > 30
    for sentence in sentences:
        assert len(re.findall(r"(?<![\w.,-])\d[\d.,]*", sentence)) <= 2, sentence


def test_readme_is_short_and_what_it_links_to_is_there():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 700
    for name in ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in DOCS)):
        page = ROOT / name
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), (name, link)
