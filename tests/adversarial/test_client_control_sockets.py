"""Planted control sockets: whoever gets one into place would receive commands, stdin and stdout of the person.

Each test plants something where the master's socket is or will be, and listens there.
Nothing of the command may arrive, whichever path (hot or full) the call takes.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in

SECRET = "echo the-secret-command"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


class Listener:
    """Answers hello like a master, and keeps whatever comes."""

    def __init__(self, path: Path) -> None:
        self.heard = b""
        self.visitors = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.visitors += 1
            connection.settimeout(2)
            try:
                connection.sendall((8).to_bytes(4, "big") + (1).to_bytes(4, "big") + (4).to_bytes(4, "big"))
                while part := connection.recv(65536):
                    self.heard += part
            except OSError:
                pass
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


def control_path(person: Person) -> Path:
    return Path(json.loads((person.session_folder() / "session.json").read_text())["control_path"])


def close_master(person: Person) -> None:
    person.runcode("disconnect", "--keep")
    person.runcode("connect", "42")
    assert not control_path(person).exists()


def writable_by_all(person: Person, path: Path) -> Path:
    path.parent.chmod(0o777)
    return path


def folder_is_a_link(person: Person, path: Path) -> Path:
    real = path.parent.with_name("elsewhere")
    path.parent.rename(real)
    path.parent.symlink_to(real)
    return path


def socket_is_a_link(person: Person, path: Path) -> Path:
    other = path.with_name("other")
    path.symlink_to(other)
    return other


def folder_of_another_user(person: Person, path: Path) -> Path:
    os.chown(path.parent, 54321, 54321)
    return path


AS_ANYONE = [writable_by_all, folder_is_a_link]


@pytest.mark.parametrize("plant", [*AS_ANYONE, pytest.param(folder_of_another_user, marks=pytest.mark.root_only)])
def test_a_folder_that_is_not_ours_alone_is_refused(person: Person, plant: Callable[[Person, Path], Path]) -> None:
    close_master(person)
    listener = Listener(plant(person, control_path(person)))
    try:
        for words in (("exec", "--", SECRET), ("run", "42", "--", SECRET), ("exec", "--tty", "--", SECRET)):
            done = person.runcode(*words, stdin=b"private input", expect=255)
            assert done.stderr.startswith(b"runcode: unsafe_path: "), done.stderr
            assert done.stdout == b""
        assert (listener.visitors, listener.heard) == (0, b"")
    finally:
        listener.close()
        path = control_path(person).parent
        if path.is_symlink():
            path.unlink()
        else:
            os.chown(path, os.getuid(), -1)
            path.chmod(0o700)
        shutil.rmtree(path, ignore_errors=True)


def test_a_link_in_the_sockets_place_is_replaced_and_not_followed(person: Person) -> None:
    close_master(person)
    listener = Listener(socket_is_a_link(person, control_path(person)))
    try:
        assert person.runcode("exec", "--", SECRET).stdout == b"the-secret-command\n"
        assert b"secret" not in listener.heard
        assert not control_path(person).is_symlink()
    finally:
        listener.close()


@pytest.mark.root_only
def test_another_users_socket_in_our_folder_is_replaced_and_never_spoken_to(person: Person) -> None:
    close_master(person)
    path = control_path(person)
    listener = Listener(path)
    os.chown(path, 54321, 54321)
    try:
        assert person.runcode("exec", "--", SECRET).stdout == b"the-secret-command\n"
        assert b"secret" not in listener.heard
        assert path.stat().st_uid == os.getuid()
    finally:
        listener.close()


@pytest.mark.parametrize("kind", ["file", "fifo", "folder"])
def test_what_is_no_socket_is_no_master(person: Person, kind: str) -> None:
    close_master(person)
    path = control_path(person)
    {"file": path.touch, "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    if kind == "folder":
        done = person.runcode("exec", "--", SECRET, expect=255)
        assert done.stderr.startswith(b"runcode: unsafe_path: "), done.stderr
        path.rmdir()
        return
    assert person.runcode("exec", "--", SECRET).stdout == b"the-secret-command\n"


def test_a_session_file_cannot_send_a_command_to_a_socket_elsewhere(person: Person, tmp_path: Path) -> None:
    """An edited session (a restored backup, another program's hand) names a socket in a folder of all users."""
    shared = Path("/tmp") / f"runcode-shared-{os.getpid()}"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    listener = Listener(shared / "s")
    path = person.session_folder() / "session.json"
    before = path.read_text()
    try:
        path.write_text(before.replace(str(control_path(person)), str(shared / "s")))
        done = person.runcode("exec", "--", SECRET, expect=255)
        assert done.stderr.startswith(b"runcode: unsafe_path: ")
        assert (listener.visitors, listener.heard) == (0, b"")
    finally:
        listener.close()
        path.write_text(before)
        shutil.rmtree(shared)
