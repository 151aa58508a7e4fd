"""The scripts of the agents' tools in each shell that a box may have as /bin/sh, with GNU's tools and busybox's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from runcode.core import remote_edits, remote_reads, remote_runs, remote_search
from runcode.core.errors import RunCodeError

NONCE = "0123456789abcdef" * 2
SHELLS = {"dash": ["/bin/dash"], "bash": ["/bin/bash", "--posix"], "busybox": ["/bin/busybox", "sh"]}


class Box:
    """A folder and a shell. With busybox its own tools come first on PATH."""

    def __init__(self, folder: Path, shell: str) -> None:
        self.workdir = folder / "work"
        self.workdir.mkdir()
        self.shell = SHELLS[shell]
        self.environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        if shell == "busybox":
            tools = folder / "bin"
            tools.mkdir()
            busybox = os.path.realpath("/bin/busybox")
            for name in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
                (tools / name).symlink_to(busybox)
            self.environment["PATH"] = str(tools)

    def run(self, words: list[str], stdin: bytes = b"") -> bytes:
        assert words[:2] == ["/bin/sh", "-c"]
        # A session of its own, as under sshd: the scripts signal their process group.
        return subprocess.run(
            [*self.shell, *words[1:]],
            input=stdin,
            capture_output=True,
            env=self.environment,
            cwd="/",
            timeout=120,
            check=False,
            start_new_session=True,
        ).stdout

    @property
    def place(self) -> str:
        return str(self.workdir)


@pytest.fixture(params=SHELLS)
def box(request: pytest.FixtureRequest, tmp_path: Path) -> Box:
    return Box(tmp_path, request.param)


def run_command(box: Box, command: str, budget: int = 3000) -> remote_runs.Run:
    words = remote_runs.run_words(
        NONCE, workdir=box.place, cwd="", command=command, log_id="abcd1234", budget=remote_runs.Budget.of(budget)
    )
    return remote_runs.parse_run(box.run(words), NONCE)


def test_a_command_and_its_report(box: Box) -> None:
    run = run_command(box, "echo out; echo err >&2; pwd; exit 9")
    assert (run.status, run.stdout.head, run.stderr.head) == (9, f"out\n{box.place}\n", "err\n")
    assert run.cwd == box.place
    assert not run.stdout.is_cut


def test_long_output_in_parts(box: Box) -> None:
    run = run_command(
        box, "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; echo Error: x; seq 1 2000", 600
    )
    assert run.stdout.head.startswith("line 0\nline 1\n")
    assert run.stdout.tail.endswith("1999\n2000\n")
    assert any("5001:Error: x" in window for window in run.errors)


@pytest.mark.parametrize("content", [b"", b"one", b"a\nb\n", b"\0bin\xff\n" * 100])
def test_reading_by_lines_and_bytes(box: Box, content: bytes) -> None:
    (box.workdir / "-f").write_bytes(content)

    def read(by_lines: bool, start: int, count: int, most: int) -> remote_reads.Reading:
        words = remote_reads.read_words(
            NONCE, workdir=box.place, path="-f", log="", by_lines=by_lines, start=start, count=count, most=most
        )
        return remote_reads.parse_reading(box.run(words), NONCE)

    whole = read(True, 1, 10_000, 10_000)
    assert (whole.content, whole.size, whole.lines) == (content, len(content), content.count(b"\n"))
    assert read(True, 2, 1, 10_000).content == b"".join(content.splitlines(keepends=True)[1:2])
    assert read(False, 1, 3, 3).content == content[1:4]


def test_finding_and_searching(box: Box) -> None:
    for name in ("a.py", "sub/b.py", "sub/n l.txt", ".git/c.py", "-x.py", "odd\nname.py"):
        (box.workdir / name).parent.mkdir(exist_ok=True)
        (box.workdir / name).write_text("first\nfind: me:3:\n")
    found = remote_search.parse_paths(
        box.run(remote_search.glob_words(NONCE, workdir=box.place, path="", pattern="**/*.py")), NONCE, "**/*.py"
    )
    assert found.paths == ("-x.py", "a.py", "odd\ufffdname.py", "sub/b.py")
    words = remote_search.grep_words(
        NONCE, workdir=box.place, path="", pattern="^find: me", glob="sub/*", fixed=False, ignore_case=False, context=0
    )
    matches = remote_search.parse_matches(box.run(words), NONCE, "sub/*").matches
    assert sorted((match.path, match.line, match.text) for match in matches) == [
        ("sub/b.py", 2, "find: me:3:"),
        ("sub/n l.txt", 2, "find: me:3:"),
    ]
    entries, is_cut = remote_search.parse_entries(
        box.run(remote_search.list_words(NONCE, workdir=box.place, path=".")), NONCE
    )
    kinds = {entry.name: (entry.kind, entry.size) for entry in entries}
    assert kinds["a.py"] == ("file", 18)
    assert kinds["sub"] == ("folder", None)
    assert not is_cut


def commit(box: Box, changes: list[tuple[str, bytes, bytes]], cut: int = 0) -> None:
    words, content = remote_edits.commit_words(NONCE, workdir=box.place, changes=changes)
    answer = box.run(words, content[: len(content) - cut])
    remote_edits.parse_committed(answer, NONCE, len(changes))


def test_an_edit_of_any_bytes(box: Box) -> None:
    old, new = bytes(range(256)) * 50, b"\n\n\0" + bytes(range(255, -1, -1)) * 70
    for name in ("one", "two\n", "-three"):
        (box.workdir / name).write_bytes(old)
    (box.workdir / "one").chmod(0o750)
    names = ["one", "two\n", "-three"]
    fetched = remote_edits.parse_fetched(
        box.run(remote_edits.fetch_words(NONCE, workdir=box.place, paths=names)), NONCE, 3
    )
    assert fetched == [old] * 3
    commit(box, [(name, old, new) for name in names])
    assert [(box.workdir / name).read_bytes() for name in names] == [new] * 3
    assert (box.workdir / "one").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in box.workdir.iterdir()) == sorted(names)


def test_an_edit_refuses_what_was_changed_meanwhile(box: Box) -> None:
    (box.workdir / "one").write_bytes(b"old")
    (box.workdir / "two").write_bytes(b"somebody else's")
    with pytest.raises(RunCodeError) as caught:
        commit(box, [("one", b"old", b"new"), ("two", b"old", b"new")])
    assert caught.value.code == "conflict"
    assert ((box.workdir / "one").read_bytes(), (box.workdir / "two").read_bytes()) == (b"old", b"somebody else's")
    assert len(list(box.workdir.iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_an_edit_that_arrived_cut_changes_nothing(box: Box, cut: int) -> None:
    (box.workdir / "one").write_bytes(b"old")
    with pytest.raises(RunCodeError):
        commit(box, [("one", b"old", b"new")], cut=cut)
    assert (box.workdir / "one").read_bytes() == b"old"
    assert len(list(box.workdir.iterdir())) == 1


def test_a_rename_that_fails_takes_the_others_back(box: Box) -> None:
    """`mv` stands in for a full or dying disk: it does its work once and then fails."""
    for name in ("one", "two"):
        (box.workdir / name).write_bytes(b"old")
    tools = Path(box.environment["HOME"]) / "breaking"
    tools.mkdir()
    (tools / "mv").write_text('#!/bin/sh\ncase "$*" in *.new*two*) exit 1 ;; esac\nexec /bin/mv "$@"\n')
    (tools / "mv").chmod(0o755)
    if box.shell[0] == SHELLS["busybox"][0]:
        (Path(box.environment["PATH"]) / "mv").unlink()  # its own comes before PATH only while it is there
    box.environment["PATH"] = f"{tools}:{box.environment['PATH']}"
    with pytest.raises(RunCodeError):
        commit(box, [("one", b"old", b"new"), ("two", b"old", b"new")])
    assert [(box.workdir / name).read_bytes() for name in ("one", "two")] == [b"old", b"old"]
    assert len(list(box.workdir.iterdir())) == 2
