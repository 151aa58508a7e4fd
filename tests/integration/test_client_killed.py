"""Calls that are killed with -9 half-way: the next one works, and nothing of the dead one stays behind.

A wrapper named `ssh` on PATH holds the real ssh back at the moment that each test
needs; ssh, sshd and the CLI are real.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from runcode.client import openssh
from runcode.core.errors import RunCodeError
from support import kill_proc
from support.client_standin import TITLE, ControlPlane, Person, service, signed_in

# Opens a master only once the file `go` is there; everything else goes straight to ssh.
_HELD_BACK = """#!/bin/sh
case "$*" in *ControlMaster=yes*)
    : > "{folder}/held-$$"
    while [ ! -e "{folder}/go" ]; do sleep 0.02; done ;;
esac
exec /usr/bin/ssh "$@"
"""


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        yield someone


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A folder with the wrapper, to put first on PATH; `go` opens it."""
    folder = tmp_path / "gate"
    folder.mkdir()
    (folder / "ssh").write_text(_HELD_BACK.format(folder=folder))
    (folder / "ssh").chmod(0o755)
    return folder


def behind(gate: Path, person: Person) -> dict[str, str]:
    return {"PATH": f"{gate}:{person.environment['PATH']}"}


def eventually(condition: object, what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def masters_of(person: Person) -> set[int]:
    """Every ssh process of this person that holds a connection open in the background."""
    text = os.fsencode(person.runtime)
    return {
        pid
        for pid, process in kill_proc.look().items()
        if process.name == "ssh" and not process.ended and kill_proc.carries(pid, text)
    }


def reachable_masters(person: Person) -> set[int]:
    return kill_proc.find_masters(person.runtime / "rc")


def test_the_master_of_a_killed_call_can_still_be_closed(person: Person, gate: Path) -> None:
    """Were it to find its place taken, it would stay without a socket: for ever, closed by nobody."""
    killed = person.start("run", TITLE, "--", "true", environment=behind(gate, person))
    eventually(lambda: list(gate.glob("held-*")), "the call opens a master")
    killed.kill()
    killed.wait()
    person.runcode("run", TITLE, "--", "true")
    (gate / "go").touch()
    eventually(lambda: len(masters_of(person)) == 2, "the late master connects as well")
    eventually(lambda: masters_of(person) == reachable_masters(person), "a master answers nobody")
    person.runcode("clean", "--all")
    eventually(lambda: not masters_of(person), "clean closes both")
    assert list((person.runtime / "rc").iterdir()) == []


def test_a_plain_ssh_that_was_quicker_leaves_no_second_master(person: Person, gate: Path) -> None:
    """The bundle's config says ControlMaster auto, so a person's own ssh may take the place meanwhile."""
    config = person.json("connect", TITLE)["config"]
    ours = person.start("run", TITLE, "--", "echo ours", environment=behind(gate, person), stdout=subprocess.PIPE)
    eventually(lambda: list(gate.glob("held-*")), "the call opens a master")
    with (gate / "out").open("wb") as out:
        subprocess.run(["ssh", "-F", config, f"runcode-{TITLE}", "true"], check=True, stderr=out, stdout=out)
    (gate / "go").touch()
    assert ours.communicate(timeout=60)[0] == b"ours\n"
    assert ours.returncode == 0
    eventually(
        lambda: masters_of(person) == reachable_masters(person) and len(masters_of(person)) == 1, "one is enough"
    )


def test_a_master_that_lost_the_sessions_name_can_still_be_closed(person: Person) -> None:
    """As when a plain ssh, which was the master before, removes the name at its own end."""
    person.runcode("run", TITLE, "--", "true")
    [session] = [
        line for line in (person.session_folder() / "config").read_text().splitlines() if "ControlPath" in line
    ]
    Path(session.split(maxsplit=1)[1].strip('"')).unlink()
    assert masters_of(person) == reachable_masters(person) != set()
    person.runcode("clean", "--all")
    eventually(lambda: not masters_of(person), "clean closes it")


def test_what_a_killed_call_left_is_swept_by_the_next(person: Person, gate: Path) -> None:
    """Its log, its half-made key and file, and the socket of a master that was killed too."""
    person.runcode("run", TITLE, "--", "true")
    for pid in masters_of(person):
        kill_proc.kill_exactly(pid)
    killed = person.start("run", TITLE, "--", "true", environment=behind(gate, person))
    eventually(lambda: list(gate.glob("held-*")), "the call opens a master")
    killed.kill()
    killed.wait()
    [held] = gate.glob("held-*")
    kill_proc.kill_exactly(int(held.name.removeprefix("held-")))
    folder = person.session_folder()
    for name in ("new-0123456789abcdef", "session.json.0123456789ab.tmp"):
        (folder / name).write_bytes(b"half")
    control = person.runtime / "rc"
    assert list(control.glob("log-*")), "the control: the killed call has left its log"
    person.runcode("connect", TITLE, "--wait", "--force")
    assert [file.name for file in folder.iterdir() if file.name.startswith("new-") or "tmp" in file.name] == []
    assert list(control.glob("log-*")) == []
    assert len({file.stat().st_ino for file in control.iterdir()}) == 1
    assert masters_of(person) == reachable_masters(person)


def test_the_log_of_a_call_that_lives_is_left_alone(person: Person, gate: Path) -> None:
    living = person.start("run", TITLE, "--", "true", environment=behind(gate, person))
    eventually(lambda: list(gate.glob("held-*")), "the call opens a master")
    [log] = (person.runtime / "rc").glob("log-*")
    sweeper = "from runcode.client.openssh import sweep; import sys; sweep(sys.argv[1], 'x')"

    subprocess.run([sys.executable, "-c", sweeper, str(person.runtime / "rc")], check=True)
    assert log.exists()
    (gate / "go").touch()
    assert living.wait(60) == 0
    assert not log.exists()


def test_a_master_that_ends_at_once_is_a_network_failure(tmp_path: Path) -> None:
    """Its box may die just when it is up; it takes its socket along, after it was looked for."""
    session = SimpleNamespace(control_path=str(tmp_path / "socket"), host="127.0.0.1", port=22)
    with pytest.raises(RunCodeError, match="ended at once") as caught:
        openssh._take_place(session, str(tmp_path / "gone"), {})  # type: ignore[arg-type]
    assert caught.value.code == "network"
    assert not os.path.lexists(session.control_path)
