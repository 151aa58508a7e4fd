"""Bad input to the operator's CLI: one line that says what to do, a non-zero exit, nothing half-made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.service import SERVER, Laptop, running_service


def up(
    data_dir: Path, *options: str, http: str = "127.0.0.1:0", ssh: str = "127.0.0.1:0"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SERVER, "up", "--data-dir", str(data_dir), "--http", http, "--ssh", ssh, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *, code: str, mentions: str) -> None:
    assert done.returncode != 0
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith(f"runcode-server: {code}: "), lines
    assert mentions in lines[0]
    assert "Traceback" not in done.stderr


def test_bad_titles(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        for title in ("-rf", "a b", "x;id", "", "a/b", "é", "42", "a" * 65, "../up", "a\nb"):
            done = service.operator("workspace", "create", "--", title, check=False)
            assert_one_line(done, code="bad_request", mentions="workspace title")
        assert service.operator_json("workspace", "list") == []
        assert_one_line(
            service.operator("workspace", "create", "fine", "--runtime", "no-such", check=False),
            code="bad_request",
            mentions="local",
        )
        service.operator("workspace", "create", "one")
        done = service.operator("workspace", "create", "one", check=False)
        assert_one_line(done, code="conflict", mentions="one")
        assert len(service.operator_json("workspace", "list")) == 1


def test_a_second_server_on_the_same_folder(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        assert service.process is not None
        assert_one_line(up(service.data_dir), code="busy", mentions=str(service.process.pid))
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(service)


@pytest.mark.parametrize("which", ["http", "ssh"])
def test_a_port_in_use_makes_nothing(which: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = up(tmp_path / "data", **{which: address})
        assert_one_line(done, code="io_error", mentions=address)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("http", "nonsense"), ("http", "127.0.0.1:99999"), ("ssh", ":::"), ("ssh", "0.0.0.0"), ("http", "-x:1")],
)
def test_a_bad_address(option: str, value: str, tmp_path: Path) -> None:
    assert_one_line(up(tmp_path / "data", **{option: value}), code="usage", mentions=f"--{option}")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("damage", ["zeroed", "truncated", "garbage", "another program's"])
def test_a_corrupt_database_is_left_as_it_was(damage: str, tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        service.operator("workspace", "create", "precious")
    database = service.data_dir / "runcode.db"
    whole = database.read_bytes()
    if damage == "zeroed":
        database.write_bytes(bytes(len(whole)))
    elif damage == "truncated":
        database.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbage":
        database.write_bytes(os.urandom(len(whole)))
    else:
        database.write_bytes(b"%PDF-1.7\n" + whole[9:])
    damaged = database.read_bytes()
    done = up(service.data_dir)
    assert_one_line(done, code="io_error", mentions=str(database))
    assert database.read_bytes() == damaged
    verb = service.operator("workspace", "list", check=False)
    assert_one_line(verb, code="io_error", mentions=str(database))
    # With the backup restored, everything is back.
    database.write_bytes(whole)
    assert service.start().operator_json("workspace", "list")[0]["title"] == "precious"
    service.stop()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB (root only: it is mounted)."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root_only
def test_a_full_disk_at_the_first_start_leaves_nothing(tiny_disk: Path) -> None:
    done = up(tiny_disk / "data")
    assert_one_line(done, code="io_error", mentions="full")
    assert list(tiny_disk.iterdir()) == []


@pytest.mark.root_only
def test_a_disk_that_fills_up_during_the_first_start_leaves_nothing(
    tiny_disk: Path,
) -> None:
    """Past the check for free space: every write may be the one that fails."""
    for size in ("8k", "40k", "96k", "160k"):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(tiny_disk)], check=True)
        done = up(tiny_disk / "data", "--min-free-bytes", "0")
        assert_one_line(done, code="io_error", mentions="space")
        assert list(tiny_disk.iterdir()) == [], size


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("years of work")
    assert_one_line(up(tmp_path / "data"), code="io_error", mentions="thesis.txt")
    assert (tmp_path / "data" / "thesis.txt").read_text() == "years of work"


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    assert_one_line(up(tmp_path / "data"), code="io_error", mentions="not a folder")


def test_a_lost_marker_never_costs_the_database(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        service.operator("workspace", "create", "precious")
    (service.data_dir / "server.json").unlink()
    assert_one_line(up(service.data_dir), code="io_error", mentions="server.json")
    assert b"precious" in (service.data_dir / "runcode.db").read_bytes()


def test_an_interrupted_first_start_is_a_first_start_again(tmp_path: Path) -> None:
    """As kill -9 between two renames leaves it: some pieces in place, the staging folder still there."""
    with running_service(tmp_path) as service:
        pass
    data = service.data_dir
    (data / "server.json").unlink()
    (data / ".first-start-0badcafe").mkdir()
    shutil.rmtree(data / "runtimes")
    service.start()
    assert service.facts["token"]
    service.stop()
    assert not list(data.glob(".first-start-*"))


def test_verbs_without_a_data_folder(tmp_path: Path) -> None:
    for verb in (["workspace", "list"], ["token", "list"], ["user", "list"]):
        done = subprocess.run(
            [SERVER, *verb, "--data-dir", str(tmp_path / "none")], capture_output=True, text=True, check=False
        )
        assert_one_line(done, code="not_found", mentions="runcode-server up")
    assert not (tmp_path / "none").exists()


def test_errors_as_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [SERVER, "workspace", "list", "--json", "--data-dir", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    error = json.loads(done.stdout)
    assert error["error"] == "not_found"
    assert set(error) == {"error", "message", "resolution"}


def test_without_an_ssh_endpoint_connect_says_so(tmp_path: Path) -> None:
    with running_service(tmp_path, ssh="off") as service:
        assert service.facts["ssh_host"] is None
        service.operator("workspace", "create", "closed")
        service.operator("workspace", "start", "closed")
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(service)
        error = laptop.json("connect", "closed", expect=1)
        assert error["error"] == "unavailable"


def test_the_ready_file_is_private_and_secrets_come_once(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        assert oct(service.ready_file.stat().st_mode)[-3:] == "600"
        assert {"api_base", "web_base", "ssh_host", "ssh_port", "admin_email", "admin_password", "token"} == set(
            service.facts
        )
        raw = b"".join(file.read_bytes() for file in service.data_dir.glob("runcode.db*"))
        assert service.facts["token"].encode() not in raw
        assert service.facts["admin_password"].encode() not in raw
        assert service.facts["token"] not in service.log.read_text()
        assert service.stop() == 0
        service.start()
        assert set(service.facts) == {"api_base", "web_base", "ssh_host", "ssh_port"}


def test_without_the_services_packages_it_says_how_to_install_them(tmp_path: Path) -> None:
    """The plain distribution is the client: `runcode-server` is there, and its packages are not."""
    source = Path(__file__).resolve().parents[2] / "src"
    program = f"import sys; sys.path.insert(0, {str(source)!r}); from runcode.server.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, "up", "--data-dir", str(tmp_path / "data")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert_one_line(done, code="missing_program", mentions="pip install")
    assert not (tmp_path / "data").exists()
