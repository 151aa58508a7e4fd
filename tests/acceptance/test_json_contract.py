"""`--json` is what docs/json-and-exit-codes.md says: every key of every command, and every failure.

The page's tables are read and compared with what the real `runcode` prints
against a stand-in of the service with a real sshd. A key that the page does not
name fails, and so does one that it names and nobody prints.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runcode.cli.arguments import describe_parser
from runcode.cli.main import COMMANDS, load_command
from runcode.core.errors import ERRORS
from support.client_standin import TOKEN, ControlPlane, Person, service, signed_in
from support.service import Laptop, running_service

PAGE = Path(__file__).resolve().parents[2] / "docs" / "json-and-exit-codes.md"
# Their stdout is the remote command's, or ssh's.
# Whose stdout is somebody else's → the status of our own failure.
OWN_STDOUT = {"exec": 255, "run": 255, "shell": 255, "proxy": 255, "local": 255, "hook": 2}
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_ROW = re.compile(r"\| `([^`|]+)` \| ([a-z, ]+?) \|[^|\n]*\|")


def read_shapes(page: str, part_name: str) -> dict[str, dict[str, set[str]]]:
    """Heading → key's path → names of types; `absent` among them for a key that need not be there."""
    part = page.partition(f"\n## {part_name}\n")[2].partition("\n## ")[0]
    shapes: dict[str, dict[str, set[str]]] = {}
    for section in part.split("\n### ")[1:]:
        name = section.split("\n")[0].strip("`")
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        matched = [_ROW.fullmatch(line) for line in rows]
        assert all(matched), f"{name}: a row that this test cannot read: {rows}"
        shapes[name] = {match[1]: set(re.split(r",? or ", match[2])) for match in matched if match is not None}
        assert shapes[name], name
    return shapes


SHAPES = read_shapes(PAGE.read_text(encoding="utf-8"), "Success, command by command")
SERVER_SHAPES = read_shapes(PAGE.read_text(encoding="utf-8"), "Success of the operator's verbs")


def find_faults(document: object, shape: dict[str, set[str]]) -> list[str]:
    """Every way in which a document is not of the shape that the page shows."""
    faults: list[str] = []
    seen: set[str] = set()
    whole: set[str] = set()

    def look(value: object, path: str) -> None:
        seen.add(path)
        is_container = isinstance(value, dict | list)
        if path in shape:
            if not _names_of_type(value) & shape[path]:
                faults.append(f"{path} is {value!r}, which is not of {sorted(shape[path])}")
        elif not (is_container and any(key.startswith((path + ".", path + "[")) or not path for key in shape)):
            faults.append(f"{path or 'the document'} is not in the table")
        if isinstance(value, dict):
            whole.add(path)
            for name, inner in value.items():
                look(inner, _below(path, "*" if _below(path, "*") in shape else name))
        elif isinstance(value, list):
            for inner in value:
                look(inner, path + "[]")

    look(document, "")
    for key, types in shape.items():
        # Of what may be empty, only the container has to be there.
        named = key[:-2] if key.endswith(("[]", ".*")) else key
        if named not in seen and named.rpartition(".")[0] in whole and "absent" not in types:
            faults.append(f"{key} is missing")
    return faults


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _names_of_type(value: object) -> set[str]:
    if isinstance(value, str):
        return {"string", "time"} if _TIME.fullmatch(value) else {"string"}
    return {
        {bool: "boolean", int: "integer", type(None): "null", dict: "object", list: "array", float: "number"}[
            type(value)
        ]
    }


def takes_json(command: str) -> bool:
    return any("--json" in action.option_strings for action in describe_parser(load_command(command).parse))


# ---------------------------------------------------------------- the documents


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        running.shared = [running.workspace(43, "quiet-lake")]
        yield running


@pytest.fixture(scope="module")
def person(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    with signed_in(tmp_path_factory.mktemp("person"), plane) as someone:
        yield someone


@pytest.fixture
def attached(person: Person, plane: ControlPlane) -> Person:
    plane.states[42] = "running"
    person.runcode("connect", "42")
    return person


Documents = Iterator[Any]


def of_login(person: Person, plane: ControlPlane) -> Documents:
    other = Person(person.home.parent / "of-login")
    try:
        bases = ("--api-base", plane.base, "--web-base", plane.base)
        yield other.json("login", "--paste", *bases, stdin=TOKEN.encode())
    finally:
        shutil.rmtree(other.runtime)


def of_logout(person: Person, plane: ControlPlane) -> Documents:
    other = Person(person.home.parent / "of-logout")
    try:
        other.login(plane)
        first = other.json("logout")
        assert (first["signed_out"], first["revoked"]) == (True, False)
        yield first
        yield other.json("logout")
    finally:
        shutil.rmtree(other.runtime)


def of_list(person: Person, plane: ControlPlane) -> Documents:
    listed = person.json("list")
    assert [one["shared"] for one in listed] == [False, True]
    yield listed


def of_connect(person: Person, plane: ControlPlane) -> Documents:
    plane.bundle_changes = {"web_url": "https://box.example.net/?tkn=secret"}
    try:
        minted = person.json("connect", "42", "--force")
    finally:
        plane.bundle_changes = {}
    assert (minted["web_url"], minted["reused"]) == ("https://box.example.net", False)
    yield minted
    yield person.json("connect", "42", "--force", "--wait")


def of_current(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("current")
    yield person.json("current", "--workspace", "42")
    person.runcode("clean", "42")
    without = person.json("current")
    assert without["expires_at"] is None
    yield without


def of_status(person: Person, plane: ControlPlane) -> Documents:
    listed = person.json("status")
    assert [row["attached"] for row in listed] == [True]
    yield listed


def of_context(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("context")
    git = ["git", "-C", str(plane.workdir)]
    subprocess.run([*git, "init", "-q"], check=True)
    (plane.workdir / "Makefile").write_text("all:\n")
    try:
        seen = person.json("context", "42")
        assert seen["markers"] == ["Makefile"]
        assert seen["git"]["dirty"] is True
        assert seen["tools"]["git"].endswith("/git")
        yield seen
    finally:
        shutil.rmtree(plane.workdir / ".git")
        (plane.workdir / "Makefile").unlink()


def of_get(person: Person, plane: ControlPlane) -> Documents:
    (plane.workdir / "file").write_bytes(b"content")
    got = person.json("get", "file", "--out", "got")
    assert (got["bytes"], (person.project / "got").read_bytes()) == (7, b"content")
    yield got


def of_get_r(person: Person, plane: ControlPlane) -> Documents:
    (plane.workdir / "folder").mkdir(exist_ok=True)
    (plane.workdir / "folder" / "one").write_bytes(b"1")
    got = person.json("get", "-r", "folder", "--out", "got-folder")
    assert (got["files"], got["bytes"], got["left_out"]) == (1, 1, 0)
    yield got


def of_put(person: Person, plane: ControlPlane) -> Documents:
    (person.project / "file").write_bytes(b"content")
    put = person.json("put", "file", "there")
    assert (put["bytes"], put["continued_at"]) == (7, 0)
    yield put


def of_put_r(person: Person, plane: ControlPlane) -> Documents:
    (person.project / "folder").mkdir(exist_ok=True)
    (person.project / "folder" / "one").write_bytes(b"1")
    yield person.json("put", "-r", "folder", "there-folder")


def of_write(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("write", "made/of/stdin", stdin=b"content")


def of_forward(person: Person, plane: ControlPlane) -> Documents:
    assert plane.sshd is not None
    yield person.json("forward", str(plane.sshd.port), "--to", "127.0.0.1", "--local", str(_free_port()))


def of_forward_list(person: Person, plane: ControlPlane) -> Documents:
    list(of_forward(person, plane))
    listed = person.json("forward", "--list")
    assert listed
    yield listed


def of_forward_cancel(person: Person, plane: ControlPlane) -> Documents:
    list(of_forward(person, plane))
    assert plane.sshd is not None
    ended = person.json("forward", str(plane.sshd.port), "--cancel")
    assert ended["cancelled"]
    yield ended


def of_history(person: Person, plane: ControlPlane) -> Documents:
    told = person.json("history", "42")
    assert [record["command"] for record in told] == ["make test", None]
    yield told


def of_stop(person: Person, plane: ControlPlane) -> Documents:
    stopped = person.json("stop")
    assert stopped == {"stopped": True, "workspace_id": 42, "detached": True}
    yield stopped


def of_disconnect(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("disconnect", "--keep")


def of_clean(person: Person, plane: ControlPlane) -> Documents:
    cleaned = person.json("clean", "42")
    assert cleaned == {"cleaned": [42]}
    yield cleaned


def of_config_ssh(person: Person, plane: ControlPlane) -> Documents:
    plane.shared.append(plane.workspace(44, "quiet-lake"))
    try:
        planned = person.json("config-ssh", "--dry-run")
    finally:
        plane.shared.pop()
    assert planned["hosts"]
    assert planned["skipped"]
    yield planned
    yield person.json("config-ssh")
    yield person.json("config-ssh", "--remove")


def of_install_statusline(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("install-statusline")
    yield person.json("install-statusline", "--remove")


def of_mcp_install(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("mcp", "install", "--client", "zed")
    yield person.json("mcp", "install", "--client", "zed", "--remove")


def of_install_path(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("install-path")
    yield person.json("install-path", "--remove")


def of_doctor(person: Person, plane: ControlPlane) -> Documents:
    yield person.json("doctor")
    failing = person.json("doctor", "--api-base", "http://example.net", expect=1)
    assert failing["ok"] is False
    yield failing


CASES: dict[str, Callable[[Person, ControlPlane], Documents]] = {
    "login": of_login,
    "logout": of_logout,
    "list": of_list,
    "connect": of_connect,
    "current": of_current,
    "status": of_status,
    "context": of_context,
    "get": of_get,
    "get -r": of_get_r,
    "put": of_put,
    "put -r": of_put_r,
    "write": of_write,
    "forward": of_forward,
    "forward --list": of_forward_list,
    "forward --cancel": of_forward_cancel,
    "history": of_history,
    "stop": of_stop,
    "disconnect": of_disconnect,
    "clean": of_clean,
    "config-ssh": of_config_ssh,
    "install-statusline": of_install_statusline,
    "mcp install": of_mcp_install,
    "install-path": of_install_path,
    "doctor": of_doctor,
}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_every_command_with_json_has_its_table_and_is_run_here() -> None:
    with_json = {command for command in COMMANDS if takes_json(command)}
    assert with_json & set(OWN_STDOUT) == set()
    assert {name.split(" ")[0] for name in SHAPES} == with_json
    assert set(SHAPES) == set(CASES)


@pytest.mark.parametrize("name", SHAPES)
def test_success_is_the_table(name: str, attached: Person, plane: ControlPlane) -> None:
    documents = list(CASES[name](attached, plane))
    assert documents
    for document in documents:
        assert find_faults(document, SHAPES[name]) == []


def test_faults_are_found() -> None:
    shape = {"[].id": {"integer"}, "[].git": {"object", "null"}, "[].git.head": {"string"}, "[].names[]": {"string"}}
    good = [{"id": 1, "git": {"head": "a"}, "names": ["x"]}, {"id": 2, "git": None, "names": []}]
    assert find_faults(good, shape) == []
    for bad in (
        [{"id": True, "git": None, "names": []}],
        [{"git": None, "names": []}],
        [{"id": 1, "git": {}, "names": []}],
        [{"id": 1, "git": None, "names": [1]}],
        [{"id": 1, "git": None, "names": [], "more": 1}],
        [{"id": 1, "git": None}],
        {"id": 1},
    ):
        assert find_faults(bad, shape) != [], bad


# ---------------------------------------------------------------- the operator's verbs


def test_every_verb_of_the_operator_is_the_table(tmp_path: Path) -> None:
    told: dict[str, list[Any]] = {name: [] for name in SERVER_SHAPES}
    with running_service(tmp_path / "service") as server:

        def ask(shape: str, *words: str) -> Any:
            answer = server.operator_json(*words)
            told[shape] += answer if isinstance(answer, list) else [answer]
            return answer

        mira = "mira@example.net"
        assert "password" in ask("user", "user", "create", mira)
        assert "password" in ask("user", "user", "password", mira)
        ask("user", "user", "disable", mira)
        ask("user", "user", "enable", mira)
        ask("user sign-in-link", "user", "sign-in-link", mira)
        ask("user sign-out", "user", "sign-out", mira)
        provider = ("--issuer", "https://login.example.net")
        ask("user", "user", "invite", mira, *provider)
        ask("user", "user", "link", mira, *provider, "--subject", "0001")
        ask("user", "user", "unlink", mira)
        assert len(ask("user", "user", "list")) == 2
        spare = ask("token", "token", "create", "spare", "--expires-days", "2")
        ask("token", "token", "revoke", str(spare["id"]))
        ask("workspace", "workspace", "create", "one", "--custom-title", "Billing")
        assert ask("workspace", "workspace", "start", "one")["state"] == "running"
        ask("user quota", "user", "quota", mira, "--workspaces", "3")
        ask("workspace", "workspace", "set", "one", "--size", "small")
        ask("workspace sizes", "workspace", "sizes")
        ask("workspace show", "workspace", "show", "one")
        ask("workspace show", "workspace", "retry", "one")
        ask("team", "team", "create", "crew")
        ask("team", "team", "members", "crew")
        ask("team member", "team", "add", "crew", mira)
        ask("team", "team", "list")
        ask("workspace share", "workspace", "share", "one", "--team", "crew")
        ask("team member", "team", "remove", "crew", mira)
        ask("team delete", "team", "delete", "crew")
        ask("gateway", "gateway", "create", "edge-1")
        ask("gateway", "gateway", "revoke", "edge-1")
        ask("gateway", "gateway", "list")
        assert ask("ca", "ca", "rotate")["state"] == "current"
        first = next(one for one in ask("ca", "ca", "list") if one["state"] == "accepted")
        assert ask("ca", "ca", "retire", first["fingerprint"])["state"] == "retired"
        ask("database check", "database", "check")
        ask("database vacuum", "database", "vacuum")
        copy = tmp_path / "copy"
        ask("backup", "backup", str(copy))
        ask("restore", "restore", str(copy), "--data-dir", str(tmp_path / "restored"))
        (rotated,) = (server.data_dir / "keys").glob("client_ca-*")
        assert (tmp_path / "restored" / "keys" / rotated.name).read_bytes() == rotated.read_bytes()
        ask("workspace share", "workspace", "share", "one", mira)
        ask("workspace unshare", "workspace", "unshare", "one", mira)
        laptop = Laptop(tmp_path / "laptop")
        laptop.login(server)
        laptop.runcode("connect", "one", "--wait")
        laptop.runcode("exec", "--", "kill -9 $$", expect=137)
        laptop.runcode("exec", "--", "true")
        session = ask("session", "session", "list")[0]
        ask("session revoke", "session", "revoke", str(session["id"]))
        ask("session", "session", "list", "--all")
        deadline = time.monotonic() + 30
        while not any(row.get("bytes_up") is not None for row in told["activity"]) and time.monotonic() < deadline:
            time.sleep(0.2)
            ask("activity", "activity")
        assert {"connection", "command"} <= {row["kind"] for row in told["activity"]}
        assert ask("audit verify", "audit", "verify")["ok"] is True
        ask("token", "token", "list")
        ask("workspace", "workspace", "list")
        ask("workspace", "workspace", "stop", "one")
        assert ask("workspace", "workspace", "delete", "one")["state"] == "deleted"
        told["doctor"].append(json.loads(server.operator("doctor", "--json", check=False).stdout))
        laptop.runcode("clean", "--all")
    for name, documents in told.items():
        assert documents, name
        for document in documents:
            assert find_faults(document, SERVER_SHAPES[name]) == [], (name, document)


# ---------------------------------------------------------------- the failures


def assert_failure(done: subprocess.CompletedProcess[bytes], code: str) -> None:
    """Exactly one document of exactly three keys, and a status that the table gives."""
    assert done.stdout.count(b"\n") == 1, done.stdout
    told = json.loads(done.stdout)
    assert list(told) == ["error", "message", "resolution"]
    assert told["error"] == code, told
    assert told["message"]
    assert told["resolution"]
    assert all(isinstance(text, str) and text.isprintable() for text in told.values())
    assert done.returncode == ERRORS[code].exit_status != 0
    assert b"Traceback" not in done.stderr
    assert f"runcode: {code}:".encode() not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_command_line_is_a_failure_like_any_other(command: str, person: Person) -> None:
    for words in ([command, "--no-such-option", "--json"], [command, "--json", "--no-such-option"]):
        done = person.runcode(*words, expect=None)
        if command in OWN_STDOUT:
            assert (done.returncode, done.stdout) == (OWN_STDOUT[command], b"")
            assert done.stderr.startswith(b"runcode: usage: ")
        else:
            assert_failure(done, "usage")


@pytest.mark.parametrize("words", [["no-such-command"], ["help", "no-such-command"], []])
def test_what_is_no_command_is_a_failure_too(words: list[str], person: Person) -> None:
    assert_failure(person.runcode(*words, "--json", expect=None), "usage")


def test_after_the_dashes_json_is_a_word_of_the_command(attached: Person) -> None:
    assert attached.runcode("exec", "--", "echo", "--json").stdout == b"--json\n"


# In an empty home: what each command meets first.
FAILURES = [
    (["login", "--paste"], "no_token"),
    (["login", "--paste", "--api-base", "http://example.net"], "insecure_base"),
    (["list"], "no_token"),
    (["connect", "42"], "no_token"),
    (["connect", "42", "--timeout", "0"], "usage"),
    (["current"], "not_attached"),
    (["context"], "not_attached"),
    (["get", "a", "--out", "b"], "not_attached"),
    (["get", "a"], "usage"),
    (["get", "-r", "a", "--resume"], "usage"),
    (["put", "no-such-file", "b"], "not_found"),
    (["put", "-r", "no-such-folder", "b"], "not_found"),
    (["write", "a"], "not_attached"),
    (["forward", "80"], "not_attached"),
    (["forward", "80", "--cancel"], "not_attached"),
    (["forward", "66000"], "usage"),
    (["stop"], "no_token"),
    (["disconnect"], "not_attached"),
    (["clean", "no-such-one"], "not_found"),
    (["config-ssh"], "no_token"),
    (["completion", "tcsh"], "usage"),
    (["status", "--api-base", "ftp://example.net"], "usage"),
]


@pytest.mark.parametrize(("words", "code"), FAILURES, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_failure_has_three_keys(words: list[str], code: str, tmp_path: Path) -> None:
    stranger = Person(tmp_path)
    try:
        assert_failure(stranger.runcode(*words, "--json", expect=None), code)
    finally:
        shutil.rmtree(stranger.runtime)


def test_local_obstacles_have_three_keys_too(tmp_path: Path, plane: ControlPlane) -> None:
    stranger = Person(tmp_path)
    try:
        claude = stranger.home / ".claude"
        claude.mkdir()
        (claude / "settings.json").write_text("{ // not JSON")
        assert_failure(stranger.runcode("install-statusline", "--json", expect=None), "io_error")
        link = stranger.home / ".local" / "bin" / "runcode"
        link.parent.mkdir(parents=True)
        link.write_text("somebody's own")
        assert_failure(stranger.runcode("install-path", "--json", expect=None), "conflict")
        elsewhere = stranger.home / "elsewhere"
        elsewhere.mkdir()
        stranger.cache.parent.mkdir()
        stranger.cache.symlink_to(elsewhere)
        signed_in_by_environment = {"RUNCODE_TOKEN": TOKEN, "RUNCODE_API_BASE": plane.base}
        done = stranger.runcode("connect", "42", "--json", expect=None, environment=signed_in_by_environment)
        assert_failure(done, "unsafe_path")
        gone = ("--api-base", f"http://127.0.0.1:{_free_port()}")
        assert_failure(stranger.runcode("login", "--paste", *gone, "--json", stdin=b"t", expect=None), "network")
    finally:
        shutil.rmtree(stranger.runtime)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "bad_request"), (401, "unauthorized"), (403, "forbidden"), (404, "not_found"), (409, "conflict")]
    + [(429, "rate_limited"), (503, "unavailable"), (500, "http_error")],
)
def test_what_the_server_refuses_has_three_keys(status: int, code: str, attached: Person, plane: ControlPlane) -> None:
    hostile = json.dumps({"error": True, "message": "no\x1b]52;c;eA==\x07\nrunci: \u202enot"}).encode()
    plane.overrides["/api/rc/workspaces"] = (status, {}, hostile)
    try:
        assert_failure(attached.runcode("list", "--json", expect=None), code)
    finally:
        plane.overrides.clear()
