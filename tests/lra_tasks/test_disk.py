"""Paths and errors of files."""

import errno
import gzip
import io

import pytest

from lra_tasks.disk import expand_user, naming_cache_dir
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
