"""Access ends, and the real ssh dies mid-transfer: through the real server, the real client's bundle and a real box.

For each kind of ending, made in the server's own process and by another one. The
time from the change's own stamp in the feed to ssh's exit is recorded
(`record_property`, and a line of output); it is a measurement and no assertion:
what fails is an ssh that still lives after `ALIVE_S`.
"""

from __future__ import annotations

import datetime
import http.client
import json
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.server_with_orders import OrderedService
from support.service import Laptop

ALIVE_S = 10.0
BOB = "bob@example.org"
BOX = "shared-box"
TEAM = "Payments"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OrderedService]:
    running = OrderedService(tmp_path_factory.mktemp("cutting"))
    try:
        running.start()
        running.operator("user", "create", BOB)
        running.operator("workspace", "create", BOX)
        running.operator("workspace", "start", BOX)
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="module")
def owner(service: OrderedService, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    laptop = Laptop(tmp_path_factory.mktemp("owner"))
    laptop.login(service)
    return laptop


class Witness:
    """A real ssh that reads an endless file from the box; `died_at` is wall time."""

    def __init__(self, bundle: dict[str, Any], *more: str) -> None:
        words = ["ssh", "-F", str(bundle["config"]), *more, str(bundle["alias"]), "cat /dev/zero"]
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self.received = 0
        self.died_at: float | None = None
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read, self._wait)]
        for thread in self._threads:
            thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        while raw := self.process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
            self.received += len(raw)

    def _wait(self) -> None:
        self.process.wait()
        self.died_at = time.time()

    def until_flowing(self) -> Witness:
        """Bytes arrive, and go on arriving."""
        seen = self.received
        until(lambda: self.received > seen + 200_000 or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
        return self

    def until_dead(self) -> tuple[float, bytes]:
        """(wall time of its death, its last words). Fails when it outlives the bound."""
        self._threads[1].join(ALIVE_S)
        assert self.died_at is not None, "ssh is still alive after access has ended"
        assert self.process.returncode == 255
        assert self.process.stderr is not None
        return self.died_at, self.process.stderr.read()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def until(condition: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)


class Scene:
    """Bob's machine, with a transfer under way and an idle master; and Ann's, on the same workspace."""

    def __init__(
        self, service: OrderedService, owner: Laptop, folder: Path, title: str, team: str | None = None
    ) -> None:
        self.service, self.title = service, title
        made = service.operator_json("token", "create", "laptop", "--user", BOB)
        self.token_id = int(made["id"])
        self.token = str(made["token"])
        if team is None:
            service.operator("workspace", "share", title, BOB, "--role", "manage")
        else:
            # By the team alone.
            service.operator("workspace", "unshare", title, BOB)
            service.operator("team", "add", team, BOB)
            service.operator("workspace", "share", title, "--team", team, "--role", "manage")
        self.bob = Laptop(folder / "bob")
        self.bob.login(service, self.token)
        self.workspace_id = {row["title"]: row["id"] for row in service.operator_json("workspace", "list")}[title]
        self.bundle = self.bob.json("connect", title, "--start", "--wait")
        self.owners_bundle = owner.json("connect", title, "--force")
        sessions = [row for row in service.order("sessions", "list_sessions")[0] if row["user_email"] == BOB]
        self.session_id = int(sessions[-1]["id"])
        # The idle master: what stays behind when a command is done.
        assert self.ssh("true").returncode == 0
        assert self.master_lives
        self.transfer = Witness(self.bundle, "-S", "none").until_flowing()
        self.through_master = Witness(self.bundle).until_flowing()
        self.bystander = Witness(self.owners_bundle, "-S", "none").until_flowing()

    def ssh(self, *words: str, own_master: bool = True) -> subprocess.CompletedProcess[bytes]:
        more = () if own_master else ("-S", "none")
        command = ["ssh", "-F", str(self.bundle["config"]), *more, str(self.bundle["alias"]), *words]
        return subprocess.run(command, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)

    @property
    def master_lives(self) -> bool:
        command = ["ssh", "-F", str(self.bundle["config"]), "-O", "check", str(self.bundle["alias"])]
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0

    def end(self) -> None:
        for witness in (self.transfer, self.through_master, self.bystander):
            witness.end()


def newest_change(service: OrderedService) -> int:
    return _query(service, "SELECT coalesce(max(id), 0) FROM changes", ())[0][0]


def changed_at(service: OrderedService, kind: str, after: int) -> float:
    """Wall time that the change itself carries: taken inside its transaction, so before its commit."""
    text = _query(service, "SELECT at FROM changes WHERE kind = ? AND id > ? ORDER BY id LIMIT 1", (kind, after))[0][0]
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc).timestamp()


def _query(service: OrderedService, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{service.data_dir / 'runcode.db'}?mode=ro", uri=True)
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def call_api(service: OrderedService, token: str, method: str, path: str, body: object = None) -> Any:
    connection = http.client.HTTPConnection(service.facts["api_base"].removeprefix("http://"), timeout=30)
    try:
        headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return json.loads(response.read())
    finally:
        connection.close()


# How each ending is made: by a call in the server's process (the stop by its HTTP API), and by another process.
_IN_PROCESS: dict[str, Callable[[Scene], object]] = {
    "session_revoked": lambda s: s.service.order("sessions", "revoke_session", s.session_id),
    "token_revoked": lambda s: s.service.order("tokens", "revoke_token", s.token_id),
    "user_disabled": lambda s: s.service.order("users", "disable_user", BOB),
    "unshared": lambda s: s.service.order("workspaces", "unshare", s.title, BOB),
    "team_left": lambda s: s.service.order("teams", "remove_member", TEAM, BOB),
    "team_unshared": lambda s: s.service.order("teams", "delete_team", TEAM),
    "stop_requested": lambda s: call_api(
        s.service, s.token, "GET", f"/api/rc/workspace/stop?workspace_id={s.workspace_id}"
    ),
    "delete_requested": lambda s: s.service.order("workspaces", "delete_workspace", s.title),
}
_BY_ANOTHER: dict[str, Callable[[Scene], object]] = {
    "session_revoked": lambda s: s.service.operator("session", "revoke", str(s.session_id)),
    "token_revoked": lambda s: s.service.operator("token", "revoke", str(s.token_id)),
    "user_disabled": lambda s: s.service.operator("user", "disable", BOB),
    "unshared": lambda s: s.service.operator("workspace", "unshare", s.title, BOB),
    "team_left": lambda s: s.service.operator("team", "remove", TEAM, BOB),
    "team_unshared": lambda s: s.service.operator("workspace", "unshare", s.title, "--team", TEAM),
    "stop_requested": lambda s: s.service.operator("workspace", "stop", s.title, "--no-wait"),
    "delete_requested": lambda s: s.service.operator("workspace", "delete", s.title, "--no-wait"),
}
_ENDS_FOR_ALL = ("stop_requested", "delete_requested")
_ENDS_OF_TEAMS = ("team_left", "team_unshared")


@pytest.mark.parametrize("by", ["the server itself", "another process"])
@pytest.mark.parametrize("kind", _IN_PROCESS)
def test_a_transfer_dies_and_only_the_one_that_lost_its_right(
    service: OrderedService,
    owner: Laptop,
    tmp_path: Path,
    kind: str,
    by: str,
    record_property: Callable[[str, object], None],
) -> None:
    title = BOX
    if kind in _ENDS_FOR_ALL:
        title = f"ends-{kind.partition('_')[0]}-{'own' if by.startswith('the') else 'other'}"
        service.operator("workspace", "create", title)
    by_team = kind in _ENDS_OF_TEAMS
    if by_team and TEAM not in {team["name"] for team in service.operator_json("team", "list")}:
        service.operator("team", "create", TEAM)
    scene = Scene(service, owner, tmp_path, title, team=TEAM if by_team else None)
    try:
        before = newest_change(service)
        (_IN_PROCESS if by.startswith("the") else _BY_ANOTHER)[kind](scene)
        died_at, words = scene.transfer.until_dead()
        cut_ms = (died_at - changed_at(service, kind, before)) * 1000
        record_property("cut_ms", round(cut_ms))
        print(f"cut after {cut_ms:.0f} ms: {kind}, by {by}")
        assert b"access to this workspace has ended" in words
        # Whatever went over the shared master goes with it, and so does the idle master itself.
        scene.through_master.until_dead()
        until(lambda: not scene.master_lives, ALIVE_S)
        again = scene.ssh("echo", "back", own_master=False)
        assert (again.returncode, again.stdout) == (255, b"")
        if kind in _ENDS_FOR_ALL:
            scene.bystander.until_dead()
        else:
            scene.bystander.until_flowing()
    finally:
        scene.end()
        if kind == "user_disabled":
            service.operator("user", "enable", BOB)


def test_a_connection_that_is_being_opened_does_not_slip_through(
    service: OrderedService, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The session is revoked at 72 moments, swept over the whole opening of a connection and beyond.

    Whatever the moment, afterwards no ssh lives, and none that was refused ran anything.
    """
    rounds = 72
    token = service.first_facts["token"]
    box = {row["title"]: row["id"] for row in service.operator_json("workspace", "list")}[BOX]
    service.operator("workspace", "start", BOX)
    known_hosts = tmp_path / "known_hosts"

    def mint(number: int) -> tuple[list[str], int]:
        key = tmp_path / f"key-{number}"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        public = key.with_suffix(".pub").read_text() if key.with_suffix(".pub").exists() else ""
        body = {"public_key": public.strip(), "ttl": 600, "client": "race"}
        bundle = call_api(service, token, "POST", f"/api/rc/workspace/{box}/ssh-session", body)["bundle"]
        known_hosts.write_text(bundle["known_hosts"])
        command = ["ssh", "-F", "/dev/null", "-i", str(key), "-p", str(bundle["port"]), "-o", "IdentitiesOnly=yes"]
        command += ["-o", f"UserKnownHostsFile={known_hosts}", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"]
        return [*command, f"{bundle['user']}@{bundle['host']}"], int(bundle["session_id"])

    with ThreadPoolExecutor(4) as pool:
        minted = list(pool.map(mint, range(rounds + 1)))
    control, _ = minted.pop()
    began = time.monotonic()
    assert subprocess.run([*control, "true"], capture_output=True, timeout=60, check=False).returncode == 0
    opening_s = time.monotonic() - began

    orders = threading.Lock()

    def race(number: int) -> tuple[bool, float]:
        """(did the command begin, how long after the commit ssh ended)"""
        command, session_id = minted[number]
        process = subprocess.Popen(
            [*command, "echo began; exec sleep 600"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            time.sleep(opening_s * 1.6 * number / rounds)
            with orders:
                _, committed_at = service.order("sessions", "revoke_session", session_id)
            try:
                out, _ = process.communicate(timeout=ALIVE_S + 20)
            except subprocess.TimeoutExpired:
                pytest.fail(f"round {number}: a connection slipped through the revocation")
            ended_at = time.monotonic()
            assert process.returncode == 255
            assert out in (b"", b"began\n")
            return out == b"began\n", ended_at - committed_at
        finally:
            process.kill()
            process.wait()

    with ThreadPoolExecutor(3) as pool:
        seen = list(pool.map(race, range(rounds)))
    began_count = sum(began for began, _ in seen)
    lives_ms = [lived_s * 1000 for _, lived_s in seen]
    record_property("refused_or_cut_early", rounds - began_count)
    record_property("cut_after_the_command_began", began_count)
    record_property("longest_ms", round(max(lives_ms)))
    print(
        f"{rounds - began_count} refused or cut before the command, {began_count} after it began; "
        f"ssh ended {statistics.median(lives_ms):.0f} ms (median), {max(lives_ms):.0f} ms (longest) after the commit"
    )
    assert 0 < began_count < rounds, "the sweep must cover both sides of the opening"
