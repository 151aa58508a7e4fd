"""How MCP calls end that do not end well: cancelled, disconnected, killed, a dead box, a server that is down."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.client_standin import ControlPlane, Person, service, signed_in
from support.mcp_session import Wire, on_the_wire
from support.service import processes_mentioning

# Long enough that only we can have ended it, short enough that a broken test leaves nothing for ever.
LONG = "sleep 600.{}"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def person(plane: ControlPlane, tmp_path: Path) -> Iterator[Person]:
    with signed_in(tmp_path, plane) as someone:
        yield someone


@pytest.fixture
def wire(person: Person) -> Iterator[Wire]:
    with on_the_wire(person.environment, person.project) as one:
        assert one.call("connect", workspace="42")["workspace_id"] == 42
        yield one


def await_true(told: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not told():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def workers_of(wire: Wire) -> list[int]:
    return processes_mentioning("agents/mcp/worker.py")


def start_long(wire: Wire, number: int, before: str = "") -> tuple[str, int]:
    """(what its process mentions, the request's number), once it runs on the box."""
    name = LONG.format(f"{os.getpid()}{number}")
    request = wire.start_call("exec", command=f"{before}{name}", timeout_s=500)
    await_true(lambda: processes_mentioning(name.removeprefix("sleep ")), "it did not start")
    return name.removeprefix("sleep "), request


def test_a_cancelled_call_ends_on_the_box_and_others_go_on(wire: Wire) -> None:
    one, request = start_long(wire, 1)
    other, other_request = start_long(wire, 2)
    wire.send("notifications/cancelled", {"requestId": request}, notify=True)
    await_true(lambda: not processes_mentioning(one), "the cancelled command goes on")
    assert processes_mentioning(other)
    assert wire.call("exec", command="echo fine")["stdout"] == "fine\n"
    wire.send("notifications/cancelled", {"requestId": other_request}, notify=True)
    await_true(lambda: not processes_mentioning(other), "the second one goes on")


def test_a_cancelled_call_that_ignores_signals_is_killed(wire: Wire) -> None:
    name, request = start_long(wire, 3, before="trap '' TERM INT HUP; ")
    wire.send("notifications/cancelled", {"requestId": request}, notify=True)
    await_true(lambda: not processes_mentioning(name), "it goes on")
    assert wire.call("status")["attached"]["workspace_id"] == 42


def test_a_client_that_goes_away_leaves_nothing_running(wire: Wire) -> None:
    name, _ = start_long(wire, 4)
    assert wire.close() == 0
    await_true(lambda: not processes_mentioning(name), "the command goes on without a client")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_server_that_is_ended_leaves_nothing_running(wire: Wire, number: signal.Signals) -> None:
    name, _ = start_long(wire, 10 + number)
    wire.process.send_signal(number)
    await_true(lambda: not processes_mentioning(name), "the command goes on without a server")
    wire.process.wait(timeout=30)
    await_true(lambda: not processes_mentioning("agents/mcp/worker.py"), "a worker is left")


def test_a_cancelled_search_ends_on_the_box_too(wire: Wire, plane: ControlPlane) -> None:
    """`grep` on a pipe that never ends would wait for ever; find leaves pipes out, so a slow tree stands in: /proc."""
    request = wire.start_call("grep", pattern="no-such-text-anywhere-in-there", path="/usr/lib")
    await_true(lambda: processes_mentioning("no-such-text-anywhere-in-there"), "it did not start")
    wire.send("notifications/cancelled", {"requestId": request}, notify=True)
    await_true(lambda: not processes_mentioning("no-such-text-anywhere-in-there"), "the search goes on")


def test_a_connection_that_dies_is_said_and_nothing_runs_twice(wire: Wire, plane: ControlPlane) -> None:
    marker = plane.workdir / "runs"
    marker.unlink(missing_ok=True)
    name = LONG.format(f"{os.getpid()}5")
    request = wire.start_call("exec", command=f"echo once >> runs; {name}", timeout_s=300)
    # Not by the process list: the ssh that carries the command names it too, before the box has run any of it.
    await_true(lambda: marker.exists() and marker.read_text(), "it did not start")
    assert plane.sshd is not None
    for pid in plane.sshd.connections():
        os.kill(pid, signal.SIGKILL)
    answer = wire.receive(request)["result"]
    assert answer["isError"] is True
    assert answer["structuredContent"]["error"] in ("connection_lost", "no_exit_status")
    assert "log" in answer["structuredContent"]["message"]
    assert marker.read_text() == "once\n"
    # The next call opens a connection of its own.
    assert wire.call("exec", command="cat runs")["stdout"] == "once\n"
    wire.call("exec", command=f"pkill -f '[{name[6]}]{name[7:]}'; true")


def test_a_box_that_is_gone_and_a_server_that_is_down_are_answers(tmp_path: Path) -> None:
    with (
        service(tmp_path / "service") as plane,
        signed_in(tmp_path / "person", plane) as person,
        on_the_wire(person.environment, person.project) as wire,
    ):
        assert wire.call("connect", workspace="42")["workspace_id"] == 42
        assert wire.call("connect", workspace="nobody")["error"] == "not_found"
        plane.states[42] = "stopped"
        assert plane.sshd is not None
        plane.sshd.stop()
        for pid in processes_mentioning(str(plane.sshd.folder / "sshd_config")):
            os.kill(pid, signal.SIGKILL)
        person.runcode("clean", "42")
        stopped = wire.call("exec", command="true")
        assert stopped["error"] == "conflict"
        assert "start" in stopped["resolution"]
        plane.close()
        for tool, arguments in (("exec", {"command": "true"}), ("workspaces", {}), ("read", {"path": "x"})):
            assert wire.call(tool, **arguments)["error"] == "network", tool
        assert wire.call("status")["attached"]["workspace_id"] == 42


def test_a_worker_that_dies_is_an_answer(wire: Wire) -> None:
    _, request = start_long(wire, 6)
    for pid in workers_of(wire):
        os.kill(pid, signal.SIGKILL)
    answer = wire.receive(request)["result"]
    assert answer["structuredContent"]["error"] == "connection_lost"
    assert wire.call("exec", command="echo alive")["stdout"] == "alive\n"


def test_without_the_sdk_one_line_says_what_to_install(person: Person, tmp_path: Path) -> None:
    """A start with an interpreter that lacks it, as a base install has."""
    import subprocess
    import sys

    from runcode.agents.mcp import start

    base = subprocess.run(
        [sys.executable, "-I", "-S", str(start.__file__)], capture_output=True, env=person.environment, check=False
    )
    assert base.returncode == 1
    assert base.stdout == b""
    assert base.stderr.startswith(b"runcode: missing_program: the MCP SDK is not installed")
    assert b"runcode[mcp]" in base.stderr
    assert base.stderr.count(b"\n") == 1


def test_nobody_signed_in_is_an_answer_with_what_a_person_types(tmp_path: Path) -> None:
    person = Person(tmp_path)
    with on_the_wire(person.environment, person.project) as wire:
        for tool in ("workspaces", "connect"):
            failed = wire.call(tool, **({"workspace": "1"} if tool == "connect" else {}))
            assert failed["error"] == "no_token"
            assert "runcode login" in failed["resolution"]
