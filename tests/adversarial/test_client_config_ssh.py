"""A person's ssh config in hostile and broken states, and hostile names from a server."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runcode.client import person_files
from runcode.core.errors import RunCodeError
from runcode.core.sshblock import (
    END_MARKER,
    START_MARKER,
    HostEntry,
    insert_block,
    remove_blocks,
    render_block,
    render_display_name,
)
from support.client_standin import TITLE, ControlPlane, Person

HOST = f"runcode.{TITLE}"


def entry(title: str = "box-1", display_name: str = "") -> HostEntry:
    return HostEntry(
        title=title,
        display_name=display_name,
        proxy_command=f"/opt/runcode proxy {title}",
        identity_files=('"/k/a"', '"/k/b"'),
        known_hosts_file='"/k/known"',
    )


BLOCK = render_block([entry("box-1", "First"), entry("box-2")])
MINE = b"# mine\r\nServerAliveInterval 61\n\nHost work\n\tPort 2200\n\nHost *\n  User bob"


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


def ssh_accepts(text: bytes, folder: Path, host: str = "example") -> dict[str, str]:
    (folder / "candidate").write_bytes(text)
    done = subprocess.run(
        ["ssh", "-G", "-F", str(folder / "candidate"), host], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, (text, done.stderr)
    return dict(line.partition(" ")[::2] for line in done.stdout.splitlines())


# ---------------------------------------------------------------- the block, cut and mixed


def test_a_block_cut_at_any_byte_swallows_nothing_and_leaves_no_host() -> None:
    for cut in range(len(BLOCK) + 1):
        rest = remove_blocks(BLOCK.encode()[:cut] + b"\n" + MINE)
        assert rest.endswith(MINE), cut
        left = rest[: -len(MINE)].decode()
        # At most a comment, or an empty section that matches everything.
        assert all(line.strip() in ("", "Host *") or line.startswith("#") for line in left.split("\n")), (cut, left)


def test_a_half_block_between_a_persons_lines(tmp_path: Path) -> None:
    half = BLOCK.encode().split(b"    ProxyCommand")[0]
    for before in (b"", b"Host first\n  Port 1\n", b"Compression yes\n"):
        content = before + half + MINE + b"\n" + BLOCK.encode() + b"Host last\n  Port 9\n"
        assert remove_blocks(content) == before + MINE + b"\n" + b"Host last\n  Port 9\n"
        renewed = insert_block(content, BLOCK)
        assert renewed.count(START_MARKER.encode()) == renewed.count(END_MARKER.encode()) == 1
        assert ssh_accepts(renewed, tmp_path, "work")["port"] == "2200"
        assert ssh_accepts(renewed, tmp_path, "last")["port"] == "9"


def test_a_released_clients_block_is_replaced(tmp_path: Path) -> None:
    theirs = (
        f"{START_MARKER}\n# Billing API\nHost runcode.box-1\n  HostName runcode-gateway\n  User box-1\n"
        f"  ProxyCommand /old/runcode proxy 42\n\nHost runcode.gone\n\tUser gone\n\n{END_MARKER}\n"
    ).encode()
    content = b"Host a\n  Port 1\n\n" + theirs + b"\nHost b\n  Port 2\n"
    assert remove_blocks(content) == b"Host a\n  Port 1\n\n\nHost b\n  Port 2\n"
    assert b"/old/runcode" not in insert_block(content, BLOCK)


def test_what_a_person_put_between_the_markers_is_kept() -> None:
    inside = BLOCK.replace("Host *\n", "Host precious\n  Port 5\n  # a note\nHost *\n").encode()
    assert remove_blocks(inside + MINE) == b"Host precious\n  Port 5\n  # a note\n" + MINE


@pytest.mark.parametrize(
    "content",
    [
        END_MARKER.encode() + b"\n" + MINE,
        MINE + b"\n# runcode: a note of mine\n",
        b"Host runcode.mine\n  Port 1\n",
        b"  " + START_MARKER.encode()[:-1] + b"\n" + MINE,
        b"x " + START_MARKER.encode() + b"\n" + MINE,
        b"\x00\x01\xff" * 50,
        b"",
    ],
)
def test_what_is_not_between_markers_is_never_touched(content: bytes) -> None:
    assert remove_blocks(content) == content


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400))
def test_in_and_out_again_is_nothing(before: bytes, after: bytes) -> None:
    """Whatever the file is: with the block and without it again, its bytes are the same."""
    if START_MARKER.encode() in before + after:
        return
    content = before + after
    once = insert_block(content, BLOCK)
    assert remove_blocks(once) == content
    assert insert_block(once, BLOCK) == once


LINES = st.sampled_from(
    [
        START_MARKER,
        END_MARKER,
        "Host *",
        "Host runcode.a",
        "Host mine",
        "    Port 1",
        "Port 2",
        "# note",
        "",
        "Match all",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(LINES, max_size=14))
def test_any_mix_of_lines_settles_and_keeps_a_persons_sections(lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines).encode()
    once = remove_blocks(content)
    assert remove_blocks(once) == once
    for section in (b"Host mine\n", b"Match all\n"):
        assert once.count(section) == content.count(section)
    assert insert_block(content, BLOCK).startswith(BLOCK.encode())


# ---------------------------------------------------------------- names from a server

NAMES = [
    "x\nHost *\n  ProxyCommand touch /tmp/owned",
    "x\r  ProxyCommand touch /tmp/owned",
    "a\u2028ProxyCommand b",
    "\x1b]52;c;eA==\x07",
    "\u202eevil",
    f"{END_MARKER}",
    f"x {START_MARKER} y",
    "\x00",
    "%h ${HOME} $(id) `id`",
    "x" * 64_000,
    "\ud800",
    "   ",
    "# nested # comment",
    "ends in a backslash \\",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_display_name_is_one_harmless_comment_line(name: str, tmp_path: Path) -> None:
    text = render_block([entry("box-1", name), entry("box-2", "plain")])
    plain = render_block([entry("box-1"), entry("box-2", "plain")])
    added = [line for line in text.split("\n") if line not in plain.split("\n")]
    assert len(text.split("\n")) <= len(plain.split("\n")) + 1
    assert all(line.startswith("# runcode.box-1: ") and line.isprintable() and len(line) < 120 for line in added)
    assert text.count(START_MARKER) == text.count(END_MARKER) == 1
    assert remove_blocks(text.encode() + MINE) == MINE
    assert ssh_accepts(text.encode(), tmp_path, "runcode.box-1")["proxycommand"] == "/opt/runcode proxy box-1"


@given(st.text(max_size=300))
def test_every_display_name_is_printable_and_short(name: str) -> None:
    shown = render_display_name(name)
    assert shown.isprintable()
    assert len(shown) <= 80
    assert ">>" not in shown
    assert "<<" not in shown


TITLES = [
    "a b",
    "*",
    "?",
    "!x",
    "-oProxyCommand=x",
    "a\nHost *",
    "a\tb",
    "",
    "a%h",
    "x" * 65,
    "é",
    "a;b",
    "$(id)",
    "a\\b",
]


@pytest.mark.parametrize("title", TITLES)
def test_an_unsafe_title_gets_no_host(title: str, person: Person, plane: ControlPlane) -> None:
    with pytest.raises(RunCodeError):
        render_block([entry(title)])
    plane.own.append(plane.workspace(43, title, custom_title="evil"))
    told = person.json("config-ssh")
    assert told["hosts"] == [HOST]
    text = (person.home / ".ssh" / "config").read_text()
    assert re.findall(r"(?m)^Host (.*)$", text) == [HOST, "*"]


# ---------------------------------------------------------------- the file


def refuse(person: Person, code: str) -> str:
    failure = person.json("config-ssh", expect=1)
    assert failure["error"] == code, failure
    return str(failure["message"])


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".runcode-")]


def test_a_config_that_is_no_file_is_refused(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = person.home / ".ssh"
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / "config")
    refuse(person, "unsafe_path")
    (folder / "config").unlink()
    (folder / "config").mkdir()
    refuse(person, "unsafe_path")
    (folder / "config").rmdir()
    (folder / "config").symlink_to("/dev/zero")
    refuse(person, "unsafe_path")
    (folder / "config").unlink()
    (folder / "config").symlink_to("config")
    refuse(person, "io_error")
    (folder / "config").unlink()
    with socket.socket(socket.AF_UNIX) as planted:
        # A socket's path is limited, and pytest's folders are deep.
        monkeypatch.chdir(folder)
        planted.bind("config")
        refuse(person, "io_error")
    assert left_behind(folder) == []


@pytest.mark.root_only
def test_somebody_elses_config_is_refused(person: Person) -> None:
    folder = person.home / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "config").write_text("Host a\n")
    os.chown(folder / "config", 60123, 60123)
    refuse(person, "unsafe_path")
    assert (folder / "config").read_text() == "Host a\n"


def test_a_huge_config_is_refused(person: Person) -> None:
    folder = person.home / ".ssh"
    folder.mkdir(mode=0o700)
    with (folder / "config").open("wb") as file:
        file.truncate(person_files.SIZE_MAX + 1)
    refuse(person, "unsafe_path")


def test_a_config_that_ssh_rejects_is_left_alone_and_said_so(person: Person) -> None:
    folder = person.home / ".ssh"
    folder.mkdir(mode=0o700)
    (folder / "config").write_text("NoSuchOption yes\n")
    message = refuse(person, "io_error")
    assert "nosuchoption" in message
    assert (folder / "config").read_text() == "NoSuchOption yes\n"
    assert sorted(path.name for path in folder.iterdir()) == ["config"]


def test_a_backup_that_is_a_link_is_replaced_and_not_followed(person: Person, tmp_path: Path) -> None:
    folder = person.home / ".ssh"
    folder.mkdir(mode=0o700)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (folder / "config").write_text("Host a\n  Port 1\n")
    (folder / "config.bak").symlink_to(victim)
    person.runcode("config-ssh")
    assert victim.read_text() == "precious"
    assert (folder / "config.bak").read_text() == "Host a\n  Port 1\n"
    assert not (folder / "config.bak").is_symlink()


def test_a_folder_that_cannot_be_written_leaves_everything(person: Person, tmp_path: Path) -> None:
    """As root nothing is read-only but what is no folder at all."""
    folder = person.home / ".ssh"
    folder.write_text("a file in the folder's place")
    refuse(person, "io_error")
    assert folder.read_text() == "a file in the folder's place"
    folder.unlink()
    folder.mkdir(mode=0o700)
    (folder / "config").symlink_to(tmp_path / "missing" / "config")
    refuse(person, "io_error")
    assert left_behind(folder) == []


def test_an_editors_change_in_between_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"one")

    def edit(_candidate: str) -> None:
        path.write_bytes(b"edited meanwhile")

    assert person_files.replace_person_file(str(path), b"one", b"ours", check=edit) is False
    assert path.read_bytes() == b"edited meanwhile"
    assert sorted(os.listdir(tmp_path)) == ["config"]
    # One that appears where there was none.
    path.unlink()
    assert person_files.replace_person_file(str(path), None, b"ours", check=edit) is False
    assert path.read_bytes() == b"edited meanwhile"


def test_a_crash_between_the_steps_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"before")
    real_replace = os.replace
    for fails_at in (1, 2):
        calls = 0

        def replace(source: str, target: str, fails_at: int = fails_at) -> None:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise OSError(28, "No space left on device")
            real_replace(source, target)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(RunCodeError) as caught:
            person_files.replace_person_file(str(path), b"before", b"after")
        assert caught.value.code == "io_error"
        assert path.read_bytes() == b"before"
        assert left_behind(tmp_path) == []


def test_the_new_file_is_private_from_its_first_byte(tmp_path: Path) -> None:
    """Also while it is written, whatever the umask; and a wide mode is only ever the person's own."""
    seen: list[int] = []
    path = tmp_path / "config"
    old_umask = os.umask(0)
    try:
        person_files.replace_person_file(
            str(path), None, b"x", check=lambda name: seen.append(stat.S_IMODE(os.stat(name).st_mode))
        )
    finally:
        os.umask(old_umask)
    assert seen == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
