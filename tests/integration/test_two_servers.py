"""Two real `runcode-server up` on one real Postgres: one installation, two machines' worth of data folders."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.postgres import Cluster
from support.service import SERVER, Laptop, Service, processes_mentioning

PASSWORD = "s3cret-word"
WAIT_S = 60.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"it did not happen: {what}")
        time.sleep(0.02)


class Pair:
    """`first` made the installation, `second` joined it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.url = cluster.make_database(empty=True)
        self.url_file = folder / "url"
        self.url_file.touch(mode=0o600)
        self.url_file.write_text(f"{self.url.conninfo}&password={PASSWORD}\n")
        named = ("--database-file", str(self.url_file))
        self.first = Service(folder / "a", options=named).start()
        keys = ("--keys", str(self.first.data_dir / "keys"))
        self.second = Service(folder / "b", options=(*named, *keys)).start()
        # From now on each data folder remembers.
        self.first.options = self.second.options = ()

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url.conninfo, autocommit=True) as connection:
            return connection.execute(sql, values or None).fetchall()  # type: ignore[arg-type]

    def close(self) -> None:
        for service in (self.first, self.second):
            if service.process is not None and service.process.poll() is None:
                service.stop()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Its own: it is killed."""
    made = Cluster()
    try:
        yield made.make()
    finally:
        made.remove()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("pair"), cluster)
    yield made
    made.close()


@pytest.fixture(scope="module")
def laptop(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Laptop:
    laptop = Laptop(tmp_path_factory.mktemp("laptop"))
    laptop.login(pair.first)
    return laptop


def keepers(service: Service) -> list[int]:
    return processes_mentioning(str(service.data_dir / "runtimes"))


def states(service: Service) -> dict[str, str]:
    return {row["title"]: row["state"] for row in service.operator_json("workspace", "list")}


def test_the_password_is_in_one_private_file_and_nowhere_else(pair: Pair) -> None:
    for service in (pair.first, pair.second):
        remembered = service.data_dir / "database.url"
        assert stat.S_IMODE(remembered.stat().st_mode) == 0o600
        assert PASSWORD in remembered.read_text()
        assert service.process is not None
        assert PASSWORD not in service.log.read_text()
        for what in ("cmdline", "environ"):
            assert PASSWORD.encode() not in Path(f"/proc/{service.process.pid}/{what}").read_bytes()
        assert not (service.data_dir / "runcode.db").exists()


def test_a_password_in_an_argument_is_refused_and_a_variable_is_taken(pair: Pair, tmp_path: Path) -> None:
    words = [SERVER, "up", "--data-dir", str(tmp_path / "d"), "--http", "127.0.0.1:0", "--ssh", "off"]
    url = f"{pair.url.conninfo}&password={PASSWORD}"
    refused = subprocess.run([*words, "--database", url], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "--database-file" in refused.stderr
    assert PASSWORD not in refused.stderr
    environment = {**os.environ, "RUNCODE_DATABASE_URL": url}
    joining = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=environment)
    # It found the database by the variable: that belongs to other keys.
    assert joining.returncode == 1
    assert "belongs to an installation with other keys" in joining.stderr
    assert PASSWORD not in joining.stderr
    assert not (tmp_path / "d").exists(), "nothing half-made remains"


def test_what_one_signs_in_the_audit_the_other_believes(pair: Pair) -> None:
    """Retention on either signs for what it removes: with keys of their own, the other would call it tampering."""
    for name in ("audit_ed25519", "audit_ed25519.pub"):
        assert (pair.first.data_dir / "keys" / name).read_bytes() == (pair.second.data_dir / "keys" / name).read_bytes()
    checkpoints = str(pair.first.data_dir / "audit" / "checkpoints.jsonl")
    assert pair.second.operator_json("audit", "verify", "--checkpoints", checkpoints)["ok"]


def test_both_show_one_truth(pair: Pair) -> None:
    pair.first.operator("workspace", "create", "one-truth")
    assert "one-truth" in states(pair.second)
    assert len(pair.query("SELECT 1 FROM users")) == 1
    assert "token" not in pair.second.first_facts, "the second start made no second admin"


def test_a_workspace_that_both_could_start_is_started_exactly_once(pair: Pair) -> None:
    titles = [f"race-{number}" for number in range(3)]
    for title in titles:
        pair.first.operator("workspace", "create", title)
    for number, title in enumerate(titles):
        (pair.first, pair.second)[number % 2].operator("workspace", "start", title, "--no-wait")
    until(lambda: all(states(pair.first)[title] == "running" for title in titles), "all run")
    # Both have surveyed since: nobody took another's for a dead one.
    time.sleep(2.5)
    assert all(states(pair.second)[title] == "running" for title in titles)
    assert len(keepers(pair.first)) + len(keepers(pair.second)) == len(titles)
    places = pair.query("SELECT title, place, failures FROM workspaces WHERE title LIKE 'race-%'")
    assert all(place and not failures for _, place, failures in places)
    for title in titles:
        pair.second.operator("workspace", "stop", title)
    assert keepers(pair.first) == keepers(pair.second) == []
    # A second start happens where the storage is.
    for title in titles:
        pair.first.operator("workspace", "start", title)
    again = pair.query("SELECT title, place, failures FROM workspaces WHERE title LIKE 'race-%'")
    assert sorted(again) == sorted(places)
    for title in titles:
        pair.first.operator("workspace", "delete", title)


def test_minted_on_one_and_revoked_on_the_other_a_live_connection_is_cut(
    pair: Pair, laptop: Laptop, record_property: Callable[[str, object], None]
) -> None:
    pair.first.operator("workspace", "create", "cut-box")
    pair.second.operator("workspace", "start", "cut-box")
    bundle = laptop.json("connect", "cut-box", "--wait")
    words = ["ssh", "-F", str(bundle["config"]), "-S", "none", str(bundle["alias"]), "echo up; cat /dev/zero"]
    transfer = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    died: list[float] = []
    try:
        assert transfer.stdout is not None
        assert transfer.stdout.read(3) == b"up\n"

        def drain() -> None:
            while transfer.stdout is not None and transfer.stdout.read(1 << 16):
                pass
            transfer.wait()
            died.append(time.time())

        draining = threading.Thread(target=drain, daemon=True)
        draining.start()
        (session,) = pair.second.operator_json("session", "list", "--workspace", "cut-box")
        pair.second.operator("session", "revoke", str(session["id"]))
        draining.join(10)
        assert died, "the connection through the first server outlived the revocation by the second"
        ((at,),) = pair.query("SELECT at FROM changes WHERE kind = 'session_revoked' ORDER BY id DESC LIMIT 1")
        record_property("cut_ms", round((died[0] - at.timestamp()) * 1000))
        assert transfer.stderr is not None
        assert b"access to this workspace has ended" in transfer.stderr.read()
    finally:
        transfer.kill()
        transfer.wait()


def test_one_server_that_is_killed_takes_nothing_of_the_others_with_it(pair: Pair) -> None:
    places = "SELECT title, place, observed_state FROM workspaces WHERE deleted_at IS NULL ORDER BY id"
    pair.first.operator("workspace", "create", "of-the-second")
    assert pair.first.stop() == 0
    pair.second.operator("workspace", "start", "of-the-second")
    pair.first.start()
    until(lambda: states(pair.first)["cut-box"] == "running", "the first has its own boxes again")
    before = pair.query(places)
    kept = keepers(pair.second)
    assert kept
    pair.second.kill()
    # The first surveys, and a wish for what lives at the second waits for it.
    pair.first.operator("workspace", "create", "meanwhile")
    pair.first.operator("workspace", "start", "meanwhile")
    time.sleep(2.5)
    assert pair.query(places)[: len(before)] == before
    pair.second.start()
    assert keepers(pair.second) == kept, "adopted, not started anew"
    assert states(pair.first)["of-the-second"] == states(pair.second)["meanwhile"] == "running"


def test_the_database_goes_away_for_both_and_comes_back(pair: Pair, cluster: Cluster, laptop: Laptop) -> None:
    """A restart of Postgres: calls fail while it is down, and nobody has to restart a server."""
    # It was started anew meanwhile, on another port.
    laptop.login(pair.first)
    pair.first.operator("workspace", "create", "patient")
    pair.first.operator("workspace", "start", "patient")
    laptop.runcode("connect", "patient", "--wait")
    cluster.kill()
    refused = pair.first.operator("workspace", "list", check=False)
    assert refused.returncode == 1
    assert "database_down" in refused.stderr
    listed = laptop.runcode("list", expect=None)
    assert listed.returncode != 0
    assert b"Traceback" not in listed.stderr
    cluster.start()
    until(lambda: laptop.runcode("list", expect=None).returncode == 0, "the API answers again")
    until(lambda: laptop.runcode("run", "patient", "--", "echo back", expect=None).stdout == b"back\n", "the gateway")
    pair.second.operator("workspace", "stop", "patient")
    assert states(pair.first)["patient"] == "stopped"
    for service in (pair.first, pair.second):
        assert service.process is not None
        assert service.process.poll() is None
        assert "Traceback" not in service.log.read_text()
