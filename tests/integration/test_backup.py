"""Backup while the server runs, restore into a new place, and what must be true of the restored server."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.postgres import Cluster
from support.service import SERVER, Laptop, Service

BOB = "bob@example.org"


@pytest.fixture(params=["SQLite", "Postgres"])
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, ...]:
    return () if request.param == "SQLite" else name_database(request.getfixturevalue("postgres"), tmp_path / "url")


def name_database(cluster: Cluster, file: Path) -> tuple[str, ...]:
    url = cluster.make_database(empty=True)
    file.touch(mode=0o600)
    file.write_text(url.conninfo)
    return ("--database-file", str(file))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SERVER, *words], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def services() -> Iterator[list[Service]]:
    made: list[Service] = []
    yield made
    for service in made:
        if service.process is not None and service.process.poll() is None:
            service.stop()


def fill(service: Service, laptop: Laptop) -> dict[str, Any]:
    """People, tokens, workspaces in three states, a session, a share."""
    laptop.login(service)
    service.operator("user", "create", BOB)
    token = service.operator_json("token", "create", "bobs", "--user", BOB)
    for title in ("busy", "quiet", "gone"):
        service.operator("workspace", "create", title)
    service.operator("workspace", "share", "busy", BOB)
    service.operator("workspace", "delete", "gone")
    laptop.runcode("connect", "busy", "--start", "--wait")
    laptop.runcode("exec", "--", "echo kept > file")
    return {"bobs_token": token["token"]}


def test_a_backup_of_a_running_server_restores_a_server_that_serves(
    named: tuple[str, ...], services: list[Service], tmp_path: Path
) -> None:
    service = Service(tmp_path / "a", options=named).start()
    services.append(service)
    laptop = Laptop(tmp_path / "laptop")
    facts = fill(service, laptop)
    file = tmp_path / "backup.rcb"
    answer = service.operator_json("backup", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert answer["bytes"] == file.stat().st_size
    assert "conflict" in service.operator("backup", str(file), check=False).stderr, "nothing is overwritten"
    # What an operator keeps elsewhere.
    checkpoints = shutil.copy(service.data_dir / "audit" / "checkpoints.jsonl", tmp_path / "checkpoints.jsonl")
    # After the copy: these are lost, and must not be confused with what comes next.
    lost = service.operator_json("workspace", "create", "lost")["id"]
    assert service.stop() == 0

    restored = Service(tmp_path / "b")
    services.append(restored)
    where = ("--data-dir", str(restored.data_dir))
    done = run("restore", str(file), *where)
    assert done.returncode == 0, done.stderr
    assert "look at what was taken away since then" in done.stdout
    again = run("restore", str(file), *where)
    assert (again.returncode, "is a data folder already" in again.stderr) == (1, True)
    # The homes are the operator's to bring along.
    shutil.rmtree(restored.data_dir / "runtimes")
    subprocess.run(["cp", "-aT", str(service.data_dir / "runtimes"), str(restored.data_dir / "runtimes")], check=True)
    assert restored.operator_json("session", "list") == [], "no session of before can connect"
    # Before it serves, only checkpoints from elsewhere can vouch; they were signed by the key that came along.
    alone = restored.operator("audit", "verify", check=False)
    assert (alone.returncode, "--checkpoints FILE" in alone.stderr) == (1, True), alone.stderr
    assert restored.operator_json("audit", "verify", "--checkpoints", str(checkpoints))["checkpoints"] > 0
    restored.start()
    assert "token" not in restored.first_facts
    rows = {row["title"]: row["state"] for row in restored.operator_json("workspace", "list")}
    assert rows.keys() == {"busy", "quiet"}
    restored.operator("workspace", "start", "busy")
    assert restored.operator_json("database", "check") == {"ok": True}
    # The same tokens, the same host key, the same boxes.
    bob = Laptop(tmp_path / "bob")
    bob.login(restored, facts["bobs_token"])
    bob.runcode("connect", "busy", "--wait")
    assert bob.runcode("exec", "--", "cat file").stdout == b"kept\n"
    assert restored.operator_json("audit", "verify")["ok"]
    for name in ("gateway_host_ed25519", "client_ca", "workspace_ca", "audit_ed25519", "audit_ed25519.pub"):
        assert (restored.data_dir / "keys" / name).read_bytes() == (service.data_dir / "keys" / name).read_bytes()
    assert restored.operator_json("workspace", "create", "new")["id"] > lost
    assert restored.stop() == 0


def test_from_sqlite_to_postgres_and_back(services: list[Service], postgres: Cluster, tmp_path: Path) -> None:
    """Moving a server is a backup and a restore, since the file belongs to no product."""
    service = Service(tmp_path / "a").start()
    services.append(service)
    service.operator("user", "create", BOB)
    service.operator("workspace", "create", "moves", "--custom-title", "Ünïcode – ”quoted”, 🏠")
    shown = [service.operator_json(*words) for words in (("user", "list"), ("token", "list"), ("workspace", "list"))]
    service.stop()
    for number, named in enumerate((name_database(postgres, tmp_path / "url"), ())):
        file = tmp_path / f"{number}.rcb"
        service.operator("backup", str(file))
        service = Service(tmp_path / f"moved-{number}")
        services.append(service)
        done = run("restore", str(file), "--data-dir", str(service.data_dir), *named)
        assert done.returncode == 0, done.stderr
        assert service.operator_json("database", "status")["product"] == ("Postgres" if named else "SQLite")
        service.start()
        words = (("user", "list"), ("token", "list"), ("workspace", "list"))
        assert [service.operator_json(*each) for each in words] == shown
        assert service.stop() == 0


def test_a_backup_under_load_is_of_one_moment(named: tuple[str, ...], services: list[Service], tmp_path: Path) -> None:
    """Each workspace has its host key and its change in the same transaction: a copy has all three, or none."""
    service = Service(tmp_path / "a", options=named).start()
    services.append(service)
    ending = threading.Event()

    def load() -> None:
        number = 0
        while not ending.is_set():
            number += 1
            service.operator("workspace", "create", f"box-{number}")

    loading = threading.Thread(target=load)
    loading.start()
    try:
        for number in range(2):
            file = tmp_path / f"{number}.rcb"
            service.operator("backup", str(file))
            tables = read_tables(file)
            boxes = {row["id"] for row in tables["workspaces"]}
            assert boxes == {row["workspace_id"] for row in tables["workspace_host_keys"]}
            assert boxes == {row["workspace_id"] for row in tables["changes"] if row["kind"] == "created"}
        assert boxes, "the control: something was being made"
    finally:
        ending.set()
        loading.join()


def read_tables(file: Path) -> dict[str, list[dict[str, Any]]]:
    found = {}
    with tarfile.open(file) as archive:
        for entry in archive:
            if entry.name.startswith("tables/"):
                content = archive.extractfile(entry)
                assert content is not None
                names, *rows = [json.loads(line) for line in content]
                found[entry.name[7:-6]] = [dict(zip(names, row, strict=True)) for row in rows]
    return found


# ------------------------------------------------------------------ files that are not whole


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    service = Service(folder).start()
    service.operator("workspace", "create", "box")
    service.stop()
    service.operator("backup", str(folder / "b.rcb"))
    return folder / "b.rcb"


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w:gz") as new:
        for entry in old:
            content = old.extractfile(entry)
            assert content is not None
            changed = change(entry.name, content.read())
            if changed is not None:
                made = tarfile.TarInfo(changed[0])
                made.size = len(changed[1])
                new.addfile(made, io.BytesIO(changed[1]))


def forge(source: Path, target: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """One member changed, and every checksum made anew: whoever writes the file can do that."""
    sums: dict[str, str] = {}

    def keep(member: str, raw: bytes) -> tuple[str, bytes]:
        if member == "checksums.json":
            return member, json.dumps(sums).encode()
        raw = change(raw) if member == name else raw
        sums[member] = hashlib.sha256(raw).hexdigest()
        return member, raw

    rewrite(source, target, keep)


def put_in_first_row(value: bytes) -> Callable[[bytes], bytes]:
    """In the place of the number with which a table's rows begin."""

    def change(raw: bytes) -> bytes:
        names, row, *rest = raw.split(b"\n")
        return b"\n".join([names, b"[" + value + row[row.index(b",") :], *rest])

    return change


NESTED = b"[" * 100_000 + b"]" * 100_000


def flip(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


HARMS: dict[str, Callable[[Path, Path], object]] = {
    "cut short": lambda s, t: t.write_bytes(s.read_bytes()[:-400]),
    "a flipped bit": lambda s, t: t.write_bytes(flip(s.read_bytes(), s.stat().st_size // 2)),
    "not a backup": lambda s, t: t.write_bytes(os.urandom(5000)),
    "empty": lambda s, t: t.write_bytes(b""),
    "gzip of nothing": lambda s, t: t.write_bytes(gzip.compress(b"")),
    "an edited row": lambda s, t: rewrite(
        s, t, lambda n, raw: (n, raw.replace(b"admin@localhost", b"mallo@localhost"))
    ),
    "a key left out": lambda s, t: rewrite(s, t, lambda n, raw: None if n == "keys/client_ca" else (n, raw)),
    "no checksums": lambda s, t: rewrite(s, t, lambda n, raw: None if n == "checksums.json" else (n, raw)),
    "a path that leads out": lambda s, t: rewrite(
        s, t, lambda n, raw: ("../../evil", raw) if n == "keys/client_ca" else (n, raw)
    ),
    "checksums of nonsense": lambda s, t: rewrite(
        s, t, lambda n, raw: (n, b"{") if n == "checksums.json" else (n, raw)
    ),
    "checksums that nest for ever": lambda s, t: rewrite(
        s, t, lambda n, raw: (n, NESTED) if n == "checksums.json" else (n, raw)
    ),
    "a manifest with a number without end": lambda s, t: forge(
        s, t, "manifest.json", lambda raw: re.sub(rb'"users": [0-9]+', b'"users": 1' + b"0" * 40, raw)
    ),
    "a row that nests for ever": lambda s, t: forge(s, t, "tables/users.jsonl", put_in_first_row(NESTED)),
    "a row with a number without end": lambda s, t: forge(
        s, t, "tables/users.jsonl", put_in_first_row(b"1" + b"0" * 40)
    ),
    "a newer format": lambda s, t: rewrite(s, t, lambda n, raw: (n, raw.replace(b'"format": 1', b'"format": 9'))),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_is_not_a_whole_backup_is_refused_and_leaves_nothing(backup: Path, tmp_path: Path, harm: str) -> None:
    broken = tmp_path / "broken.rcb"
    HARMS[harm](backup, broken)
    data = tmp_path / "deep" / "data"
    done = run("restore", str(broken), "--data-dir", str(data), "--json")
    assert done.returncode == 1, done.stdout
    assert json.loads(done.stdout)["error"] == "io_error"
    assert "Traceback" not in done.stderr
    assert not data.exists()
    assert not list(tmp_path.rglob("evil"))


def test_a_restore_touches_no_database_with_anything_in_it(backup: Path, postgres: Cluster, tmp_path: Path) -> None:
    named = name_database(postgres, tmp_path / "url")
    first = run("restore", str(backup), "--data-dir", str(tmp_path / "one"), *named)
    assert first.returncode == 0, first.stderr
    second = run("restore", str(backup), "--data-dir", str(tmp_path / "two"), *named)
    assert (second.returncode, "is not empty" in second.stderr) == (1, True)
    assert not (tmp_path / "two").exists()


def test_a_restore_needs_an_empty_folder(backup: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x")
    done = run("restore", str(backup), "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, "holds other files" in done.stderr) == (1, True)
    assert sorted(entry.name for entry in (tmp_path / "data").iterdir()) in (["mine"], ["mine", "server.lock"])
