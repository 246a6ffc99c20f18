"""Downloads, from a real server on this machine."""

import hashlib
import socket
import time

import pytest
from official_files import serve

from lra_tasks import download

CONTENTS = bytes(range(256)) * 3000
GOOD = (len(CONTENTS), hashlib.sha256(CONTENTS).hexdigest())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    for name in ("data.bin", "short.bin"):
        (folder / name).write_bytes(CONTENTS)
    with serve(folder) as address:
        yield address


def test_a_download_is_whole_and_alone_in_its_folder(server, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "left by a killed process").touch()
    download.fetch(f"{server}/data.bin", *GOOD, tmp_path, progress=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"data.bin": CONTENTS}


@pytest.mark.parametrize(
    ("name", "checksum", "problem"),
    [
        ("data.bin", (len(CONTENTS), "0" * 64), "wrong checksum"),
        ("data.bin", (len(CONTENTS) - 1, GOOD[1]), "wrong checksum"),
        ("short.bin", GOOD, "failed"),
        ("missing.bin", GOOD, "404"),
    ],
)
def test_a_failed_download_leaves_nothing(server, tmp_path, name, checksum, problem):
    with pytest.raises(OSError, match=problem) as caught:
        download.fetch(f"{server}/{name}", *checksum, tmp_path, progress=False)
    assert f"{server}/{name}" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_no_server_and_a_silent_server_are_noticed_in_time(tmp_path):
    start = time.monotonic()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with pytest.raises(OSError, match=r"can't be reached.*refused"):
            download.fetch(f"http://127.0.0.1:{port}/x", *GOOD, tmp_path, timeout=1)
        silent.listen()
        with pytest.raises(OSError, match=f"http://127.0.0.1:{port}/x"):
            download.fetch(f"http://127.0.0.1:{port}/x", *GOOD, tmp_path, timeout=0.5)
    assert time.monotonic() - start < 4
    assert not list(tmp_path.iterdir())
