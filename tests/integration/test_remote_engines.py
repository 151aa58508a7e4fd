"""The scripts that a box is given for uploads, run by a real `sh` here, on streams that were damaged on the way.

Each engine has to hold the same promise: the Python program, the pipeline of
coreutils, and that pipeline after a Python that turned out to be of no use.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runcode.core import archive, remote_files, remote_python, remote_trees
from runcode.core.remote_files import RemoteFile

NONCE = "0123456789abcdef" * 2
CONTENT = os.urandom(9_000_000)
SUM = hashlib.sha256(CONTENT).hexdigest()
OLD = b"what was there"


class Box:
    """A folder, and the PATH that scripts run with there."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder, self.path = folder, path

    def run(self, command: str, stdin: bytes) -> bytes:
        done = subprocess.run(
            ["/bin/sh", "-c", command], input=stdin, capture_output=True, env={"PATH": self.path}, check=False
        )
        return done.stdout.rpartition(f"\n{NONCE} ".encode())[2].strip()

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))


@pytest.fixture(params=["python", "pipeline", "a python of no use"])
def box(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    folder = tmp_path / "box"
    folder.mkdir()
    path = "/usr/bin:/bin"
    witness = tmp_path / "witness"
    if request.param == "pipeline":
        tools = tmp_path / "tools"
        tools.mkdir()
        (tools / "python3").write_text(f"#!/bin/sh\n: >{witness}\nexit 1\n")
        (tools / "python3").chmod(0o755)
        path = f"{tools}:{path}"
    else:
        assert shutil.which("python3", path="/usr/bin:/bin"), "apt-get install python3"
        program = "import os; os._exit(9)"
        for name in ("RECEIVE_FILE", "RECEIVE_TREE"):
            text = program if "no use" in request.param else getattr(remote_python, name)
            monkeypatch.setattr(remote_python, name, f"open({str(witness)!r}, 'w').close()\n{text}")
    yield Box(folder, path)
    assert witness.exists() == (request.param != "pipeline"), "another engine than the one that is meant ran"


def upload(box: Box, stream: bytes, *, size: int = len(CONTENT)) -> bytes:
    target = RemoteFile(workdir=str(box.folder), path="f")
    return box.run(remote_files.render_upload(NONCE, target, algorithm="sha256", size=size, mode=0o640), stream)


def trailer(digest: str = SUM, size: int = len(CONTENT)) -> bytes:
    return remote_files.render_trailer(NONCE, size, digest)


def test_a_file_lands_whole(box: Box) -> None:
    assert upload(box, CONTENT + trailer()) == b"ok"
    assert (box.folder / "f").read_bytes() == CONTENT
    assert (box.folder / "f").stat().st_mode & 0o7777 == 0o640
    assert box.names() == ["f"]


@pytest.mark.parametrize("at", [0, 4_500_000, len(CONTENT) - 1])
def test_a_byte_that_changed_on_the_way_is_found(box: Box, at: int) -> None:
    (box.folder / "f").write_bytes(OLD)
    damaged = bytearray(CONTENT)
    damaged[at] ^= 1
    assert upload(box, bytes(damaged) + trailer()) == b"error mismatch"
    assert (box.folder / "f").read_bytes() == OLD
    assert box.names() == ["f"]


@pytest.mark.parametrize("length", [0, 1, 8_999_999, 9_000_000, 9_000_060])
def test_a_stream_that_was_cut_is_found(box: Box, length: int) -> None:
    (box.folder / "f").write_bytes(OLD)
    assert upload(box, (CONTENT + trailer())[:length]) in (b"error cut", b"error mismatch")
    assert (box.folder / "f").read_bytes() == OLD
    assert box.names() == ["f"]


def tree_stream(
    *, content: bytes = b"x" * 70_000, listed: bytes = b"a\0d/b\0", digest: str | None = None, end: bytes = archive.END
) -> bytes:
    digest = digest or hashlib.sha256(b"one" + b"x" * 70_000).hexdigest()
    parts: list[bytes] = []

    def add(name: bytes, inside: bytes, mode: int) -> None:
        header = archive.render_header(name, size=len(inside), mode=mode, mtime=3_000_000)
        parts.extend([header, inside, archive.padding(len(inside))])

    parts.append(archive.render_header(b"tree/", kind=archive.FOLDER, mode=0o755, mtime=1_000_000))
    add(b"tree/a", b"one", 0o755)
    parts.append(archive.render_header(b"tree/d/", kind=archive.FOLDER, mode=0o500, mtime=2_000_000))
    add(b"tree/d/b", content, 0o644)
    parts.append(archive.render_header(b"tree/l", kind=archive.LINK, link=b"l" * 150, mode=0o777))
    add(b"list", listed, 0o600)
    add(b"sum", digest.encode() + b"\n", 0o600)
    return b"".join([*parts, end])


def upload_tree(box: Box, stream: bytes) -> bytes:
    command = remote_trees.render_tree_upload(NONCE, algorithm="sha256", workdir=str(box.folder), path="t", name="n")
    return box.run(command, stream)


def test_a_tree_lands_whole_with_modes_times_and_links(box: Box) -> None:
    assert upload_tree(box, tree_stream()) == b"ok"
    tree = box.folder / "t"
    assert (tree / "a").read_bytes() == b"one"
    assert (tree / "d" / "b").read_bytes() == b"x" * 70_000
    assert os.readlink(tree / "l") == "l" * 150
    modes = {name: (tree / name).lstat().st_mode & 0o777 for name in ("a", "d", "d/b")}
    assert modes == {"a": 0o755, "d": 0o500, "d/b": 0o644}
    assert [(tree / name).stat().st_mtime for name in ("a", "d", ".")] == [3_000_000, 2_000_000, 1_000_000]
    assert box.names() == ["t"]


DAMAGES = {
    "a content that changed": tree_stream(content=b"x" * 69_999 + b"y"),
    "a digest that changed": tree_stream(digest="0" * 64),
    "a name that the list lacks": tree_stream(listed=b"a\0"),
    "a name that the stream lacks": tree_stream(listed=b"a\0d/b\0c\0"),
    "a header that changed": tree_stream().replace(b"tree/a\0", b"tree/e\0", 1),
    "a mode that changed": tree_stream().replace(b"0000644\0", b"0000666\0", 1),
    "a stream cut in a header": tree_stream()[:700],
    "a stream cut in a file": tree_stream()[:40_000],
    "nothing at all": b"",
    "a device": archive.render_header(b"tree/", kind=archive.FOLDER) + archive.render_header(b"tree/p", kind=b"3"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tree_is_found_and_nothing_is_moved(box: Box, damage: str) -> None:
    assert upload_tree(box, DAMAGES[damage]).startswith(b"error ")
    assert box.names() == []
