"""The verbs for 3 am, on the real server: what is stuck and why, the database itself, on both products."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from runcode.controlplane.store import migrate
from support.frozen_schemas import go_back
from support.postgres import Cluster
from support.service import Service, processes_mentioning


@pytest.fixture(scope="module", params=["SQLite", "Postgres"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres: Cluster
) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("repairs")
    options: tuple[str, ...] = ()
    if request.param == "Postgres":
        (folder / "url").touch(mode=0o600)
        (folder / "url").write_text(postgres.make_database(empty=True).conninfo)
        options = ("--database-file", str(folder / "url"))
    made = Service(folder, options=options)
    try:
        made.start()
        made.operator("workspace", "create", "box")
        made.operator("workspace", "start", "box")
        yield made
    finally:
        if made.process is not None and made.process.poll() is None:
            made.stop()


def test_show_tells_what_the_reconciler_knows(service: Service) -> None:
    shown = service.operator_json("workspace", "show", "box")
    assert (shown["state"], shown["desired_state"], shown["failures"]) == ("running", "running", 0)
    assert shown["place_is_here"] is True
    assert shown["lease_owner"] is None
    assert [checkpoint["step"] for checkpoint in shown["checkpoints"]]
    text = service.operator("workspace", "show", "box").stdout
    assert "checkpoints" in text
    assert "place_is_here" in text
    refused = service.operator("workspace", "show", "nothing", check=False)
    assert (refused.returncode, "not_found" in refused.stderr) == (1, True)


def test_a_retry_brings_back_what_died_again_and_again(service: Service) -> None:
    """Killed twice in a row, a box waits; a retry does not."""
    for _ in range(2):
        for pid in processes_mentioning(str(service.data_dir / "runtimes")):
            os.kill(pid, 9)
        service.operator("workspace", "retry", "box")
        service.operator("workspace", "start", "box")
    assert service.operator_json("workspace", "show", "box")["state"] == "running"


def test_leases_lists_who_works_on_what(service: Service) -> None:
    assert service.operator_json("leases") == []
    assert service.operator("leases").stdout.startswith("ID")


def test_status_tells_which_database_and_what_is_in_it(service: Service) -> None:
    status = service.operator_json("database", "status")
    assert status["product"] in ("SQLite", "Postgres")
    assert status["schema"] == migrate.SCHEMA_HEAD
    assert status["rows"]["workspaces"] == 1
    assert status["bytes"] > 0
    assert service.process is not None
    assert status["server_pid"] == service.process.pid
    if status["product"] == "Postgres":
        assert status["followers"] == 2, "the gateway's and the reconciler's"
    text = service.operator("database", "status").stdout
    assert "rows of workspaces" in text


def test_check_and_vacuum_run_beside_the_server(service: Service) -> None:
    assert service.operator_json("database", "check") == {"ok": True}
    answer = service.operator_json("database", "vacuum")
    assert answer["bytes_after"] > 0
    assert service.operator_json("database", "check") == {"ok": True}
    assert service.operator_json("workspace", "list")[0]["state"] == "running"


def test_an_upgrade_waits_for_the_server_to_be_stopped(service: Service) -> None:
    refused = service.operator("database", "upgrade", check=False)
    assert (refused.returncode, "busy" in refused.stderr) == (1, True)


def test_an_older_schema_is_upgraded_without_serving(tmp_path: Path) -> None:
    service = Service(tmp_path).start()
    service.operator("workspace", "create", "box")
    service.stop()
    go_back(service.data_dir / "runcode.db", "0001")
    refused = service.operator("workspace", "list", check=False)
    assert "older RunCode" in refused.stderr
    assert service.operator_json("database", "upgrade")["schema"] == migrate.SCHEMA_HEAD
    assert [row["title"] for row in service.operator_json("workspace", "list")] == ["box"]
    assert (service.data_dir / "runcode.db.schema-0001").is_file()


def test_what_is_not_whole_is_named(tmp_path: Path) -> None:
    service = Service(tmp_path).start()
    service.stop()
    connection = sqlite3.connect(service.data_dir / "runcode.db", isolation_level=None)
    connection.execute("PRAGMA foreign_keys = OFF")
    share = (99, 1, "use", "2026-01-01 00:00:00.000000")
    connection.execute("INSERT INTO shares (workspace_id, user_id, role, created_at) VALUES (?, ?, ?, ?)", share)
    connection.execute("UPDATE sqlite_sequence SET seq = 0 WHERE name = 'users'")
    connection.close()
    found = service.operator("database", "check", check=False)
    assert found.returncode == 1
    assert "refers to nothing in workspaces" in found.stderr
    assert "users would give out an id again" in found.stderr
