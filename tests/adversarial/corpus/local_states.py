"""Hostile states of the laptop itself: planted links, folders, files and variables.

A path is relative to the home; `{run}` is its runtime folder, `{out}` a folder outside that must stay as it is,
`{base}` the server. Steps:

    ("folder", path, mode)  ("file", path, content, mode)  ("link", path, target)  ("pipe", path)
    ("mode", path, mode)  ("owner", path, uid: root only)  ("remove", path)  ("size", path, bytes)
    ("environment", name, value)  ("home", name of the home folder)
    ("session", changes of a valid session.json)  ("attachment", changes by line number)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from adversarial.corpus.payloads import TERMINAL

Step = tuple[Any, ...]
CONNECT = ("connect", "42")
LIST = ("list",)
STATUS = ("status", "--json")
CURRENT = ("current",)
EXEC = ("exec", "--", "true")
STATUSLINE = ("statusline", "--plain")
HOSTS = ("config-ssh",)
LOGIN = ("login", "--paste", "--api-base", "{base}", "--web-base", "{base}")
_CACHE, _CONFIG, _WS = ".cache/runcode", ".config/runcode", ".cache/runcode/ws-42"
STRANGER = 60123
_NEW_SESSION = (f"{_WS}/*", f"{_CACHE}/attachments", f"{_CACHE}/attachments/*", f"{_CACHE}/ws-42.lock", "{run}/rc")


class State(NamedTuple):
    """`code` None: it works in spite of that. `changes`: patterns of what may be made or changed."""

    steps: tuple[Step, ...]
    words: tuple[str, ...]
    code: str | None
    changes: tuple[str, ...] = ()
    says: bytes = b""


def _folder_states(path: str, words: tuple[str, ...], *, root: str = "") -> dict[str, State]:
    """One folder of ours in every state in which somebody else may have a hand in it."""
    named = f"{path}: "
    return {
        named + "a link": State((("folder", "{out}/x", 0o700), ("link", path, "{out}/x")), words, "unsafe_path"),
        named + "a link to nothing": State((("link", path, "{out}/missing"),), words, "unsafe_path"),
        named + "open to all": State((("folder", path, 0o777),), words, "unsafe_path"),
        named + "open to the group": State((("folder", path, 0o770),), words, "unsafe_path"),
        named + "open and sticky": State((("folder", path, 0o1777),), words, "unsafe_path"),
        named + "somebody else's": State((("folder", path, 0o700), ("owner", path, STRANGER)), words, "unsafe_path"),
        named + "a file": State((("file", path, b"x", 0o600),), words, "unsafe_path"),
        named + "a pipe": State((("pipe", path),), words, "unsafe_path"),
    }


def _file_states(path: str, words: tuple[str, ...], content: bytes = b"x\n") -> dict[str, State]:
    """One file of ours in every state in which it is not ours alone."""
    named = f"{path}: "
    return {
        named + "a link": State((("file", "{out}/x", content, 0o600), ("link", path, "{out}/x")), words, "unsafe_path"),
        named + "open to all": State((("file", path, content, 0o666),), words, "unsafe_path"),
        named + "somebody else's": State(
            (("file", path, content, 0o600), ("owner", path, STRANGER)), words, "unsafe_path"
        ),
        named + "a pipe": State((("pipe", path),), words, "unsafe_path"),
        named + "a folder": State((("folder", path, 0o700),), words, "unsafe_path"),
        named + "endless": State((("size", path, 1024 * 1024),), words, "unsafe_path"),
    }


FOLDERS: dict[str, State] = {
    **_folder_states(_CACHE, CONNECT),
    **_folder_states(_WS, CONNECT),
    **_folder_states("{run}/rc", CONNECT),
    **{
        name: state._replace(steps=(("remove", _CONFIG), *state.steps))
        for name, state in _folder_states(_CONFIG, LOGIN).items()
    },
    **{
        name: state._replace(changes=_NEW_SESSION)
        for name, state in _folder_states(f"{_CACHE}/attachments", CONNECT).items()
    },
}
_AT_SERVER = ("environment", "RUNCODE_API_BASE", "{base}")
FILES: dict[str, State] = {
    **_file_states(f"{_CONFIG}/token", LIST),
    **_file_states(f"{_CONFIG}/bases", LIST),
    **{
        name: state._replace(steps=(("session", {}), *state.steps))
        for name, state in _file_states(f"{_WS}/session.json", STATUS).items()
    },
    f"{_WS}/known_hosts: a link": State(
        (("folder", _WS, 0o700), ("file", "{out}/x", b"precious", 0o600), ("link", f"{_WS}/known_hosts", "{out}/x")),
        CONNECT,
        None,
        _NEW_SESSION,
    ),
    f"{_WS}/config: a link": State(
        (("folder", _WS, 0o700), ("file", "{out}/x", b"precious", 0o600), ("link", f"{_WS}/config", "{out}/x")),
        CONNECT,
        None,
        _NEW_SESSION,
    ),
    f"{_WS}/known_hosts: a pipe": State(
        (("folder", _WS, 0o700), ("pipe", f"{_WS}/known_hosts")), CONNECT, None, _NEW_SESSION
    ),
    f"{_WS}/known_hosts: a folder": State(
        (("folder", f"{_WS}/known_hosts", 0o700),), CONNECT, "io_error", (f"{_WS}/*",)
    ),
    f"{_WS}/new-0: a link": State(
        (("folder", _WS, 0o700), ("file", "{out}/x", b"precious", 0o600), ("link", f"{_WS}/new-0", "{out}/x")),
        CONNECT,
        None,
        _NEW_SESSION,
    ),
    "lock: a link": State(
        (("folder", _CACHE, 0o700), ("file", "{out}/x", b"", 0o600), ("link", f"{_CACHE}/ws-42.lock", "{out}/x")),
        CONNECT,
        "io_error",
    ),
    "lock: a link to nothing": State(
        (("folder", _CACHE, 0o700), ("link", f"{_CACHE}/ws-42.lock", "{out}/made")), CONNECT, "io_error"
    ),
    "lock: a folder": State((("folder", f"{_CACHE}/ws-42.lock", 0o700),), CONNECT, "io_error"),
}
TOKENS: dict[str, State] = {
    f"token: {name}": State((("file", f"{_CONFIG}/token", content, 0o600), _AT_SERVER), LIST, "no_token")
    for name, content in {
        "empty": b"",
        "only newlines": b"\n\n",
        "two lines": b"one\ntwo\n",
        "header in it": b"tok\r\nX-Evil: 1\n",
        "escape": b"tok\x1b]52;c;x\x07\n",
        "nul": b"tok\0\n",
        "beyond ascii": b"t\xc3\xb6k\n",
        "8 kilobytes": b"t" * 8192,
    }.items()
} | {
    "bases: of another token": State(
        (("file", f"{_CONFIG}/bases", b"runcode-bases 1\n{base}\n{base}\n" + b"0" * 64 + b"\n", 0o600), _AT_SERVER),
        LIST,
        "no_token",
    ),
    "bases: half": State(
        (("file", f"{_CONFIG}/bases", b"runcode-bases 1\n{base}\n", 0o600), _AT_SERVER), LIST, "no_token"
    ),
    "bases: plain http": State(
        (("file", f"{_CONFIG}/bases", b"runcode-bases 1\nhttp://evil.example\n{base}\n{digest}\n", 0o600),),
        LIST,
        "insecure_base",
    ),
    "bases: escape": State(
        (("file", f"{_CONFIG}/bases", b"runcode-bases 1\nhttps://\x1b]52;c;x\x07\n{base}\n{digest}\n", 0o600),),
        LIST,
        "usage",
    ),
    "bases: another server": State(
        (
            ("file", f"{_CONFIG}/bases", b"runcode-bases 1\nhttps://other.example\n{base}\n{digest}\n", 0o600),
            _AT_SERVER,
        ),
        LIST,
        "no_token",
    ),
    **{
        f"RUNCODE_TOKEN: {name}": State((("environment", "RUNCODE_TOKEN", text),), LIST, "no_token")
        for name, text in {"two lines": "a\nb", "header": "a\r\nX: y", "escape": "a\x1b[2J", "blank": "a b"}.items()
    },
}

# A session.json that was edited: it counts as none.
_UNREADABLE: dict[str, dict[str, Any]] = {
    "user is an option": {"user": "-oProxyCommand=id"},
    "user with a newline": {"user": "a\nProxyCommand id"},
    "user is null": {"user": None},
    "host is an option": {"host": "-oProxyCommand=id"},
    "host is metadata": {"host": "169.254.169.254"},
    "host with a token": {"host": "%h"},
    "port is a text": {"port": "22"},
    "port is true": {"port": True},
    "expiry is a text": {"expires_at": "soon"},
    "expiry is 2**70": {"expires_at": 2**70},
    "expiry is beyond any calendar": {"expires_at": 2**62},
    "skew is beyond any calendar": {"clock_skew_s": 2**62},
    "minted before time": {"minted_at": -1},
    "generation climbs": {"generation": "../../../../x"},
    "control path is relative": {"control_path": "sock"},
    "control path is a list": {"control_path": ["/tmp/x"]},
    "web url is an object": {"web_url": {}},
    "another workspace's": {"workspace_id": 43},
    "another server's": {"api_base": "https://evil.example"},
    "base is null": {"api_base": None},
    "a later version": {"version": 2},
    "skew is a text": {"clock_skew_s": "\x1b"},
}
SESSIONS: dict[str, State] = {
    **{
        f"session: {name}": State((("session", changes),), STATUS, None, says=b"[]")
        for name, changes in _UNREADABLE.items()
    },
    **{
        f"session: {name}": State(
            (("session", {}), ("file", f"{_WS}/session.json", raw, 0o600)), STATUS, None, says=b"[]"
        )
        for name, raw in {
            "garbage": b"\x1b]52;c;x\x07\xff",
            "empty": b"",
            "half": b'{\n"version": 1,\n',
            "deep": b"[" * 100_000,
            "list": b"[]",
            "nul": b"\0" * 100,
        }.items()
    },
    "session: in a folder open to all": State((("session", {}), ("mode", _WS, 0o777)), STATUS, None, says=b"[]"),
    "session: in a folder of somebody else's": State(
        (("session", {}), ("owner", _WS, STRANGER)), STATUS, None, says=b"[]"
    ),
    "session: hostile workdir": State((("session", {"workdir": "/a;$(id)\n"}),), CURRENT, None, says=b"royal-tree"),
    **{
        f"status line: web url with {name}": State(
            (("session", {"web_url": f"https://{text}/"}),), STATUSLINE, None, says=b"working-on:royal-tree"
        )
        for name, text in TERMINAL.items()
        # A name of plain letters is one, however long.
        if name not in ("lone-surrogates", "long")
    },
    "exec: control folder open to all": State(
        (("folder", "{out}/open", 0o777), ("session", {"control_path": "{out}/open/s"})), EXEC, "unsafe_path"
    ),
    "exec: control folder is a link": State(
        (
            ("folder", "{out}/real", 0o700),
            ("link", "{run}/l", "{out}/real"),
            ("session", {"control_path": "{run}/l/s"}),
        ),
        EXEC,
        "unsafe_path",
    ),
    "exec: control folder is somebody else's": State(
        (
            ("folder", "{run}/theirs", 0o700),
            ("owner", "{run}/theirs", STRANGER),
            ("session", {"control_path": "{run}/theirs/s"}),
        ),
        EXEC,
        "unsafe_path",
    ),
}
ATTACHMENTS: dict[str, State] = {
    **{
        f"attachment: {name}": State(
            # In an agent: a plain terminal may take the only one that there is, wherever it was made.
            (("environment", "CLAUDECODE", "1"), ("session", {}), ("attachment", changes)),
            CURRENT,
            "not_attached",
        )
        for name, changes in {
            "another header": {0: "runcode-attachment 9"},
            "unknown scope": {1: "world"},
            "key is not json": {2: "\x1b]52;c;x\x07"},
            "another server's": {3: "https://evil.example"},
            "id is a word": {4: "many"},
            "id is negative": {4: "-42"},
            "title is an option": {5: "-oProxyCommand=id"},
            "title with an escape": {5: "\x1b]52;c;x\x07"},
            "title with bidi": {5: "a\u202eb"},
            "time is a word": {6: "now"},
            "a line more": {6: "1\nmore"},
            "64 kilobytes": {5: "a" * 65536},
            "another folder's": {2: '"/somewhere"'},
            "key is deep": {2: "[" * 60_000},
        }.items()
    },
}

# Variables that a repository or another program sets.
ENVIRONMENT: dict[str, State] = {
    **{
        f"agent session: {name}": State(
            (("environment", "CLAUDE_CODE_SESSION_ID", text),),
            CONNECT,
            None,
            (f"{_CACHE}", ".cache", f"{_WS}", *_NEW_SESSION),
        )
        for name, text in {
            "path": "../../../../etc/x",
            "escape": "\x1b]52;c;x\x07",
            "newline": "a\nb",
            "bidi": "\u202e",
            "64 kilobytes": "s" * 65536,
        }.items()
    },
    **{
        f"RUNCODE_WORKSPACE: {name}": State((("environment", "RUNCODE_WORKSPACE", text),), EXEC, "not_found")
        for name, text in {
            "option": "-oProxyCommand=id",
            "escape": "\x1b]52;c;x\x07",
            "path": "../ws-1",
            "newline": "42\n43",
            "substitution": "$(id)",
            "bidi": "\u202e24",
        }.items()
    },
    "XDG_CACHE_HOME: relative": State(
        (("environment", "XDG_CACHE_HOME", "planted"),), CONNECT, None, (".cache", _CACHE, _WS, *_NEW_SESSION)
    ),
    "PATH: the project's own ssh-keygen": State(
        (
            ("file", "project/ssh-keygen", b"#!/bin/sh\ntouch $HOME/owned\n", 0o755),
            ("environment", "PATH", ".::{path}"),
        ),
        CONNECT,
        None,
        (".cache", _CACHE, _WS, *_NEW_SESSION),
    ),
    # What we start is not told the token: it would stand in its environment for everybody of this user to see.
    "RUNCODE_TOKEN: what is started does not hear it": State(
        (
            ("file", "{out}/bin/ssh-keygen", b'#!/bin/sh\nenv >"$HOME/heard"\nexec /usr/bin/ssh-keygen "$@"\n', 0o755),
            ("environment", "PATH", "{out}/bin:{path}"),
            ("environment", "RUNCODE_TOKEN", "{token}"),
        ),
        CONNECT,
        None,
        ("heard", ".cache", _CACHE, _WS, *_NEW_SESSION),
    ),
    "PATH: nothing": State((("environment", "PATH", ""),), CONNECT, "missing_program"),
    "LD_PRELOAD-like names": State(
        (
            ("environment", "PYTHONPATH", "{out}"),
            ("environment", "PYTHONSTARTUP", "{out}/x"),
            ("file", "{out}/os.py", b"raise SystemExit(7)", 0o644),
        ),
        LIST,
        None,
    ),
}
# Names of the home folder itself; a good one is one that ssh can be told.
HOMES: dict[str, str | None] = {
    "a\nb": "unsafe_path",
    "a\rb": "unsafe_path",
    'a"b': "unsafe_path",
    "a${HOME}b": "unsafe_path",
    "a\x1b]52;c;x\x07b": "unsafe_path",
    "a b": None,
    "a%hb": None,
    "a%%b": None,
    "a\\b": None,
    "a'b": None,
    "$(id)": None,
    "`id`": None,
    "a;id": None,
    "-rf": None,
    "#x": None,
    "~root": None,
    "*": None,
    "\u202ea": None,
    "caf\u00e9": None,
}

_BLOCK_START = b"# >>> runcode managed block (do not edit) >>>\n"
_PERSONAL = b"Host work\n  Port 2200\n"
_SSH = (".ssh/config", ".ssh/config.bak", _CACHE, ".cache", f"{_CACHE}/config-ssh.lock")
SSH_CONFIGS: dict[str, State] = {
    "a link": State(
        (
            ("remove", ".ssh/config"),
            ("file", "{out}/dotfiles", _PERSONAL, 0o640),
            ("link", ".ssh/config", "{out}/dotfiles"),
        ),
        HOSTS,
        None,
        (*_SSH[1:], "{out}/dotfiles"),
    ),
    "read-only": State((("mode", ".ssh/config", 0o400),), HOSTS, None, _SSH),
    "missing": State((("remove", ".ssh/config"),), HOSTS, None, _SSH),
    "a pipe": State((("remove", ".ssh/config"), ("pipe", ".ssh/config")), HOSTS, "unsafe_path", _SSH[2:]),
    "a folder": State((("remove", ".ssh/config"), ("folder", ".ssh/config", 0o700)), HOSTS, "unsafe_path", _SSH[2:]),
    "a link to a device": State(
        (("remove", ".ssh/config"), ("link", ".ssh/config", "/dev/zero")), HOSTS, "unsafe_path", _SSH[2:]
    ),
    "a link to itself": State(
        (("remove", ".ssh/config"), ("link", ".ssh/config", "config")), HOSTS, "io_error", _SSH[2:]
    ),
    "a link into nothing": State(
        (("remove", ".ssh/config"), ("link", ".ssh/config", "{out}/missing/config")), HOSTS, "io_error", _SSH[2:]
    ),
    "somebody else's": State((("owner", ".ssh/config", STRANGER),), HOSTS, "unsafe_path", _SSH[2:]),
    "endless": State((("size", ".ssh/config", 9 * 1024 * 1024),), HOSTS, "unsafe_path", _SSH[2:]),
    "one that ssh rejects": State(
        (("file", ".ssh/config", b"NoSuchOption yes\n", 0o600),), HOSTS, "io_error", _SSH[2:]
    ),
    "a block cut in half": State(
        (("file", ".ssh/config", _BLOCK_START + b"Host runcode.old\n    HostName x\n" + _PERSONAL, 0o600),),
        HOSTS,
        None,
        _SSH,
    ),
    "a block that never begins": State(
        (("file", ".ssh/config", b"# <<< runcode managed block <<<\n" + _PERSONAL, 0o600),), HOSTS, None, _SSH
    ),
    "binary": State((("file", ".ssh/config", b"\xff\x1b\0" * 100, 0o600),), HOSTS, "io_error", _SSH[2:]),
    "a match above our hosts": State(
        (("file", ".ssh/config", b"Match all\n  User evil\n" + _PERSONAL, 0o600),), HOSTS, None, _SSH
    ),
    "a backup that is a link": State(
        (("file", "{out}/x", b"precious", 0o600), ("link", ".ssh/config.bak", "{out}/x")), HOSTS, None, _SSH
    ),
    "~/.ssh is a file": State(
        (("remove", ".ssh/config"), ("remove", ".ssh"), ("file", ".ssh", b"x", 0o600)), HOSTS, "io_error", _SSH[2:]
    ),
    "its lock is a link": State(
        (("folder", _CACHE, 0o700), ("link", f"{_CACHE}/config-ssh.lock", "{out}/made")), HOSTS, "io_error"
    ),
}
