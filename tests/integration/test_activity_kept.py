"""Events and sessions through the real server: the operator looks and revokes, and a kill -9 leaves no lie."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.service import Laptop, Service

SOON_S = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rca") as name:
        yield Path(name)


@pytest.fixture
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder / "s").start()
    try:
        running.operator("workspace", "create", "royal-1")
        running.operator("workspace", "start", "royal-1")
        yield running
    finally:
        with contextlib.suppress(Exception):
            if running.process is not None and running.process.poll() is not None:
                running.start()
        running.stop()


@pytest.fixture
def laptop(folder: Path, service: Service) -> Laptop:
    laptop = Laptop(folder / "h")
    laptop.login(service)
    return laptop


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SOON_S
    while not (found := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)
    return found


def activity(service: Service, *words: str) -> list[dict[str, Any]]:
    return json.loads(service.operator("activity", *words, "--json").stdout)  # type: ignore[no-any-return]


def commands(service: Service) -> list[dict[str, Any]]:
    return [row for row in activity(service) if row["kind"] == "command"]


def of_the_command(service: Service) -> dict[str, dict[str, Any]]:
    """The one running or ended `echo up; …` and its connection, by kind; empty while they are not known."""
    rows = activity(service)
    found = [row["connection_id"] for row in rows if str(row.get("text", "")).startswith("echo up; ")]
    return {row["kind"]: row for row in rows if row["connection_id"] in found}


def start_plain_ssh(laptop: Laptop, command: str) -> subprocess.Popen[bytes]:
    """ssh with the session's own configuration, on a connection of its own, already running its command."""
    bundle = laptop.json("connect", "royal-1")
    process = subprocess.Popen(
        ["ssh", "-F", bundle["config"], "-S", "none", bundle["alias"], "--", f"echo up; {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=laptop.environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def test_the_operator_sees_what_an_agent_ran(service: Service, laptop: Laptop) -> None:
    laptop.runcode("connect", "royal-1")
    laptop.runcode("exec", "--", "printf '\\033]0;x\\007'; exit 3", expect=3)
    row = until(lambda: next((c for c in commands(service) if c["ended_at"]), None))
    assert (row["exit_status"], row["workspace"], row["email"]) == (3, "royal-1", "admin@localhost")
    assert "exit 3" in row["text"]
    shown = service.operator("activity", "royal-1").stdout
    assert "runcode exec -- 'printf" in shown
    assert "exit 3" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert len(activity(service, "--limit", "1")) == 1
    unknown = service.operator("activity", "nowhere", check=False)
    assert unknown.returncode == 1
    assert "not_found" in unknown.stderr


def test_sessions_are_listed_and_revoked_while_the_server_runs(service: Service, laptop: Laptop) -> None:
    process = start_plain_ssh(laptop, "sleep 1000")
    (session,) = service.operator_json("session", "list")
    assert (session["workspace"], session["email"], session["state"]) == ("royal-1", "admin@localhost", "active")
    assert (
        "royal-1" in service.operator("session", "list", "--workspace", "royal-1", "--user", "admin@localhost").stdout
    )
    service.operator("user", "create", "bob@example.org")
    assert service.operator_json("session", "list", "--user", "bob@example.org") == []
    unknown = service.operator("session", "revoke", str(session["id"]), "4711", check=False)
    assert (unknown.returncode, "not_found" in unknown.stderr) == (1, True)
    # One unknown id: none was revoked, and the connection lives.
    assert service.operator_json("session", "list")[0]["state"] == "active"
    assert process.poll() is None
    assert service.operator_json("session", "revoke", str(session["id"])) == {"revoked": [session["id"]]}
    assert process.wait(SOON_S) == 255
    assert service.operator_json("session", "list") == []
    (ended,) = service.operator_json("session", "list", "--all")
    assert ended["state"] == "revoked"
    row = until(lambda: found if (found := of_the_command(service)["connection"])["ended_at"] else None)
    assert row["reason"] == "access ended: the session was withdrawn"


@pytest.mark.parametrize("verb", ["token revoke", "user disable"])
def test_the_siblings_cut_as_well(service: Service, laptop: Laptop, verb: str) -> None:
    process = start_plain_ssh(laptop, "sleep 1000")
    which = "admin@localhost"
    if verb == "token revoke":
        which = str(service.operator_json("session", "list")[0]["token_id"])
    service.operator(*shlex.split(verb), which)
    assert process.wait(SOON_S) == 255
    assert service.operator_json("session", "list") == []


def test_after_kill_9_what_was_open_is_ended_by_the_next_start(service: Service, laptop: Laptop) -> None:
    process = start_plain_ssh(laptop, "sleep 1000")
    until(lambda: of_the_command(service))
    service.kill()
    assert process.wait(SOON_S) == 255
    # Nobody is there to say so yet; looking changes nothing.
    assert {row["ended_at"] for row in of_the_command(service).values()} == {None}
    service.start()
    until(lambda: all(row["ended_at"] for row in activity(service)))
    rows = of_the_command(service)
    assert rows["connection"]["reason"] == "the server ended"
    assert (rows["command"]["outcome"], rows["command"].get("exit_status")) == (
        "lost",
        None,
    )
    # Once said, it stays said.
    before = activity(service)
    service.kill()
    service.start()
    assert activity(service) == before


def test_a_clean_stop_ends_what_is_open_with_its_own_reason(service: Service, laptop: Laptop) -> None:
    process = start_plain_ssh(laptop, "sleep 1000")
    assert service.stop() == 0
    assert process.wait(SOON_S) == 255
    assert all(row["ended_at"] for row in activity(service))
    rows = of_the_command(service)
    assert set(rows) == {"connection", "command"}
    assert rows["connection"]["reason"] == "the gateway is shutting down"


def test_a_server_without_a_gateway_ends_what_was_left_open(service: Service, laptop: Laptop) -> None:
    process = start_plain_ssh(laptop, "sleep 1000")
    until(lambda: of_the_command(service))
    service.kill()
    process.wait(SOON_S)
    service.ssh = "off"
    service.start()
    assert all(row["ended_at"] for row in activity(service))
