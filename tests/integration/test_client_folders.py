"""`get -r` and `put -r`: the real CLI, the real ssh, a real sshd, the box's own tar."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


@pytest.fixture(autouse=True)
def clean_folders(person: Person, plane: ControlPlane) -> Iterator[None]:
    yield
    assert leftovers(person.project) + leftovers(plane.workdir) == []
    for folder in (person.project, plane.workdir):
        for name in os.listdir(folder):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def leftovers(folder: Path) -> list[str]:
    return [name for _, folders, files in os.walk(folder) for name in folders + files if name.startswith(".runcode-")]


NAMES = [b"plain", b"a b", b"it's", b'"q"', b"a\nb", b"$HOME", b"`id`", b"*", b"-n", b"--out", b"\xc3\xa9", b"a;b"]
NAMES += [b"a\\b", b" lead", b"\xff\xfe", b"x" * 255, b".hidden", b"..x"]


def make_tree(root: Path) -> None:
    """Every kind of name, content and mode that a folder may hold."""
    top = os.fsencode(root)
    deep = os.path.join(top, *[b"d" * 60] * 6)
    for folder in (top, os.path.join(top, b"sub dir"), deep, os.path.join(top, b"empty")):
        os.makedirs(folder, exist_ok=True)
        if not folder.endswith(b"empty"):
            for number, name in enumerate(NAMES):
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(os.urandom(number * 401))
                os.chmod(os.path.join(folder, name), (0o600, 0o644, 0o755, 0o400)[number % 4])
    os.symlink("plain", os.path.join(top, b"link"))
    os.symlink("../plain", os.path.join(top, b"sub dir", b"up"))
    os.symlink("nowhere" + "y" * 150, os.path.join(top, b"dangling"))
    os.symlink("sub dir", os.path.join(top, b"folder link"))
    os.chmod(os.path.join(top, b"sub dir"), 0o750)


def listing(root: Path) -> dict[bytes, tuple[str, int, bytes]]:
    """Everything below: kind, mode, content or target."""
    found: dict[bytes, tuple[str, int, bytes]] = {}
    top = os.fsencode(root)
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            mode = status.st_mode & 0o7777
            if os.path.islink(path):
                found[path[len(top) :]] = ("link", 0, os.readlink(path))
            elif os.path.isdir(path):
                found[path[len(top) :]] = ("folder", mode, b"")
            else:
                with open(path, "rb") as file:
                    found[path[len(top) :]] = ("file", mode, file.read())
    return found


def test_a_folder_goes_there_and_back(person: Person, plane: ControlPlane) -> None:
    make_tree(person.project / "tree")
    sent = person.json("put", "-r", "tree", "there")
    assert listing(plane.workdir / "there") == listing(person.project / "tree")
    assert sent["files"] == 3 * len(NAMES)
    assert sent["left_out"] == 0
    received = person.json("get", "-r", "there", "--out", "back")
    assert listing(person.project / "back") == listing(person.project / "tree")
    assert received["files"] == sent["files"]
    assert (
        received["bytes"]
        == sent["bytes"]
        == sum(len(c) for k, _, c in listing(person.project / "tree").values() if k == "file")
    )


def test_where_it_lands_is_as_with_cp(person: Person, plane: ControlPlane) -> None:
    (person.project / "src").mkdir()
    (person.project / "src" / "f").write_bytes(b"1")
    (plane.workdir / "old").mkdir()
    person.runcode("put", "-r", "src", "old")
    assert (plane.workdir / "old" / "src" / "f").read_bytes() == b"1"
    person.runcode("put", "-r", "src/.", "old")
    assert (plane.workdir / "old" / "f").read_bytes() == b"1"
    person.runcode("put", "-r", "src/", "new/")
    assert (plane.workdir / "new" / "f").read_bytes() == b"1"
    person.runcode("get", "-r", "old")
    assert (person.project / "old" / "src" / "f").read_bytes() == b"1"
    person.runcode("get", "-r", "old/.", "--out", "src")
    assert (person.project / "src" / "src" / "f").read_bytes() == b"1"
    person.runcode("get", "-r", ".", "--out", "all")
    assert (person.project / "all" / "new" / "f").read_bytes() == b"1"


def test_an_existing_folder_is_merged_file_by_file(person: Person, plane: ControlPlane) -> None:
    for side, there, back in ((person.project, plane.workdir, False), (plane.workdir, person.project, True)):
        source, target = side / "from", there / "to"
        for path, content in (("same/f", b"new"), ("same/g\nh", b"new"), ("fresh/d/f", b"new"), ("-x", b"new")):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
        for path, content in (("same/f", b"old"), ("same/kept", b"old")):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
        (target / "-x").symlink_to("same/kept")
        os.chmod(target / "same", 0o711)
        person.runcode(*(["get", "-r", "from/.", "--out", "to"] if back else ["put", "-r", "from/.", "to"]))
        found = listing(target)
        assert {name: content for name, (kind, _, content) in found.items() if kind == "file"} == {
            b"/same/f": b"new",
            b"/same/g\nh": b"new",
            b"/same/kept": b"old",
            b"/fresh/d/f": b"new",
            b"/-x": b"new",
        }
        assert found[b"/same"] == ("folder", 0o711, b"")
        shutil.rmtree(source)
        shutil.rmtree(target)


@pytest.mark.parametrize("back", [False, True], ids=["put", "get"])
@pytest.mark.parametrize("clash", ["link to a folder", "file for a folder", "folder for a file", "pipe"])
def test_a_clash_is_found_before_anything_moves(
    person: Person, plane: ControlPlane, tmp_path: Path, back: bool, clash: str
) -> None:
    source, target = (plane.workdir, person.project) if back else (person.project, plane.workdir)
    (source / "from" / "d").mkdir(parents=True)
    (source / "from" / "a").write_bytes(b"new")
    (source / "from" / "d" / "f").write_bytes(b"new")
    (source / "from" / "z").write_bytes(b"new")
    (target / "to").mkdir()
    (target / "to" / "a").write_bytes(b"old")
    victim = tmp_path / "victim"
    victim.mkdir()
    if clash == "link to a folder":
        (target / "to" / "d").symlink_to(victim)
    elif clash == "file for a folder":
        (target / "to" / "d").write_bytes(b"old")
    elif clash == "folder for a file":
        (target / "to" / "z").mkdir()
    else:
        os.mkfifo(target / "to" / "z")
    before = listing(target / "to") if clash != "pipe" else None
    words = ["get", "-r", "from/.", "--out", "to"] if back else ["put", "-r", "from/.", "to"]
    done = person.runcode(*words, expect=1)
    assert done.stderr.startswith(b"runcode: unsafe_path: "), done.stderr
    assert (target / "to" / "a").read_bytes() == b"old"
    assert before is None or listing(target / "to") == before
    assert os.listdir(victim) == []


def test_what_cannot_be_copied_is_refused_or_left_out_by_name(person: Person, plane: ControlPlane) -> None:
    for side, words in (
        (person.project, ["put", "-r", "odd", "there"]),
        (plane.workdir, ["get", "-r", "odd", "--out", "there"]),
    ):
        odd = side / "odd"
        odd.mkdir()
        (odd / "good").write_bytes(b"good")
        makers = {
            "absolute": lambda path: path.symlink_to("/etc/passwd"),
            "outside": lambda path: path.symlink_to("../../x"),
            "sneaky": lambda path: path.symlink_to("good/../../../x"),
            "pipe": os.mkfifo,
        }
        for name, make in makers.items():
            make(odd / name)
            done = person.runcode(*words, expect=1)
            assert done.stderr.startswith(b"runcode: unsafe_path: "), (name, done.stderr)
            assert name.encode() in done.stderr
            assert b"--skip-special" in done.stderr
            (odd / name).unlink()
        assert not (person.project / "there").exists()
        assert not (plane.workdir / "there").exists()
        for name, make in makers.items():
            make(odd / name)
        done = person.runcode(*words, "--skip-special")
        assert done.stderr.count(b"left out: ") == 4
        there = (plane.workdir if side is person.project else person.project) / "there"
        assert os.listdir(there) == ["good"]
        shutil.rmtree(there)
        shutil.rmtree(odd)


def test_a_socket_in_the_folder_is_not_copied(person: Person, plane: ControlPlane) -> None:
    (person.project / "s").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(person.project / "s")
        try:
            listener.bind("sock")
        finally:
            os.chdir(here)
        assert b"unsafe_path" in person.runcode("put", "-r", "s", "t", expect=1).stderr
    assert not (plane.workdir / "t").exists()


def test_second_names_of_a_file_arrive(person: Person, plane: ControlPlane) -> None:
    (plane.workdir / "hard").mkdir()
    (plane.workdir / "hard" / "a").write_bytes(b"twice")
    os.link(plane.workdir / "hard" / "a", plane.workdir / "hard" / "b")
    assert person.json("get", "-r", "hard", "--out", "hard")["files"] == 2
    assert (person.project / "hard" / "b").read_bytes() == b"twice"


def test_failures_have_a_code_and_leave_nothing(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    (person.project / "file").write_bytes(b"1")
    (person.project / "dir").mkdir()
    (plane.workdir / "file").write_bytes(b"1")
    (plane.workdir / "dir").mkdir()
    (plane.workdir / "link").symlink_to(tmp_path / "nowhere")
    cases = [
        (["put", "-r", "missing", "x"], "not_found"),
        (["put", "-r", "file", "x"], "unsafe_path"),
        (["put", "-r", "dir", "file"], "unsafe_path"),
        (["put", "-r", "dir", "no/such/x"], "not_found"),
        (["put", "-r", "dir", "link"], "unsafe_path"),
        (["get", "-r", "missing"], "not_found"),
        (["get", "-r", "file"], "unsafe_path"),
        (["get", "-r", "dir", "--out", "file"], "unsafe_path"),
        (["get", "-r", "dir", "--out", "no/such/x"], "not_found"),
        (["put", "dir", "x"], "unsafe_path"),
        (["get", "dir"], "unsafe_path"),
    ]
    for words, code in cases:
        done = person.runcode(*words, expect=1)
        assert done.stderr.startswith(f"runcode: {code}: ".encode()), (words, done.stderr)
    assert not (plane.workdir / "x").exists()
    assert not (tmp_path / "nowhere").exists()


def test_noisy_rc_files_do_no_harm(person: Person, plane: ControlPlane) -> None:
    assert plane.sshd is not None
    (plane.sshd.home / ".bashrc").write_text("echo noise; echo noise >&2; export TAR_OPTIONS=--verbose\n")
    try:
        make_tree(person.project / "tree")
        person.runcode("put", "-r", "tree", "there")
        person.runcode("get", "-r", "there", "--out", "back")
        assert listing(person.project / "back") == listing(person.project / "tree")
    finally:
        (plane.sshd.home / ".bashrc").unlink()


def test_a_box_without_sha256_or_openssl_checks_by_cksum(person: Person, plane: ControlPlane) -> None:
    assert plane.sshd is not None
    tools = plane.sshd.folder / "tools"
    tools.mkdir()
    for name in ("cat", "cksum", "find", "tar", "tee", "xargs", "mkdir", "mv", "rm", "sh"):
        (tools / name).symlink_to(f"/bin/{name}")
    (plane.sshd.home / ".bashrc").write_text(f"export PATH={tools}\n")
    try:
        make_tree(person.project / "tree")
        assert "cksum" in person.json("put", "-r", "tree", "there")
        assert "cksum" in person.json("get", "-r", "there", "--out", "back")
        assert listing(person.project / "back") == listing(person.project / "tree")
    finally:
        (plane.sshd.home / ".bashrc").unlink()


def test_damage_on_the_box_is_found_and_nothing_is_moved(person: Person, plane: ControlPlane) -> None:
    """Its sha256sum names another content than what was sent. (With Python: test_remote_engines.py.)"""
    assert plane.sshd is not None
    lying = plane.sshd.folder / "lying"
    lying.mkdir()
    for name in ("sha256sum", "openssl", "python3"):
        (lying / name).write_text("#!/bin/sh\ncat >/dev/null\necho 0000 -\n")
        (lying / name).chmod(0o755)
    (plane.sshd.home / ".bashrc").write_text(f"export PATH={lying}:$PATH\n")
    for folder in (person.project, plane.workdir):
        (folder / "tree").mkdir()
        (folder / "tree" / "f").write_bytes(b"1")
    try:
        assert b"io_error" in person.runcode("put", "-r", "tree", "new", expect=1).stderr
        assert b"io_error" in person.runcode("get", "-r", "tree", "--out", "new", expect=1).stderr
    finally:
        (plane.sshd.home / ".bashrc").unlink()
    assert not (plane.workdir / "new").exists()
    assert not (person.project / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_transfer_leaves_nothing(person: Person, plane: ControlPlane, number: signal.Signals) -> None:
    for folder in (person.project, plane.workdir):
        (folder / "many").mkdir()
        for name in ("a", "huge"):
            with (folder / "many" / name).open("wb") as file:
                file.truncate(4_000_000_000 if name == "huge" else 10)
    for words, folder in (
        (["get", "-r", "many", "--out", "target"], person.project),
        (["put", "-r", "many", "target"], plane.workdir),
    ):
        process = person.start(*words, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not leftovers(folder) and time.monotonic() < deadline:
            time.sleep(0.005)
        assert leftovers(folder)
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
        deadline = time.monotonic() + 30
        while leftovers(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert leftovers(folder) == []
        assert not (folder / "target").exists()


@pytest.mark.root_only
def test_a_full_disk_is_an_error_and_leaves_nothing(person: Person) -> None:
    (person.project / "big").mkdir()
    (person.project / "big" / "f").write_bytes(os.urandom(3_000_000))
    full = Path("/dev/shm/runcode-client-folder-test")
    full.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(full)], check=True)
    try:
        done = person.runcode("put", "-r", "big", str(full / "big"), expect=1)
        assert done.stderr.startswith(b"runcode: io_error: ")
        assert os.listdir(full) == []
    finally:
        subprocess.run(["umount", str(full)], check=True)
        full.rmdir()
