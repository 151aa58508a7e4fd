"""A real server, a real box and real ssh: what is in use goes on, and what is merely held is stopped.

The idle time here is seconds, which no person may ask for: it is written into the
database beside the server. Nothing is asserted about how long things take: what
must not stop is watched for several idle times, what must stop is waited for.
"""

from __future__ import annotations

import http.client
import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.service import Laptop, Service, running_service

IDLE_S = 3
BOX = "quiet-box"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--idle-look-every-s", "1", "--workspaces-per-user", "1", "--teams-by", "admins")
    with running_service(tmp_path_factory.mktemp("idle"), options=options) as running:
        running.operator("workspace", "create", BOX, "--size", "small")
        yield running


@pytest.fixture(scope="module")
def laptop(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    laptop = Laptop(tmp_path_factory.mktemp("person"))
    laptop.login(service)
    return laptop


def set_idle_s(service: Service, seconds: int) -> None:
    connection = sqlite3.connect(service.data_dir / "runcode.db", timeout=30)
    with connection:
        connection.execute("UPDATE workspaces SET idle_stop_after_s = ? WHERE title = ?", (seconds, BOX))
    connection.close()


def shown(service: Service) -> dict[str, Any]:
    (row,) = service.operator_json("workspace", "list")
    return dict(row)


def watch_it_run(service: Service, seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        found = shown(service)
        assert found["state"] == "running", found
        time.sleep(0.5)


def test_use_and_jobs_keep_it_and_a_held_connection_does_not(service: Service, laptop: Laptop) -> None:
    bundle = laptop.json("connect", BOX, "--start", "--wait")
    ssh = ["ssh", "-F", str(bundle["config"])]

    def run(command: str) -> str:
        done = subprocess.run(
            [*ssh, str(bundle["alias"]), command], capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL
        )
        return done.stdout.decode().strip()

    # Its size reached the box.
    (plan,) = (service.data_dir / "runtimes" / "local" / "workspaces").glob("*/plan.json")
    assert json.loads(plan.read_text())["memory_bytes"] <= 1024**3

    # A trickle of data over a connection: in use, however little.
    trickle = subprocess.Popen(
        [*ssh, str(bundle["alias"]), "while sleep 0.5; do echo .; done"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        set_idle_s(service, IDLE_S)
        watch_it_run(service, 3 * IDLE_S)
    finally:
        trickle.kill()
        trickle.wait()

    # A job that nobody watches, while the master is held and silent. What only waits is no job.
    run("nohup sleep 1000 >/dev/null 2>&1 & nohup sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $! > job")
    watch_it_run(service, 3 * IDLE_S)
    run("kill $(cat job)")
    assert subprocess.run([*ssh, "-O", "check", str(bundle["alias"])], capture_output=True, check=False).returncode == 0

    # The master is held, the sleeper sleeps: nobody uses it.
    deadline = time.monotonic() + 60
    while (found := shown(service))["state"] != "stopped":
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found["explanation"] == f"stopped: idle for {IDLE_S} s"
    held = subprocess.run([*ssh, "-O", "check", str(bundle["alias"])], capture_output=True, check=False)
    assert held.returncode != 0, "the held connection outlived its box"

    # A start makes it new: nothing is left of why it was stopped.
    laptop.json("connect", BOX, "--start", "--wait")
    set_idle_s(service, 0)
    assert shown(service)["explanation"] is None


def test_the_operators_options_reach_the_api(service: Service) -> None:
    def call(method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(service.facts["api_base"].removeprefix("http://"), timeout=30)
        try:
            headers = {"Authorization": f"Token {service.first_facts['token']}"}
            connection.request(method, f"/api/rc/{path}", None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    status, told = call("GET", "runtimes")
    assert (status, told["data"]["idle_stop_after_s"]) == (200, None)
    assert "local" in [runtime["name"] for runtime in told["data"]["runtimes"]]
    assert {size["name"] for size in told["data"]["sizes"]} == {"small", "medium", "standard"}
    # One workspace is there already, and that is the limit.
    status, told = call("POST", "workspaces", {})
    assert (status, told["code"]) == (403, "quota_exceeded")
    assert "your limit is 1" in told["message"]
    status, told = call("POST", "workspaces", {"runtime": "no-such-thing"})
    assert (status, told["code"]) == (400, "bad_request")
