from __future__ import annotations

import os
import stat
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import deployer.archive.layout as layout
import deployer.archive.read as read_module
from deployer.archive import MemberRecord, check_outline, outline_size, verify_archive, write_archive
from deployer.archive.layout import Packed
from deployer.archive.stream import BLOCK, sums_of
from deployer.errors import IntegrityError

CONTENT = {"MAR-INF/MANIFEST.json": b"{}", "b.txt": b"abc" * 50, "w.pt": bytes(range(256)) * 2, "ü": b""}


def record(name: str, content: bytes) -> MemberRecord:
    return MemberRecord(name, len(content), sums_of(content).sha256)


@pytest.fixture(params=["zip-store", "default"])
def mar(request, tmp_path, archive, digests):
    """A .mar that kdeploy wrote, and its record."""
    sealed = write_archive(archive(CONTENT, request.param), tmp_path / "m.mar", digests)
    return tmp_path / "m.mar", sealed.records


def refusal(path: Path, members: tuple[MemberRecord, ...]) -> str:
    with pytest.raises(IntegrityError) as caught:
        verify_archive(path, members)
    assert caught.value.where == str(path)
    return caught.value.what


def test_a_written_archive_verifies(mar):
    path, recorded = mar
    assert [member.name for member in recorded] == sorted(CONTENT)
    verify_archive(path, recorded)


def test_large_members(tmp_path, archive, digests):
    source = tmp_path / "w.pt"
    source.write_bytes(os.urandom(3 * BLOCK) + bytes(9 * BLOCK))
    for kind in ("zip-store", "default"):
        sealed = write_archive(archive({"w.pt": source}, kind), tmp_path / "m.mar", digests)
        verify_archive(tmp_path / "m.mar", sealed.records)
        content = bytearray((tmp_path / "m.mar").read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "m.mar").write_bytes(content)
        assert refusal(tmp_path / "m.mar", sealed.records).startswith("w.pt: ")


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


def test_the_member_that_differs_from_the_record_is_named(mar):
    path, recorded = mar
    first, second = recorded[:2]
    for wrong, what in [
        (recorded[1:], "MAR-INF/MANIFEST.json: not in the archive that was pushed"),
        ((*recorded, MemberRecord("z", 0, "0" * 64)), "z: missing"),
        ((first, replace(second, size=1), *recorded[2:]), "b.txt: 150 bytes instead of 1"),
        ((first, replace(second, sha256="0" * 64), *recorded[2:]), "b.txt: the content differs"),
    ]:
        assert refusal(path, wrong).startswith(what)


def test_bytes_that_belong_to_no_member(mar):
    path, recorded = mar
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    other = [b"x" + content, content + b"x", content[:-1], content[5:], b"", b"PK", b"x" * 500]
    for changed in (*other, content[:start] + b"x" + content[start:], content[: start - 1] + content[start:]):
        path.write_bytes(changed)
        assert refusal(path, recorded)


def made(path: Path, *members: tuple[Packed, bytes], start: int | None = None) -> Path:
    """Write an archive in kdeploy's form, with the given headers."""
    content = b"".join(layout.local_header(entry) + data for entry, data in members)
    entries = [entry for entry, _ in members]
    path.write_bytes(content + layout.directory(entries, len(content) if start is None else start))
    return path


def packed(name: str, content: bytes, offset: int = 0, **changes: int) -> tuple[Packed, bytes]:
    values = {"method": layout.STORED, "size": len(content), "crc": zlib.crc32(content)}
    return Packed(name, **{**values, "offset": offset, "packed_size": len(content), **changes}), content


def test_members_with_false_headers(tmp_path):
    path, content = tmp_path / "m.mar", b"content"
    recorded = (record("a", content),)
    verify_archive(made(path, packed("a", content)), recorded)
    for changes, what in (
        ({"method": 12}, "the zip directory"),
        ({"size": 6}, "a: 6 bytes instead"),
        ({"packed_size": 6}, "the zip directory"),
        ({"packed_size": 8}, "the zip directory"),
        ({"crc": 1}, "a: the content"),
        ({"offset": 1}, "the zip directory"),
        ({"method": layout.DEFLATED}, "a: damaged"),
    ):
        assert refusal(made(path, packed("a", content, **changes)), recorded).startswith(what), changes
    for start in (0, 1, 1000, 1 << 40):
        assert refusal(made(path, packed("a", content), start=start), recorded)


def test_members_that_are_hidden_repeated_or_reordered(tmp_path):
    path = tmp_path / "m.mar"
    one, length = packed("a", b"1"), 32
    recorded = record("a", b"1"), record("b", b"2")
    verify_archive(made(path, one, packed("b", b"2", length)), recorded)
    assert refusal(made(path, one, packed("a", b"1", length)), recorded[:1]).startswith("the zip directory")
    assert refusal(made(path, packed("b", b"2"), packed("a", b"1", length)), recorded).startswith(
        "the zip dir"
    )
    assert refusal(made(path, one, packed("../b", b"2", length)), recorded[:1]).startswith("../b: not in")
    (entry, data), (other, _) = one, packed("b", b"1")
    content = layout.local_header(entry) + data
    path.write_bytes(
        content + layout.directory([entry, other], len(content))
    )  # two names for the same content
    assert refusal(path, (recorded[0], record("b", b"1"))).startswith("the zip directory")


def test_archives_of_other_tools(tmp_path):
    path, recorded = tmp_path / "m.mar", (record("a", b"content"),)

    def zipped(name: str, kind: int, method: int = zipfile.ZIP_STORED) -> Path:
        info = zipfile.ZipInfo(name)
        info.external_attr = (kind | 0o644) << 16
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr(info, b"content", method)
        return path

    verify_archive(zipped("a", stat.S_IFREG), recorded)  # zipfile writes the same bytes
    for other in ((stat.S_IFLNK,), (stat.S_IFDIR,), (stat.S_IFREG, zipfile.ZIP_LZMA)):
        assert refusal(zipped("a", *other), recorded).startswith("the zip directory")


def deflated(path: Path, declared: bytes, data: bytes) -> Path:
    changes = {"method": layout.DEFLATED, "size": len(declared), "crc": zlib.crc32(declared)}
    return made(path, packed("a", data, **changes))


def deflate(content: bytes, flush: int = zlib.Z_FINISH) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(flush)


def test_compressed_bytes_can_differ_if_the_content_does_not(tmp_path):
    path, content = tmp_path / "m.mar", b"x" * 5000
    verify_archive(deflated(path, content, deflate(content)), (record("a", content),))
    empty_blocks = b"\0\0\0\xff\xff" * 20_000
    verify_archive(deflated(path, content, empty_blocks + deflate(content)), (record("a", content),))


def test_deflated_data_of_the_wrong_size(tmp_path, monkeypatch):
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
    path, short = tmp_path / "m.mar", bytes(1000)
    recorded = (record("a", short),)
    assert refusal(deflated(path, short, deflate(bytes(100 << 20))), recorded).startswith("a: damaged")
    assert sum(inflated) == 1001
    for data in (
        deflate(bytes(999)),
        deflate(short) + b"more",
        deflate(short, zlib.Z_SYNC_FLUSH),
        deflate(short)[:-1],
        b"\xff" + deflate(short),
        b"",
    ):
        assert refusal(deflated(path, short, data), recorded).startswith("a: ")
    assert sum(inflated) <= 7 * 1001


def test_a_path_that_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, what in [("none", "not found"), ("", "is a folder"), ("pipe", "pipe")]:
        assert what in refusal(tmp_path / path, ())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), wide=st.booleans())
@example(data=None, wide=True)
def test_any_bytes_give_at_worst_a_clear_error(tmp_path, monkeypatch, data, wide):
    monkeypatch.setattr(layout, "_ZIP64_FROM", 10 if wide else 0xFFFFFFFF)
    first = packed("a", b"x" * 100)
    made(tmp_path / "m.mar", first, packed("b/c", b"", len(layout.local_header(first[0])) + 100))
    recorded = record("a", b"x" * 100), record("b/c", b"")
    content = bytearray((tmp_path / "m.mar").read_bytes())
    if data is None:
        verify_archive(tmp_path / "m.mar", recorded)
        return
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[position] = value
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    unchanged = content[:cut] == (tmp_path / "m.mar").read_bytes()
    (tmp_path / "m.mar").write_bytes(content[:cut])
    if unchanged:
        verify_archive(tmp_path / "m.mar", recorded)
    else:
        assert refusal(tmp_path / "m.mar", recorded)


def outline(path: Path, recorded: tuple[MemberRecord, ...]) -> None:
    """Check an archive as a store does that reads only its end."""
    content = path.read_bytes()
    check_outline(content[-outline_size(recorded) :], len(content), recorded)


def test_the_outline_of_a_written_archive(mar, tmp_path, archive, digests, monkeypatch):
    outline(*mar)
    for limit in (1, 40, 3000, 10_000):  # zip64 for different numbers
        monkeypatch.setattr(layout, "_ZIP64_FROM", limit)
        for kind in ("zip-store", "default"):
            sealed = write_archive(archive(CONTENT, kind), tmp_path / "wide.mar", digests)
            outline(tmp_path / "wide.mar", sealed.records)
    many = {f"{number:03}/{'n' * 200}": b"" for number in range(300)}
    sealed = write_archive(archive(many), tmp_path / "many.mar", digests)
    outline(tmp_path / "many.mar", sealed.records)
    sealed = write_archive(archive({}), tmp_path / "none.mar", digests)
    outline(tmp_path / "none.mar", sealed.records)


def test_a_changed_outline_is_noticed_without_the_members(mar):
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
    assert unnoticed == 4 * len(recorded)  # the members' CRC-32s: the record does not have them
    for changed in (content + b"x", b"x" + content, content[1:], content[: start - 1] + content[start:]):
        path.write_bytes(changed)
        with pytest.raises(IntegrityError):
            outline(path, recorded)
    path.write_bytes(content)
    for wrong in (
        recorded[1:],
        (*recorded, MemberRecord("z", 0, "0")),
        (replace(recorded[0], size=9), *recorded[1:]),
    ):
        with pytest.raises(IntegrityError):
            outline(path, wrong)


@pytest.mark.parametrize("limit", [1, 1 << 40])
def test_an_outline_with_too_few_bytes(mar, limit, monkeypatch):
    monkeypatch.setattr(layout, "_ZIP64_FROM", limit)
    path, recorded = mar
    content = path.read_bytes()
    for length in range(0, outline_size(recorded), 7):
        try:
            check_outline(content[len(content) - length :], len(content), recorded)
        except IntegrityError:
            continue
        assert length >= len(content) - content.index(b"PK\x01\x02")
