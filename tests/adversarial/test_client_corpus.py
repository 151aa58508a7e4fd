"""The corpus against the client: each hostile thing is refused with its code or made harmless, and touches nothing.

The cases are data (tests/adversarial/corpus); what every case must hold is looked at in `corpus.bench`: files
before and after, each byte that came out, and where the token went.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adversarial.corpus import boxes, bundles, directives, lists, local_states, replies
from adversarial.corpus.bench import LIST_PATH, MINT_PATH, SESSION_FILES, CorpusPlane, Decoy, Victim, victim
from adversarial.corpus.bundles import GOOD, HOST, PORT, USER
from adversarial.corpus.local_states import State
from runcode.client import api, openssh, processes, sessions
from runcode.client.settings import load_settings
from support.client_standin import TOKEN, service, signed_in

CONNECT = ("connect", "42", "--json")
# Every line that the session's own ssh config may hold, and no other.
CONFIG_KEYWORDS = (
    "Host HostName Port User IdentityFile IdentitiesOnly IdentityAgent UserKnownHostsFile GlobalKnownHostsFile "
    "StrictHostKeyChecking UpdateHostKeys CheckHostIP VerifyHostKeyDNS BatchMode PreferredAuthentications "
    "ForwardAgent ForwardX11 PermitLocalCommand ServerAliveInterval ServerAliveCountMax ConnectTimeout "
    "ControlMaster ControlPath ControlPersist"
)


@pytest.fixture(scope="module")
def plane() -> Iterator[CorpusPlane]:
    running = CorpusPlane()
    yield running
    running.close()


@pytest.fixture
def person(tmp_path: Path, plane: CorpusPlane) -> Iterator[Victim]:
    with victim(tmp_path, plane) as someone:
        yield someone


def cases(table: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("case", table.values(), ids=list(table))


def states(table: dict[str, State]) -> Any:
    """Those that need another owner need root."""
    found = []
    for name, state in table.items():
        needs_root = any(step[0] == "owner" for step in state.steps)
        found.append(pytest.param(state, id=name, marks=[pytest.mark.root_only] if needs_root else []))
    return pytest.mark.parametrize("state", found)


def test_the_corpus_is_large() -> None:
    tables = [bundles.REFUSED, bundles.NEUTRALISED, bundles.KNOWN_HOSTS, directives.TRIPPING, directives.IGNORED]
    tables += [replies.MINT, replies.MESSAGES, replies.REDIRECTS, replies.BASES, lists.SHAPES, lists.LEFT_OUT]
    tables += [lists.SHOWN, lists.LOOKUPS, local_states.FOLDERS, local_states.FILES, local_states.TOKENS]
    tables += [local_states.SESSIONS, local_states.ATTACHMENTS, local_states.ENVIRONMENT, local_states.HOMES]
    tables += [local_states.SSH_CONFIGS, boxes.FILES, boxes.TREES, boxes.CONTEXTS, boxes.UPLOADS]
    assert sum(len(table) for table in tables) >= 600


# ---------------------------------------------------------------- bundles


def assert_strict_config(person: Victim, host_keys: list[str]) -> None:
    """What ssh would read is ours alone."""
    folder = person.home / ".cache" / "runcode" / "ws-42"
    lines = (folder / "config").read_text().splitlines()
    assert [line.split()[0] for line in lines] == CONFIG_KEYWORDS.split()
    said = dict(line.split(None, 1) for line in lines)
    assert (said["HostName"], said["Port"], said["User"]) == (HOST, str(PORT), USER)
    assert (folder / "known_hosts").read_text() == "".join(f"[{HOST}]:{PORT} {key}\n" for key in host_keys)
    (key,) = (file.name for file in folder.glob("id_ed25519-*") if file.suffix != ".pub")
    for name in ("config", "known_hosts", key, "session.json"):
        assert (folder / name).stat().st_mode & 0o7777 == 0o600


@cases(bundles.REFUSED)
def test_a_hostile_bundle_is_refused(person: Victim, plane: CorpusPlane, case: bundles.Changes) -> None:
    plane.changes = case
    person.run(*CONNECT, expect="unsafe_bundle", here=True)
    assert all(set(request) == {"public_key", "ttl", "client", "certificates"} for request in plane.mint_requests)


@cases(bundles.NEUTRALISED)
def test_what_a_bundle_may_get_wrong_is_replaced(person: Victim, plane: CorpusPlane, case: Any) -> None:
    plane.changes, kept = case
    said = json.loads(person.run(*CONNECT, expect=None, changes=SESSION_FILES, here=True).stdout)
    assert {name: said[name] for name in kept} == kept
    assert (said["host"], said["port"], said["user"]) == (HOST, PORT, USER)
    assert_strict_config(person, [bundles.keys.ED25519])
    told = person.run("current", expect=None, here=True)
    assert told.stdout.startswith(f"{USER} (id 42), session for ".encode())


@cases(bundles.KNOWN_HOSTS)
def test_known_hosts_are_written_by_us(person: Victim, plane: CorpusPlane, case: tuple[str, list[str]]) -> None:
    text, kept = case
    plane.changes = {"known_hosts": text}
    person.run(*CONNECT, expect=None, changes=SESSION_FILES, here=True)
    assert_strict_config(person, kept)


@cases(directives.TRIPPING)
def test_a_directive_that_runs_something_trips_the_wire(person: Victim, plane: CorpusPlane, case: str) -> None:
    plane.changes = {"ssh_config": f"{GOOD['ssh_config']}{case}"}
    person.run(*CONNECT, expect="unsafe_bundle", here=True)


@cases(directives.IGNORED)
def test_a_servers_ssh_config_never_reaches_ssh(person: Victim, plane: CorpusPlane, case: str) -> None:
    plane.changes = {"ssh_config": f"{GOOD['ssh_config']}{case}\n"}
    person.run(*CONNECT, expect=None, changes=SESSION_FILES, here=True)
    assert_strict_config(person, [bundles.keys.ED25519])


def test_the_installed_program_says_the_same(person: Victim, plane: CorpusPlane) -> None:
    """One of each kind through the real process."""
    picked = ["host: escape", "user: newline", "port: text", "known_hosts: authority", "ssh_config: list"]
    for name in picked:
        plane.changes = bundles.REFUSED[name]
        person.run(*CONNECT, expect="unsafe_bundle")
    for spelling in ("PROXYCOMMAND", '"match" exec', "\ufeffKnownHostsCommand"):
        plane.changes = {"ssh_config": f"{spelling} id"}
        person.run(*CONNECT, expect="unsafe_bundle")


# ---------------------------------------------------------------- replies


@cases(replies.MINT)
def test_an_odd_answer_to_a_mint(person: Victim, plane: CorpusPlane, case: tuple[bytes, str]) -> None:
    plane.wire[MINT_PATH], code = case
    person.run(*CONNECT, expect=code, here=True)


@cases(replies.DRIPS)
def test_a_reply_without_end_ends(
    person: Victim, plane: CorpusPlane, case: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "REPLY_TIMEOUT_S", 0.3)
    plane.drips = case
    person.run("list", expect="network", here=True)
    if case[1]:
        assert plane.left_early.wait(60)


@cases(replies.MESSAGES)
def test_a_servers_words_are_harmless(person: Victim, plane: CorpusPlane, case: tuple[bytes, str]) -> None:
    plane.wire[LIST_PATH], code = case
    shown = [person.run("list", expect=code, here=True).stderr]
    shown.append(json.loads(person.run("list", "--json", expect=code, here=True).stdout)["message"].encode())
    assert all(0 < len(text) < 1000 for text in shown)


@cases(replies.REDIRECTS)
def test_a_redirect_leads_nowhere_else(
    person: Victim, plane: CorpusPlane, decoy: Decoy, case: tuple[str | None, str]
) -> None:
    location, code = case
    own = plane.base.rpartition(":")[2]
    header = (
        [] if location is None else [f"Location: {location.replace('{decoy}', str(decoy.port)).replace('{own}', own)}"]
    )
    for status in ("302 Found", "307 Temporary Redirect"):
        plane.wire[LIST_PATH] = replies.answer(b"", *header, status=status)
        if location is not None and code == "http_error":
            plane.wire[location] = plane.wire[LIST_PATH]
        person.run("list", expect=code, here=True)
        # A mint is a POST: it is not turned into something else either.
        plane.wire[MINT_PATH] = plane.wire.pop(LIST_PATH)
        person.run(*CONNECT, expect="insecure_base" if code == "insecure_base" else "http_error", here=True)
        if status.startswith("302") and location is not None:
            assert [path for verb, path in plane.requests if verb == "POST"] == [MINT_PATH]
    assert decoy.received == []
    assert len(plane.requests) < 40


@pytest.fixture(scope="module")
def decoy() -> Iterator[Decoy]:
    running = Decoy()
    yield running
    running.close()


@pytest.mark.parametrize("base", replies.BASES)
def test_an_insecure_or_odd_base_gets_nothing(person: Victim, plane: CorpusPlane, base: str) -> None:
    code = replies.BASES[base]
    person.run("list", "--api-base", base, expect=code, here=True)
    person.environment["RUNCODE_API_BASE"] = base
    person.run("list", expect=code, here=True)
    assert plane.requests == []


# ---------------------------------------------------------------- lists


@cases(lists.SHAPES)
def test_a_list_of_no_known_shape(person: Victim, plane: CorpusPlane, case: bytes) -> None:
    plane.wire[LIST_PATH] = replies.answer(case)
    for words in (("list",), CONNECT, ("config-ssh",)):
        person.run(*words, expect="http_error", here=True)


def test_records_are_left_out_or_shown_without_harm(person: Victim, plane: CorpusPlane) -> None:
    """All of them in one list, since one bad record must not cost the good ones."""
    shown = {f"tree-{n}": (1000 + n, changes) for n, changes in enumerate(lists.SHOWN.values())}
    records: list[object] = [*lists.NO_RECORDS]
    records += [lists.record(**{"id": 5000 + n, **changes}) for n, changes in enumerate(lists.LEFT_OUT.values())]
    records += [lists.record(**{"title": title, "id": n, **changes}) for title, (n, changes) in shown.items()]
    plane.wire[LIST_PATH] = replies.answer(lists.body(records))
    told = json.loads(person.run("list", "--json", expect=None).stdout)
    assert [one["id"] for one in told] == [n for n, _ in shown.values()]
    assert all(one["custom_title"].isprintable() and len(one["custom_title"]) <= 300 for one in told)
    assert all(one["state"].isprintable() and len(one["state"]) <= 40 for one in told)
    lines = person.run("list", expect=None).stdout.decode().splitlines()
    # Two lines each, the second of which is the command to type: no text made a line of its own.
    assert len(lines) == 2 * len(shown)
    for line, following, (title, (n, _)) in zip(lines[::2], lines[1::2], shown.items(), strict=True):
        assert line.startswith(f"{n}  {title}  "), line
        assert re.fullmatch(rf"    runcode connect {n}(| --wait| --start)", following), following
        assert len(line) < 250


def test_hostile_names_become_no_ssh_host(person: Victim, plane: CorpusPlane) -> None:
    before = (person.home / ".ssh" / "config").read_bytes()
    good = [lists.record(id=1000 + n, title=f"tree-{n}", **c) for n, c in enumerate(lists.SHOWN.values())]
    bad = [lists.record(**{"id": 5000 + n, **c}) for n, c in enumerate(lists.LEFT_OUT.values())]
    plane.wire[LIST_PATH] = replies.answer(lists.body([*bad, *good]))
    changes = (".ssh/config", ".ssh/config.bak", ".cache/runcode/config-ssh.lock")
    told = json.loads(person.run("config-ssh", "--json", expect=None, changes=changes).stdout)
    assert sorted(told["hosts"]) == sorted(f"runcode.tree-{n}" for n in range(len(good)))
    text = (person.home / ".ssh" / "config").read_bytes()
    assert text.endswith(before)
    assert (person.home / ".ssh" / "config.bak").read_bytes() == before
    keywords = {line.split()[0] for line in text.decode().splitlines() if line.strip() and line.lstrip()[0] != "#"}
    found = re.findall(r"(?m)^Host (.*)$", text.decode())
    assert sorted(found) == sorted([*told["hosts"], "*", "mine"])
    assert not {"LocalCommand", "KnownHostsCommand", "Include", "Match"} & keywords
    assert set(re.findall(r"(?m)^ *ProxyCommand (\S+) proxy ", text.decode())) == {
        str(Path(sys.executable).with_name("runcode"))
    }
    person.run("config-ssh", "--remove", expect=None, changes=changes)
    assert (person.home / ".ssh" / "config").read_bytes() == before


@cases(lists.LOOKUPS)
def test_a_name_means_your_own_or_nothing(person: Victim, plane: CorpusPlane, case: Any) -> None:
    typed, others, meant = case
    own = lists.record(id=42, title=lists.OWN_TITLE, custom_title="Billing")
    other = lists.record(**{"id": 77, "title": "other-tree", **others})
    # The stranger's first, under "shared" as well as among the own ones.
    plane.own, plane.shared = ([own, other] if meant == 42 and others.get("id") == 42 else [other, own]), [other]
    plane.states = {42: "running", 77: "running"}
    code = meant if isinstance(meant, str) else None
    said = person.run("connect", typed, "--json", expect=code, changes=SESSION_FILES, here=True)
    if code is None:
        assert json.loads(said.stdout)["workspace_id"] == meant
    plane.own = [plane.workspace(42, "royal-tree", custom_title="Billing")]
    plane.shared = []


# ---------------------------------------------------------------- the laptop itself


def check_state(person: Victim, plane: CorpusPlane, state: State) -> None:
    person.prepare(state.steps)
    said = person.run(
        *(person.fill(word) for word in state.words),
        expect=state.code,
        changes=state.changes,
        stdin=TOKEN.encode() if state.words[0] == "login" else b"",
    )
    assert state.says in said.stdout, said.stdout


@states(local_states.FOLDERS)
def test_a_folder_that_is_not_ours_alone(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)


@states(local_states.FILES)
def test_a_file_that_is_not_ours_alone(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)


@states(local_states.TOKENS)
def test_a_token_that_is_none_or_is_not_for_this_server(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)
    assert plane.requests == []


@states(local_states.SESSIONS)
def test_a_session_that_was_edited(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)


@states(local_states.ATTACHMENTS)
def test_an_attachment_that_was_edited(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)


@states(local_states.ENVIRONMENT)
def test_a_variable_that_somebody_else_set(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)
    assert not (person.project / "planted").exists()


@states(local_states.SSH_CONFIGS)
def test_a_persons_ssh_config_in_every_state(person: Victim, plane: CorpusPlane, state: State) -> None:
    check_state(person, plane, state)
    config = person.home / ".ssh" / "config"
    if state.code is None:
        text = config.read_bytes()
        assert text.count(b"# >>> runcode") == 1
        assert re.findall(rb"(?m)^Host runcode\.(.*)$", text) == [b"royal-tree"]
        assert not list((person.home / ".ssh").glob(".runcode-*"))


@pytest.mark.parametrize("name", local_states.HOMES)
def test_a_home_whose_name_ssh_would_read_as_more(tmp_path: Path, plane: CorpusPlane, name: str) -> None:
    with victim(tmp_path, plane, name=name) as person:
        code = local_states.HOMES[name]
        person.run(*CONNECT, expect=code, changes=SESSION_FILES if code is None else (), here=True)
        if code is not None:
            return
        folder = person.home / ".cache" / "runcode" / "ws-42"
        shown = subprocess.run(
            ["ssh", "-G", "-F", folder / "config", f"runcode-{USER}"], capture_output=True, check=True, timeout=60
        ).stdout.decode("utf-8", "surrogateescape")
        told = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
        (key,) = (file for file in folder.glob("id_ed25519-*") if file.suffix != ".pub")
        assert told["identityfile"].replace("%%", "%") == str(key)
        # This one ssh shows after it has expanded it.
        assert told["userknownhostsfile"] == str(folder / "known_hosts")
        assert not {"proxycommand", "localcommand", "knownhostscommand"} & set(told)


def test_what_an_agent_calls_itself_is_plain(person: Victim, plane: CorpusPlane) -> None:
    for text in ("\x1b]52;c;x\x07evil", "\u202e", "a\nb", "x" * 65536, "\u0430"):
        person.environment["RUNCODE_CLIENT"] = text
        person.run(*CONNECT, "--force", expect=None, changes=SESSION_FILES, here=True)
        told = plane.mint_requests[-1]["client"]
        assert re.fullmatch(r"[ -~]{1,64}", told), told


_LISTENER = """
import os, socket, sys
os.setgid(60123); os.setuid(60123)
listening = socket.socket(fileno=int(sys.argv[1]))
while True:
    taken, _ = listening.accept()
    # A look at whether anybody listens is no harm; a word would be.
    print(taken.recv(4096).decode("latin-1"), end="", flush=True)
    taken.close()
"""


@pytest.mark.root_only
def test_a_control_socket_that_another_user_planted_gets_nothing(tmp_path: Path) -> None:
    """It stands exactly where ours would be, in our own folder; a real connection takes its place."""
    with service(tmp_path / "service") as served, signed_in(tmp_path / "person", served) as person:
        person.runcode("connect", "42")
        session = json.loads((person.session_folder() / "session.json").read_text())
        path = Path(session["control_path"])
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen()
            os.chown(path, local_states.STRANGER, local_states.STRANGER)
            stranger = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LISTENER, str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
            )
            try:
                done = person.runcode("exec", "--", "cat", stdin=b"secret")
                assert done.stdout == b"secret"
            finally:
                stranger.kill()
                told, _ = stranger.communicate()
            assert told == b""


def test_an_unforeseen_exception_tells_no_secret(person: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text goes to a private file, without the token; never to the terminal."""

    def fail(*_arguments: object, **_named: object) -> None:
        raise LookupError(f"\x1b]52;c;x\x07 Authorization: Token {TOKEN}")

    monkeypatch.setattr(api.Api, "list_workspaces", fail)
    errors = (".cache/runcode/errors", ".cache/runcode/errors/*.log")
    for words in (("list",), ("list", "--json")):
        said = person.run(*words, expect="internal", changes=errors, here=True)
        assert b"Authorization" not in said.stdout + said.stderr
    (first, *_) = (person.home / ".cache" / "runcode" / "errors").iterdir()
    assert "LookupError" in first.read_text()
    assert first.stat().st_mode & 0o777 == 0o600


def test_a_master_that_hangs_up_makes_ssh_open_nothing_of_its_own(tmp_path: Path) -> None:
    """ssh with `ControlMaster auto` would connect by itself and run the command there: perhaps a second time."""
    with service(tmp_path / "service") as served, signed_in(tmp_path / "person", served) as person:
        assert served.sshd is not None
        person.runcode("connect", "42")
        settings = load_settings(person.environment, api_base=served.base)
        (session,) = sessions.list_sessions(settings)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(session.control_path)
            listening.listen()

            def hang_up() -> None:
                taken, _ = listening.accept()
                taken.recv(1)
                taken.close()

            threading.Thread(target=hang_up, daemon=True).start()
            outcome, status = openssh.run(
                session, f"touch {served.workdir}/ran", person.environment, lambda pid: processes.wait(pid, 60) or 0
            )
        # It said too little to prove that nothing ran: then nothing is tried again either.
        assert (outcome, status) == (openssh.STARTED, 255)
        assert served.sshd.count_logins() == 0
        assert os.listdir(served.workdir) == []
