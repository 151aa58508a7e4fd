"""`context` and `write`: the real CLI, the real ssh, a real sshd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.client_standin import RUNCODE, ControlPlane, Person, service, signed_in


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def steady(seen: dict[str, Any]) -> dict[str, Any]:
    """Without what others of this machine change meanwhile."""
    return {**seen, "disk": seen["disk"]["total_bytes"]}


FIELDS = {"cwd", "os", "arch", "kernel", "distro", "disk", "git", "markers", "tools", "workspace_id", "workdir"}


def test_it_says_what_the_box_is(person: Person, plane: ControlPlane) -> None:
    (plane.workdir / "pyproject.toml").touch()
    (plane.workdir / "unknown.file").touch()
    seen = person.json("context")
    assert set(seen) == FIELDS
    machine = os.uname()
    assert (seen["os"], seen["arch"], seen["kernel"]) == (machine.sysname, machine.machine, machine.release)
    assert seen["cwd"] == seen["workdir"] == str(plane.workdir)
    assert seen["workspace_id"] == 42
    assert seen["git"] is None
    assert seen["markers"] == ["pyproject.toml"]
    assert seen["tools"]["git"] == shutil.which("git", path="/usr/local/bin:/usr/bin:/bin")
    disk = os.statvfs(plane.workdir)
    assert seen["disk"]["total_bytes"] == pytest.approx(disk.f_blocks * disk.f_frsize, rel=0.2)
    assert steady(person.json("context", "42")) == steady(seen) == steady(person.json("context", "--workspace", "42"))
    text = person.runcode("context").stdout.decode()
    assert machine.release in text
    assert "pyproject.toml" in text


def test_git_is_seen_and_its_password_is_not(person: Person, plane: ControlPlane) -> None:
    folder = plane.workdir / "repo"
    folder.mkdir()
    plane.bundle_changes = {"workdir": str(folder)}
    try:
        git(folder, "init", "-q")
        person.runcode("connect", "42", "--force")
        assert person.json("context")["git"] == {"branch": "main", "dirty": False, "remote": None, "head": None}
        git(folder, "commit", "-q", "--allow-empty", "-m", "first")
        git(folder, "remote", "add", "origin", "https://someone:s3cret@example.org/r.git")
        (folder / "new").touch()
        head = git(folder, "rev-parse", "HEAD")
        seen = person.json("context")
        expected = {"branch": "main", "dirty": True, "remote": "https://example.org/r.git", "head": head}
        assert seen["git"] == expected
        git(folder, "checkout", "-q", "--detach")
        (folder / "new").unlink()
        assert person.json("context")["git"] == {**expected, "branch": None, "dirty": False}
    finally:
        plane.bundle_changes = {}
        person.runcode("connect", "42", "--force")


def test_noise_and_a_hostile_environment_change_nothing(person: Person, plane: ControlPlane) -> None:
    assert plane.sshd is not None
    quiet = person.json("context")
    evil = plane.sshd.folder / "evil"
    evil.mkdir()
    (evil / "uname").write_text("#!/bin/sh\nprintf 'x\\033]52;c;ZXZpbA==\\007\\ny\\n'\n")
    (evil / "df").write_text("#!/bin/sh\necho 'a b 99999999999999999999999 c'\n")
    for name in ("uname", "df"):
        (evil / name).chmod(0o755)
    try:
        (plane.sshd.home / ".bashrc").write_text("echo noise; echo os=fake; printf 'a\\0os=fake\\0'; alias cd=false\n")
        assert steady(person.json("context")) == steady(quiet)
        (plane.sshd.home / ".bashrc").write_text(f"export PATH={evil}:$PATH\n")
        assert person.json("context")["disk"] is None
        shown = person.runcode("context").stdout
        assert b"\033" not in shown
        assert b"\007" not in shown
        assert len(shown.splitlines()) == len(person.runcode("context").stdout.splitlines())
        assert b"\ny" not in shown
        assert b"\\u001b]52" in person.runcode("context", "--json").stdout
    finally:
        (plane.sshd.home / ".bashrc").unlink()


def test_a_missing_project_folder_is_said(person: Person, plane: ControlPlane) -> None:
    moved = plane.workdir.with_name("moved")
    plane.workdir.rename(moved)
    try:
        assert person.json("context", expect=1)["error"] == "not_found"
    finally:
        moved.rename(plane.workdir)


@pytest.mark.parametrize("content", [b"", b"x", b"\0\xff\r\n", os.urandom(6_000_017)], ids=["empty", "x", "bin", "big"])
def test_write_takes_any_bytes_from_a_pipe_or_a_file(person: Person, plane: ControlPlane, content: bytes) -> None:
    person.runcode("write", "new/folders/a b", stdin=content)
    assert (plane.workdir / "new" / "folders" / "a b").read_bytes() == content
    (person.project / "file").write_bytes(content)
    receipt = person.json("write", "--file", "file", "by file")
    assert (plane.workdir / "by file").read_bytes() == content
    assert receipt["bytes"] == len(content)
    with (person.project / "file").open("rb") as file:
        subprocess.run(
            [RUNCODE, "write", "redirected"],
            stdin=file,
            env=person.environment,
            cwd=person.project,
            check=True,
        )
    assert (plane.workdir / "redirected").read_bytes() == content
    assert [name for name in os.listdir(plane.workdir) if name.startswith(".runcode-")] == []


def test_write_keeps_the_mode_and_a_link(person: Person, plane: ControlPlane) -> None:
    target = plane.workdir / "kept"
    target.write_bytes(b"old")
    target.chmod(0o750)
    (plane.workdir / "alias").symlink_to("kept")
    person.runcode("write", "alias", stdin=b"new")
    assert (plane.workdir / "alias").is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o7777 == 0o750
    person.runcode("write", "fresh", stdin=b"new")
    assert (plane.workdir / "fresh").stat().st_mode & 0o7777 == 0o644


def test_write_goes_on_from_where_stdin_is(person: Person, plane: ControlPlane) -> None:
    (person.project / "lines").write_bytes(b"first\nsecond\n")
    line = 'exec <lines; read -r skipped; "$0" write rest'
    subprocess.run(["sh", "-c", line, RUNCODE], env=person.environment, cwd=person.project, check=True)
    assert (plane.workdir / "rest").read_bytes() == b"second\n"


def test_write_refuses_what_is_no_file(person: Person, plane: ControlPlane) -> None:
    os.mkfifo(plane.workdir / "pipe")
    (plane.workdir / "folder").mkdir()
    (plane.workdir / "plain").write_bytes(b"old")
    for path, code in (("pipe", "unsafe_path"), ("folder", "unsafe_path"), ("plain/x", "io_error")):
        assert person.json("write", path, stdin=b"x", expect=1)["error"] == code, path
    assert (plane.workdir / "plain").read_bytes() == b"old"
