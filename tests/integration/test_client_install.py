"""`install-statusline`, `install-path` and `completion`: in a person's own files and their real shells."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from support.client_standin import BARE_PATH, RUNCODE, Person


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "person")


def settings_of(person: Person) -> Any:
    return json.loads((person.home / ".claude" / "settings.json").read_text())


def write_settings(person: Person, text: str) -> Path:
    file = person.home / ".claude" / "settings.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


# ---------------------------------------------------------------- install-statusline


def test_it_is_installed_once_and_taken_out_again(person: Person) -> None:
    told = person.json("install-statusline")
    file = person.home / ".claude" / "settings.json"
    assert told == {"path": str(file), "changed": True, "command": f"{RUNCODE} statusline"}
    assert settings_of(person)["statusLine"] == {"type": "command", "command": f"{RUNCODE} statusline", "padding": 0}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert person.json("install-statusline")["changed"] is False
    assert not (file.parent / "settings.json.bak").exists()
    assert person.json("install-statusline", "--remove")["changed"] is True
    assert settings_of(person) == {}
    assert person.json("install-statusline", "--remove")["changed"] is False


def test_the_command_runs_as_claude_code_runs_it(person: Person) -> None:
    """Through a shell, with JSON on stdin, from any folder."""
    person.runcode("install-statusline")
    done = subprocess.run(
        ["/bin/sh", "-c", settings_of(person)["statusLine"]["command"]],
        input=b'{"session_id": "x", "cwd": "/"}',
        env=person.environment,
        cwd="/",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"")


def test_everything_else_in_the_file_stays(person: Person) -> None:
    text = '{\n\t"model": "opus",\n\t"permissions": {"deny": ["Bash(rm:*)"]},\n\t"ü": "\\u2028é"\n}'
    file = write_settings(person, text)
    file.chmod(0o644)
    person.runcode("install-statusline")
    assert {name: value for name, value in settings_of(person).items() if name != "statusLine"} == json.loads(text)
    assert list(settings_of(person)) == ["model", "permissions", "ü", "statusLine"]
    assert file.read_text().startswith('{\n\t"model"')
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert (file.parent / "settings.json.bak").read_text() == text
    person.runcode("install-statusline", "--remove")
    assert settings_of(person) == json.loads(text)


@pytest.mark.parametrize(
    "line",
    [
        {"type": "command", "command": "ccusage statusline"},
        {"type": "command", "command": "/opt/my-runcode-like statusline-tool"},
        {"type": "command"},
        "text",
        {"type": "command", "command": "echo runcode; other statusline"},
    ],
)
def test_another_programs_line_is_kept_unless_forced(person: Person, line: object) -> None:
    file = write_settings(person, json.dumps({"statusLine": line}))
    before = file.read_bytes()
    failure = person.json("install-statusline", expect=1)
    assert failure["error"] == "conflict"
    assert "--force" in failure["resolution"]
    assert person.json("install-statusline", "--remove")["changed"] is False
    assert file.read_bytes() == before
    person.runcode("install-statusline", "--force")
    assert settings_of(person)["statusLine"]["command"] == f"{RUNCODE} statusline"
    assert (file.parent / "settings.json.bak").read_bytes() == before


@pytest.mark.parametrize(
    "text", ["{", "[]", "// a comment\n{}", '{"a": 1, "a": 2}', '"x"', "[" * 100_000, "\xff{}"], ids=range(7)
)
def test_a_file_that_is_not_plain_json_is_left_alone(person: Person, text: str) -> None:
    file = write_settings(person, text)
    before = file.read_bytes()
    assert person.json("install-statusline", "--force", expect=1)["error"] == "io_error"
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == ["settings.json"]


def test_claude_config_dir_and_a_link_are_followed(person: Person, tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    (tmp_path / "dotfiles" / "claude.json").write_text('{"a": 1}\n')
    folder = tmp_path / "claude dir"
    folder.mkdir()
    (folder / "settings.json").symlink_to(tmp_path / "dotfiles" / "claude.json")
    person.environment["CLAUDE_CONFIG_DIR"] = str(folder)
    person.runcode("install-statusline")
    assert (folder / "settings.json").is_symlink()
    assert "statusLine" in json.loads((tmp_path / "dotfiles" / "claude.json").read_text())
    assert not (person.home / ".claude").exists()


def plugin_copy(tmp_path: Path, version: str) -> Path:
    """A launcher in a plugin's folder, which carries the version and goes with it."""
    folder = tmp_path / "home" / ".claude" / "plugins" / "cache" / "runcode" / version / "bin"
    folder.mkdir(parents=True)
    launcher = folder / "runcode"
    # Started by its own name, as the real launcher's archive does.
    launcher.write_text(f'#!/bin/sh\nexec {Path(RUNCODE).with_name("python3")} -I -S -X "self=$0" {_entry()} "$@"\n')
    launcher.chmod(0o755)
    return launcher


def _entry() -> str:
    from runcode.cli import entry

    return str(entry.__file__)


def test_the_path_survives_an_update_of_the_plugin(person: Person, tmp_path: Path) -> None:
    old = plugin_copy(tmp_path, "1.0.0")

    def run(program: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(program), *words], env=person.environment, capture_output=True, timeout=60, check=False
        )

    assert run(old, "install-statusline").returncode == 0
    command = settings_of(person)["statusLine"]["command"]
    launcher = person.home / ".config" / "runcode" / "bin" / "runcode"
    assert command == f"{launcher} statusline"
    assert run(launcher, "--version").stdout.startswith(b"runcode ")
    # The update: another folder, and the old one is gone.
    new = plugin_copy(tmp_path, "1.1.0")
    shutil.rmtree(old.parent)
    assert run(launcher, "statusline").returncode == 0  # dark, never an error
    assert b"missing_program" in run(launcher, "list").stderr
    assert run(new, "install-statusline").returncode == 0
    assert settings_of(person)["statusLine"]["command"] == command
    assert run(launcher, "--version").stdout.startswith(b"runcode ")
    # Without a new call of ours: what the launcher's cache holds is found.
    cached = person.cache / "bin" / "runcode-1.2.0-linux-amd64"
    cached.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(new, cached)
    shutil.rmtree(new.parent)
    assert run(launcher, "--version").stdout.startswith(b"runcode ")


# ---------------------------------------------------------------- install-path


def test_the_link_is_ours_to_make_and_to_remove(person: Person) -> None:
    link = person.home / ".local" / "bin" / "runcode"
    done = person.runcode("install-path", environment={"SHELL": "/usr/bin/zsh"})
    assert os.readlink(link) == RUNCODE
    assert b"~/.zshrc" in done.stderr
    assert subprocess.run([link, "--version"], capture_output=True, check=True).stdout.startswith(b"runcode ")
    told = person.json("install-path", environment={"PATH": f"{link.parent}:{BARE_PATH}"})
    assert told == {"path": str(link), "changed": False, "on_path": True}
    assert person.json("install-path", "--remove")["changed"] is True
    assert not link.is_symlink()
    assert person.json("install-path", "--remove")["changed"] is False


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "folder", "our-link-changed"])
def test_what_is_not_ours_is_never_replaced_nor_removed(person: Person, tmp_path: Path, kind: str) -> None:
    link = person.home / ".local" / "bin" / "runcode"
    link.parent.mkdir(parents=True)
    if kind == "file":
        link.write_text("#!/bin/sh\n")
    elif kind == "folder":
        link.mkdir()
    elif kind == "our-link-changed":
        person.runcode("install-path")
        link.unlink()
        link.symlink_to("/bin/true")
    else:
        link.symlink_to("/bin/true" if kind == "link" else tmp_path / "nothing")
    before = (os.lstat(link).st_ino, os.lstat(link).st_mode)
    assert person.json("install-path", expect=1)["error"] == "conflict"
    assert person.json("install-path", "--remove", expect=1)["error"] == "conflict"
    assert (os.lstat(link).st_ino, os.lstat(link).st_mode) == before


# ---------------------------------------------------------------- completion


def script(person: Person, shell: str) -> str:
    return person.runcode("completion", shell).stdout.decode()


def need(program: str) -> str:
    path = shutil.which(program, path=BARE_PATH)
    assert path is not None, f"this test needs {program}: apt-get install {program}"
    return path


BASH_PROBE = """
eval "$(cat "$1")"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_runcode; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["con"], {"connect", "context", "config-ssh"}),
        (["connect", "--st"], {"--start"}),
        (["connect", "--timeout", "--"], set()),
        (["completion", "f"], {"fish"}),
        (["help", "doc"], {"doctor"}),
        (["exec", "--", "--h"], set()),
        (["--v"], {"--version"}),
    ],
)
def test_bash_completes_what_the_parsers_take(
    person: Person, tmp_path: Path, words: list[str], expected: set[str]
) -> None:
    (tmp_path / "script").write_text(script(person, "bash"))
    done = subprocess.run(
        [need("bash"), "--norc", "-c", BASH_PROBE, "bash", str(tmp_path / "script"), "runcode", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("runcode con", {"connect", "context", "config-ssh"}),
        ("runcode connect --st", {"--start"}),
        ("runcode completion f", {"fish"}),
    ],
)
def test_fish_completes_what_the_parsers_take(person: Person, line: str, expected: set[str]) -> None:
    done = subprocess.run(
        [need("fish"), "--no-config", "-c", f"source (echo $SCRIPT | psub); complete -C '{line}'"],
        env={**person.environment, "SCRIPT": script(person, "fish")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert {row.split("\t")[0] for row in done.stdout.splitlines()} == expected, done.stderr


def test_zsh_completes_what_the_parsers_take(person: Person, tmp_path: Path) -> None:
    """In its own line editor, in a terminal: zsh's completion works nowhere else."""
    (tmp_path / "script").write_text(script(person, "zsh"))
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(need("zsh"), ["zsh", "-f", "-i"], {**person.environment, "TERM": "dumb", "PS1": "> "})
    shown = b""

    def type_and_wait(text: str, wanted: str) -> None:
        nonlocal shown
        os.write(master, text.encode())
        deadline = time.monotonic() + 60
        while not re.search(wanted.encode(), shown):
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 0.5)[0]:
                shown += os.read(master, 65536)
        shown = b""

    try:
        # A space between: what is echoed is not the word that is waited for.
        type_and_wait("autoload -Uz compinit; compinit -D; source ./script; echo rea''dy\n", "ready\r")
        type_and_wait("echo runcode doc\t\n", "runcode doc")
        type_and_wait("runcode doc\t", "runcode doctor")
        type_and_wait("\x15runcode connect --sta\t", "connect --start")
        type_and_wait("\x15runcode completion po\t", "completion powershell")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(master)


def test_every_shells_script_holds_every_command_and_parses(person: Person, tmp_path: Path) -> None:
    from runcode.cli.completion import SHELLS, describe_commands

    commands = describe_commands()
    assert {"connect", "exec", "doctor", "config-ssh", "help"} <= {command.name for command in commands}
    # Hidden things stay hidden: ssh calls `proxy`, and `--token` shows in `ps`.
    assert "proxy" not in {command.name for command in commands}
    assert "--token" not in {name for command in commands for option in command.options for name in option.names}
    for shell in SHELLS:
        text = script(person, shell)
        assert all(command.name in text for command in commands), shell
        (tmp_path / shell).write_text(text)
    for program, words in (("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])):
        subprocess.run([need(program), *words, str(tmp_path / program)], check=True, timeout=60)


def test_an_unknown_shell_is_usage(person: Person) -> None:
    done = person.runcode("completion", "tcsh", expect=2)
    assert done.stderr.startswith(b"runcode: usage: ")
