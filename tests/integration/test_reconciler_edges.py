"""Two wishes at once, and wishes that overtake each other: on the real service with real boxes.

Two starts at once from people, programs and operators; stop during start; delete
during exec; twenty starts together; a wall clock that jumps under a real box.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
from runcode.controlplane.reconciler import Timing
from runcode.runtimes.base import UnixEndpoint
from runcode.runtimes.local import keepers
from runcode.runtimes.local.layout import Layout
from runcode.runtimes.local.runtime import LocalRuntime
from runcode.server.data_folder import DataFolder
from support.controlplane_fakes import ManualClock, make_reconciler, open_plane, until
from support.runtime_boxes import find_host_processes, wait_until
from support.service import RUNCODE, SERVER, Laptop, Service, processes_mentioning, running_service

pytest_plugins = ["support.runtime_fixtures"]
MANY = 20


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("edges")) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def laptop(service: Service, tmp_path: Path) -> Laptop:
    laptop = Laptop(tmp_path / "laptop")
    laptop.login(service)
    return laptop


def make(service: Service, title: str) -> int:
    return int(service.operator_json("workspace", "create", title)["id"])


async def make_many(service: Service, titles: list[str]) -> dict[str, int]:
    """As `make`, but from one operator process: this one, beside the server on its database."""
    folder = DataFolder(service.data_dir)
    plane = await ControlPlane.open(ControlPlaneSettings(database=folder.database, keys_folder=folder.keys))
    try:
        made = [await plane.workspaces.create_workspace(title, "admin@localhost") for title in titles]
        return {one.title: one.id for one in made}
    finally:
        await plane.close()


async def delete_many(service: Service, titles: list[str]) -> None:
    folder = DataFolder(service.data_dir)
    plane = await ControlPlane.open(ControlPlaneSettings(database=folder.database, keys_folder=folder.keys))
    try:
        for title in titles:
            await plane.workspaces.delete_workspace(title)
    finally:
        await plane.close()


def states(service: Service) -> dict[str, str]:
    """title → the one word that a person is shown, as the API tells it (an operator process costs far more)."""
    status, body = ask_api(service, "GET", "/api/rc/workspaces?category=active")
    assert status == 200, body
    return {row["title"]: row["interim_state"] or row["current_state"] for row in body["data"]["workspaces"]}


def find_keepers(service: Service, workspace_id: int) -> list[int]:
    folder = service.data_dir / "runtimes" / "local" / "workspaces" / str(workspace_id)
    found = processes_mentioning(f"runcode.runtimes.local.keeper {folder}")
    return [
        pid for pid in found if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").endswith(str(folder).encode())
    ]


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def ask_api(service: Service, method: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(service.facts["api_base"].removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, headers={"Authorization": f"Token {service.first_facts['token']}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def call_api(service: Service, verb: str, workspace_id: int) -> tuple[int, Any]:
    return ask_api(service, "POST", f"/api/rc/workspace/{verb}?workspace_id={workspace_id}")


def start_operator(service: Service, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [SERVER, *words, "--data-dir", str(service.data_dir)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# ------------------------------------------------------------------ two starts at once


def test_starts_from_everywhere_at_once_make_one_box_and_all_succeed(
    service: Service, laptop: Laptop, tmp_path: Path
) -> None:
    workspace_id = make(service, "wanted")
    second = Laptop(tmp_path / "second")
    second.login(service)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        clis = [pool.submit(one.runcode, "connect", "wanted", "--start", "--wait") for one in (laptop, second)]
        callers = [pool.submit(call_api, service, "start", workspace_id) for _ in range(2)]
        operators = [start_operator(service, "workspace", "start", "wanted") for _ in range(2)]
        for operator in operators:
            said = operator.communicate(timeout=90)
            assert operator.returncode == 0, said
            assert said[0].startswith("started wanted")
        for caller in callers:
            status, body = caller.result()
            assert status == 200, body
        for cli in clis:
            assert cli.result().returncode == 0
    assert len(find_keepers(service, workspace_id)) == 1
    # Both are in the same box.
    laptop.runcode("exec", "--", "echo one > mark")
    assert second.runcode("exec", "--", "cat mark").stdout == b"one\n"
    service.operator("workspace", "delete", "wanted")


# ------------------------------------------------------------------ stop during start


def find_desired(service: Service, title: str) -> str:
    with contextlib.closing(sqlite3.connect(service.data_dir / "runcode.db")) as connection:
        return str(connection.execute("SELECT desired_state FROM workspaces WHERE title = ?", [title]).fetchone()[0])


def test_a_stop_during_a_start_wins_and_whoever_waits_is_told(service: Service) -> None:
    workspace_id = make(service, "hesitant")
    for _ in range(3):
        starting = start_operator(service, "workspace", "start", "hesitant")
        # The wish to start is written down: what comes next comes after it.
        assert wait_until(lambda: find_desired(service, "hesitant") == "running", 60)
        stopped = service.operator("workspace", "stop", "hesitant")
        assert stopped.stdout.startswith("stopped hesitant")
        out, err = starting.communicate(timeout=90)
        # It came up before it was stopped, or the one who waited hears that somebody wished otherwise.
        if starting.returncode != 0:
            assert err.startswith("runcode-server: conflict: somebody asked to stop hesitant meanwhile"), err
        else:
            assert out.startswith("started hesitant")
        assert states(service)["hesitant"] == "stopped"
        assert find_keepers(service, workspace_id) == []
    service.operator("workspace", "delete", "hesitant")


def test_a_waiting_start_ends_when_the_workspace_is_deleted(service: Service) -> None:
    """Nobody waits a minute for what can never come."""
    make(service, "doomed")
    starting = start_operator(service, "workspace", "start", "doomed")
    service.operator("workspace", "delete", "doomed")
    out, err = starting.communicate(timeout=50)
    assert (starting.returncode, out.startswith("started")) == (0, True) or err.startswith(
        ("runcode-server: not_found: ", "runcode-server: start_failed: ")
    ), (out, err)
    assert "doomed" not in states(service)


def test_stop_and_start_in_a_row_end_as_the_last_wish_says(service: Service) -> None:
    workspace_id = make(service, "fickle")
    for verb in ("start", "stop", "start", "stop", "start") * 3:
        status, body = call_api(service, verb, workspace_id)
        assert (status, body["error"]) == (200, False), body
    wait_for(lambda: states(service)["fickle"] == "running", "the last wish was to start")
    assert len(find_keepers(service, workspace_id)) == 1
    service.operator("workspace", "stop", "fickle")
    assert find_keepers(service, workspace_id) == []
    service.operator("workspace", "delete", "fickle")


# ------------------------------------------------------------------ delete during exec


@pytest.mark.parametrize("verb", ["delete", "stop"])
def test_an_exec_under_way_ends_cleanly_when_its_workspace_goes(service: Service, laptop: Laptop, verb: str) -> None:
    title = f"going-{verb}"
    workspace_id = make(service, title)
    laptop.runcode("connect", title, "--start", "--wait")
    running = subprocess.Popen(
        [RUNCODE, "exec", "--", "echo ready; sleep 600"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=laptop.environment,
        cwd=laptop.project,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    service.operator("workspace", verb, title)
    _, stderr = running.communicate(timeout=60)
    # 255 as ssh's own; one line with a stable code; the command may have run, and the person is told so.
    assert running.returncode == 255
    lines = stderr.decode().strip().splitlines()
    assert lines[-1].startswith("runcode: connection_lost: "), lines
    assert not any("Traceback" in line for line in lines)
    assert find_keepers(service, workspace_id) == []
    # The next call says what is the matter now.
    after = laptop.runcode("exec", "--", "true", expect=None)
    assert after.returncode == 255 or after.returncode == 1
    assert after.stderr.startswith(b"runcode: "), after.stderr
    assert b"Traceback" not in after.stderr
    if verb == "delete":
        assert title not in states(service)
        assert not (service.data_dir / "runtimes" / "local" / "workspaces" / str(workspace_id)).exists()
    else:
        service.operator("workspace", "delete", title)


# ------------------------------------------------------------------ many together


def test_twenty_workspaces_start_together(service: Service, laptop: Laptop) -> None:
    titles = [f"crowd-{number:02}" for number in range(MANY)]
    ids = asyncio.run(make_many(service, titles))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(MANY) as pool:
        assert {status for status, _ in pool.map(lambda one: call_api(service, "start", one), ids.values())} == {200}
    wait_for(lambda: {states(service)[title] for title in titles} == {"running"}, "all of them run", 120)
    print(f"{MANY} workspaces asked for and running: {time.monotonic() - began:.1f} s")
    assert all(len(find_keepers(service, ids[title])) == 1 for title in titles)

    # Each with a pty and an inotify watch of its own, all at once.
    probe = "import ctypes, os, pty; l = ctypes.CDLL(None); assert l.inotify_init1(0) >= 0; os.openpty(); "
    probe += "print(os.uname().nodename)"
    answers: dict[str, bytes] = {}

    def look(title: str) -> None:
        answers[title] = laptop.runcode("run", title, "--", "/usr/bin/python3", "-c", probe).stdout

    threads = [threading.Thread(target=look, args=(title,)) for title in titles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert answers == {title: f"{title}\n".encode() for title in titles}
    asyncio.run(delete_many(service, titles))
    wait_for(lambda: not set(titles) & set(states(service)), "all of them are gone", 120)
    assert all(find_keepers(service, workspace_id) == [] for workspace_id in ids.values())


# ------------------------------------------------------------------ the clock, under a real box


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path / "plane", clock) as opened:
        await opened.users.create_user("ann@example.org")
        await opened.workspaces.create_workspace("box", "ann@example.org", runtime="local")
        yield opened


@pytest.mark.parametrize("hours", [-9, 9])
async def test_a_real_box_that_dies_comes_back_however_the_clock_jumped(
    plane: ControlPlane, clock: ManualClock, hours: int, local_runtime: LocalRuntime, local_root: Path
) -> None:
    """The clock jumps and the box is killed, again and again: it comes back, held back but never for hours."""
    reconciler = make_reconciler(plane, local_runtime, timing=Timing(survey_s=0.05))  # type: ignore[arg-type]
    await reconciler.start()
    box = await plane.workspaces.request_start("box")

    async def shown() -> str:
        return (await plane.workspaces.load_workspace("box")).state

    async def until_shown(*wanted: str) -> None:
        async def reached() -> bool:
            return await shown() in wanted

        await until(reached, 60)

    try:
        await until_shown("running")
        folder = Layout(local_root).workspace(box.id)
        for turn in range(3):
            clock.advance(hours=hours)
            before = keepers.find_keeper(folder)
            assert before
            keepers.end_keeper(folder, None)

            async def noticed(before: int = before) -> bool:
                return await shown() == "failed" or keepers.find_keeper(folder) not in (None, before)

            await until(noticed, 60)
            if await shown() == "failed":
                # Held back; with the clock standing still it stays so, and seconds later it is tried.
                reason = (await plane.workspaces.load_workspace("box")).reason
                assert reason is not None
                assert reason.startswith("the box ended by itself")
                clock.advance(seconds=2 ** (turn + 1))
            await until_shown("running")
            assert keepers.find_keeper(folder) not in (None, before)
        endpoint = (await plane.workspaces.load_workspace("box")).endpoint
        assert isinstance(endpoint, UnixEndpoint)
        await plane.workspaces.delete_workspace("box")

        async def gone() -> bool:
            return not await plane.workspaces.list_all()

        await until(gone, 60)
    finally:
        await reconciler.close()
        await local_runtime.destroy(box.id)
    assert await asyncio.to_thread(find_host_processes, local_root) == {}
