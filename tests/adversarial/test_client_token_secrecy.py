"""The API token stands in one 0600 file and in a header to its own server, and nowhere else.

Others see command lines in `ps`, an agent keeps what a command printed, and ssh
hands its environment on: none of them ever holds the token.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from runcode.cli.main import COMMANDS, main
from runcode.cli.output import Output
from runcode.client.api import Api
from support.client_standin import BARE_PATH, TOKEN, ControlPlane, Person, service, signed_in


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        yield someone


def plant_witnesses(folder: Path, record: Path) -> None:
    """`ssh` and `ssh-keygen` that write down what they were given, then become the real ones."""
    folder.mkdir()
    for name in ("ssh", "ssh-keygen"):
        real = shutil.which(name, path=BARE_PATH)
        assert real is not None
        (folder / name).write_text(f'#!/bin/sh\n{{ printf "%s\\n" "$0 $*"; env; }} >>{record}\nexec {real} "$@"\n')
        (folder / name).chmod(0o755)


def test_it_reaches_no_program_no_address_no_file_and_no_terminal(
    person: Person, plane: ControlPlane, tmp_path: Path
) -> None:
    record = tmp_path / "record"
    plant_witnesses(tmp_path / "bin", record)
    given = {"RUNCODE_TOKEN": TOKEN, "PATH": f"{tmp_path}/bin:{BARE_PATH}"}
    (person.project / "file").write_bytes(b"content")
    printed = b""
    for words in (
        ["connect", "42", "--force", "--wait"],
        ["exec", "--tty", "--", "env"],
        ["exec", "--", "env; cat /proc/self/environ"],
        ["put", "file", "there"],
        ["get", "there"],
        ["context"],
        ["config-ssh"],
        ["status"],
        ["doctor", "--json"],
        ["exec", "--no-such-option"],
    ):
        done = person.runcode(*words, expect=None, environment=given)
        printed += done.stdout + done.stderr
    assert record.read_text().count("/bin/ssh") >= 3
    assert TOKEN not in record.read_text()
    assert TOKEN.encode() not in printed
    assert not any(TOKEN in path for _, path in plane.requests)
    assert TOKEN not in (plane.sshd.folder / "log").read_text() if plane.sshd else True
    everywhere = [file for file in person.home.rglob("*") if file.is_file()]
    assert [str(file) for file in everywhere if TOKEN.encode() in file.read_bytes()] == [
        str(person.home / ".config" / "runcode" / "token")
    ]


def test_as_an_option_it_works_warns_and_is_in_no_help(person: Person, plane: ControlPlane) -> None:
    person.runcode("logout")
    done = person.runcode("list", "--token", TOKEN, "--api-base", plane.base)
    assert b"warning: `--token` is visible to others" in done.stderr
    assert TOKEN.encode() not in done.stdout + done.stderr
    for command in COMMANDS:
        assert not re.search(rb"--token(?!-file)", person.runcode(command, "--help").stdout), command


@pytest.mark.parametrize("words", [["login", TOKEN], ["login", "--paste", TOKEN], ["login", "--json", TOKEN]])
def test_pasted_in_the_wrong_place_it_is_not_repeated(words: list[str], person: Person) -> None:
    done = person.runcode(*words, expect=2)
    told = done.stdout + done.stderr
    assert TOKEN.encode() not in told
    assert b"runcode login --paste" in told


@pytest.mark.parametrize("answer", [400, 401, 403, 500])
def test_a_server_that_sends_it_back_in_an_error_is_the_only_one_who_says_it(
    answer: int, person: Person, plane: ControlPlane
) -> None:
    """Our own words hold none of it; a refusal without words says the status."""
    plane.overrides["/api/rc/workspaces"] = (answer, {}, b"{}")
    done = person.runcode("list", expect=1)
    assert TOKEN.encode() not in done.stdout + done.stderr
    assert str(answer).encode() in done.stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_an_unexpected_failure_shows_no_raw_text_and_its_record_no_token(
    as_json: bool, person: Person, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_api: Api) -> None:
        raise RuntimeError(f"header Authorization: Token {TOKEN}\x1b[2J")

    monkeypatch.setattr(Api, "list_workspaces", fail)
    stdout, stderr = io.BytesIO(), io.BytesIO()
    words = ["runcode", "list", *(["--json"] if as_json else [])]
    assert main(words, person.environment, Output(stdout, stderr)) == 1
    told = (stdout.getvalue() + stderr.getvalue()).decode()
    assert "internal" in told
    for secret in (TOKEN, "RuntimeError", "Traceback", "Authorization", "\x1b"):
        assert secret not in told
    (log,) = (person.cache / "errors").iterdir()
    assert str(log) in told
    assert log.stat().st_mode & 0o777 == 0o600
    text = log.read_text()
    assert "RuntimeError" in text
    assert TOKEN not in text
    assert "[token]" in text


def test_a_project_cannot_bring_its_own_ssh(person: Person, plane: ControlPlane, tmp_path: Path) -> None:
    """A repository's folder on PATH as `.` or `bin`: what is in it is not run with the person's session."""
    for folder in (person.project, person.project / "bin"):
        folder.mkdir(exist_ok=True)
        for name in ("ssh", "ssh-keygen"):
            (folder / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
            (folder / name).chmod(0o755)
    given = {"PATH": f".:bin::{BARE_PATH}"}
    person.runcode("connect", "42", "--force", "--wait", environment=given)
    assert person.runcode("exec", "--tty", "--", "echo in", environment=given).stdout.strip() == b"in"
    assert not os.path.exists(tmp_path / "ran")
