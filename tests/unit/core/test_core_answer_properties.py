"""Properties of what a box is sent and what it answers: exactly the words, and bounded values or an error of ours."""

# Each property is "a value, or an error of ours that looks like this": both sides of one `try`.
# ruff: noqa: PT017
from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runcode.core import (
    archive,
    checksums,
    handshake,
    remote_command,
    remote_context,
    remote_files,
    remote_trees,
)
from runcode.core.errors import RunCodeError, UnsafeInput
from support.hostile_text import NONCE, SPICE, TEXT, fast, slow

WORDS = st.lists(
    st.one_of(
        SPICE.filter(lambda c: c != "\0"),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
    ),
    min_size=2,
    max_size=5,
)


@slow
@given(WORDS)
@example(["--", "-n", "a'b\"c\\d", "$(id)`id`${HOME}", "\n"])
def test_a_remote_command_gets_exactly_its_words(words: list[str]) -> None:
    """The wrapper, in a real shell, hands over the words as they are."""
    line = remote_command.render_exec(["printf", "%s\\0", *words], workdir="/", nonce=NONCE)
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"".join(word.encode() + b"\0" for word in words)


@slow
@given(WORDS)
def test_a_script_gets_exactly_its_arguments(words: list[str]) -> None:
    line = remote_command.render_script("for w; do printf '%s\\0' \"$w\"; done", *words)
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"".join(word.encode() + b"\0" for word in words)


@given(TEXT)
def test_only_known_signals_are_worded(name: str) -> None:
    if name not in ("INT", "TERM", "HUP", "KILL", "0"):
        with pytest.raises(ValueError, match="no remote signal"):
            remote_command.render_signal(name, NONCE)
    # The searcher's own command line must not be what it searches for.
    assert NONCE not in remote_command.render_signal("TERM", NONCE)


ANSWER = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda a, b, c: f"{a} {b} {c}".encode(), st.integers(-5, 2**60), st.integers(0, 7777777), st.integers(-5, 2**60)
    ),
    TEXT.map(lambda text: b"error " + text.encode("utf-8", "replace")),
    st.builds(lambda n, text: f"partial {n} {text}".encode("utf-8", "replace"), st.integers(-5, 2**40), TEXT),
)


@fast
@given(ANSWER)
def test_a_boxs_answer_is_bounded_numbers_or_an_error_of_ours(line: bytes) -> None:
    try:
        header = remote_files.parse_download_header(line)
        assert 0 <= header.offset <= header.size <= remote_files.SIZE_MAX
        assert header.mode & ~0o777 == 0
    except RunCodeError as error:
        assert error.message.isprintable()
    try:
        blocks, digest = remote_files.parse_partial(line)
        assert blocks >= 0
        assert re.fullmatch(r"[0-9a-f-]{1,64}", digest)
    except RunCodeError as error:
        assert error.message.isprintable()
    try:
        digest, status = remote_trees.parse_tree_ending(line)
        assert re.fullmatch(r"[0-9a-f-]{1,64}", digest)
        assert 0 <= status <= 999
    except RunCodeError as error:
        assert error.message.isprintable()
    try:
        remote_trees.parse_tree_header(line)
        assert line == b"tree"
    except RunCodeError as error:
        assert error.message.isprintable()


RECORD = st.builds(
    lambda key, value: f"{key}={value}".encode("utf-8", "surrogatepass"),
    st.one_of(
        st.sampled_from(["cwd", "os", "disk", "distro", "git.branch", "git.dirty", "git.remote", "marker", "tool.git"]),
        TEXT,
    ),
    st.one_of(TEXT, st.just("/dev/x 100 50 50 50% /"), st.just("https://user:secret@example.net/x")),
)


@fast
@given(st.binary(max_size=60), st.lists(st.one_of(RECORD, st.binary(max_size=20))), st.binary(max_size=60))
def test_a_context_is_bounded_text_or_an_error_of_ours(before: bytes, records: list[bytes], after: bytes) -> None:
    answer = before + f"\n{NONCE} context\n".encode() + b"\0".join(records) + f"\n{NONCE} end\n".encode() + after
    try:
        found = remote_context.parse_context(answer, NONCE)
    except RunCodeError as error:
        assert error.code in ("io_error", "not_found")
        return
    texts = [found.cwd, found.os, found.arch, found.kernel, found.distro or ""]
    if found.git is not None:
        texts += [found.git.branch or "", found.git.head or "", found.git.remote or ""]
        assert found.git.remote is None or not found.git.remote.startswith("https://user:secret@")
    assert all(isinstance(text, str) and len(text) <= 4096 for text in texts)
    assert all((size is None or size >= 0) for size in (found.disk_total, found.disk_free))
    assert set(found.markers) <= set(remote_context.MARKERS)
    assert {name for name, _ in found.tools} <= set(remote_context.TOOLS)


# ---------------------------------------------------------------- archives

NAME = st.lists(
    st.sampled_from([b"a", b"bb", b"..", b".", b"", b"c" * 120, b"\x1b", b"\xff", b"d\n"]), min_size=1, max_size=4
).map(b"/".join)
KIND = st.sampled_from([archive.FILE, archive.LINK, archive.HARD_LINK, archive.FOLDER, b"3", b"6", b"L", b"x", b"Z"])
MEMBER = st.builds(
    lambda name, kind, content, link: (
        archive.render_header(name, kind=kind, size=len(content) if kind == archive.FILE else 0, link=link)
        + (content + archive.padding(len(content)) if kind == archive.FILE else b"")
    ),
    NAME,
    KIND,
    st.binary(max_size=700),
    NAME,
)


def read_archive(stream: bytes, cuts: list[int]) -> tuple[list[Any], str | None]:
    """The entries with their content, and the code of what ended it; fed in pieces."""
    reader, found, at = archive.ArchiveReader(), [], 0
    try:
        for end in [*sorted({min(cut, len(stream)) for cut in cuts}), len(stream)]:
            for event in reader.feed(stream[at:end]):
                if isinstance(event, archive.Entry):
                    found.append([event, b""])
                else:
                    found[-1][1] += bytes(event)
            at = end
    except RunCodeError as error:
        return found, error.code
    return found, None


@fast
@given(
    st.lists(st.one_of(MEMBER, st.binary(min_size=512, max_size=512)), max_size=4),
    st.lists(st.integers(0, 4000), max_size=5),
)
def test_an_archive_yields_inner_names_or_is_refused(members: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(members) + archive.END
    found, code = read_archive(stream, cuts)
    assert code in (None, "unsafe_path", "io_error")
    for entry, content in found:
        assert not {b"..", b".", b""} & set(entry.parts)
        assert not any(b"/" in part or b"\0" in part for part in entry.parts)
        assert len(content) <= entry.size
        assert entry.mode & ~0o777 == 0
        assert entry.kind in (archive.FILE, archive.HARD_LINK, archive.LINK, archive.FOLDER, archive.SPECIAL)
    # How the bytes were cut into pieces means nothing.
    whole, whole_code = read_archive(stream, [])
    assert whole[: len(found)] == found or code is not None
    assert code == whole_code


@slow
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "a/b", "b/a", "a/b/a"]),
            st.lists(st.sampled_from(["..", ".", "a", "b"]), min_size=1, max_size=5),
        ),
        max_size=5,
    )
)
def test_links_that_stay_inside_do_so_on_a_real_disk(links: list[tuple[str, list[str]]]) -> None:
    """Any set of accepted links, followed in any order, never leaves the folder."""
    with tempfile.TemporaryDirectory(prefix="rc-links-") as name:
        root = Path(os.path.realpath(name)) / "top"
        root.mkdir()
        made = []
        for place, parts in links:
            target = "/".join(parts)
            depth = place.count("/")
            if not archive.is_inner_link(target.encode(), depth):
                continue
            try:
                (root / place).parent.mkdir(parents=True, exist_ok=True)
                (root / place).symlink_to(target)
            except (FileExistsError, NotADirectoryError, OSError):
                continue
            made.append(root / place)
        for link in made:
            try:
                real = os.path.realpath(link, strict=True)
            except OSError:  # it leads nowhere, or round in circles
                continue
            inside = real == str(root) or real.startswith(f"{root}/")
            # A link was made through another one only by this test, never by the client: then depth meant nothing.
            assert inside or any(parent.is_symlink() for parent in link.parents), (links, link, real)


@fast
@given(st.binary(max_size=60))
def test_a_member_name_is_inner_parts_or_refused(raw: bytes) -> None:
    try:
        parts = archive.parse_member_name(raw)
    except UnsafeInput as error:
        assert error.code == "unsafe_path"
        return
    assert b".." not in parts
    assert not raw.startswith(b"/")
    assert all(part and b"/" not in part and b"\0" not in part for part in parts)


# ---------------------------------------------------------------- what counts bytes


@fast
@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=4))
def test_a_handshake_is_read_alike_in_any_pieces(sent: bytes, cuts: list[int]) -> None:
    whole, pieces = handshake.ClientSide("box"), handshake.ClientSide("box")
    whole.feed(sent)
    at = 0
    for end in [*sorted({min(cut, len(sent)) for cut in cuts}), len(sent)]:
        pieces.feed(sent[at:end])
        at = end
    assert (whole.sealed_bytes, whole.was_refused) == (pieces.sealed_bytes, pieces.was_refused)


@slow
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_checksums_are_what_the_boxs_programs_say(chunks: list[bytes]) -> None:
    sha256, cksum = checksums.Checksum("sha256"), checksums.Checksum("cksum")
    for chunk in chunks:
        sha256.update(chunk)
        cksum.update(memoryview(chunk))
    whole = b"".join(chunks)
    assert sha256.word() == hashlib.sha256(whole).hexdigest()
    crc, size = subprocess.run(["cksum"], input=whole, capture_output=True, check=True).stdout.split()[:2]
    assert cksum.word() == f"{crc.decode()}-{size.decode()}"
