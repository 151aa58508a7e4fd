"""`runcode history` and `runcode-server audit` with the real service: what was run is told, masked, and verified."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.service import Laptop, Service

SOON_S = 60.0
SECRET = "Zq7hT9xLp2VbN4mKw8Rd"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rch") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder / "s").start()
    try:
        running.operator("workspace", "create", "royal-1")
        running.operator("workspace", "start", "royal-1")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def laptop(folder: Path, service: Service) -> Laptop:
    laptop = Laptop(folder / "h")
    laptop.login(service)
    laptop.runcode("connect", "royal-1")
    laptop.runcode("exec", "--", f"export API_TOKEN={SECRET}; printf '\\033]0;x\\007'; exit 3", expect=3)
    laptop.runcode("exec", "--", "true")
    return laptop


def commands(laptop: Laptop, *words: str) -> list[dict[str, Any]]:
    """Events come in within a second."""
    deadline = time.monotonic() + SOON_S
    while True:
        told: list[dict[str, Any]] = laptop.json("history", *words)
        found = [record for record in told if record["kind"] == "command"]
        if len(found) >= 2 and all(record["ended_at"] for record in found):
            return found
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def test_what_was_run_is_told_newest_first_without_its_secret(service: Service, laptop: Laptop) -> None:
    newest, before = commands(laptop)
    assert (newest["command"], newest["exit_status"]) == ("runcode exec -- true", 0)
    assert (before["exit_status"], before["masked"], before["email"]) == (3, 1, "admin@localhost")
    assert "API_TOKEN=[masked]" in before["command"]
    assert before["session_id"] is not None
    assert before["client"]
    text = laptop.runcode("history", "royal-1", "--limit", "20").stdout.decode()
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "exit 3" in text
    of_session = commands(laptop, "--session", str(before["session_id"]), "--since", "1h", "--kind", "command")
    assert {record["id"] for record in of_session} == {newest["id"], before["id"]}
    assert len(laptop.json("history", "--limit", "1")) == 1
    assert {record["kind"] for record in laptop.json("history", "--mine")} >= {"token_created", "command"}
    for row in sqlite3.connect(service.data_dir / "runcode.db").execute("SELECT detail FROM events"):
        assert SECRET not in row[0]


def test_the_audit_is_whole_is_exported_and_tells_of_an_edit(service: Service, laptop: Laptop) -> None:
    commands(laptop)
    whole = service.operator_json("audit", "verify")
    assert (whole["ok"], whole["findings"], whole["first"]) == (True, [], 1)
    assert whole["checkpoints"] >= 1
    exported = [json.loads(line) for line in service.operator("audit", "export").stdout.splitlines()]
    assert [record["id"] for record in exported] == list(range(1, len(exported) + 1))
    assert len(exported) >= whole["last"]
    assert service.operator("audit", "export", "--after", str(len(exported))).stdout == ""
    connection = sqlite3.connect(service.data_dir / "runcode.db", timeout=30)
    with connection:
        connection.execute("UPDATE events SET user_id = 99 WHERE id = 2")
    connection.close()
    done = service.operator("audit", "verify", check=False)
    assert done.returncode == 1
    assert "edited: record 2 was changed" in done.stdout
    assert "compare them with your backups" in done.stdout
