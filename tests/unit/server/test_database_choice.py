"""How an operator names a Postgres database: precedence, and no password where others read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runcode.controlplane.store.location import parse_database_url
from runcode.core.errors import RunCodeError
from runcode.server.database_choice import VARIABLE, find_named_database

SECRET = "postgresql://ann:hunter2@db.example.net/runcode"
OPEN = "postgresql://ann@db.example.net:6432/runcode"


def test_nothing_named_is_nothing() -> None:
    assert find_named_database(None, None, {}) is None
    assert find_named_database(None, None, {VARIABLE: ""}) is None


def test_the_variable_is_taken_out_of_the_environment_whatever_wins(tmp_path: Path) -> None:
    (tmp_path / "url").write_text(SECRET + "\n")
    for url, file, shown in (
        (None, None, "db.example.net:5432/other"),
        (OPEN, None, "db.example.net:6432/runcode"),
        (None, str(tmp_path / "url"), "db.example.net:5432/runcode"),
    ):
        environment = {VARIABLE: SECRET.replace("/runcode", "/other"), "HOME": "/root"}
        found = find_named_database(url, file, environment)
        assert found is not None
        assert found.shown == shown
        assert environment == {"HOME": "/root"}


@pytest.mark.parametrize("url", [SECRET, OPEN + "?password=hunter2", OPEN + "?sslpassword=hunter2"])
def test_a_password_in_an_argument_is_refused(url: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        find_named_database(url, None, {})
    assert caught.value.code == "usage"
    assert "hunter2" not in caught.value.message + caught.value.resolution


def test_two_names_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(RunCodeError) as caught:
        find_named_database(OPEN, str(tmp_path / "url"), {})
    assert caught.value.code == "usage"


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", SECRET.encode() + b"\n" + SECRET.encode(), b"\xff" * 9])
def test_a_file_that_holds_no_url_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "url").write_bytes(content)
    with pytest.raises(RunCodeError) as caught:
        find_named_database(None, str(tmp_path / "url"), {})
    assert caught.value.code in ("usage", "io_error")
    assert "hunter2" not in caught.value.message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunCodeError) as caught:
        find_named_database(None, str(tmp_path / "none"), {})
    assert caught.value.code == "io_error"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://ann:hunter2@h/db", "h:5432/db"),
        ("postgresql://ann:hunter2@a:1,b:2/db?target_session_attrs=read-write", "a:1,b:2/db"),
        ("postgresql://a,b/db", "a:5432,b:5432/db"),
        ("postgresql:///db?host=/run/postgresql&user=ann&password=hunter2", "/run/postgresql/db"),
        ("postgresql://[2001:db8::1]:5433/db", "2001:db8::1:5433/db"),
    ],
)
def test_what_is_shown_names_the_server_and_nothing_secret(url: str, shown: str) -> None:
    found = parse_database_url(url)
    assert found.shown == shown
    assert "hunter2" not in repr(found)
    assert found.has_password == ("hunter2" in url)
