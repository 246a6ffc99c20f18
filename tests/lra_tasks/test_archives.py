"""Archives that are not trusted: what is refused, that sizes are bounded, fuzzing."""

import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest
from official_files import damage, tar_bytes

from lra_tasks import archives, release

FILES = {"./a/1.txt": b"one", "a/2.txt": b"", "b/3.txt": b"three" * 9000}


def read(path, data, wanted=lambda name: True, max_member=1 << 20, max_total=1 << 22):
    path.write_bytes(data)
    members = archives.iter_members(path, wanted, max_member, max_total)
    return {name: file.read() for name, file in members}


@pytest.mark.parametrize("compress", [True, False])
def test_members_are_read_in_order_with_normalised_names(tmp_path, compress):
    got = read(tmp_path / "x", tar_bytes(FILES, compress=compress))
    assert got == {"a/1.txt": b"one", "a/2.txt": b"", "b/3.txt": b"three" * 9000}
    assert list(got) == ["a/1.txt", "a/2.txt", "b/3.txt"]
    got = read(tmp_path / "x", tar_bytes(FILES, compress=compress), lambda name: "3" in name)
    assert list(got) == ["b/3.txt"]


def test_members_left_unread_or_half_read_do_not_shift_the_next(tmp_path):
    (tmp_path / "x").write_bytes(tar_bytes({str(i): b"%d" % i * 5000 for i in range(10)}))
    for name, file in archives.iter_members(tmp_path / "x", lambda name: True, 1 << 20, 1 << 22):
        if name in "369":
            assert file.read() == name.encode() * 5000
        elif name in "147":
            assert file.read(7) == name.encode() * 7


def info(name, kind=tarfile.REGTYPE, size=0, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        info("../evil.txt"),
        info("a/../../evil.txt"),
        info("..\\evil.txt"),
        info("/etc/evil.txt"),
        info("\\evil.txt"),
        info("a/link", tarfile.SYMTYPE, link="/etc/passwd"),
        info("a/link", tarfile.LNKTYPE, link="../../etc/passwd"),
        info("a/device", tarfile.CHRTYPE),
        info("a/device", tarfile.BLKTYPE),
        info("a/pipe", tarfile.FIFOTYPE),
        info("a/sparse", tarfile.GNUTYPE_SPARSE),
        info("a/unknown", b"Z"),
    ],
    ids=lambda member: f"{member.type.decode()}{member.name}",
)
def test_unsafe_members_are_refused_by_name_even_if_not_wanted(tmp_path, member):
    data = tar_bytes(FILES, [member])
    with pytest.raises(ValueError, match=r"member .*refused") as caught:
        read(tmp_path / "x", data, lambda name: False)
    assert repr(member.name) in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_unpacked_bytes_are_bounded_however_they_are_packed(tmp_path):
    bomb = tar_bytes({"zeros": bytes(32 << 20)})
    assert len(bomb) < 1 << 18
    with pytest.raises(ValueError, match="member 'zeros' refused: it claims 33,554,432 bytes"):
        read(tmp_path / "x", bomb)
    with pytest.raises(ValueError, match="'zeros' has 33,554,432 bytes, expected at most 1,048"):
        read(tmp_path / "x", bomb, max_total=1 << 26)
    with pytest.raises(ValueError, match="unpacks to more than 4,194,304 bytes"):
        read(tmp_path / "x", tar_bytes({str(i): bytes(1 << 20) for i in range(9)}))


def test_a_large_archive_may_unpack_to_so_many_times_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 1_000)
    files = {"noise": np.random.default_rng(0).bytes(20_000)}
    assert read(tmp_path / "x", tar_bytes(files)) == files
    monkeypatch.setattr(archives, "MAX_RATIO", 0.5)
    with pytest.raises(ValueError, match=r"unpacks to more than|refused: it claims"):
        read(tmp_path / "x", tar_bytes(files))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_headers_are_bounded(tmp_path, kind):
    bomb = tar_bytes({}, [info("long", kind, size=64 << 20)])
    tracemalloc.start()
    with pytest.raises(ValueError, match="a member's header is longer than"):
        read(tmp_path / "x", bomb, max_total=1 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_headers_nested_thousands_deep_are_a_clean_error(tmp_path):
    nested = [info("n", b"L", size=1) for _ in range(900)]
    with pytest.raises(ValueError, match=f"{tmp_path / 'x'}: "):
        read(tmp_path / "x", tar_bytes({}, nested))


def test_a_size_beyond_the_archive_or_below_zero_is_refused(tmp_path):
    data = bytearray(tar_bytes({"a": b"data"}, compress=False))
    for size in (-512, 1 << 60):
        data[124:136] = b"\xff" * 4 + struct.pack(">q", size) if size < 0 else b"\x80" + bytes(3)
        if size > 0:
            data[128:136] = struct.pack(">q", size)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        with pytest.raises(ValueError, match=r"claims|damaged"):
            read(tmp_path / "x", bytes(data))


@pytest.mark.parametrize("compress", [True, False])
def test_truncation_at_every_place_is_noticed(tmp_path, compress):
    data = tar_bytes(dict(list(FILES.items())[:2]), compress=compress)
    size = len(data.rstrip(b"\0")) + 1 if not compress else len(data)
    for length in range(0, size, 7 if compress else 97):
        with pytest.raises(ValueError, match=f"{tmp_path / 'x'}: "):
            read(tmp_path / "x", data[:length])


def test_a_wrong_checksum_is_noticed(tmp_path):
    data = bytearray(tar_bytes(FILES))
    data[-6] ^= 1  # in gzip's CRC, behind all members
    with pytest.raises(ValueError, match="truncated or damaged: CRC"):
        read(tmp_path / "x", bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"hello", bytes(100), gzip.compress(b"hello", mtime=0), b"\x1f\x8b"]
)
def test_what_is_no_archive_is_a_clean_error(tmp_path, data):
    with pytest.raises(ValueError, match=f"{tmp_path / 'x'}: "):
        read(tmp_path / "x", data)


def test_an_archive_of_another_compression_is_not_called_damaged_alone(tmp_path):
    with pytest.raises(ValueError, match=r"x: .*, or not a tar archive, gzipped or not: ends a"):
        read(tmp_path / "x", lzma.compress(b"hello"))


def test_many_members_take_no_memory(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(tar_bytes({f"{i:06}": b"" for i in range(6000)}))
    tracemalloc.start()
    assert sum(1 for _ in archives.iter_members(path, lambda name: True, 9, 1 << 30)) == 6000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_fuzzed_archives_give_their_members_or_a_clean_error(tmp_path):
    rng = np.random.default_rng(0)
    plain = {"a": b"text", "b" * 150: b"long name", "\u00e9": bytes(700)}
    outcomes = {"whole": 0, "refused": 0}
    for round_number in range(600):
        data = damage(tar_bytes(plain, compress=False), rng)
        if round_number % 2:
            data = gzip.compress(data, 1, mtime=0)
        if round_number % 4 == 3:
            data = damage(data, rng)
        try:
            read(tmp_path / "x", data)
            outcomes["whole"] += 1
        except ValueError as error:
            assert type(error) is ValueError, repr(error)
            assert str(error).startswith(f"{tmp_path / 'x'}: ")
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 30  # both happen


def test_locate_takes_the_first_layout_that_is_whole_and_names_what_is_missing(tmp_path):
    layouts = [("x.tar.gz",), ("in/1", "in/2")]
    with pytest.raises(ValueError, match=r"has none of: x.tar.gz; or in/1, in/2; expected stuff"):
        archives.locate(str(tmp_path), layouts, "stuff")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "2").touch()
    with pytest.raises(ValueError, match=r"lacks in/1; expected stuff"):
        archives.locate(str(tmp_path), layouts, "stuff")
    (tmp_path / "in" / "1").touch()
    assert archives.locate(str(tmp_path), layouts, "") == [tmp_path / "in/1", tmp_path / "in/2"]
    (tmp_path / "x.tar.gz").mkdir()  # as some programs unpack it
    assert archives.locate(str(tmp_path), layouts, "") == [tmp_path / "in/1", tmp_path / "in/2"]
    (tmp_path / "x.tar.gz").rmdir()
    (tmp_path / "x.tar.gz").touch()
    for data_dir in (tmp_path, tmp_path / "x.tar.gz"):
        assert archives.locate(str(data_dir), layouts, "") == [tmp_path / "x.tar.gz"]
    with pytest.raises(ValueError, match=r"needs stuff; set config.task.data_dir"):
        archives.locate("", layouts, "stuff")


def test_the_release_is_streamed_with_the_same_care(tmp_path):
    path = tmp_path / "lra_release.gz"
    path.write_bytes(tar_bytes(FILES, [info("../evil")]))
    with pytest.raises(ValueError, match=r"'\.\./evil' refused"):
        list(release.stream_archive(path, lambda name: False))


def test_a_broken_header_is_not_taken_for_the_end(tmp_path):
    data = bytearray(tar_bytes({"a": b"one", "b": b"two"}, compress=False))
    data[1024] ^= 1  # in the second's name, of which its header has a checksum
    with pytest.raises(ValueError, match="broken header"):
        read(tmp_path / "x", bytes(data))


def test_how_much_may_be_packed_into_little_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "RATIO_FREE_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="'zeros' refused: it claims 33,554,432 bytes"):
        read(tmp_path / "x", tar_bytes({"zeros": bytes(32 << 20)}), max_total=1 << 30)


def test_a_line_that_is_too_long_is_named(monkeypatch):
    monkeypatch.setattr(release, "MAX_LINE", 4)
    lines = release.read_lines(io.BytesIO(b"abc\nabcdef\n"), "x.tsv")
    assert next(lines) == (1, b"abc")
    with pytest.raises(ValueError, match=r"x\.tsv, line 2: longer than 4 bytes"):
        next(lines)
