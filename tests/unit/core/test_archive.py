"""The tar dialect: what we write is read by Python's and GNU's tar; what strangers write is held to the limits."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core import archive
from runcode.core.archive import ArchiveReader, Entry
from runcode.core.errors import RunCodeError

part = st.binary(min_size=1, max_size=60).filter(lambda b: b"/" not in b and b"\0" not in b and b not in (b".", b".."))
names = st.lists(part, min_size=1, max_size=8).map(b"/".join)


def read(stream: bytes, chunk: int = 1000) -> tuple[list[tuple[Entry, bytes]], ArchiveReader]:
    reader = ArchiveReader()
    found: list[tuple[Entry, bytes]] = []
    for at in range(0, len(stream), chunk):
        for event in reader.feed(stream[at : at + chunk]):
            if isinstance(event, Entry):
                found.append((event, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + bytes(event))
    return found, reader


@given(name=names, content=st.binary(max_size=2000), mode=st.integers(0, 0o777), chunk=st.integers(1, 1500))
def test_what_we_write_we_read_and_pythons_tarfile_reads(name: bytes, content: bytes, mode: int, chunk: int) -> None:
    stream = archive.render_header(name, size=len(content), mode=mode, mtime=1234567890)
    stream += content + archive.padding(len(content)) + archive.END
    [(entry, received)], reader = read(stream, chunk)
    assert reader.ended
    assert (entry.kind, b"/".join(entry.parts), entry.mode, entry.mtime) == (archive.FILE, name, mode, 1234567890)
    assert received == content
    with tarfile.open(fileobj=io.BytesIO(stream), encoding="utf-8", errors="surrogateescape") as oracle:
        [member] = oracle.getmembers()
        assert member.name.encode("utf-8", "surrogateescape") == name.rstrip(b"/")
        assert (member.size, member.mode) == (len(content), mode)


@given(name=names, target=names)
def test_links_keep_their_text(name: bytes, target: bytes) -> None:
    stream = archive.render_header(name, kind=archive.LINK, link=target) + archive.END
    [(entry, _)], _ = read(stream)
    assert (entry.kind, entry.untrusted_link) == (archive.LINK, target)


def test_a_file_beyond_octal_keeps_its_size() -> None:
    size = 9 * 1024**3
    header = archive.render_header(b"big", size=size)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size
    [entry] = ArchiveReader().feed(header)
    assert isinstance(entry, Entry)
    assert entry.size == size


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_is_read(form: int) -> None:
    names = ["short", "é" * 20, "d" * 90 + "/" + "n" * 90] + ([] if form == tarfile.USTAR_FORMAT else ["x" * 255] * 1)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as writer:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            writer.addfile(member, io.BytesIO(b"abc"))
        if form != tarfile.USTAR_FORMAT:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "t" * 150
            writer.addfile(link)
    found, reader = read(buffer.getvalue(), 333)
    assert reader.ended
    assert [b"/".join(entry.parts).decode() for entry, _ in found[: len(names)]] == names
    assert [content for _, content in found[: len(names)]] == [b"abc"] * len(names)
    assert form == tarfile.USTAR_FORMAT or found[-1][0].untrusted_link == b"t" * 150


def test_gnu_tar_lists_what_we_write() -> None:
    stream = archive.render_header(b"a/" + b"n" * 200, size=5, mode=0o640) + b"12345" + archive.padding(5) + archive.END
    listed = subprocess.run(["tar", "-tf", "-"], input=stream, capture_output=True, check=True).stdout
    assert listed == b"a/" + b"n" * 200 + b"\n"


@pytest.mark.parametrize(
    "name",
    [b"..", b"../x", b"a/../x", b"a/..", b"/etc/passwd", b"//x", b"", b"x" * 256, b"/".join([b"d"] * 201), b"a\0b"]
    + [b"/".join([b"x" * 250] * 20)],
)
def test_names_that_leave_or_exceed_are_refused(name: bytes) -> None:
    with pytest.raises(RunCodeError) as caught:
        archive.parse_member_name(name)
    assert caught.value.code == "unsafe_path"


@pytest.mark.parametrize(
    ("name", "parts"),
    [(b".", ()), (b"./", ()), (b"./a//b/.", (b"a", b"b")), (b"...", (b"...",)), (b"..x/y..", (b"..x", b"y.."))],
)
def test_names_that_stay(name: bytes, parts: tuple[bytes, ...]) -> None:
    assert archive.parse_member_name(name) == parts


@pytest.mark.parametrize(
    ("target", "depth", "inner"),
    [
        (b"a", 0, True),
        (b"a/b", 0, True),
        (b"./a", 0, True),
        (b"../a", 1, True),
        (b"../../a", 2, True),
        (b"..", 1, True),
        (b"..", 0, False),
        (b"../a", 0, False),
        (b"../../a", 1, False),
        (b"./../a", 0, False),
        (b"a/../b", 0, False),
        (b"a/..", 5, False),
        (b"../a/../b", 5, False),
        (b"/a", 5, False),
        (b"//a", 5, False),
        (b"", 0, False),
        (b"a\0b", 0, False),
        (b"a/" * 3000, 0, False),
    ],
)
def test_which_links_stay_inside(target: bytes, depth: int, inner: bool) -> None:
    assert archive.is_inner_link(target, depth) is inner


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        (b"plain.txt", True),
        ("é".encode(), True),
        (b"console", True),
        (b"COM10", True),
        (b"CON", False),
        (b"con.txt", False),
        (b"aux ", False),
        (b"NUL .x", False),
        (b"COM1", False),
        ("lpt²".encode(), False),
        (b"a:stream", False),
        (b"a\\b", False),
        (b"a.", False),
        (b"a ", False),
        (b"a\x01", False),
        (b'a"b', False),
        (b"\xff", False),
    ],
)
def test_which_names_windows_can_have(name: bytes, fine: bool) -> None:
    assert archive.is_windows_name(name) is fine


def header(kind: bytes = b"0", size: int = 0, name: bytes = b"x") -> bytes:
    return archive.render_header(name, kind=kind, size=size)


def pax(text: bytes) -> bytes:
    return header(b"x", len(text), b"p") + text + archive.padding(len(text))


@pytest.mark.parametrize(
    "stream",
    [
        header(b"S"),
        header(b"D"),
        header(b"M"),
        header(b"V"),
        header(b"Z"),
        header(archive.LINK, 5),
        header(archive.HARD_LINK, 5),
        header(archive.FOLDER, 5),
        header(size=2**60),
        header(b"L", 0),
        header(b"L", 10**9),
        header(b"x", 2**40),
        header(name=b"."),
        pax(b"30 path=../../etc/cron.d/evil\n"),
        pax(b"19 size=-5\n"),
        pax(b"30 size=99999999999999999999\n"),
        pax(b"99 path=x\n"),
        pax(b"junk"),
        pax(b"0 path=x\n"),
        pax(b"22 GNU.sparse.major=1\n") + header(),
        header(b"L", 12) + b"../../../evil" + bytes(499) + header(),
        archive.END + header(),
        bytes(512) + header(),
    ],
    ids=range(23),
)
def test_hostile_headers_are_refused(stream: bytes) -> None:
    with pytest.raises(RunCodeError) as caught:
        read(stream + header() * 2, 512)
    assert caught.value.code == "unsafe_path"


@given(st.binary(max_size=4000), st.integers(1, 600))
def test_noise_never_does_more_than_fail(noise: bytes, chunk: int) -> None:
    with contextlib.suppress(RunCodeError):
        found, _ = read(noise, chunk)
        assert all(b".." not in entry.parts for entry, _ in found)


@given(st.integers(0, 511), st.integers(0, 255))
def test_one_changed_byte_in_a_header_is_found(at: int, value: int) -> None:
    block = bytearray(archive.render_header(b"name", size=0, mode=0o644))
    if block[at] == value:
        return
    block[at] = value
    try:
        events = ArchiveReader().feed(bytes(block))
    except RunCodeError:
        return
    # Only the checksum's own blanks may differ.
    assert 148 <= at < 156
    assert isinstance(events[0], Entry)


def test_the_number_of_entries_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "ENTRIES_MAX", 10)
    with pytest.raises(RunCodeError) as caught:
        read(b"".join(header(name=b"%d" % number) for number in range(11)))
    assert caught.value.code == "unsafe_path"


@given(st.integers(0, 2000))
def test_a_stream_cut_anywhere_has_not_ended(cut: int) -> None:
    stream = header(size=700, name=b"a") + bytes(700) + archive.padding(700) + header(name=b"b") + archive.END
    _, reader = read(stream[: min(cut, len(stream) - archive.BLOCK - 1)])
    assert not reader.ended
