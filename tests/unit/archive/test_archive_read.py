from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import deployer.archive.layout as layout
import deployer.archive.read as read_module
from deployer.archive import Entry, check_outline, outline_size, verify_archive, write_archive
from deployer.archive.stream import BLOCK, sums_of
from deployer.errors import IntegrityError
from tests.unit.archive.reading import read_members

CONTENT = {"MAR-INF/MANIFEST.json": b"{}", "b.txt": b"abc" * 500, "ü": b"", "w.pt": bytes(range(256)) * 20}


@pytest.fixture(params=["zip-store", "default"])
def mar(request, tmp_path, archive, digests):
    """A .mar that kdeploy wrote, and what is recorded of it."""
    sealed = write_archive(archive(CONTENT, request.param), tmp_path / "m.mar", digests)
    return tmp_path / "m.mar", sealed.entries


def zipped(path: Path, *infos: zipfile.ZipInfo | str, content: bytes = b"content") -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that are there twice
        with zipfile.ZipFile(path, "w") as made:
            for info in infos:
                made.writestr(info, content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(IntegrityError) as caught:
        read_members(path)
    assert caught.value.where == str(path)
    return caught.value.what


def test_what_was_written_is_found(mar):
    path, recorded = mar
    assert read_members(path) == recorded
    verify_archive(path, recorded)
    assert [entry.name for entry in recorded] == sorted(CONTENT)


def test_large_members(tmp_path, archive, digests):
    source = tmp_path / "w.pt"
    source.write_bytes(os.urandom(3 * BLOCK) + bytes(9 * BLOCK))
    for kind in ("zip-store", "default"):
        sealed = write_archive(archive({"w.pt": source}, kind), tmp_path / "m.mar", digests)
        verify_archive(tmp_path / "m.mar", sealed.members)


def test_archives_of_other_tools(tmp_path):
    path = tmp_path / "m.mar"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("z", b"first" * 100)
        with made.open("a", "w", force_zip64=True) as member:
            member.write(b"second")
        info = zipfile.ZipInfo("b")
        info.extra = struct.pack("<HH4s", 0x5455, 4, b"abcd")
        made.writestr(info, b"third")
    assert read_members(path) == tuple(
        Entry(name, len(content), sums_of(content).sha256)
        for name, content in [("a", b"second"), ("b", b"third"), ("z", b"first" * 100)]
    )
    with pytest.raises(IntegrityError, match="not the one that kdeploy wrote"):
        verify_archive(path, read_members(path))


def test_two_end_records(tmp_path, monkeypatch):
    """Python's zipfile writes zip64 records from 2 GiB on, with plain numbers beside them up to 4 GiB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    path = zipped(tmp_path / "m.mar", "a", "b")
    assert [entry.name for entry in read_members(path)] == ["a", "b"]
    content = path.read_bytes()
    path.write_bytes(content[:-22] + content[-22:].replace(struct.pack("<H", 2), struct.pack("<H", 3)))
    assert "spread" in refusal(path) or "agree" in refusal(path)
    path.write_bytes(content[:-10] + struct.pack("<L", 1) + content[-6:])
    assert refusal(path) == "its two end records do not agree"
    end64 = content.index(b"PK\x06\x06")
    path.write_bytes(content[: end64 + 4] + b"\1" + content[end64 + 5 :])
    assert refusal(path) == "its zip64 end record is damaged"
    path.write_bytes(content[: end64 + 16] + b"\1" + content[end64 + 17 :])
    assert refusal(path) == "is spread over several files"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../a", "leads out"), ("a/../../b", "leads out"), ("/etc/passwd", "leads out"), ("a\\b",
        "backslash"),
        ("a\nb", "control"), ("a//b", "empty part"), ("folder/", "empty part"), ("x" * 300, "too long"),
    ],
)  # fmt: skip
def test_hostile_names(tmp_path, name, fault):
    what = refusal(zipped(tmp_path / "m.mar", name))
    assert fault in what
    assert repr(name) in what


def test_names_that_are_not_utf8(tmp_path):
    path = zipped(tmp_path / "m.mar", "ab")
    path.write_bytes(path.read_bytes().replace(b"ab", b"a\xe9"))
    assert refusal(path) == r"b'a\xe9': the name of a member is not UTF-8"


def test_names_that_cannot_be_together(tmp_path):
    assert refusal(zipped(tmp_path / "m.mar", "a", "a")) == "a: is there twice"
    assert refusal(zipped(tmp_path / "m.mar", "a", "a/b")) == "a: is a file and a folder at once"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path, kind):
    info = zipfile.ZipInfo("a")
    info.external_attr = (kind | 0o777) << 16
    assert refusal(zipped(tmp_path / "m.mar", info)).startswith("a: is a link")


# Where a field lies in the local header and in the directory's record of the only member, called `a`.
@pytest.mark.parametrize(
    ("local", "central", "value", "what"),
    [
        (6, 8, 1, "a: is encrypted"),
        (6, 8, 8, "a: has its sizes behind its data"),
        (6, 8, 0x20, "a: is a patch"),
        (6, 8, 0x1000, "a: has unknown flags"),
        (8, 10, 12, "a: is compressed in an unknown way"),
        (8, None, 8, "a: its header and the directory do not agree"),
        (14, None, 1, "a: its header and the directory do not agree"),
        (18, None, 1, "a: its header and the directory do not agree"),
        (22, None, 1, "a: its header and the directory do not agree"),
        (14, 16, 1, "a: is damaged: its size or CRC-32 is not the one declared"),
        (None, 20, 6, "a: is stored, but in 6 bytes instead of 7"),
        (None, 28, 200, "its directory is damaged"),
        (None, 30, 9, "a: its record in the directory is damaged"),
        (None, 32, 9, "a: its record in the directory is damaged"),
        (None, 34, 1, "a: its record in the directory is damaged"),
        (None, 42, 1, "a: overlaps another member, or bytes in front of it belong to none"),
        (0, None, 0, "a: its header is not where the directory says"),
        (30, None, 98, "a: its header is not where the directory says"),
        (None, 0, 0, "its directory is damaged"),
        (26, None, 60000, "is cut short"),
        (28, None, 3, "a: its extra field is damaged"),
    ],
)
def test_fields_that_lie(tmp_path, local, central, value, what):
    path = zipped(tmp_path / "m.mar", "a")
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    for at in (local, None if central is None else start + central):
        if at is not None:
            struct.pack_into("<H", content, at, value)
    path.write_bytes(content)
    assert refusal(path).startswith(what)


@pytest.mark.parametrize(
    ("field", "what"),
    [
        (4, "spread"),
        (6, "spread"),
        (8, "spread"),
        (12, "belong to no member"),
        (16, "belong to no member"),
        (20, "appended"),
    ],
)
def test_an_end_record_that_lies(mar, field, what):
    path, _ = mar
    content = bytearray(path.read_bytes())
    content[len(content) - 22 + field] ^= 1
    path.write_bytes(content)
    assert what in refusal(path)


def test_a_directory_that_counts_wrong(tmp_path):
    path = zipped(tmp_path / "m.mar", "a", "b")
    content = bytearray(path.read_bytes())
    for count in (1, 3):
        struct.pack_into("<HH", content, len(content) - 14, count, count)
        path.write_bytes(content)
        assert refusal(path) == "its directory is damaged"


def test_bytes_that_belong_to_no_member(tmp_path):
    path = zipped(tmp_path / "m.mar", "a", "b")
    content = path.read_bytes()
    for other in (b"x" + content, content + b"x", content[:-1], content[5:], b"", b"PK", b"x" * 500):
        path.write_bytes(other)
        assert refusal(path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a", b"one")
        made.fp.write(b"between")
        made.start_dir = made.fp.tell()
    assert "belong to no" in refusal(path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a", b"one")
        made.fp.write(b"between")
        made.start_dir = made.fp.tell()
        made.writestr("b", b"two")
    assert refusal(path).startswith("b: overlaps another member, or bytes in front")
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a", b"one")
        made.writestr("b", b"two")
        made.filelist[1].header_offset = 0
    assert refusal(path).startswith(("a: ", "b: "))


def test_a_member_that_reaches_into_the_directory(tmp_path):
    path = zipped(tmp_path / "m.mar", "a")
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    for at in (18, 22, start + 20, start + 24):
        struct.pack_into("<L", content, at, 5000)
    path.write_bytes(content)
    assert refusal(path) == "a: is cut short, or overlaps the directory"


def test_a_header_that_is_cut_off_by_the_directory(tmp_path):
    record = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0
    ) + b"a"  # fmt: skip
    path = tmp_path / "m.mar"
    path.write_bytes(record + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(record), 0, 0))
    assert refusal(path) == "a: its header is cut short"


@pytest.mark.parametrize("extra", [b"\1\0", b"\1\0\x10\0abc"])
def test_damaged_extra_fields(tmp_path, extra):
    info = zipfile.ZipInfo("a")
    path = tmp_path / "m.mar"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(info, b"x")
        info.extra = extra
    assert refusal(path) == "a: its extra field is damaged"


def bomb(path: Path, declared: int, content: bytes, behind: bytes = b"", before: bytes = b"") -> Path:
    """Write one deflated member that declares another size than it has."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = before + deflate.compress(content) + deflate.flush() + behind
    numbers = (zlib.crc32(content[:declared]), len(packed), declared)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0x21, *numbers, 1, 0) + b"a" + packed
    record = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0x21, *numbers, 1, 0, 0, 0, 0, 0, 0) + b"a"
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(record), len(local), 0)
    path.write_bytes(local + record + end)
    return path


def test_bombs(tmp_path, monkeypatch):
    inflated = []
    real = zlib.decompressobj

    class Counting:
        def __init__(self, bits):
            self.real = real(bits)

        def decompress(self, data, at_most):
            content = self.real.decompress(data, at_most)
            inflated.append(len(content))
            return content

        def __getattr__(self, name):
            return getattr(self.real, name)

    monkeypatch.setattr(read_module.zlib, "decompressobj", Counting)
    path = bomb(tmp_path / "m.mar", 1000, bytes(100 << 20))
    assert refusal(path) == "a: inflates to more than is declared"
    assert sum(inflated) <= 1001
    assert "CRC-32" in refusal(bomb(path, 2000, bytes(1000)))
    assert refusal(bomb(path, 1000, bytes(1000), b"more")) == "a: has bytes behind its data"
    empty_blocks = b"\0\0\0\xff\xff" * 20_000
    assert read_members(bomb(path, 5000, b"x" * 5000, before=empty_blocks))[0].size == 5000
    assert read_members(bomb(path, 5000, b"x" * 5000))[0].size == 5000


def test_deflated_data_that_is_damaged_or_cut_short(tmp_path):
    path = bomb(tmp_path / "m.mar", 5000, os.urandom(5000))
    content = bytearray(path.read_bytes())
    content[31] = 0xFF
    path.write_bytes(content)
    assert refusal(path).startswith("a: is damaged: Error")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    cut = deflate.compress(b"x" * 5000) + deflate.flush(zlib.Z_SYNC_FLUSH)
    numbers = (zlib.crc32(b"x" * 5000), len(cut), 5000)
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0x21, *numbers, 1, 0) + b"a" + cut
    record = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0x21, *numbers, 1, 0, 0, 0, 0, 0, 0) + b"a"
    )
    path.write_bytes(
        local + record + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(record), len(local), 0)
    )
    assert refusal(path) == "a: is damaged: its data is cut short"


def test_a_directory_that_is_gigantic(tmp_path, monkeypatch):
    monkeypatch.setattr(read_module, "_DIRECTORY_BYTES", 50)
    assert "too large" in refusal(zipped(tmp_path / "m.mar", "a", "b"))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in [("none", "does not exist"), ("", "is a folder"), ("pipe", "pipe")]:
        assert what in refusal(tmp_path / path)


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_any_changed_byte_is_noticed(mar, at):
    path, recorded = mar
    content = path.read_bytes()
    third = len(content) // 3 + 1
    for position in range(
        *{"first": (0, third), "middle": (third, 2 * third), "last": (2 * third, len(content))}[at]
    ):
        changed = bytearray(content)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        with pytest.raises(IntegrityError):
            verify_archive(path, recorded)
    path.write_bytes(content)
    verify_archive(path, recorded)


def test_what_differs_from_the_record_is_named(mar, tmp_path, archive, digests):
    path, recorded = mar
    first, second = recorded[:2]
    for wrong, what in [
        (recorded[1:], "MAR-INF/MANIFEST.json: was not in the archive that was pushed"),
        ((*recorded, Entry("z", 0, "0" * 64)), "z: is missing"),
        ((first, replace(second, size=1), *recorded[2:]), "b.txt: has 1,500 bytes, not 1"),
        ((first, replace(second, sha256="0" * 64), *recorded[2:]), "b.txt: its content is not the one"),
    ]:
        with pytest.raises(IntegrityError, match=what) as caught:
            verify_archive(path, wrong)
        assert caught.value.where == str(path)
    with pytest.raises(ValueError, match=r"digest of MAR-INF/MANIFEST.json is not known"):
        verify_archive(path, archive(CONTENT).members)


def test_members_in_another_order(tmp_path, archive, digests):
    planned = archive({"a": b"1", "b": b"2"})
    sealed = write_archive(replace(planned, members=planned.members[::-1]), tmp_path / "m.mar", digests)
    assert [entry.name for entry in read_members(tmp_path / "m.mar")] == ["a", "b"]
    with pytest.raises(IntegrityError, match="the directory is not"):
        verify_archive(tmp_path / "m.mar", sealed.members)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_do_worse_than_a_clear_error(tmp_path, data):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"x" * 100)
        archive.writestr("b/c", b"")
    content = bytearray(made.getvalue())
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[position] = value
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (tmp_path / "m.mar").write_bytes(content[:cut])
    try:
        read_members(tmp_path / "m.mar")
    except IntegrityError as error:
        assert error.where == str(tmp_path / "m.mar")


def outline(path: Path, recorded: tuple[Entry, ...]) -> None:
    """Check an archive as a store does that can read the end of it only."""
    content = path.read_bytes()
    check_outline(content[-outline_size(recorded) :], len(content), recorded)


def test_the_outline_of_what_was_written(mar, tmp_path, archive, digests, monkeypatch):
    outline(*mar)
    for limit in (1, 40, 3000, 10_000):  # zip64 by turns
        monkeypatch.setattr(layout, "_ZIP64_FROM", limit)
        for kind in ("zip-store", "default"):
            sealed = write_archive(archive(CONTENT, kind), tmp_path / "wide.mar", digests)
            outline(tmp_path / "wide.mar", sealed.entries)
    many = {f"{number:03}/{'n' * 200}": b"" for number in range(300)}
    sealed = write_archive(archive(many), tmp_path / "many.mar", digests)
    outline(tmp_path / "many.mar", sealed.entries)
    sealed = write_archive(archive({}), tmp_path / "none.mar", digests)
    outline(tmp_path / "none.mar", sealed.entries)


def test_an_outline_that_differs_is_noticed_without_the_members(mar):
    path, recorded = mar
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    for length in (0, 1, 21, 22, start, len(content) - 1, *range(1, len(content), 97)):
        path.write_bytes(content[:length])
        with pytest.raises(IntegrityError):
            outline(path, recorded)
    unnoticed = 0
    for position in range(start, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        try:
            outline(path, recorded)
        except IntegrityError:
            continue
        unnoticed += 1
    assert unnoticed == 4 * len(recorded)  # the members' CRC-32s, which no record has
    for changed in (content + b"x", b"x" + content, content[1:], content[: start - 1] + content[start:]):
        path.write_bytes(changed)
        with pytest.raises(IntegrityError):
            outline(path, recorded)
    path.write_bytes(content)
    for wrong in (
        recorded[1:],
        (*recorded, Entry("z", 0, "0")),
        (replace(recorded[0], size=9), *recorded[1:]),
    ):
        with pytest.raises(IntegrityError):
            outline(path, wrong)


@pytest.mark.parametrize("limit", [1, 1 << 40])
def test_an_outline_from_too_little_of_the_end(mar, limit, monkeypatch):
    monkeypatch.setattr(layout, "_ZIP64_FROM", limit)
    path, recorded = mar
    content = path.read_bytes()
    for length in range(0, outline_size(recorded), 7):
        try:
            check_outline(content[len(content) - length :], len(content), recorded)
        except IntegrityError:
            continue
        assert length >= len(content) - content.index(b"PK\x01\x02")
