"""The hot path's quick reading of the state says what the full client says, or nothing at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runcode.cli import hot_connect, hot_exec, hot_state
from runcode.client import attachments, sessions
from runcode.client.private_files import ensure_private_folder, write_private_file
from runcode.client.sessions import Session
from runcode.client.settings import Settings, load_settings, save_token
from runcode.core.errors import RunCodeError

API = "https://plane.example.net"
OTHER = "https://other.example.net"
TOKEN = "tok-agreement"
CLAUDE, CODEX = "CLAUDE_CODE_SESSION_ID", "CODEX_THREAD_ID"


class Home:
    """A home with state that the full client wrote, and a look at it from both sides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        (self.project / "deep" / "deeper").mkdir(parents=True)
        self.environ = {"HOME": str(folder)}

    def settings(self, environ: dict[str, str], cwd: Path | None = None) -> Settings:
        os.chdir(cwd or self.project)
        return load_settings(environ)

    def login(self, api: str = API) -> None:
        save_token(load_settings(self.environ, api_base=api, web_base=api), TOKEN)

    def attach(self, workspace_id: int, cwd: Path | None = None, **environ: str) -> None:
        settings = self.settings({**self.environ, **environ}, cwd)
        attachments.attach(settings, workspace_id, f"box-{workspace_id}")
        folder = ensure_private_folder(sessions.session_folder(settings, workspace_id))
        session = Session(
            version=1,
            workspace_id=workspace_id,
            user=f"box-{workspace_id}",
            host="gateway.example.net",
            port=2222,
            workdir="/home/ubuntu/workspace",
            web_url=None,
            api_base=settings.api_base,
            expires_at=int(time.time()) + 1800,
            minted_at=int(time.time()),
            generation="0123456789abcdef",
            control_path="/tmp/rc-0/socket",
            folder=folder,
        )
        write_private_file(os.path.join(folder, "session.json"), sessions._render(session))

    def full(self, cwd: Path | None = None, **environ: str) -> object:
        """(id, title, expiry, workdir, control path) or the code of the error."""
        try:
            settings = self.settings({**self.environ, **environ}, cwd)
            found = attachments.load_attachment(settings)
            session = sessions.find_session(settings, found.workspace_id)
        except RunCodeError as error:
            return error.code
        if session is None:
            return "no session"
        return found.workspace_id, found.title, session.expires_at, session.workdir, session.control_path

    def hot(self, cwd: Path | None = None, **environ: str) -> object:
        """The same of the hot path; `unusual` when it leaves the decision to the full client."""
        os.chdir(cwd or self.project)
        raw = {os.fsencode(name): os.fsencode(value) for name, value in {**self.environ, **environ}.items()}
        try:
            agent_session, in_agent = hot_state.find_agent(raw)
            found = hot_state.find_attached(raw, agent_session, in_agent, os.getcwdb())
            if found is None:
                return "not_attached"
            session = hot_state.find_session(raw, found[0], found[2])
        except hot_state.Unusual:
            return "unusual"
        if session is None:
            return "no session"
        texts = [os.fsdecode(value) for value in (found[1], session[b"workdir"], session[b"control_path"])]
        return found[0], texts[0], int(session[b"expires_at"]), texts[1], texts[2]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    before = os.getcwd()
    yield Home(tmp_path / "home")
    os.chdir(before)


def nothing(home: Home) -> None:
    home.login()


def one_folder(home: Home) -> None:
    home.login()
    home.attach(7)


def one_session(home: Home) -> None:
    home.login()
    home.attach(7, **{CLAUDE: "one"})


def crowd(home: Home) -> None:
    """Two agents, a nested pair, and two folders, one inside the other."""
    home.login()
    home.attach(1, **{CLAUDE: "one"})
    home.attach(2, **{CODEX: "two"})
    home.attach(3, **{CLAUDE: "one", CODEX: "two"})
    home.attach(4)
    home.attach(5, home.project / "deep")


def umlauts(home: Home) -> None:
    home.login()
    odd = home.project / 'Übung "x" \\y'
    odd.mkdir()
    home.attach(8, odd)


def other_server(home: Home) -> None:
    home.login(OTHER)
    home.attach(7)
    home.login(API)


def never_signed_in(home: Home) -> None:
    home.attach(7)


def other_token(home: Home) -> None:
    """Something that knows no bases replaced the token, so the saved base is not its own."""
    one_folder(home)
    (home.folder / ".config/runcode/token").write_text("another\n")


PLACES = ["", "deep", "deep/deeper", "../..", 'Übung "x" \\y']
ENVIRONMENTS: list[dict[str, str]] = [
    {},
    {CLAUDE: "one"},
    {CLAUDE: "three"},
    {CODEX: "two"},
    {"CODEX_SESSION_ID": "two"},
    {CODEX: "two", "CODEX_SESSION_ID": "else"},
    {CLAUDE: "one", CODEX: "two"},
    {CLAUDE: ""},
    {"CLAUDECODE": "1"},
    {"CURSOR_AGENT": "1"},
    {"GEMINI_CLI": ""},
    {CLAUDE: 'ünï"\\'},
    {"RUNCODE_API_BASE": API},
    {"RUNCODE_API_BASE": OTHER},
    {"RUNCODE_API_BASE": API + ":443/"},
    {"RUNCODE_API_BASE": "http://plane.example.net"},
    {"XDG_CACHE_HOME": "relative"},
    {"XDG_CACHE_HOME": "/nowhere/at/all"},
    {"HOME": "relative"},
]
STATES = [nothing, one_folder, one_session, crowd, umlauts, other_server, never_signed_in, other_token]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_hot_and_full_agree(home: Home, state: Callable[[Home], None]) -> None:
    state(home)
    decided = 0
    for place in PLACES:
        cwd = home.project / place
        if not cwd.is_dir():
            continue
        for environ in ENVIRONMENTS:
            quick = home.hot(cwd, **environ)
            if quick != "unusual":
                decided += 1
                full = home.full(cwd, **environ)
                # Either way nothing is attached; what is wrong with the base is the full client's to say.
                assert quick == full or (quick, full) == ("not_attached", "insecure_base"), (place, environ)
    assert decided >= 10, "the table says nothing when the hot path decides nothing"


@pytest.mark.parametrize(
    ("state", "place", "environ", "workspace_id"),
    [
        (one_folder, "", {}, 7),
        (one_folder, "deep/deeper", {CLAUDE: "anyone"}, 7),
        (one_session, "", {CLAUDE: "one"}, 7),
        (crowd, "deep/deeper", {}, 5),
        (crowd, "deep", {CODEX: "two"}, 2),
        (crowd, "", {CLAUDE: "one", CODEX: "two"}, 3),
        (crowd, "", {CLAUDE: "three"}, 4),
        (umlauts, 'Übung "x" \\y', {}, 8),
    ],
)
def test_the_plain_cases_are_the_hot_paths_own(
    home: Home, state: Callable[[Home], None], place: str, environ: dict[str, str], workspace_id: int
) -> None:
    state(home)
    found = home.hot(home.project / place, **environ)
    assert isinstance(found, tuple)
    assert found[0] == workspace_id


def test_an_agent_that_attached_nothing_is_told_so_at_once(home: Home) -> None:
    one_session(home)
    assert home.hot(**{CLAUDE: "two"}) == home.full(**{CLAUDE: "two"}) == "not_attached"


def test_a_plain_terminal_takes_the_only_one_through_the_full_client(home: Home) -> None:
    one_session(home)
    assert home.hot() == "unusual"
    assert home.full()[0] == 7  # type: ignore[index]


SPOILED: list[tuple[str, Callable[[Path], object]]] = [
    ("attachments", lambda path: path.chmod(0o777)),
    ("attachments", lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved")),
    ("ws-7", lambda path: path.chmod(0o770)),
    ("ws-7", lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved")),
    ("ws-7/session.json", lambda path: path.chmod(0o666)),
    ("ws-7/session.json", lambda path: path.rename(path.with_name("moved")) and path.symlink_to("moved")),
    ("ws-7/session.json", lambda path: path.write_bytes(path.read_bytes()[:-20])),
    ("ws-7/session.json", lambda path: path.write_bytes(b"")),
    ("ws-7/session.json", lambda path: path.write_bytes(path.read_bytes().replace(b"box-7", b"-oProxyCommand=x"))),
    ("ws-7/session.json", lambda path: path.write_bytes(path.read_bytes().replace(b'"version": 1', b'"version": 2'))),
    ("ws-7/session.json", lambda path: path.write_bytes(path.read_bytes().replace(b'id": 7', b'id": 8'))),
    ("ws-7/session.json", lambda path: path.write_bytes(path.read_bytes().replace(API.encode(), OTHER.encode()))),
    ("ws-7/session.json", lambda path: path.unlink() or os.mkfifo(path)),
    ("ws-7/session.json", lambda path: path.write_bytes(b"{" + b" " * 300_000)),
]


@pytest.mark.parametrize("number", range(len(SPOILED)))
def test_a_state_that_is_not_ours_is_never_the_hot_paths(home: Home, number: int) -> None:
    """Planted or half-written: each of these would otherwise be used without the full client's look."""
    one_folder(home)
    assert isinstance(home.hot(), tuple)
    place, spoil = SPOILED[number]
    spoil(home.folder / ".cache/runcode" / place)
    assert home.hot() == "unusual"


@pytest.mark.root_only
@pytest.mark.parametrize("place", ["attachments", "ws-7", "ws-7/session.json"])
def test_somebody_elses_state_is_never_the_hot_paths(home: Home, place: str) -> None:
    one_folder(home)
    os.chown(home.folder / ".cache/runcode" / place, 54321, 54321)
    assert home.hot() == "unusual"


def test_a_session_near_its_end_is_renewed_by_the_full_client(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    one_folder(home)
    monkeypatch.setattr("posix.environ", {b"HOME": os.fsencode(home.folder)})
    now = time.time()
    os.chdir(home.project)
    assert hot_exec._find_session(b"")[b"user"] == b"box-7"
    monkeypatch.setattr("time.time", lambda: now + 1800 - 89)
    with pytest.raises(hot_state.Unusual):
        hot_exec._find_session(b"")


@pytest.mark.parametrize(
    "words",
    [
        ["exec"],
        ["exec", "--"],
        ["exec", "true"],
        ["exec", "--tty", "--", "true"],
        ["exec", "--workspace", "box-7", "--", "true"],
        ["exec", "--workspace", "0", "--", "true"],
        ["exec", "--workspace", "--", "true"],
        ["exec", "--timeout", "--", "true"],
        ["exec", "--timeout", "0", "--", "true"],
        ["exec", "--timeout", "0.5", "--", "true"],
        ["exec", "--help"],
        ["exec", "--home=1", "--", "true"],
    ],
)
def test_an_unusual_command_line_goes_to_the_full_client(words: list[str]) -> None:
    with pytest.raises(hot_state.Unusual):
        hot_exec._parse(["runcode", *words])


def test_the_plain_command_lines_are_read_as_the_full_client_reads_them() -> None:
    from runcode.cli.commands import exec as full

    for words in (
        ["--", "a b", "--", "-x"],
        ["--home", "--", "ls"],
        ["--timeout", "30", "--home", "--", "--timeout", "9"],
        ["--home", "--timeout", "5", "--", ""],
        ["--workspace", "7", "--", "ls"],
        ["--agent-session", "claude:one", "--workspace", "7", "--", "ls"],
    ):
        options = full.parse(words)
        named = (options.workspace or "").encode()
        session = (options.agent_session or "").encode()
        expected = (options.home, options.timeout, named, session, options.command)
        assert hot_exec._parse(["runcode", "exec", *words]) == expected


@pytest.mark.parametrize(
    "environ", [{}, {CLAUDE: "one"}, {CODEX: "two"}, {CLAUDE: "one", CODEX: "two"}, {CLAUDE: 'ünï"\\'}, {CLAUDE: "a b"}]
)
@pytest.mark.parametrize("place", ["", "deep", 'Übung "x" \\y'])
@pytest.mark.parametrize("wanted", ["7", "box-7"])
def test_connect_writes_what_the_full_client_writes(
    home: Home, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], place: str, wanted: str
) -> None:
    one_folder(home)
    home.attach(9, home.folder)
    cwd = home.project / place
    cwd.mkdir(exist_ok=True)
    moment = int(time.time())
    monkeypatch.setattr("time.time", lambda: moment)
    folder = home.folder / ".cache/runcode/attachments"
    before = set(folder.iterdir())
    raw = {os.fsencode(name): os.fsencode(value) for name, value in {**home.environ, **environ}.items()}
    monkeypatch.setattr("posix.environ", raw)
    os.chdir(cwd)
    assert hot_connect.run(["runcode", "connect", wanted]) == 0
    written = {path.name: path.read_bytes() for path in set(folder.iterdir()) - before} or {
        "replaced": b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    }
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}
    for path in set(folder.iterdir()) - before:
        path.unlink()
    found = attachments.attach(home.settings({**home.environ, **environ}, cwd), 7, "box-7")
    again = {path.name: path.read_bytes() for path in set(folder.iterdir()) - before} or {
        "replaced": b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    }
    assert written == again
    assert home.full(cwd, **environ)[0] == found.workspace_id == 7  # type: ignore[index]


@pytest.mark.parametrize(
    "words",
    [
        ["connect"],
        ["connect", "8"],
        ["connect", "007"],
        ["connect", "box-8"],
        ["connect", ""],
        ["connect", "--help"],
        ["connect", "7", "--json"],
        ["connect", "7", "--force"],
        ["connect", "\udcff"],
    ],
)
def test_an_unusual_connect_goes_to_the_full_client(
    home: Home, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    one_folder(home)
    monkeypatch.setattr("posix.environ", {b"HOME": os.fsencode(home.folder)})
    folder = home.folder / ".cache/runcode/attachments"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hot_connect.run(["runcode", *words]) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_connect_in_a_folder_that_others_may_write_to_is_the_full_clients(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_folder(home)
    monkeypatch.setattr("posix.environ", {b"HOME": os.fsencode(home.folder)})
    os.chdir(home.project)
    (home.folder / ".cache/runcode/attachments").chmod(0o777)
    assert hot_connect.run(["runcode", "connect", "7"]) is None


def test_a_workspace_that_is_named_by_its_id_is_that_one(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(home)
    os.chdir(home.project)
    environ = {b"HOME": os.fsencode(home.folder), b"CLAUDE_CODE_SESSION_ID": b"one"}
    monkeypatch.setattr("posix.environ", environ)
    assert hot_exec._find_session(b"")[b"user"] == b"box-1"
    assert hot_exec._find_session(b"5")[b"user"] == b"box-5"
    environ[b"RUNCODE_WORKSPACE"] = b"2"
    assert hot_exec._find_session(b"")[b"user"] == b"box-2"
    assert hot_exec._find_session(b"5")[b"user"] == b"box-5"
    for unusual in (b"box-2", b"02", b"99", b"-1"):
        environ[b"RUNCODE_WORKSPACE"] = unusual
        with pytest.raises(hot_state.Unusual):
            hot_exec._find_session(b"")
    environ[b"RUNCODE_WORKSPACE"] = b"2"
    environ[b"RUNCODE_API_BASE"] = OTHER.encode()
    with pytest.raises(hot_state.Unusual):
        hot_exec._find_session(b"")
