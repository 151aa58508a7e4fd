"""Small parts of transfers that no honest and no hostile box reaches in a test's time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.client.transfers import local_files
from runcode.client.transfers.exchange import find_answer
from runcode.core import remote_context
from runcode.core.checksums import Checksum
from runcode.core.errors import RunCodeError

NONCE = "0123456789abcdef" * 2


def test_an_endless_download_leaves_the_disk_its_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    free = local_files.DISK_RESERVE + 10_000_000
    monkeypatch.setattr(local_files.os, "statvfs", lambda _path: SimpleNamespace(f_bavail=free, f_frsize=1))
    local_files.require_room("/", 9_999_999)
    with pytest.raises(RunCodeError) as caught:
        local_files.require_room("/", 10_000_001)
    assert caught.value.code == "io_error"


def test_an_unseekable_source_is_read_again_as_far_as_nobody_took_it() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"first second")
    with local_files.open_stdin(reader) as source:
        assert bytes(source.read(5)) == b"first"
        source.rewind()
        assert bytes(source.read(100)) == b"first"
        assert bytes(source.read(100)) == b" second"
        source.rewind()
        assert bytes(source.read(100)) + bytes(source.read(100)) == b"first second"
        os.close(writer)
        assert bytes(source.read(100)) == b""
    os.close(reader)


def test_more_than_is_kept_cannot_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_REPLAY_MAX", 8)
    reader, writer = os.pipe()
    os.write(writer, b"0123456789")
    with local_files.open_stdin(reader) as source:
        assert bytes(source.read(100)) == b"0123456789"
        with pytest.raises(RunCodeError) as caught:
            source.rewind()
        assert caught.value.code == "network"
    os.close(reader)
    os.close(writer)


def test_a_landing_without_finish_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "f"
    target.write_bytes(b"old")
    with contextlib.suppress(KeyboardInterrupt), local_files.Landing(str(target)) as landing:
        landing.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["f"]
    assert target.read_bytes() == b"old"


@given(st.binary(max_size=500), st.binary(max_size=50).filter(lambda line: b"\n" not in line), st.binary(max_size=50))
def test_an_answer_is_found_behind_any_noise(noise: bytes, line: bytes, rest: bytes) -> None:
    assert find_answer(noise + f"\n{NONCE} ".encode() + line + b"\n" + rest, NONCE) == (line, rest)


@given(st.binary(max_size=3000))
def test_whatever_a_box_says_of_itself_is_bounded_or_refused(noise: bytes) -> None:
    text = f"\n{NONCE} context\n".encode() + noise + f"\n{NONCE} end\n".encode()
    seen = remote_context.parse_context(text, NONCE)
    assert set(seen.markers) <= set(remote_context.MARKERS)
    assert {name for name, _ in seen.tools} <= set(remote_context.TOOLS)
    with pytest.raises(RunCodeError):
        remote_context.parse_context(noise, NONCE)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@example.org/r", "https://example.org/r"),
        ("https://token@example.org/r", "https://example.org/r"),
        ("https://u:p@ss@example.org/r", "https://example.org/r"),
        ("ssh://git@example.org/r", "ssh://example.org/r"),
        ("git@example.org:r.git", "git@example.org:r.git"),
        ("https://example.org/a@b", "https://example.org/a@b"),
    ],
)
def test_a_remotes_password_is_taken_out(url: str, shown: str) -> None:
    text = f"\n{NONCE} context\ngit.dirty=\0git.remote={url}\0\n{NONCE} end\n".encode()
    seen = remote_context.parse_context(text, NONCE)
    assert seen.git is not None
    assert seen.git.remote == shown


# What POSIX cksum prints for these.
@pytest.mark.parametrize(("content", "word"), [(b"", "4294967295-0"), (b"123456789", "930766865-9")])
def test_the_crc_is_that_of_cksum(content: bytes, word: str) -> None:
    checksum = Checksum("cksum")
    for at in range(0, len(content), 2):
        checksum.update(content[at : at + 2])
    assert checksum.word() == word
