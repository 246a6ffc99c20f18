"""Paths and errors of files."""

import errno
import gzip
import io
from pathlib import Path

import pytest

from lra_tasks.disk import digest_of, expand_user, naming_cache_dir, path_problem
from lra_tasks.errors import first_line, is_worded


def raised(function):
    try:
        function()
    except (ValueError, OSError) as error:
        return error


def test_users_that_there_are_not_are_named():
    with pytest.raises(ValueError, match="there is no such user"):
        expand_user("~no.body/runs")


def test_errors_are_worded_by_the_system_or_by_a_raise_of_ours(tmp_path):
    (tmp_path / "file").write_text("text")
    assert is_worded(raised(lambda: (tmp_path / "none").read_text()))
    assert is_worded(raised(lambda: expand_user("~no.body")))
    assert not is_worded(raised(lambda: gzip.decompress(b"text")))
    assert not is_worded(raised(lambda: io.StringIO().detach()))
    assert not is_worded(raised(lambda: int("many")))


def test_an_error_in_a_line_says_something():
    assert first_line(ValueError()) == "ValueError"
    assert first_line(OSError("\n disk full. See full TensorStore details: x\ny")) == "disk full"
    assert len(first_line(ValueError(400 * "x"))) == 200


def test_an_error_of_reading_is_not_blamed_on_the_cache(tmp_path):
    with pytest.raises(OSError, match=r"^\[Errno 5\] read$"), naming_cache_dir(tmp_path):
        raise OSError(errno.EIO, "read")


@pytest.mark.parametrize(
    ("names", "is_ours"),
    [
        (("cache/lra/set",), True),
        ((".",), True),  # the cache's folder can't be made in it
        (("elsewhere",), False),
        (("cache/lra/set", None, "elsewhere"), False),
        ((), True),
    ],
)
def test_an_error_of_writing_names_the_setting_of_the_place(names, is_ours, tmp_path):
    paths = [name and str(tmp_path / name) for name in names]
    said = r"config\.cache_dir=.*quota.*make room, or set" if is_ours else r"^\[Errno \d+\] quota"
    with pytest.raises(OSError, match=said), naming_cache_dir(tmp_path / "cache" / "lra"):
        raise OSError(errno.EDQUOT, "quota", *paths)


@pytest.mark.parametrize("kind", [str, Path])
def test_an_address_is_no_folder_also_as_a_path(kind):
    assert path_problem(kind("gs://bucket/runs")).startswith("an address")
    assert path_problem(kind("/runs/a:b/c")) == ""


def test_a_digest_is_of_what_a_record_says_not_of_its_order():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "digest": "x", "a": 1})
