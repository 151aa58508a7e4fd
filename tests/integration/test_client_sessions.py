"""Sign-in, sessions, attachments and at-most-once: the real CLI, the stand-in service, a real sshd."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runcode.client import workspaces
from runcode.client.api import Api
from runcode.client.settings import load_settings
from runcode.core.errors import RunCodeError
from support.client_standin import TITLE, TOKEN, ControlPlane, Person, service, signed_in


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with service(tmp_path / "service") as running:
        yield running


@pytest.fixture
def person(tmp_path: Path, plane: ControlPlane) -> Iterator[Person]:
    with signed_in(tmp_path / "person", plane) as someone:
        yield someone


def count_mints(plane: ControlPlane) -> int:
    return len(plane.mint_requests)


def test_login_keeps_the_token_private_and_the_bases_beside_it(person: Person, plane: ControlPlane) -> None:
    folder = person.home / ".config" / "runcode"
    assert oct(folder.stat().st_mode)[-3:] == "700"
    assert (folder / "token").read_text() == f"{TOKEN}\n"
    assert {oct(file.stat().st_mode)[-3:] for file in folder.iterdir()} == {"600"}
    assert [row["id"] for row in person.json("list")] == [42]
    person.runcode("logout")
    failure = person.json("list", expect=1)
    assert failure["error"] == "no_token"
    assert failure["resolution"] == "run `runcode login`"


def test_login_refuses_a_token_that_the_server_does_not_know(tmp_path: Path, plane: ControlPlane) -> None:
    person = Person(tmp_path / "other")
    done = person.runcode("login", "--paste", "--api-base", plane.base, stdin=b"wrong-token\n", expect=1)
    assert done.stderr.startswith(b"runcode: unauthorized: ")
    assert b"wrong-token" not in done.stderr
    assert not (person.home / ".config").exists()


def test_connect_tells_everything_in_json(person: Person, plane: ControlPlane) -> None:
    bundle = person.json("connect", TITLE)
    assert list(bundle) == [
        "workspace_id",
        "title",
        "alias",
        "config",
        "command",
        "host",
        "port",
        "user",
        "web_url",
        "workdir",
        "expires_at",
        "started",
        "reused",
        "statusline_installed",
    ]
    assert (bundle["workspace_id"], bundle["title"], bundle["alias"]) == (42, TITLE, f"runcode-{TITLE}")
    assert (bundle["started"], bundle["reused"], bundle["statusline_installed"]) == (False, False, False)
    done = subprocess.run(
        [*bundle["command"].split(), "echo over-plain-ssh"],
        env=person.environment,
        capture_output=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == b"over-plain-ssh\n", done.stderr
    assert person.json("connect", "42")["reused"] is True
    assert count_mints(plane) == 1


def test_ssh_sees_a_strict_isolated_config(person: Person) -> None:
    bundle = person.json("connect", "42")
    shown = subprocess.run(["ssh", "-G", "-F", bundle["config"], bundle["alias"]], capture_output=True, check=True)
    options = dict(line.split(" ", 1) for line in shown.stdout.decode().splitlines() if " " in line)
    folder = person.session_folder()
    assert options["stricthostkeychecking"] in ("true", "yes")
    assert (options["identitiesonly"], options["batchmode"], options["user"]) == ("yes", "yes", TITLE)
    assert options["userknownhostsfile"] == str(folder / "known_hosts")
    assert options["globalknownhostsfile"] == "/dev/null"
    identity = Path(options["identityfile"])
    assert identity.parent == folder
    assert identity.name.startswith("id_ed25519-")
    assert options["controlpath"].startswith(str(person.runtime))
    assert len(options["controlpath"]) + 17 <= 103
    assert "proxycommand" not in options
    assert oct(folder.stat().st_mode)[-3:] == "700"
    names = {file.name for file in folder.iterdir()}
    assert names == {identity.name, f"{identity.name}.pub", "known_hosts", "config", "session.json"}
    assert {oct(file.stat().st_mode)[-3:] for file in folder.iterdir()} == {"600"}
    assert not (person.home / ".ssh").exists()


def test_only_the_public_key_travels(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42", "--ttl", "600", environment={"RUNCODE_CLIENT": "my-agent"})
    request = plane.mint_requests[0]
    (public,) = person.session_folder().glob("id_ed25519-*.pub")
    assert request["public_key"] == public.read_text().strip()
    assert (request["ttl"], request["client"]) == (600, "my-agent")
    assert "PRIVATE" not in json.dumps(request)


def test_a_re_mint_changes_no_key_under_an_ssh_that_is_just_starting(person: Person) -> None:
    """ssh reads the public half when it starts and the private one when it signs."""
    person.json("connect", "42")
    seen = []
    for _ in range(3):
        keys = {file.name: file.read_bytes() for file in person.session_folder().glob("id_ed25519-*")}
        config = (person.session_folder() / "config").read_text()
        seen.append(re.search(r"id_ed25519-[0-9a-f]{16}", config)[0])  # type: ignore[index]
        assert seen[-1] in keys
        person.json("connect", "42", "--force")
        for name in (seen[-1], f"{seen[-1]}.pub"):
            assert (person.session_folder() / name).read_bytes() == keys[name]
    assert len(set(seen)) == 3
    # And no more than that one older pair is kept.
    assert len(list(person.session_folder().glob("id_ed25519-*"))) == 4


def test_a_hundred_first_calls_mint_once_and_open_one_master(person: Person, plane: ControlPlane) -> None:
    running = [
        person.start("run", "42", "--", "echo ok", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for _ in range(100)
    ]
    assert [process.communicate()[0] for process in running] == [b"ok\n"] * 100
    assert count_mints(plane) == 1
    assert plane.sshd is not None
    assert plane.sshd.count_logins() == 1


def test_a_session_about_to_expire_is_minted_again_and_gets_a_new_master(person: Person, plane: ControlPlane) -> None:
    plane.ttl_s = 80
    person.runcode("connect", "42", "--wait")
    running = person.start(
        *("exec", "--", "touch began; sleep 1.5; echo drained"), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    )
    while not (plane.workdir / "began").exists():
        time.sleep(0.01)
    plane.ttl_s = 1800
    assert plane.sshd is not None
    mints, logins = count_mints(plane), plane.sshd.count_logins()
    person.runcode("exec", "--", "true")
    person.runcode("exec", "--", "true")
    assert (count_mints(plane), plane.sshd.count_logins()) == (mints + 1, logins + 1)
    assert running.communicate()[0] == b"drained\n"


def test_force_mints_in_any_case(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    assert person.json("connect", "42", "--force")["reused"] is False
    assert count_mints(plane) == 2


def test_a_refused_key_is_minted_again_once(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    assert plane.sshd is not None
    plane.sshd.authorized_keys.write_text("")
    assert person.runcode("exec", "--", "echo healed").stdout == b"healed\n"
    assert count_mints(plane) == 2


def test_a_key_that_stays_refused_is_an_error_after_one_more_mint(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    assert plane.sshd is not None
    plane.sshd.authorized_keys.unlink()
    plane.sshd.authorized_keys.symlink_to("/dev/null")
    done = person.runcode("exec", "--", "echo never", expect=255)
    assert done.stdout == b""
    assert done.stderr.startswith(b"runcode: unauthorized: ")
    assert count_mints(plane) == 2


def test_more_calls_than_the_gateway_takes_sessions_queue(tmp_path: Path) -> None:
    with service(tmp_path / "small", sshd_options="MaxSessions 3") as plane, signed_in(tmp_path / "p", plane) as person:
        person.runcode("connect", "42", "--wait")
        running = [
            person.start(
                *("exec", "--", f"cat; echo x >> ran-{n}; sleep 0.3"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            for n in range(12)
        ]
        # All get their input first: whichever waits in the queue must not be waited for before the others end.
        for number, process in enumerate(running):
            assert process.stdin is not None
            process.stdin.write(b"in-%d" % number)
            process.stdin.close()
        for number, process in enumerate(running):
            assert process.stdout is not None
            assert process.stdout.read() == b"in-%d" % number
            assert process.wait(60) == 0
            # Refused, tried again, and never by a connection of ssh's own: exactly once.
            assert (plane.workdir / f"ran-{number}").read_text() == "x\n"
        assert plane.sshd is not None
        assert plane.sshd.count_logins() == 1


def test_a_command_in_flight_when_the_connection_dies_is_never_run_again(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42", "--wait")
    process = person.start(
        "exec", "--", "echo ran >> count; sleep 60", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 20
    while not (plane.workdir / "count").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert plane.sshd is not None
    for pid in plane.sshd.connections():
        os.kill(pid, signal.SIGKILL)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 255
    assert stderr.startswith(b"runcode: connection_lost: ")
    assert (plane.workdir / "count").read_text() == "ran\n"
    assert person.runcode("exec", "--", "cat count").stdout == b"ran\n"


def test_a_dead_master_and_its_stale_socket_are_replaced(person: Person) -> None:
    person.runcode("connect", "42", "--wait")
    control_path = json.loads((person.session_folder() / "session.json").read_text())["control_path"]
    shown = subprocess.run(
        ["ssh", "-F", str(person.session_folder() / "config"), "-O", "check", f"runcode-{TITLE}"],
        capture_output=True,
        check=True,
    )
    os.kill(int(shown.stderr.partition(b"pid=")[2].partition(b")")[0]), signal.SIGKILL)
    assert os.path.exists(control_path)
    assert person.runcode("exec", "--", "echo again").stdout == b"again\n"


def test_without_the_gateway_nothing_runs(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    assert plane.sshd is not None
    plane.sshd.stop()
    done = person.runcode("exec", "--", "echo reached", expect=255)
    assert done.stdout == b""
    assert done.stderr.startswith(b"runcode: network: ")
    assert person.json("connect", "42", "--wait", "--timeout", "1", expect=1)["error"] == "not_ready"


def test_another_host_key_is_refused(person: Person, plane: ControlPlane) -> None:
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ"
    plane.bundle_changes = {"known_hosts": f"x {other}\n"}
    person.runcode("connect", "42")
    done = person.runcode("exec", "--", "echo reached", expect=255)
    assert done.stderr.startswith(b"runcode: unsafe_bundle: ")
    assert b"reached" not in done.stdout


def test_start_boots_and_waits(person: Person, plane: ControlPlane) -> None:
    plane.states[42] = "stopped"
    assert person.json("connect", "42", expect=1)["error"] == "conflict"
    done = person.runcode("connect", "42", "--start", "--wait", "--json")
    bundle = json.loads(done.stdout)
    assert (bundle["started"], bundle["reused"]) == (True, False)
    assert b"starting" in done.stderr
    assert person.runcode("exec", "--", "echo up").stdout == b"up\n"


def test_start_works_on_an_id_that_stands_in_no_list(person: Person, plane: ControlPlane) -> None:
    plane.own = []
    plane.states[42] = "stopped"
    assert person.json("connect", "42", "--start")["started"] is True
    assert ("GET", "/api/rc/workspace/start?workspace_id=42") in plane.requests
    assert person.json("connect", "42", "--start")["started"] is False


def test_start_that_takes_too_long_is_not_ready(person: Person, plane: ControlPlane) -> None:
    plane.states[42] = "stopped"
    plane.boot_polls = 10_000
    assert person.json("connect", "42", "--start", "--timeout", "0.6", expect=1)["error"] == "not_ready"


def test_a_workspace_that_stays_stopped_after_its_start_is_told_before_the_timeout(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody stopped it before our first look: to start it once more would override that person."""
    plane.states[42] = "stopped"
    plane.overrides["/api/rc/workspace/start"] = (200, {}, b'{"error": false}')
    monkeypatch.setattr(workspaces, "STOPPED_PATIENCE_S", 0.3)
    api = Api(plane.base, TOKEN)
    try:
        with pytest.raises(RunCodeError) as caught:
            workspaces.start_and_mint(
                load_settings(os.environ, api_base=plane.base),
                workspaces.resolve("42", api),
                api,
                deadline=time.monotonic() + 60,
                notice=lambda _: None,
            )
    finally:
        del plane.overrides["/api/rc/workspace/start"]
    assert caught.value.code == "start_failed"
    assert [path for _, path in plane.requests].count("/api/rc/workspace/start?workspace_id=42") == 1


def test_a_refused_start_and_stop_pass_the_servers_reason_on(person: Person, plane: ControlPlane) -> None:
    plane.states[42] = "stopped"
    plane.start_reply = plane.stop_reply = (200, {"error": True, "message": "Balance is empty."})
    failure = person.json("connect", "42", "--start", expect=1)
    assert (failure["error"], failure["message"]) == ("start_failed", "Balance is empty.")
    assert person.json("stop", "42", expect=1)["error"] == "stop_failed"


def test_names_resolve_and_ambiguity_lists_the_ids(person: Person, plane: ControlPlane) -> None:
    plane.own.append(plane.workspace(43, "second", custom_title="Same"))
    plane.shared = [plane.workspace(42, TITLE), plane.workspace(44, "third", custom_title="same")]
    plane.states.update({43: "running", 44: "running"})
    assert [row["id"] for row in person.json("list")] == [42, 43, 44]
    assert person.json("connect", "Billing API")["workspace_id"] == 42
    failure = person.json("connect", "SAME", expect=1)
    assert failure["error"] == "ambiguous"
    assert "43" in failure["message"]
    assert "44" in failure["message"]
    assert person.json("connect", "Same")["workspace_id"] == 43
    assert person.json("connect", "nothing", expect=1)["error"] == "not_found"
    assert person.json("connect", "99", expect=1)["error"] == "not_found"


def test_a_custom_title_never_shadows_a_title(person: Person, plane: ControlPlane) -> None:
    plane.shared = [plane.workspace(66, "trap", custom_title=TITLE)]
    plane.states[66] = "running"
    assert person.json("connect", TITLE)["workspace_id"] == 42


def test_only_ssh_capable_ones_are_listed_unless_all(person: Person, plane: ControlPlane) -> None:
    plane.own.append(plane.workspace(50, "no-ssh", provider="other"))
    plane.own.append({**plane.workspace(51, "ours", provider="other"), "ssh_capable": True})
    plane.states.update({50: "running", 51: "running"})
    assert [row["id"] for row in person.json("list")] == [42, 51]
    rows = person.json("list", "--all")
    assert [(row["id"], row["connectable"]) for row in rows] == [(42, True), (50, False), (51, True)]
    assert list(rows[0]) == ["id", "title", "custom_title", "state", "shared", "connectable"]
    assert b"runcode connect 42\n" in person.runcode("list").stdout


def test_two_agent_sessions_never_see_each_others_attachment(person: Person, plane: ControlPlane) -> None:
    plane.own.append(plane.workspace(43, TITLE))
    plane.states[43] = "running"
    one, two = {"CLAUDE_CODE_SESSION_ID": "one"}, {"CODEX_THREAD_ID": "two"}
    person.runcode("connect", "42", environment=one)
    assert person.json("current", environment=two, expect=1)["error"] == "not_attached"
    person.runcode("connect", "43", environment=two)
    assert person.json("current", environment=one)["workspace_id"] == 42
    assert person.json("current", environment=two)["workspace_id"] == 43
    inner = {**one, **two}
    assert person.json("current", environment=inner, expect=1)["error"] == "not_attached"
    assert person.json("current", expect=1)["error"] == "ambiguous"
    person.runcode("disconnect", environment=two)
    assert person.json("current")["workspace_id"] == 42
    assert person.json("current", environment=two, expect=1)["error"] == "not_attached"


def test_stop_powers_down_and_detaches(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42", "--wait")
    assert person.json("stop") == {"stopped": True, "workspace_id": 42, "detached": True}
    assert plane.states[42] == "stopped"
    assert not person.session_folder().exists()
    assert person.runcode("exec", "--", "true", expect=255).stderr.startswith(b"runcode: not_attached: ")


def test_stop_keep_keeps_the_session_and_another_one_stays_attached(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    plane.states[43] = "running"
    assert person.json("stop", "43") == {"stopped": True, "workspace_id": 43, "detached": False}
    assert person.json("stop", "--keep")["detached"] is True
    assert (person.session_folder() / "session.json").exists()


def test_disconnect_is_local_and_closes_the_master(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42", "--wait")
    assert person.json("status")[0]["connected"] is True
    asked = len(plane.requests)
    person.runcode("disconnect", "--keep")
    status = person.json("status")[0]
    assert (status["connected"], status["attached"]) == (False, False)
    person.runcode("connect", "42")
    person.runcode("disconnect")
    assert len(plane.requests) == asked
    assert not person.session_folder().exists()
    assert list((person.runtime / "rc").iterdir()) == []


def test_clean_wipes_the_expired_and_with_all_everything(person: Person, plane: ControlPlane) -> None:
    person.runcode("connect", "42")
    assert person.json("clean") == {"cleaned": []}
    path = person.session_folder() / "session.json"
    path.write_text(path.read_text().replace('"expires_at": ', '"expires_at": 1, "was": '))
    assert person.json("clean") == {"cleaned": [42]}
    person.runcode("connect", "42", "--wait")
    assert person.json("clean", "--all") == {"cleaned": [42]}
    assert list((person.runtime / "rc").iterdir()) == []
    assert person.json("current", expect=1)["error"] == "not_attached"


def test_a_long_home_still_gets_a_short_control_path(tmp_path: Path, plane: ControlPlane) -> None:
    person = Person(tmp_path / ("x" * 120))
    del person.environment["XDG_RUNTIME_DIR"]
    try:
        person.login(plane)
        person.runcode("connect", "42", "--wait")
        assert person.runcode("exec", "--", "echo short").stdout == b"short\n"
    finally:
        person.runcode("clean", "--all", expect=None)


@pytest.mark.parametrize("ahead_s", [-7200, 7200, -25])
def test_a_skewed_clock_is_noticed_and_costs_no_mints(person: Person, plane: ControlPlane, ahead_s: int) -> None:
    """An expiry is told by the server's clock; read by one that is ahead it would be over at once."""
    plane.clock_ahead_s = ahead_s
    done = person.runcode("connect", "42")
    assert b"clock is" in done.stderr
    assert (b"ahead of" if ahead_s < 0 else b"behind") in done.stderr
    for _ in range(2):
        person.runcode("exec", "--", "true")
    assert count_mints(plane) == 1
    left_s = person.json("current")["expires_in_s"]
    assert 1600 < left_s <= 1802
    assert b"clock is" not in person.runcode("connect", "42").stderr


def test_a_clock_that_agrees_is_not_spoken_of(person: Person, plane: ControlPlane) -> None:
    plane.clock_ahead_s = 3
    assert b"clock" not in person.runcode("connect", "42").stderr


def test_a_session_that_was_revoked_is_minted_again_once(person: Person, plane: ControlPlane) -> None:
    """Revocation cuts the connection and takes the key away; the next call heals by itself, and only once."""
    person.runcode("connect", "42", "--wait")
    assert plane.sshd is not None
    plane.sshd.authorized_keys.write_text("")
    for pid in plane.sshd.connections():
        os.kill(pid, signal.SIGKILL)
    assert person.runcode("exec", "--", "echo healed").stdout == b"healed\n"
    assert person.runcode("exec", "--", "echo again").stdout == b"again\n"
    assert count_mints(plane) == 2
