"""The data folder's edges: moved, read-only, full, shared by two, newer, foreign, open to others, somebody else's.

Each has a defined behaviour: one line with a stable code that says what to do, and
nothing lost; where the cause goes away while the server runs, it recovers without help.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.service import SERVER, Laptop, Service, processes_mentioning, running_service

TITLE = "edge-box"


def up(data_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to fail."""
    return subprocess.run(
        [SERVER, "up", "--data-dir", str(data_dir), "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: str, *mentions: str) -> None:
    """One line: code, what, and what to do."""
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"runcode-server: {code}: "), lines
    assert lines[0].endswith(")"), lines
    for words in mentions:
        assert words in lines[0]


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def row(service: Service) -> dict[str, str]:
    found: dict[str, str] = service.operator_json("workspace", "list")[0]
    return found


@pytest.fixture
def attached(tmp_path: Path) -> Iterator[tuple[Service, Laptop]]:
    with running_service(tmp_path / "service") as service:
        service.operator("workspace", "create", TITLE)
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(service)
        laptop.runcode("connect", TITLE, "--start", "--wait")
        yield service, laptop


# ------------------------------------------------------------------ moved


def test_a_folder_moved_between_two_runs(attached: tuple[Service, Laptop], tmp_path: Path) -> None:
    service, laptop = attached
    laptop.runcode("exec", "--", "echo kept > file")
    before = service.data_dir
    assert service.stop() == 0
    service.data_dir = tmp_path / ("far" * 30) / "moved"
    service.data_dir.parent.mkdir()
    before.rename(service.data_dir)
    service.start()
    wait_for(lambda: row(service)["state"] == "running", "what ran comes back, at its new place")
    assert str(service.data_dir) in row(service)["endpoint"]
    laptop.login(service)
    laptop.runcode("connect", TITLE, "--wait", "--force")
    assert laptop.runcode("exec", "--", "cat file").stdout == b"kept\n"
    assert not before.exists(), "nothing was made anew where it was"


def test_a_folder_moved_while_its_boxes_were_kept(tmp_path: Path) -> None:
    service = Service(tmp_path / "service", options=("--keep-workspaces",))
    laptop = Laptop(tmp_path / "laptop")
    try:
        service.start()
        service.operator("workspace", "create", TITLE)
        laptop.login(service)
        laptop.runcode("connect", TITLE, "--start", "--wait")
        laptop.runcode("exec", "--", "setsid -f sh -c 'while :; do echo x >> ticks; sleep 0.1; done' >/dev/null 2>&1")
        born = laptop.runcode("exec", "--", "stat -c %Y /proc/1; cat /proc/1/stat | cut -d ' ' -f 22").stdout
        assert service.stop() == 0
        before, service.data_dir = service.data_dir, tmp_path / "elsewhere"
        before.rename(service.data_dir)
        service.start()
        assert row(service)["state"] == "running", "adopted before the server says that it is ready"
        assert str(service.data_dir) in row(service)["endpoint"]
        laptop.login(service)
        laptop.runcode("connect", TITLE, "--wait", "--force")
        seen = laptop.runcode("exec", "--", "stat -c %Y /proc/1; cat /proc/1/stat | cut -d ' ' -f 22").stdout
        assert seen == born, "the very same box"
        laptop.runcode("exec", "--", "n=$(wc -l < ticks); sleep 1; test $(wc -l < ticks) -gt $n")
        service.operator("workspace", "delete", TITLE)
    finally:
        # Without --keep-workspaces this time: whatever is left ends.
        service.kill()
        service.options = ()
        service.start()
        assert service.stop() == 0
    assert processes_mentioning(str(tmp_path)) == []


# ------------------------------------------------------------------ two servers


def test_a_second_server_is_refused_by_any_path_to_the_folder(attached: tuple[Service, Laptop], tmp_path: Path) -> None:
    service, laptop = attached
    assert service.process is not None
    (tmp_path / "link").symlink_to(service.data_dir)
    for path in (service.data_dir, tmp_path / "link", service.data_dir / ".." / service.data_dir.name):
        assert_refused(up(path), "busy", str(service.process.pid), "stop that server first")
    laptop.runcode("exec", "--", "true")
    assert row(service)["state"] == "running"


def test_two_servers_that_start_at_the_same_moment(tmp_path: Path) -> None:
    """On an empty folder: one makes it and serves, the other is told who was first."""
    services = [Service(tmp_path / name) for name in ("one", "two")]
    for service in services:
        service.data_dir = tmp_path / "data"
    outcomes: dict[int, str] = {}

    def start(number: int) -> None:
        try:
            services[number].start()
            outcomes[number] = "serves"
        except AssertionError:
            outcomes[number] = services[number].log.read_text()

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    (winner,) = [number for number, outcome in outcomes.items() if outcome == "serves"]
    assert "runcode-server: busy: " in outcomes[1 - winner]
    assert services[winner].operator_json("user", "list")[0]["email"] == "admin@localhost"
    assert services[winner].stop() == 0


# ------------------------------------------------------------------ newer, foreign


def test_a_newer_database_is_left_to_the_newer_version(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        service.operator("workspace", "create", TITLE)
    database = service.data_dir / "runcode.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (known,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    as_it_was = database.read_bytes()
    assert_refused(up(service.data_dir), "io_error", "newer RunCode", "run that newer version")
    assert_refused(service.operator("workspace", "list", check=False), "io_error", "newer RunCode")
    assert database.read_bytes() == as_it_was
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (known,))
        connection.commit()
    assert service.start().operator_json("workspace", "list")[0]["title"] == TITLE
    assert service.stop() == 0


def test_a_newer_folder_is_left_to_the_newer_version(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        pass
    marker = service.data_dir / "server.json"
    marker.write_text(json.dumps({"format": 2}))
    assert_refused(up(service.data_dir), "io_error", "format 2", "run the version that wrote it")
    assert json.loads(marker.read_text()) == {"format": 2}


def test_foreign_files_beside_ours_are_left_alone(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        pass
    (service.data_dir / "notes.txt").write_text("the operator's own")
    (service.data_dir / "runtimes" / "local" / "workspaces" / "not-a-number").mkdir(parents=True)
    service.start()
    service.operator("workspace", "create", TITLE)
    service.operator("workspace", "start", TITLE)
    service.operator("workspace", "delete", TITLE)
    assert service.stop() == 0
    assert (service.data_dir / "notes.txt").read_text() == "the operator's own"
    assert (service.data_dir / "runtimes" / "local" / "workspaces" / "not-a-number").is_dir()


# ------------------------------------------------------------------ owner and permissions


@pytest.mark.parametrize(
    ("name", "mode", "mended"),
    [
        (".", 0o777, "chmod go-w"),
        (".", 0o770, "chmod go-w"),
        ("keys", 0o755, "chmod go-rwx"),
        ("keys/gateway_host_ed25519", 0o640, "chmod go-rwx"),
        ("keys/workspace_ca", 0o604, "0600"),
        ("runcode.db", 0o644, "chmod go-rwx"),
        ("server.json", 0o666, "chmod go-w"),
    ],
)
def test_what_others_may_touch_is_refused_with_its_fix(name: str, mode: int, mended: str, tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        pass
    target = service.data_dir / name
    private = target.stat().st_mode & 0o777
    target.chmod(mode)
    assert_refused(up(service.data_dir), "unsafe_path", mended, str(target.resolve()))
    assert_refused(service.operator("user", "list", check=False), "unsafe_path", mended)
    target.chmod(private)
    service.start()
    assert service.stop() == 0


def test_an_empty_folder_of_ours_is_made_private_at_the_first_start(tmp_path: Path) -> None:
    service = Service(tmp_path)
    service.data_dir.mkdir()
    service.data_dir.chmod(0o775)
    service.start()
    assert service.data_dir.stat().st_mode & 0o777 == 0o700
    assert service.stop() == 0


@pytest.mark.root_only
def test_somebody_elses_folder_is_refused_even_by_root(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        pass
    os.chown(service.data_dir, 1_800_000_001, -1)
    for done in (up(service.data_dir), service.operator("user", "list", check=False)):
        assert_refused(done, "unsafe_path", "belongs to another user (uid 1800000001)", "run this as that user")
    (tmp_path / "empty").mkdir()
    os.chown(tmp_path / "empty", 1_800_000_001, -1)
    assert_refused(up(tmp_path / "empty"), "unsafe_path", "belongs to another user")
    assert list((tmp_path / "empty").iterdir()) == []
    os.chown(service.data_dir, 0, -1)
    os.chown(service.data_dir / "runcode.db", 1_800_000_001, -1)
    assert_refused(up(service.data_dir), "unsafe_path", "runcode.db")


@pytest.mark.root_only
def test_a_database_that_somebody_swapped_for_a_link_is_refused(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        pass
    database = service.data_dir / "runcode.db"
    database.rename(tmp_path / "theirs.db")
    database.symlink_to(tmp_path / "theirs.db")
    assert_refused(up(service.data_dir), "unsafe_path", "is a link")


# ------------------------------------------------------------------ read-only


@pytest.fixture
def read_only_mount(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    mounted: list[Path] = []

    def mount(path: Path) -> None:
        subprocess.run(["mount", "--bind", str(path), str(path)], check=True)
        mounted.append(path)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=False, capture_output=True)


@pytest.mark.root_only
def test_a_read_only_disk(tmp_path: Path, read_only_mount: Callable[[Path], None]) -> None:
    with running_service(tmp_path) as service:
        service.operator("workspace", "create", TITLE)
    read_only_mount(service.data_dir)
    assert_refused(up(service.data_dir), "io_error", "read-only file system", "writable folder")
    # The operator's verbs, too, say so before anything is half done.
    assert_refused(service.operator("workspace", "create", "more", check=False), "io_error", "write")
    subprocess.run(["umount", str(service.data_dir)], check=True)
    assert [box["title"] for box in service.start().operator_json("workspace", "list")] == [TITLE]
    assert service.stop() == 0
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    read_only_mount(fresh)
    assert_refused(up(fresh), "io_error", "read-only file system")
    assert_refused(up(fresh / "below"), "io_error", "read-only file system")


# ------------------------------------------------------------------ full


class Disk:
    """A small file system that a test fills and frees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ballast = folder / "ballast"

    def fill(self) -> None:
        with contextlib.suppress(OSError), self.ballast.open("ab", buffering=0) as file:
            for chunk in (64 * 1024, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(chunk))

    def free(self) -> None:
        self.ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root_only
def test_a_disk_that_fills_up_while_the_server_runs(disk: Disk, tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    service.data_dir = disk.folder / "data"
    laptop = Laptop(tmp_path / "laptop")
    try:
        service.start()
        for title in (TITLE, "late-box"):
            service.operator("workspace", "create", title)
        laptop.login(service)
        laptop.runcode("connect", TITLE, "--start", "--wait")
        (laptop.project / "old").write_bytes(b"old" * 1000)
        (laptop.project / "big").write_bytes(os.urandom(3_000_000))
        laptop.runcode("put", "old", "file")
        disk.fill()

        # A file: nothing half-written under its name, and the client says why.
        done = laptop.runcode("put", "big", "file", expect=None)
        assert done.returncode not in (0, None)
        assert b"runcode: " in done.stderr
        assert b"space" in done.stderr.lower(), done.stderr
        assert laptop.runcode("exec", "--", "cat file").stdout == b"old" * 1000
        # A command that works without the disk goes on working.
        assert laptop.runcode("exec", "--", "echo fine").stdout == b"fine\n"

        # The database: the wish is refused as a whole, with the reason. Reading goes on.
        refused = service.operator("workspace", "create", "x" * 40, "--custom-title", "y" * 100, check=False)
        if refused.returncode != 0:
            assert_refused(refused, "io_error", "space", "free some space")
        states = {box["title"]: box["state"] for box in service.operator_json("workspace", "list")}
        assert states[TITLE] == "running"

        # A start: it fails, says so, leaves nothing half-way, and is done without help once there is space.
        asked = service.operator("workspace", "start", "late-box", check=False)
        assert asked.returncode != 0
        assert "space" in asked.stderr or "full" in asked.stderr, asked.stderr
        disk.free()
        if "start_failed" not in asked.stderr:
            # The wish itself found no room in the database, and the operator was told to ask again.
            service.operator("workspace", "start", "late-box")
        wait_for(
            lambda: {box["state"] for box in service.operator_json("workspace", "list")} == {"running"},
            "the server recovers by itself",
        )
        laptop.runcode("put", "big", "file")
        assert laptop.runcode("get", "file").stdout == (laptop.project / "big").read_bytes()
        service.operator("workspace", "create", "and-after")
        assert service.process is not None
        assert service.process.poll() is None
        assert "Traceback" not in service.log.read_text()
    finally:
        with contextlib.suppress(OSError):
            disk.free()
        service.stop()


@pytest.mark.root_only
def test_a_server_that_starts_on_a_full_disk(disk: Disk, tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    service.data_dir = disk.folder / "data"
    service.start()
    service.operator("workspace", "create", TITLE)
    assert service.stop() == 0
    disk.fill()
    done = up(service.data_dir)
    assert done.returncode != 0
    assert_refused(done, "io_error", "free")
    disk.free()
    assert service.start().operator_json("workspace", "list")[0]["title"] == TITLE
    assert service.stop() == 0


@pytest.mark.root_only
def test_a_folder_copied_to_a_fuller_disk_is_whole_or_refused(disk: Disk, tmp_path: Path) -> None:
    """A restore that ran out of space: a database cut short is named, not served."""
    with running_service(tmp_path) as service:
        service.operator("workspace", "create", TITLE)
    whole = service.data_dir / "runcode.db"
    copy = disk.folder / "data"
    shutil.copytree(service.data_dir, copy)
    (copy / "runcode.db").write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    assert_refused(up(copy), "io_error", "damaged", "backup")
