"""`doctor`: each check in its good and its bad state, on a machine made for it."""

from __future__ import annotations

import datetime
import email.utils
import http.server
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runcode.client import doctor
from support.client_standin import BARE_PATH, TOKEN, ControlPlane, Person


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    running = ControlPlane(None, Path("/nowhere"))
    yield running
    running.close()


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Person:
    someone = Person(tmp_path / "person")
    someone.login(plane)
    return someone


def examine(person: Person, *words: str, healthy: bool = True, **environment: str) -> dict[str, tuple[str, str]]:
    done = person.runcode("doctor", *words, "--json", expect=0 if healthy else 1, environment=environment)
    told = json.loads(done.stdout)
    assert sorted(told) == ["checks", "ok"]
    assert told["ok"] is healthy
    assert all(sorted(check) == ["detail", "name", "status"] for check in told["checks"])
    assert all(check["status"] in ("ok", "warn", "fail") for check in told["checks"])
    assert told["ok"] == all(check["status"] != "fail" for check in told["checks"])
    assert TOKEN.encode() not in done.stdout + done.stderr
    return {check["name"]: (check["status"], check["detail"]) for check in told["checks"]}


def test_a_healthy_machine(person: Person, plane: ControlPlane) -> None:
    checks = examine(person)
    assert list(checks) == [
        "openssh",
        "bases",
        "token",
        "reachability",
        "authorization",
        "clock",
        "proxy_and_ca",
        "private_folders",
        "control_socket",
        "ssh_config",
        "status_line",
        "hooks",
        "boundary",
        "claude_rules",
        "codex_rules",
    ]
    assert {status for status, _ in checks.values()} == {"ok"}, checks
    assert "OpenSSH_" in checks["openssh"][1]
    assert plane.base in checks["bases"][1]
    shown = person.runcode("doctor").stdout.decode()
    assert shown.count("\n") == len(checks)
    assert shown.startswith("ok    openssh")
    # It looks, and changes nothing.
    assert [method for method, _ in plane.requests] == ["GET"] * len(plane.requests)


def test_no_ssh_and_no_keygen(person: Person, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    status, detail = examine(person, healthy=False, PATH=str(empty))["openssh"]
    assert status == "fail"
    assert "ssh-keygen" in detail
    assert "apt-get install openssh-client" in detail
    os.symlink("/usr/bin/ssh-keygen", empty / "ssh-keygen")
    assert examine(person, healthy=False, PATH=str(empty))["openssh"][0] == "fail"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("OpenSSH_7.4p1, OpenSSL 1.0.2k", "fail"),
        ("OpenSSH_7.6p1", "ok"),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", "ok"),
        ("OpenSSH_10.0p2", "ok"),
        ("Dropbear v2022.83", "warn"),
        ("\x1b]52;c;eA==\x07", "warn"),
    ],
)
def test_other_versions_of_ssh(person: Person, tmp_path: Path, words: str, status: str) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "ssh").write_text(f"#!/bin/sh\nprintf '%s\\n' '{words}' >&2\n")
    (fake / "ssh").chmod(0o755)
    found = examine(person, healthy=status != "fail", PATH=f"{fake}:{BARE_PATH}")["openssh"]
    assert found[0] == status
    assert found[1].isprintable()


def test_no_token_and_a_wrong_one(person: Person, plane: ControlPlane) -> None:
    checks = examine(person, healthy=False, RUNCODE_TOKEN="wrong")
    assert checks["token"][0] == "warn"
    assert checks["reachability"][0] == "ok"
    assert checks["authorization"][0] == "fail"
    assert "runcode login" in checks["authorization"][1]
    person.runcode("logout")
    checks = examine(person, "--api-base", plane.base, healthy=False)
    assert checks["token"][0] == checks["authorization"][0] == "fail"
    # That the server is there is seen all the same.
    assert checks["reachability"][0] == "ok"


def test_a_token_that_others_may_write_is_found(person: Person) -> None:
    (person.home / ".config" / "runcode" / "token").chmod(0o666)
    done = person.runcode("doctor", expect=None)
    assert done.returncode == 1
    assert b"others may write" in done.stdout + done.stderr


def test_nobody_there_and_an_insecure_base(person: Person, plane: ControlPlane) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        checks = examine(
            person, "--api-base", f"http://127.0.0.1:{probe.getsockname()[1]}", healthy=False, RUNCODE_TOKEN="t"
        )
    assert checks["reachability"][0] == "fail"
    assert checks["clock"][0] == "warn"
    seen = len(plane.requests)
    checks = examine(person, "--api-base", "http://example.net", healthy=False)
    assert list(checks) == ["openssh", "bases"]
    assert checks["bases"][0] == "fail"
    assert len(plane.requests) == seen


@pytest.mark.parametrize(
    ("status", "expected"),
    [(503, ("warn", "warn")), (500, ("warn", "warn")), (403, ("ok", "fail")), (429, ("ok", "warn"))],
)
def test_a_server_in_trouble(person: Person, plane: ControlPlane, status: int, expected: tuple[str, str]) -> None:
    plane.overrides["/api/rc/workspaces"] = (status, {}, b'{"error": true, "message": "\\u001b[31m no"}')
    checks = examine(person, healthy=expected[1] != "fail")
    assert (checks["reachability"][0], checks["authorization"][0]) == expected
    assert checks["reachability"][1].isprintable()


def test_a_redirect_elsewhere_is_a_failure(person: Person, plane: ControlPlane) -> None:
    plane.overrides["/api/rc/workspaces"] = (302, {"Location": "https://evil.example/"}, b"")
    assert examine(person, healthy=False)["reachability"][0] == "fail"


@pytest.mark.parametrize(
    ("skew_s", "expected"), [(0, "ok"), (-20, "ok"), (100, "warn"), (-100, "warn"), (3600, "fail"), (-86400, "fail")]
)
def test_the_clock_is_compared_with_the_servers(
    person: Person, monkeypatch: pytest.MonkeyPatch, skew_s: int, expected: str
) -> None:
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=skew_s)

    def date_string(_handler: http.server.BaseHTTPRequestHandler, _timestamp: object = None) -> str:
        return email.utils.format_datetime(moment, usegmt=True)

    monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "date_time_string", date_string)
    status, detail = examine(person, healthy=expected != "fail")["clock"]
    assert status == expected
    if expected != "ok":
        assert ("behind" if skew_s > 0 else "ahead of") in detail


def test_an_odd_date_is_no_crash(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("", "yesterday", "Tue, 99 Nov 9999999999 00:00:00 GMT", "\xff"):
        monkeypatch.setattr(http.server.BaseHTTPRequestHandler, "date_time_string", lambda *_ignored, text=text: text)
        assert examine(person)["clock"][0] == "warn"


def check_of(environ: dict[str, str], name: str, **subject: Any) -> doctor.Check:
    return next(c for c in doctor.examine(doctor.Subject(environ=environ, **subject)) if c.name == name)


def test_proxy_and_certificates(tmp_path: Path) -> None:
    """An https base, which nobody answers: only what the environment says is looked at."""
    environ = {"HOME": str(tmp_path), "PATH": BARE_PATH, "HTTPS_PROXY": "http://user:geheim@127.0.0.1:9"}
    base = "https://127.0.0.1:9"
    check = check_of(environ, "proxy_and_ca", api_base=base)
    assert check.status == "warn"
    assert "127.0.0.1:9" in check.detail
    assert "geheim" not in check.detail
    assert check_of({**environ, "NO_PROXY": "127.0.0.1"}, "proxy_and_ca", api_base=base).status == "ok"
    for bad in ("socks5://x:1", "https://x:1"):
        assert check_of({**environ, "HTTPS_PROXY": bad}, "proxy_and_ca", api_base=base).status == "fail"
    gone = {"HOME": str(tmp_path), "PATH": BARE_PATH, "SSL_CERT_FILE": str(tmp_path / "gone")}
    check = check_of(gone, "proxy_and_ca", api_base=base)
    assert check.status == "fail"
    assert "SSL_CERT_FILE" in check.detail


def test_folders_that_are_not_ours_alone(person: Person) -> None:
    person.cache.mkdir(parents=True, exist_ok=True)
    person.cache.chmod(0o777)
    assert examine(person, healthy=False)["private_folders"][0] == "fail"
    person.cache.chmod(0o700)
    trap = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
    try:
        (trap / "rc").symlink_to("/tmp")
        assert examine(person, healthy=False, XDG_RUNTIME_DIR=str(trap))["control_socket"][0] == "fail"
    finally:
        (trap / "rc").unlink()
        trap.rmdir()


def test_hosts_whose_program_is_gone_or_whose_server_is_another(person: Person, plane: ControlPlane) -> None:
    person.runcode("config-ssh")
    assert "holds hosts of ours" in examine(person)["ssh_config"][1]
    config = person.home / ".ssh" / "config"
    text = config.read_text()
    config.write_text(text.replace("ProxyCommand /", "ProxyCommand /gone/"))
    status, detail = examine(person, healthy=False)["ssh_config"]
    assert status == "fail"
    assert "runcode config-ssh" in detail
    config.write_text(text.replace(plane.base, "https://elsewhere.example"))
    assert examine(person)["ssh_config"][0] == "warn"


def test_a_status_line_whose_program_is_gone(person: Person) -> None:
    person.runcode("install-statusline")
    assert "installed" in examine(person)["status_line"][1]
    file = person.home / ".claude" / "settings.json"
    file.write_text(json.dumps({"statusLine": {"type": "command", "command": "'/gone/it'\\''s/runcode' statusline"}}))
    status, detail = examine(person, healthy=False)["status_line"]
    assert status == "fail"
    assert "/gone/it's/runcode" in detail
    file.write_text("{")
    assert examine(person, healthy=False)["status_line"][0] == "fail"


def test_hooks_that_codex_does_not_trust(person: Person) -> None:
    config = person.home / ".codex" / "config.toml"
    config.parent.mkdir()
    config.write_text("model = 'x'\n")
    assert "not installed" in examine(person)["hooks"][1]
    config.write_text("[plugins.'runcode@market']\nenabled = true\n")
    status, detail = examine(person)["hooks"]
    assert status == "warn"
    assert "/hooks" in detail
    config.write_text(
        "[plugins.'runcode@market']\nenabled = true\n"
        "[hooks.state.'runcode@market:hooks.json:pre:0:0']\ntrusted_hash='x'\n"
    )
    assert examine(person)["hooks"][0] == "ok"
    for text in ("[", "plugins = 5\nhooks = 6\n", "[plugins.runcode]\n[hooks]\nstate = 7\n"):
        config.write_text(text)
        examine(person)


def test_it_says_each_thing_as_it_knows_it(person: Person, plane: ControlPlane) -> None:
    """A slow server must not look like a hang."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = person.start(
            "doctor",
            "--api-base",
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            stdout=-1,
            environment={"RUNCODE_TOKEN": "t"},
        )
        assert running.stdout is not None
        first = running.stdout.readline()
        assert first.startswith(b"ok    openssh")
        running.kill()
        running.communicate()


def test_what_is_exempt_from_the_boundary_and_whose_rules_bind(person: Person) -> None:
    config = Path(person.environment["HOME"]) / ".config" / "runcode"
    (config / "local.toml").write_text('commands = ["open"]\n')
    claude = Path(person.environment["HOME"]) / ".claude"
    claude.mkdir()
    (claude / "settings.json").write_text('{"permissions": {"deny": ["Bash(git push:*)"]}}')
    checks = examine(person)
    assert checks["boundary"][0] == "warn"
    assert "lets agents run here: open" in checks["boundary"][1]
    assert "Bash(git push:*)" in checks["claude_rules"][1]
    (config / "local.toml").write_text("commands = 7\n")
    assert examine(person, healthy=False)["boundary"][0] == "fail"
