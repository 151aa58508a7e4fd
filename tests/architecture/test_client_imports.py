"""The exact set of modules that a hot command loads, beyond what the interpreter itself starts with.

Each one costs 0.1 ms and more, dozens of times a minute; `json`, `argparse` or `re`
cost as much as a whole warm ssh. Whoever adds one here says why.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.client_standin import TITLE, Person, service, signed_in

ENTRY = Path(__file__).resolve().parents[2] / "src" / "runcode" / "cli" / "entry.py"
PYTHON = str(Path(sys.executable).with_name("python3"))
STATE = {
    "runcode",
    "runcode.cli",
    "runcode.cli.hot_state",
    "runcode.client",
    "runcode.client.ownership",
    "runcode.core",
    "runcode.core.digests",
    "_sha256" if sys.version_info < (3, 12) else "_sha2",
}
EXEC = STATE | {
    "runcode.cli.hot_exec",
    "runcode.client.mux",
    "_socket",
    "runcode.core.remote_command",
    "runcode.core.shellwords",
}
STATUSLINE = STATE | {"runcode.cli.hot_statusline", "runcode.cli.statusline_text", "_json"}


@pytest.fixture(scope="module")
def person(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    folder = tmp_path_factory.mktemp("imports")
    with service(folder / "service") as plane, signed_in(folder / "person", plane) as someone:
        someone.runcode("connect", "42", "--wait")
        yield someone


def loaded(person: Person, *words: str, stdin: bytes = b"") -> tuple[set[str], bytes]:
    """(modules that a start of the real entry loads beyond an empty program's, its stdout)."""
    command = [PYTHON, "-X", "importtime", "-I", "-S"]
    options = {"env": person.environment, "cwd": person.project, "capture_output": True, "check": True}
    empty = subprocess.run([*command, "-c", "pass"], **options)
    done = subprocess.run([*command, str(ENTRY), *words], input=stdin, **options)
    return names(done.stderr) - names(empty.stderr), done.stdout


def names(import_times: bytes) -> set[str]:
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", import_times.decode(), re.MULTILINE)) - {
        "package",
        "posix",  # part of every start; importtime lists it where it is first asked for
        "time",
        "_signal",
    }


def test_exec_over_a_live_master(person: Person) -> None:
    modules, stdout = loaded(person, "exec", "--", "echo", "hot")
    assert stdout == b"hot\n"
    assert modules == EXEC


def test_a_session_of_an_agent_loads_no_more(person: Person) -> None:
    person.environment["CLAUDE_CODE_SESSION_ID"] = "0f7a-agent"
    try:
        modules, stdout = loaded(person, "exec", "--home", "--timeout", "30", "--", "echo hot")
    finally:
        del person.environment["CLAUDE_CODE_SESSION_ID"]
    assert stdout == b"hot\n"
    assert modules == EXEC


def test_statusline_with_the_clients_json(person: Person) -> None:
    said = {"session_id": "s", "workspace": {"current_dir": str(person.project)}, "cost": {"total": 0.25}}
    modules, stdout = loaded(person, "statusline", "--plain", stdin=json.dumps(said).encode())
    assert stdout.startswith(b"working-on:")
    assert modules == STATUSLINE


def test_connect_with_a_cached_session(person: Person) -> None:
    for name in ("42", TITLE):
        modules, stdout = loaded(person, "connect", name)
        assert stdout.startswith(f"attached {TITLE} (id 42) for ".encode())
        assert modules == STATE | {"runcode.cli.hot_connect"}


def test_version(person: Person) -> None:
    modules, _ = loaded(person, "--version")
    assert modules == {"runcode", "runcode.cli", "runcode.cli.hot_version"}


def test_what_the_full_command_line_starts_with_stays_cheap(person: Person) -> None:
    """Agents wait for it at every first call; these cost too much for it."""
    modules, _ = loaded(person, "connect", "42", "--json")
    heavy = {"subprocess", "http.client", "ssl", "dataclasses", "typing", "inspect", "hashlib", "email", "socket"}
    assert not heavy & modules
