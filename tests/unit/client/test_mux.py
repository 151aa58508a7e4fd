"""The multiplexing protocol's rules, against a scripted master: what counts as started, and what as over."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runcode.client import mux

HELLO, NEW_SESSION, ALIVE_CHECK, TERMINATE = 1, 0x10000002, 0x10000004, 0x10000005
OK, DENIED, FAILURE, EXIT, ALIVE, OPENED = 0x80000001, 0x80000002, 0x80000003, 0x80000004, 0x80000005, 0x80000006
TTY_ALLOC_FAIL = 0x80000008

Script = Callable[["Peer"], None]


class Peer:
    """The master's side of one connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.descriptors: list[int] = []
        self.command = b""

    def say(self, *numbers: int, text: bytes | None = None) -> None:
        content = b"".join(struct.pack(">I", number) for number in numbers)
        if text is not None:
            content += struct.pack(">I", len(text)) + text
        self.connection.sendall(struct.pack(">I", len(content)) + content)

    def hear(self) -> bytes:
        size = struct.unpack(">I", self._exactly(4))[0]
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        received = b""
        while len(received) < size:
            part = self.connection.recv(size - len(received))
            if not part:
                raise EOFError
            received += part
        return received

    def greet(self) -> None:
        assert self.hear() == struct.pack(">II", HELLO, 4)
        self.say(HELLO, 4)

    def take_command(self, descriptors: int = 3) -> None:
        self.greet()
        request = self.hear()
        assert struct.unpack(">I", request[:4])[0] == NEW_SESSION
        # type, id, reserved, want_tty, want_x11, want_agent, subsystem, escape character, TERM, command
        assert request[4:36] == struct.pack(">IIIIIIII", 0, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0)
        size = struct.unpack(">I", request[36:40])[0]
        self.command = request[40 : 40 + size]
        assert len(request) == 40 + size, "no environment is sent"
        for _ in range(descriptors):
            byte, ancillary, _, _ = self.connection.recvmsg(1, socket.CMSG_SPACE(4))
            assert byte == b"\0"
            self.descriptors += struct.unpack("@i", ancillary[0][2])


class FakeMaster:
    """Serves each connection with the next script; the last one serves all that follow."""

    def __init__(self, folder: Path, *scripts: Script) -> None:
        folder.chmod(0o700)
        self.path = str(folder / "s")
        self.peers: list[Peer] = []
        self._scripts = list(scripts)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self.failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(connection)
            self.peers.append(peer)
            script = self._scripts[0] if len(self._scripts) == 1 else self._scripts.pop(0)
            try:
                script(peer)
            except (EOFError, ConnectionError):
                pass
            except BaseException as error:
                self.failures.append(error)
            finally:
                for descriptor in peer.descriptors:
                    os.close(descriptor)
                connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self.failures


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose name fits into a socket's address."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="mux", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def master(short: Path) -> Iterator[Callable[..., FakeMaster]]:
    made: list[FakeMaster] = []

    def make(*scripts: Script) -> FakeMaster:
        made.append(FakeMaster(short, *scripts))
        return made[-1]

    yield make
    for one in made:
        one.close()


def call(path: str, *, alive: bool = True, silence_s: float = 20.0) -> tuple[tuple[str, int | None], mux.Call] | None:
    found = mux.find_master(path)
    if found is None:
        return None
    made = mux.Call(found, lambda: alive, silence_s)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return made.run(b"the command", (null, null, null)), made
    finally:
        os.close(null)


def outcome_of(path: str, **options: bool) -> tuple[str, int | None] | None:
    answered = call(path, **options)
    return None if answered is None else answered[0]


def answer(*messages: tuple[int, ...]) -> Script:
    def script(peer: Peer) -> None:
        peer.take_command()
        for message in messages:
            peer.say(*message)

    return script


def test_the_command_and_three_descriptors_arrive(master: Callable[..., FakeMaster]) -> None:
    fake = master(answer((OPENED, 0, 2), (EXIT, 2, 7)))
    assert outcome_of(fake.path) == (mux.STARTED, 7)
    assert fake.peers[0].command == b"the command"
    assert len(fake.peers[0].descriptors) == 3


@pytest.mark.parametrize("status", [0, 1, 127, 255])
def test_a_status_counts_only_with_the_end_of_everything(master: Callable[..., FakeMaster], status: int) -> None:
    """EXIT comes before the master has passed on all output: returning then would lose it."""
    delivered = threading.Event()

    def script(peer: Peer) -> None:
        peer.take_command()
        peer.say(OPENED, 0, 2)
        peer.say(EXIT, 2, status)
        peer.connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.connection.recv(1)  # the client has not hung up
        delivered.set()

    fake = master(script)
    assert outcome_of(fake.path) == (mux.STARTED, status)
    assert delivered.is_set()


@pytest.mark.parametrize("refusal", [FAILURE, DENIED])
def test_an_explicit_refusal_did_not_start(master: Callable[..., FakeMaster], refusal: int) -> None:
    def script(peer: Peer) -> None:
        peer.take_command()
        peer.say(refusal, 0, text=b"Session open refused by peer")

    answered = call(master(script).path)
    assert answered is not None
    assert answered[0] == (mux.REFUSED, None)
    assert answered[1].sent is False


def test_the_end_before_any_answer_may_have_started(master: Callable[..., FakeMaster]) -> None:
    """The master queues the command when the last descriptor comes, and answers later."""
    assert outcome_of(master(answer()).path) == (mux.STARTED, None)


@pytest.mark.parametrize("descriptors", [0, 1, 2])
def test_the_end_while_descriptors_are_passed_is_decided_by_the_last(
    master: Callable[..., FakeMaster], descriptors: int
) -> None:
    """Whether the last one still went into the socket's buffer decides; a status is never invented."""

    def script(peer: Peer) -> None:
        peer.take_command(descriptors)

    assert outcome_of(master(script).path) in ((mux.NO_MASTER, None), (mux.STARTED, None))


def test_the_end_before_the_hello_did_not_start(master: Callable[..., FakeMaster]) -> None:
    assert call(master(lambda peer: None).path) is None


@pytest.mark.parametrize("hello", [(HELLO, 3), (HELLO, 5), (OK, 4), (HELLO,), ()])
def test_another_version_is_not_spoken_to(master: Callable[..., FakeMaster], hello: tuple[int, ...]) -> None:
    def script(peer: Peer) -> None:
        peer.hear()
        peer.say(*hello)
        with pytest.raises(EOFError):
            peer.hear()

    assert call(master(script).path) is None


def test_a_length_without_end_is_not_waited_for(master: Callable[..., FakeMaster]) -> None:
    def script(peer: Peer) -> None:
        peer.take_command()
        peer.connection.sendall(b"\xff\xff\xff\xff")

    assert outcome_of(master(script).path) == (mux.STARTED, None)


def test_messages_in_pieces_and_in_one_piece_are_the_same(master: Callable[..., FakeMaster]) -> None:
    def script(peer: Peer) -> None:
        peer.take_command()
        whole = struct.pack(">IIII", 12, OPENED, 0, 2) + struct.pack(">IIII", 12, EXIT, 2, 9)
        for byte in whole[:-3]:
            peer.connection.sendall(bytes([byte]))
        peer.connection.sendall(whole[-3:])

    assert outcome_of(master(script).path) == (mux.STARTED, 9)


def test_a_terminal_failure_message_is_passed_over(master: Callable[..., FakeMaster]) -> None:
    assert outcome_of(master(answer((TTY_ALLOC_FAIL, 2), (OPENED, 0, 2), (EXIT, 2, 3))).path) == (mux.STARTED, 3)


def test_a_master_that_stops_while_we_wait_is_left_after_two_looks(master: Callable[..., FakeMaster]) -> None:
    release = threading.Event()

    def script(peer: Peer) -> None:
        peer.take_command()
        peer.say(OPENED, 0, 2)
        release.wait(30)

    fake = master(script)
    try:
        answered = call(fake.path, alive=False, silence_s=0.05)
    finally:
        release.set()
    assert answered is not None
    assert answered[0] == (mux.STARTED, None)
    assert answered[1].lost_alone is False


def test_long_silence_of_a_live_master_is_only_waited_for(master: Callable[..., FakeMaster]) -> None:
    def script(peer: Peer) -> None:
        peer.take_command()
        peer.say(OPENED, 0, 2)
        peer.connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            peer.connection.recv(1)
        peer.say(EXIT, 2, 4)

    answered = call(master(script).path, alive=True, silence_s=0.05)
    assert answered is not None
    assert answered[0] == (mux.STARTED, 4)


def test_the_masters_pid_and_its_end(master: Callable[..., FakeMaster]) -> None:
    def alive(peer: Peer) -> None:
        peer.greet()
        assert peer.hear() == struct.pack(">II", ALIVE_CHECK, 0)
        peer.say(ALIVE, 0, 4321)

    def end(peer: Peer) -> None:
        peer.greet()
        assert peer.hear() == struct.pack(">II", TERMINATE, 0)
        peer.say(OK, 0)

    def mute(peer: Peer) -> None:
        peer.greet()
        peer.hear()

    fake = master(alive, end, mute)
    assert mux.find_master_pid(fake.path) == 4321
    assert mux.end_master(fake.path) is True
    assert mux.find_master_pid(fake.path) is None
    assert mux.end_master(fake.path) is False


def test_a_master_that_never_says_hello_is_none(
    master: Callable[..., FakeMaster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux, "HELLO_TIMEOUT_S", 0.1)
    release = threading.Event()
    fake = master(lambda peer: release.wait(30) and None)
    assert mux.find_master(fake.path) is None
    release.set()


def test_nothing_there_is_none(short: Path) -> None:
    short.chmod(0o700)
    assert mux.find_master(str(short / "s")) is None
    (short / "s").write_text("a file")
    assert mux.find_master(str(short / "s")) is None
    assert mux.find_master("s") is None
    assert mux.find_master("") is None


def test_a_folder_that_others_may_write_to_is_not_trusted(master: Callable[..., FakeMaster], short: Path) -> None:
    fake = master(answer((OPENED, 0, 2), (EXIT, 2, 0)))
    for mode in (0o777, 0o770, 0o702):
        short.chmod(mode)
        assert mux.find_master(fake.path) is None
    short.chmod(0o700)
    link = short.with_name(short.name + "-link")
    link.symlink_to(short)
    try:
        assert mux.find_master(str(link / "s")) is None
    finally:
        link.unlink()
    assert fake.peers == []


def test_a_link_to_a_socket_is_not_followed(master: Callable[..., FakeMaster], short: Path) -> None:
    fake = master(answer((OPENED, 0, 2), (EXIT, 2, 0)))
    (short / "link").symlink_to(fake.path)
    assert mux.find_master(str(short / "link")) is None
    assert fake.peers == []


@pytest.mark.root_only
def test_another_users_socket_folder_or_process_gets_nothing(
    master: Callable[..., FakeMaster], short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = master(lambda peer: peer.hear() and None)
    os.chown(fake.path, 54321, -1)
    assert mux.find_master(fake.path) is None
    os.chown(fake.path, 0, -1)
    os.chown(short, 54321, -1)
    assert mux.find_master(fake.path) is None
    os.chown(short, 0, -1)
    assert fake.peers == []
    # The file is ours, but who serves it is not: what SO_PEERCRED is asked for.
    sent = b""
    pid = os.fork()
    if pid == 0:
        try:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(short / "t"))
            os.chown(short / "t", 0, -1)
            os.setuid(54321)
            listener.listen()
            listener.settimeout(20)
            connection, _ = listener.accept()
            connection.settimeout(20)
            sent = connection.recv(100)
        finally:
            os._exit(len(sent))
    for _ in range(1000):
        try:
            probe = mux.find_master(str(short / "t"))
        finally:
            done, status = os.waitpid(pid, os.WNOHANG)
        assert probe is None
        if done:
            break
        threading.Event().wait(0.01)
    assert os.waitstatus_to_exitcode(status) == 0, "it was sent something"
