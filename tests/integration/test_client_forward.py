"""`forward`: the real CLI, the real ssh and its master, a real sshd."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    """A server on "the box": says `box:` and what it was told."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                peer.sendall(b"box:" + peer.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
        peer.sendall(b"hello")
        return peer.recv(100)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def state_file(person: Person) -> Path:
    return person.cache / "ws-42.forwards"


def holder_pid(person: Person) -> int:
    return int(state_file(person).read_text().split()[4])


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]
    return False


def test_it_is_added_listed_used_and_cancelled(person: Person, echo: int) -> None:
    local = free_port()
    made = person.json("forward", str(echo), "--local", str(local))
    expected = {"workspace_id": 42, "local_host": "127.0.0.1", "local_port": local, "host": "localhost", "port": echo}
    assert made == expected
    assert ask(local) == b"box:hello"
    assert person.json("forward", "--list") == [expected]
    assert person.json("forward", str(echo), "--local", str(local)) == expected, "adding it twice is no error"
    assert person.json("forward", "--list", "--workspace", "42") == [expected]
    assert f"127.0.0.1:{local} → localhost:{echo}" in person.runcode("forward", "--list").stdout.decode()
    holder = holder_pid(person)
    assert is_running(holder)
    assert person.json("forward", str(echo), "--cancel") == {"cancelled": [expected]}
    assert is_free(local)
    assert person.json("forward", "--list") == []
    assert eventually(lambda: not is_running(holder))
    assert person.json("forward", str(echo), "--cancel", expect=1)["error"] == "not_found"
    assert not state_file(person).exists()


def test_it_listens_on_loopback_only(person: Person, echo: int) -> None:
    local = free_port()
    person.runcode("forward", str(echo), "--local", str(local), "--to", "127.0.0.1")
    listeners = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [where for where in listeners if where.endswith(f":{local:04X}")] == [f"0100007F:{local:04X}"]


def test_a_taken_port_is_named_and_a_free_one_offered(person: Person, echo: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failure = person.json("forward", str(echo), "--local", str(port), expect=1)
        assert failure["error"] == "busy"
        assert str(port) in failure["message"]
        offered = failure["resolution"].split("`")[1].split()
        assert offered[:2] == ["runcode", "forward"]
        assert person.json("forward", "--list") == []
        # What is offered works as it stands.
        person.runcode(*offered[1:])
        assert ask(int(offered[-1])) == b"box:hello"


def test_several_share_one_master_and_end_one_by_one(person: Person, echo: int) -> None:
    first, second = free_port(), free_port()
    person.runcode("forward", str(echo), "--local", str(first))
    person.runcode("forward", str(echo), "--local", str(second))
    holder = holder_pid(person)
    assert len({line.split()[4] for line in state_file(person).read_text().splitlines()}) == 1
    assert person.json("forward", str(echo), "--cancel", "--local", str(first))["cancelled"][0]["local_port"] == first
    assert is_free(first)
    assert ask(second) == b"box:hello"
    assert is_running(holder)


def test_the_end_of_the_master_is_the_end_of_its_forwards(person: Person, echo: int) -> None:
    local = free_port()
    person.runcode("forward", str(echo), "--local", str(local))
    holder = holder_pid(person)
    person.runcode("disconnect", "--keep")
    assert eventually(lambda: is_free(local))
    assert eventually(lambda: not is_running(holder))
    assert person.json("forward", "--list") == []
    person.runcode("connect", "42")
    person.runcode("forward", str(echo), "--local", str(local))
    assert ask(local) == b"box:hello"


def test_a_new_session_leaves_forwards_alone(person: Person, echo: int) -> None:
    """They live on the master that made them, are listed with the new session, and can be cancelled there."""
    local, other = free_port(), free_port()
    person.runcode("forward", str(echo), "--local", str(local))
    person.runcode("connect", "42", "--force")
    assert person.runcode("exec", "--", "echo", "new").stdout == b"new\n"
    assert ask(local) == b"box:hello"
    person.runcode("forward", str(echo), "--local", str(other))
    assert [row["local_port"] for row in person.json("forward", "--list")] == sorted([local, other])
    assert len({line.split()[3] for line in state_file(person).read_text().splitlines()}) == 2
    assert len(person.json("forward", str(echo), "--cancel")["cancelled"]) == 2
    assert is_free(local)
    assert is_free(other)


def test_a_signal_to_the_terminals_programs_does_not_end_it(person: Person, echo: int) -> None:
    local = free_port()
    process = person.start("forward", str(echo), "--local", str(local), start_new_session=True, stdout=subprocess.PIPE)
    process.communicate(timeout=60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    assert is_running(holder_pid(person))
    assert ask(local) == b"box:hello"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["0"],
        ["65536"],
        ["80x"],
        ["-1"],
        ["80", "--list"],
        ["80", "--local", "0"],
        ["80", "--to", "a b"],
        ["80", "--to", "-oProxyCommand=x"],
        ["80", "--to", "host:22:x"],
        ["80", "--to", "169.254.169.254"],
        ["80", "--to", "$(id)"],
        ["80", "--to", ""],
        ["--list", "--cancel"],
    ],
)
def test_nonsense_is_refused_before_anything_happens(person: Person, words: list[str]) -> None:
    assert person.json("forward", *words, expect=2)["error"] == "usage"
    assert not state_file(person).exists()


@pytest.mark.parametrize(
    "line",
    [
        "1 2 host ../../../tmp/evil 1 " + "0" * 32,
        "80 80 -oProxyCommand=x {own} 1 " + "0" * 32,
        "80 80 localhost {own} 1 short",
        "99999 80 localhost {own} 1 " + "0" * 32,
        "80 80 localhost deadbeef-42-0123456789abcdef 1 " + "0" * 32,
        "\x00\xff\n" * 100,
    ],
)
def test_a_forged_record_is_ignored_and_ends_nobody(person: Person, line: str) -> None:
    """It names a process of ours as the holder: `--cancel` must not end that."""
    session = (person.cache / "ws-42" / "session.json").read_text()
    own = session.partition('"control_path": "')[2].partition('"')[0].rpartition("/")[2]
    state_file(person).write_text(line.format(own=own))
    state_file(person).chmod(0o600)
    assert person.json("forward", "--list") == []
    assert person.json("forward", "80", "--cancel", expect=1)["error"] == "not_found"


def test_a_strangers_process_under_the_holders_number_lives_on(person: Person, echo: int) -> None:
    local = free_port()
    person.runcode("forward", str(echo), "--local", str(local))
    with subprocess.Popen(["sleep", "600"]) as bystander:
        words = state_file(person).read_text().split()
        holder, words[4] = int(words[4]), str(bystander.pid)
        state_file(person).write_text(" ".join(words) + "\n")
        person.runcode("forward", str(echo), "--cancel")
        assert is_free(local)
        assert bystander.poll() is None
        bystander.kill()
    os.kill(holder, signal.SIGTERM)


def test_a_state_file_that_others_may_write_is_refused(person: Person, echo: int) -> None:
    person.runcode("forward", str(echo), "--local", str(free_port()))
    state_file(person).chmod(0o666)
    assert person.json("forward", "--list", expect=1)["error"] == "unsafe_path"
    state_file(person).chmod(0o600)
    person.runcode("forward", str(echo), "--cancel")


def test_a_server_that_forbids_forwarding_is_said_so(tmp_path: Path, echo: int) -> None:
    """sshd refuses when somebody connects, so the forward itself can be added; it must not hang or crash."""
    options = "AllowTcpForwarding no\nMaxSessions 1000"
    with service(tmp_path / "service", sshd_options=options) as plane, signed_in(tmp_path / "p", plane) as someone:
        someone.runcode("connect", "42")
        local = free_port()
        someone.runcode("forward", str(echo), "--local", str(local))
        with contextlib.suppress(ConnectionError):
            assert ask(local) == b""
        assert someone.runcode("exec", "--", "echo", "alive").stdout == b"alive\n"
