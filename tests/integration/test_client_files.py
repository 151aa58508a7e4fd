"""`get` and `put` of single files: the real CLI, the real ssh, a real sshd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import RUNCODE, ControlPlane, Person, service, signed_in

RANDOM = os.urandom(3_000_017)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if "part" in name]


NAMES = ["plain", "a b", "it's", '"q"', "a\nb", "$HOME", "`id`", "*", "-n", "--out", "é", "a;b", "a\\b", " lead"]


@pytest.mark.parametrize("name", [*map(os.fsencode, NAMES), b"\xff\xfe"])
def test_any_name_goes_there_and_back(person: Person, plane: ControlPlane, name: bytes) -> None:
    there = os.path.join(os.fsencode(plane.workdir), name)
    (person.project / "source").write_bytes(b"\0content\xff")
    person.runcode("put", "source", "--", name)
    with open(there, "rb") as file:
        assert file.read() == b"\0content\xff"
    assert person.runcode("get", "--", name).stdout == b"\0content\xff"
    os.unlink(there)


@pytest.mark.parametrize("content", [b"", b"x", RANDOM], ids=["empty", "one", "large"])
@pytest.mark.parametrize("mode", [0o600, 0o755, 0o4755])
def test_content_and_mode_are_kept_and_nothing_else_is_left(
    person: Person, plane: ControlPlane, content: bytes, mode: int
) -> None:
    (person.project / "up").write_bytes(content)
    os.chmod(person.project / "up", mode)
    person.runcode("put", "up", "there")
    assert (plane.workdir / "there").read_bytes() == content
    assert (plane.workdir / "there").stat().st_mode & 0o7777 == mode & 0o777
    os.chmod(plane.workdir / "there", mode)
    person.runcode("get", "there", "--out", "down")
    assert (person.project / "down").read_bytes() == content
    assert (person.project / "down").stat().st_mode & 0o7777 == mode & 0o777
    assert leftovers(person.project) + leftovers(plane.workdir) == []


def test_a_folder_takes_the_file_under_its_own_name(person: Person, plane: ControlPlane) -> None:
    (person.project / "named").write_bytes(b"1")
    (plane.workdir / "folder").mkdir()
    person.runcode("put", "named", "folder")
    assert (plane.workdir / "folder" / "named").read_bytes() == b"1"
    (person.project / "local").mkdir()
    person.runcode("get", "folder/named", "--out", "local")
    assert (person.project / "local" / "named").read_bytes() == b"1"


def test_an_absolute_path_needs_no_project_folder(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    (person.project / "abs").write_bytes(b"2")
    person.runcode("put", "abs", str(tmp_path / "abs"))
    assert person.runcode("get", str(tmp_path / "abs")).stdout == b"2"


def test_failures_have_a_code_and_leave_nothing(person: Person, plane: ControlPlane) -> None:
    (person.project / "file").write_bytes(b"3")
    os.mkfifo(plane.workdir / "pipe")
    os.mkfifo(person.project / "pipe")
    cases = [
        (["get", "missing"], "not_found"),
        (["get", "missing", "--out", "never"], "not_found"),
        (["get", "pipe"], "unsafe_path"),
        (["get", "."], "unsafe_path"),
        (["get", "/dev/zero"], "unsafe_path"),
        (["put", "file", "no/such/folder"], "not_found"),
        (["put", "file", "nofolder/"], "not_found"),
        (["put", "file", "pipe"], "unsafe_path"),
        (["put", "missing", "x"], "not_found"),
        (["put", "pipe", "x"], "unsafe_path"),
        (["put", ".", "x"], "unsafe_path"),
        (["get", "pipe", "--out", "pipe"], "unsafe_path"),
    ]
    for words, code in cases:
        assert person.runcode(*words, expect=1).stderr.startswith(f"runcode: {code}: ".encode()), words
    assert not (person.project / "never").exists()
    assert not (plane.workdir / "x").exists()
    assert leftovers(person.project) + leftovers(plane.workdir) == []


def test_a_download_never_writes_through_a_link(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    (plane.workdir / "evil").write_bytes(b"evil")
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (person.project / "link").symlink_to(victim)
    person.runcode("get", "evil", "--out", "link")
    assert victim.read_bytes() == b"precious"
    assert (person.project / "link").read_bytes() == b"evil"
    assert not (person.project / "link").is_symlink()


def test_noisy_rc_files_do_no_harm(person: Person, plane: ControlPlane) -> None:
    assert plane.sshd is not None
    (plane.sshd.home / ".bashrc").write_text("i=0; while [ $i -lt 9000 ]; do echo 'noise noise'; i=$((i+1)); done\n")
    try:
        (person.project / "quiet").write_bytes(RANDOM)
        person.runcode("put", "quiet", "quiet")
        assert person.runcode("get", "quiet").stdout == RANDOM
    finally:
        (plane.sshd.home / ".bashrc").unlink()


def test_a_box_without_sha256_checks_by_cksum(person: Person, plane: ControlPlane) -> None:
    """A PATH that holds only what POSIX promises."""
    assert plane.sshd is not None
    tools = plane.sshd.folder / "tools"
    tools.mkdir()
    for name in ("cat", "cksum", "dd", "tail", "wc", "stat", "readlink", "mv", "rm", "chmod", "sh", "printf"):
        (tools / name).symlink_to(f"/bin/{name}")
    (plane.sshd.home / ".bashrc").write_text(f"export PATH={tools}\n")
    try:
        (person.project / "crc").write_bytes(RANDOM)
        person.runcode("put", "crc", "crc")
        assert (plane.workdir / "crc").read_bytes() == RANDOM
        assert person.runcode("get", "crc").stdout == RANDOM
    finally:
        (plane.sshd.home / ".bashrc").unlink()


def test_damage_on_the_way_is_found_and_thrown_away(person: Person, plane: ControlPlane) -> None:
    """The box lies: its sha256sum names another content."""
    assert plane.sshd is not None
    lying = plane.sshd.folder / "lying"
    lying.mkdir()
    (lying / "sha256sum").write_text("#!/bin/sh\ncat >/dev/null\necho 0000 -\n")
    (lying / "sha256sum").chmod(0o755)
    (plane.sshd.home / ".bashrc").write_text(f"export PATH={lying}:$PATH\n")
    (plane.workdir / "there").write_bytes(b"old there")
    (person.project / "here").write_bytes(b"old here")
    try:
        assert b"io_error" in person.runcode("get", "there", "--out", "here", expect=1).stderr
        assert b"io_error" in person.runcode("put", "here", "there", expect=1).stderr
    finally:
        (plane.sshd.home / ".bashrc").unlink()
    assert (plane.workdir / "there").read_bytes() == b"old there"
    assert (person.project / "here").read_bytes() == b"old here"
    assert leftovers(person.project) + leftovers(plane.workdir) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_transfer_leaves_the_old_file(
    person: Person, plane: ControlPlane, number: signal.Signals
) -> None:
    # A sparse file: large on the way, nothing on the disk.
    for folder in (person.project, plane.workdir):
        with (folder / "huge").open("wb") as file:
            file.truncate(4_000_000_000)
        (folder / "target").write_bytes(b"old")
    for words, folder in (
        (["get", "huge", "--out", "target"], person.project),
        (["put", "huge", "target"], plane.workdir),
    ):
        process = person.start(*words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not leftovers(folder) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert leftovers(folder)
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
        deadline = time.monotonic() + 20
        while leftovers(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert leftovers(folder) == []
        assert (folder / "target").read_bytes() == b"old"
    for folder in (person.project, plane.workdir):
        (folder / "huge").unlink()


@pytest.mark.root_only
def test_a_full_disk_there_is_an_error_and_leaves_nothing(person: Person, plane: ControlPlane) -> None:
    (person.project / "big").write_bytes(RANDOM)
    full = Path("/dev/shm/runcode-client-test")
    full.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(full)], check=True)
    try:
        done = person.runcode("put", "big", str(full / "big"), expect=1)
        assert done.stderr.startswith(b"runcode: io_error: ")
        assert os.listdir(full) == []
    finally:
        subprocess.run(["umount", str(full)], check=True)
        full.rmdir()


def test_memory_stays_constant(person: Person, plane: ControlPlane) -> None:
    with (person.project / "large").open("wb") as file:
        file.truncate(200_000_000)
    # Asked of a small process in between: Linux counts what a program's parent held when it was started.
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    for words in (["put", "large", "large"], ["get", "large", "--out", "back"]):
        done = subprocess.run(
            [sys.executable, "-IS", "-c", script, RUNCODE, *words],
            env=person.environment,
            cwd=person.project,
            capture_output=True,
            check=True,
            timeout=120,
        )
        assert int(done.stdout) < 40_000, f"{words}: {done.stdout.decode()} KB"
    for path in (person.project / "large", person.project / "back", plane.workdir / "large"):
        path.unlink()
