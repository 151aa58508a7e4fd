"""`proxy`: raw bytes both ways, half-close, one line for each failure, and the keys that it pins."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.client_standin import TITLE, ControlPlane, Person, service, signed_in


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        yield someone


class Gateway:
    """A TCP peer in the gateway's place; `serve` is what it does with a connection."""

    def __init__(self, plane: ControlPlane, serve: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        assert plane.sshd is not None
        port = self.listener.getsockname()[1]
        plane.bundle_changes = {"port": port, "known_hosts": f"[127.0.0.1]:{port} {plane.sshd.host_key}\n"}

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = self.listener.accept()
                    with connection, contextlib.suppress(OSError):
                        serve(connection)

        threading.Thread(target=run, daemon=True).start()

    def close(self) -> None:
        self.listener.close()


def proxy(person: Person, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return person.start("proxy", *(words or ("42",)), stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, **options)


def test_every_byte_goes_through_both_ways_at_once(person: Person, plane: ControlPlane) -> None:
    up, down = os.urandom(8_000_000), os.urandom(9_000_000)
    received = bytearray()

    def serve(connection: socket.socket) -> None:
        sender = threading.Thread(target=connection.sendall, args=(down,))
        sender.start()
        while chunk := connection.recv(65536):
            received.extend(chunk)
        sender.join()
        connection.shutdown(socket.SHUT_WR)

    gateway = Gateway(plane, serve)
    running = proxy(person)
    stdout, stderr = running.communicate(up, timeout=60)
    gateway.close()
    assert (running.returncode, stderr) == (0, b"")
    assert stdout == down
    assert bytes(received) == up


def test_each_direction_ends_alone(person: Person, plane: ControlPlane) -> None:
    """The far side answers after our end; and our side goes on after theirs."""

    def answer_after_the_end(connection: socket.socket) -> None:
        asked = b""
        while chunk := connection.recv(65536):
            asked += chunk
        connection.sendall(b"you said " + asked)

    gateway = Gateway(plane, answer_after_the_end)
    running = proxy(person)
    assert running.communicate(b"all of it", timeout=60)[0] == b"you said all of it"
    gateway.close()
    assert running.returncode == 0

    heard = bytearray()
    done = threading.Event()

    def end_first(connection: socket.socket) -> None:
        connection.sendall(b"goodbye")
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            heard.extend(chunk)
        done.set()

    person.runcode("clean", "--all")
    gateway = Gateway(plane, end_first)
    running = proxy(person)
    assert running.stdin is not None
    assert running.stdout is not None
    said = b""
    while chunk := os.read(running.stdout.fileno(), 100):  # its end arrives while our side is open
        said += chunk
    assert said == b"goodbye"
    running.stdin.write(b"one more thing")
    running.stdin.close()
    assert done.wait(timeout=60)
    assert bytes(heard) == b"one more thing"
    assert running.wait(timeout=60) == 0
    gateway.close()


def test_it_does_not_outlive_its_ssh(person: Person, plane: ControlPlane) -> None:
    """ssh is killed: nobody reads stdout any more, and the gateway stays silent."""
    gateway = Gateway(plane, lambda connection: threading.Event().wait(60) and None)
    for end in ("pipes", "hup", "term"):
        running = proxy(person)
        time.sleep(0.5)
        if end == "pipes":
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdout.close()
            running.stdin.close()
        else:
            running.send_signal(signal.SIGHUP if end == "hup" else signal.SIGTERM)
        assert running.wait(timeout=30) is not None
        assert running.stderr is not None
        assert running.stderr.read() == b"", end
    gateway.close()


def test_a_reset_connection_is_the_end(person: Person, plane: ControlPlane) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(4)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    gateway = Gateway(plane, reset)
    running = proxy(person)
    assert running.stdin is not None
    running.stdin.write(b"ping")
    # stdin stays open: the proxy must not wait for it.
    assert running.stdout is not None
    assert running.stdout.read() == b""
    running.stdin.close()
    assert running.wait(timeout=30) in (0, 255)
    gateway.close()


FAILURES: dict[str, tuple[Callable[[ControlPlane], object], str]] = {
    "stopped": (lambda plane: plane.states.update({42: "stopped"}), r"conflict: .*runcode connect 42 --start"),
    "unknown": (lambda plane: plane.states.pop(42), r"not_found: .*runcode list"),
    "401": (lambda plane: setattr(plane, "token", "rotated"), r"unauthorized: .*runcode login"),
    "503": (
        lambda plane: plane.overrides.update(
            {
                "/api/rc/workspace/42/ssh-session": (
                    503,
                    {},
                    b'{"error": true, "message": "SSH access is not configured"}',
                )
            }
        ),
        r"unavailable: SSH access is not configured",
    ),
    "hostile-bundle": (
        lambda plane: plane.bundle_changes.update({"ssh_config": "Host x\n  ProxyCommand touch /tmp/x\n"}),
        r"unsafe_bundle: ",
    ),
    "hostile-host": (lambda plane: plane.bundle_changes.update({"host": "-oProxyCommand=x"}), r"unsafe_bundle: "),
    "nobody-listens": (
        lambda plane: plane.bundle_changes.update({"port": 1}),
        r"network: no connection to 127.0.0.1:1",
    ),
    "escape": (
        lambda plane: plane.overrides.update(
            {"/api/rc/workspace/42/ssh-session": (400, {}, b'{"message": "\\u001b]52;c;eA==\\u0007"}')}
        ),
        r"bad_request: ",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_is_one_line_and_255(person: Person, plane: ControlPlane, name: str) -> None:
    change, expected = FAILURES[name]
    change(plane)
    if name == "nobody-listens":
        assert plane.sshd is not None
        plane.bundle_changes["known_hosts"] = f"[127.0.0.1]:1 {plane.sshd.host_key}\n"
    done = person.runcode("proxy", "42", expect=255)
    assert done.stdout == b""
    line = done.stderr.decode()
    assert re.fullmatch(rf"runcode: {expected}.*\n", line), line
    assert line.rstrip("\n").isprintable()


def test_no_network_no_token_and_bad_words_are_one_line_too(person: Person, plane: ControlPlane) -> None:
    for words in ([], ["x"], ["-1"], ["42", "43"], ["9" * 40], ["42", "--api-base", "http://evil.example"]):
        done = person.runcode("proxy", *words, expect=255)
        assert done.stdout == b""
        assert done.stderr.count(b"\n") == 1, done.stderr
    plane.close()
    done = person.runcode("proxy", "42", expect=255)
    assert done.stderr.startswith(b"runcode: network: ")
    person.runcode("logout")
    done = person.runcode("proxy", "42", "--api-base", plane.base, expect=255)
    assert done.stderr.startswith(b"runcode: no_token: ")


def test_ssh_shows_the_line_and_ends(person: Person, plane: ControlPlane) -> None:
    person.runcode("config-ssh")
    plane.states[42] = "stopped"
    config = str(person.home / ".ssh" / "config")
    done = subprocess.run(
        ["ssh", "-F", config, f"runcode.{TITLE}", "true"],
        env=person.environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 255
    assert b"runcode: conflict: " in done.stderr
    assert b"runcode connect 42 --start" in done.stderr


def test_a_refused_session_is_explained_and_renewed(person: Person, plane: ControlPlane) -> None:
    """The workspace was restarted from the console: the cached session opens nothing any more."""
    person.runcode("config-ssh")
    words = ["ssh", "-F", str(person.home / ".ssh" / "config"), f"runcode.{TITLE}", "echo in"]

    def ssh() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(words, env=person.environment, capture_output=True, timeout=60, check=False)

    assert ssh().stdout == b"in\n"
    assert plane.sshd is not None
    plane.sshd.authorized_keys.write_text("")
    refused = ssh()
    assert refused.returncode == 255
    assert b"run the same command again" in refused.stderr
    assert ssh().stdout == b"in\n"
    assert len(plane.mint_requests) == 2
    # And when it is stopped, the second line says what to type.
    plane.sshd.authorized_keys.write_text("")
    plane.states[42] = "stopped"
    stopped = ssh()
    assert stopped.returncode == 255
    assert b"runcode: conflict: " in stopped.stderr


def test_the_stored_base_counts_and_not_the_environments(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    """A desktop program has no environment, and a repository's must not send a token elsewhere."""
    other = ControlPlane(None, tmp_path)
    other.token = "tok-other"
    strange = {"RUNCODE_API_BASE": other.base, "RUNCODE_TOKEN": "tok-other"}
    done = person.runcode("proxy", "42", expect=0, environment=strange)
    assert done.stdout.startswith(b"SSH-2.0-OpenSSH")
    assert other.requests == []
    # The host of another server, after a new login: refused, and no token goes anywhere.
    seen = len(plane.requests)
    done = person.runcode("proxy", "--api-base", other.base, "42", expect=255)
    assert done.stderr.startswith(b"runcode: no_token: the saved token is for ")
    assert (other.requests, len(plane.requests)) == ([], seen)
    # Unless the environment means that very server.
    person.runcode("proxy", "--api-base", other.base, "42", expect=None, environment=strange)
    assert other.tokens_seen == ["Token tok-other"]
    other.close()


def test_the_shared_known_hosts_holds_this_servers_live_keys_only(
    person: Person, plane: ControlPlane, tmp_path: Path
) -> None:
    shared = person.cache / "gateway_known_hosts"
    person.runcode("proxy", "42")
    assert plane.sshd is not None
    assert shared.read_text() == f"runcode-gateway {plane.sshd.host_key}\n"
    assert oct(shared.stat().st_mode)[-3:] == "600"
    # A second workspace behind a gateway with another key: both are known.
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")]
    subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    second = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    plane.states[43] = "running"
    hostile = f"@cert-authority * {second}\nruncode-gateway,* {second} evil\n* ssh-rsa AAAA\n"
    plane.bundle_changes = {"known_hosts": hostile}
    person.runcode("proxy", "43")
    assert shared.read_text().splitlines() == [
        f"runcode-gateway {second}",
        f"runcode-gateway {plane.sshd.host_key}",
    ]
    # A session that has ended takes its key with it; so does one of another server.
    session = person.session_folder(43) / "session.json"
    stored = json.loads(session.read_text())
    session.write_text(json.dumps({**stored, "expires_at": 5}))
    person.runcode("proxy", "42")
    assert shared.read_text() == f"runcode-gateway {plane.sshd.host_key}\n"
    session.write_text(json.dumps({**stored, "api_base": "https://other.example"}))
    person.runcode("proxy", "42")
    assert shared.read_text() == f"runcode-gateway {plane.sshd.host_key}\n"


def test_a_wrong_host_key_is_refused_by_ssh(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")]
    subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    wrong = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    plane.bundle_changes = {"known_hosts": f"x {wrong}\n"}
    person.runcode("config-ssh")
    done = subprocess.run(
        ["ssh", "-F", str(person.home / ".ssh" / "config"), f"runcode.{TITLE}", "true"],
        env=person.environment,
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 255
    assert b"Host key verification failed" in done.stderr


def test_only_the_public_key_and_no_certificate_is_asked_for(person: Person, plane: ControlPlane) -> None:
    person.runcode("proxy", "42")
    request = plane.mint_requests[0]
    assert sorted(request) == ["client", "public_key", "ttl"]
    private = (person.session_folder() / "proxy-a").read_text()
    assert "PRIVATE KEY" in private
    assert private not in json.dumps(request)
    assert oct((person.session_folder() / "proxy-a").stat().st_mode)[-3:] == "600"


def test_a_planted_key_file_is_not_followed(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    person.runcode("proxy", "42")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    planted = person.session_folder() / "proxy-b"
    planted.symlink_to(victim)
    done = person.runcode("proxy", "42", expect=255)
    assert done.stderr.startswith(b"runcode: unsafe_path: ")
    assert victim.read_text() == "precious"
