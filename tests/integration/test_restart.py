"""Restarts and upgrades on the real service: what ran comes back, or was never touched at all.

A machine's restart is played by killing everything by its pid, the server first;
an upgrade by a copy of the source under another path, with another version, run
by an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import runcode
from support.frozen_schemas import go_back
from support.service import Laptop, Service, processes_mentioning

WAIT_S = 60.0
SOURCE = Path(runcode.__file__).resolve().parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen: {what}")
        time.sleep(0.02)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """On fixed ports, so that a bundle of before leads to the server of after."""
    made = Service(tmp_path / "s", ssh=f"127.0.0.1:{free_port()}", http=f"127.0.0.1:{free_port()}")
    try:
        yield made.start()
    finally:
        made.options = ()
        if made.process is not None and made.process.poll() is None:
            made.stop()
        if processes_of(made):
            # What a test left running on purpose: a server that keeps nothing ends it.
            with contextlib.suppress(AssertionError):
                made.start().stop()
        for pid in processes_of(made):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(service: Service) -> list[int]:
    """Keepers carry their workspace's folder as an argument."""
    return processes_mentioning(str(service.data_dir / "runtimes"))


def descendants(pid: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            children += [int(child) for child in (task / "children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def lives(pid: int) -> bool:
    """A zombie has ended: it waits for the machine's init, which is not ours to hurry."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def lasting_processes(keeper: int) -> dict[int, str]:
    """The keeper, bwrap, the box's init and the job's own shell: what a restart of the server must not touch."""
    found: dict[str, dict[int, str]] = {"keeper": {keeper: identity(keeper)}, "bwrap": {}, "init.py": {}, "n=0": {}}
    for pid in descendants(keeper):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            kind = "bwrap" if words.split()[0].endswith("bwrap") else "init.py" if "init.py" in words else "n=0"
            if kind in words:
                found[kind][pid] = identity(pid)
    assert all(found.values()), found
    # The shell forks before each `sleep`; the eldest is the shell itself.
    shell = min(found["n=0"].items(), key=lambda item: int(item[1]))
    return {**found["keeper"], **found["bwrap"], **found["init.py"], shell[0]: shell[1]}


def states(service: Service) -> dict[str, str]:
    return {row["title"]: row["state"] for row in service.operator_json("workspace", "list")}


def identity(pid: int) -> str:
    """A process, beyond its number: also when it started."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def make_workspaces(service: Service, laptop: Laptop) -> None:
    """`busy` runs and has a file; `quiet` was stopped; `never` was not started."""
    laptop.login(service)
    for title in ("busy", "quiet", "never"):
        service.operator("workspace", "create", title)
    for title in ("quiet", "busy"):
        laptop.runcode("connect", title, "--start", "--wait")
    laptop.runcode("exec", "--", "echo kept > file")
    service.operator("workspace", "stop", "quiet")


def came_back(service: Service, laptop: Laptop) -> None:
    until(lambda: states(service)["busy"] == "running", "what ran runs again")
    assert states(service) == {"busy": "running", "quiet": "stopped", "never": "stopped"}
    assert laptop.runcode("run", "busy", "--", "cat file").stdout == b"kept\n"


# ------------------------------------------------------------------ a machine's restart


def test_after_a_machine_went_down_what_ran_comes_back_and_nothing_else(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    make_workspaces(service, laptop)
    assert service.process is not None
    keepers = processes_of(service)
    assert len(keepers) == 1
    victims = [service.process.pid, *keepers, *(pid for keeper in keepers for pid in descendants(keeper))]
    assert len(victims) > 3, "server, keeper, bwrap, and the box's processes"
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    service.process.wait()
    until(lambda: not processes_of(service), "everything is down")
    assert states(service)["busy"] == "running", "nobody was left to write down that it ended"
    service.start()
    came_back(service, laptop)
    assert len(processes_of(service)) == 1


def test_after_a_clean_stop_what_ran_comes_back_and_nothing_else(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    make_workspaces(service, laptop)
    assert service.stop() == 0
    assert processes_of(service) == []
    rows = {row["title"]: row for row in service.operator_json("workspace", "list")}
    assert "starts again with the server" in rows["busy"]["reason"]
    assert rows["quiet"]["reason"] is None
    service.start()
    came_back(service, laptop)


def test_what_was_asked_for_while_the_server_was_down_is_done_when_it_is_back(service: Service, tmp_path: Path) -> None:
    laptop = Laptop(tmp_path / "laptop")
    make_workspaces(service, laptop)
    service.options = ("--keep-workspaces",)
    service.stop()
    service.start()
    until(lambda: states(service)["busy"] == "running", "what ran runs again, under a server that keeps it")
    service.stop()
    assert len(processes_of(service)) == 1, "kept"
    service.operator("workspace", "stop", "busy")
    service.operator("workspace", "start", "quiet")
    service.start()
    until(lambda: states(service) == {"busy": "stopped", "quiet": "running", "never": "stopped"}, "both wishes")
    assert len(processes_of(service)) == 1


# ------------------------------------------------------------------ an upgrade that touches no box


class Version:
    """A copy of the server under another path and version, with an environment of its own beside it."""

    def __init__(self, folder: Path, version: str) -> None:
        self.folder = folder
        self.version = version
        shutil.copytree(SOURCE, folder / "src" / "runcode", ignore=shutil.ignore_patterns("__pycache__"))
        init = folder / "src" / "runcode" / "__init__.py"
        text = re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', init.read_text())
        assert version in text
        init.write_text(text)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        # The copy first, then the third-party packages; an editable install's own hook is not followed from here.
        (site / "paths.pth").write_text(f"{folder / 'src'}\n{sysconfig.get_path('purelib')}\n")
        self.python = folder / "venv" / "bin" / "python"
        shown = subprocess.run([*self.program, "--version"], capture_output=True, text=True, check=True)
        assert version in shown.stdout

    @property
    def program(self) -> tuple[str, ...]:
        return (str(self.python), "-I", "-m", "runcode.server.main")


def test_an_upgrade_leaves_boxes_commands_and_sessions_alone(service: Service, tmp_path: Path) -> None:
    """Old server down, new one up (other code, other path, later schema); the old code is deleted in between."""
    service.stop()
    old, new = Version(tmp_path / "old", "0.0.7"), Version(tmp_path / "new", "77.0.0")
    service.program, service.options = old.program, ("--keep-workspaces",)
    service.start()
    laptop = Laptop(tmp_path / "laptop")
    make_workspaces(service, laptop)
    bundle = laptop.json("connect", "busy")

    def ssh(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = ["ssh", "-F", str(bundle["config"]), "-S", "none", str(bundle["alias"]), *words]
        return subprocess.run(command, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)

    # A long job as somebody leaves it behind: it counts, and a shell keeps its state in memory.
    job = "n=0; while :; do n=$((n+1)); echo $n $$ > count; sleep 0.05; done"
    assert ssh(f"cd workspace; (setsid sh -c '{job}' </dev/null >/dev/null 2>&1 &)").returncode == 0

    def counted() -> tuple[int, bytes]:
        raw = b""
        while len(raw.split()) != 2:
            raw = next(service.data_dir.rglob("workspace/count")).read_bytes()
        return int(raw.split()[0]), raw.split()[1]

    until(lambda: list(service.data_dir.rglob("workspace/count")), "the job counts")
    (keeper,) = processes_of(service)
    lasting = lasting_processes(keeper)
    host_key = (service.data_dir / "keys" / "gateway_host_ed25519").read_bytes()
    ssh_port = service.facts["ssh_port"]
    before, shell = counted()

    assert service.stop() == 0
    assert processes_of(service) == [keeper]
    assert ssh("true").returncode == 255, "no server, no way in"
    down, _ = counted()
    until(lambda: counted()[0] > down, "the job goes on without a server")
    shutil.rmtree(old.folder)
    database = service.data_dir / "runcode.db"
    go_back(database, "0001")
    service.program = new.program
    service.start()

    assert service.facts["ssh_port"] == ssh_port
    assert (service.data_dir / "keys" / "gateway_host_ed25519").read_bytes() == host_key
    assert states(service)["busy"] == "running"
    assert {pid: identity(pid) for pid in lasting} == lasting, "the very same processes"
    assert (service.data_dir / "runcode.db.schema-0001").is_file(), "the schema came forward, and a copy stays"
    now, same_shell = counted()
    assert same_shell == shell
    assert now > down > before
    # The session of before, by its own config, key and known host: no new mint, no question.
    again = ssh("cat workspace/file; cut -d' ' -f2 workspace/count")
    assert again.returncode == 0, again.stderr
    assert again.stdout == b"kept\n" + shell + b"\n"
    assert laptop.json("connect", "busy")["reused"] is True
    # And the new server owns the box as if it had started it: it can stop it, with nothing left.
    service.operator("workspace", "stop", "busy")
    assert processes_of(service) == []
    assert [pid for pid in lasting if lives(pid)] == []


def test_keepers_state_of_other_versions_is_understood(service: Service, tmp_path: Path) -> None:
    """Fields that came later, or are not known yet, must not make a living box look dead."""
    service.options = ("--keep-workspaces",)
    service.stop()
    service.start()
    laptop = Laptop(tmp_path / "laptop")
    laptop.login(service)
    service.operator("workspace", "create", "busy")
    laptop.runcode("connect", "busy", "--start", "--wait")
    (keeper,) = processes_of(service)
    started = identity(keeper)
    (state_file,) = service.data_dir.rglob("run/keeper.json")
    plan_file = state_file.parents[1] / "plan.json"
    full: dict[str, Any] = json.loads(state_file.read_text())
    plan: dict[str, Any] = json.loads(plan_file.read_text())
    first = {name: full[name] for name in ("pid", "started_ticks", "serving", "pid_namespace")}
    for shape in (first, full | {"field_of_next_year": {"a": 1}}):
        service.stop()
        state_file.write_text(json.dumps(shape))
        plan_file.write_text(json.dumps(plan | {"field_of_next_year": [1]}))
        service.start()
        assert states(service) == {"busy": "running"}
        assert laptop.runcode("run", "busy", "--", "echo ok").stdout == b"ok\n"
        assert processes_of(service) == [keeper]
        assert identity(keeper) == started
    service.operator("workspace", "stop", "busy")
    assert processes_of(service) == []


def test_a_downgrade_is_refused_with_its_reason_and_harms_nothing(service: Service, tmp_path: Path) -> None:
    service.options = ("--keep-workspaces",)
    service.stop()
    service.start()
    laptop = Laptop(tmp_path / "laptop")
    make_workspaces(service, laptop)
    service.stop()
    kept = processes_of(service)
    database = service.data_dir / "runcode.db"
    connection = sqlite3.connect(database)
    (head,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    words = [*service.program, "up", "--data-dir", str(service.data_dir), "--http", "127.0.0.1:0", "--ssh", "off"]
    refused = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert re.fullmatch(
        r"runcode-server: io_error: .*written by a newer RunCode \(run that newer .*\)\n", refused.stderr
    )
    listed = service.operator("workspace", "list", check=False)
    assert (listed.returncode, "newer RunCode" in listed.stderr) == (1, True)
    assert processes_of(service) == kept
    connection = sqlite3.connect(database)
    connection.execute("UPDATE alembic_version SET version_num = ?", (head,))
    connection.commit()
    connection.close()
    service.start()
    came_back(service, laptop)
    assert processes_of(service) == kept
