"""What differs between Linux, macOS and Windows, in one place.

Owns: the folders that a system gives a person's programs, how a program and a
null device are called, what ssh's ProxyCommand is quoted for, whether OpenSSH
can share a connection, and how a process is replaced or a browser opened.
Called by the client and the commands; each answer is a method of `Platform`, so
that a test on one system asks for the others' (`POSIX`, `MACOS`, `WINDOWS`).

Threat: a path of a person's profile stands in a ProxyCommand, which a shell
reads; an address from a server's mouth is handed to a browser's launcher.

Guarantee: `quote_for_proxy_command` yields one word there or raises
`unsafe_path`; no launcher is started through a shell.

Source: ssh_config(5) ProxyCommand; Win32-OpenSSH (CreateProcess, no fork, no
multiplexing); XDG Base Directory.
"""

from __future__ import annotations

import os
import re
import sys

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

_UNQUOTABLE = re.compile(r'[\x00-\x1f\x7f"]')
_PLAIN = re.compile(r"[A-Za-z0-9_@+:,./-]+", re.ASCII)
_PLAIN_ON_WINDOWS = re.compile(r"[A-Za-z0-9_@+:,./\\-]+", re.ASCII)
# cmd.exe expands or splits at these even where CreateProcess would not.
_UNQUOTABLE_ON_WINDOWS = re.compile(r"[\x00-\x1f\x7f\"%!^&|<>]")


class Platform(Value):
    """One system's ways. `kind` is `posix`, `macos` or `windows`.

    `can_multiplex`: has its OpenSSH a ControlMaster? (Win32-OpenSSH passes no
    descriptors between processes.) `has_posix_processes`: posix_spawn, process
    groups, signal masks.
    """

    kind: str
    can_multiplex: bool = True
    has_posix_processes: bool = True

    @property
    def is_windows(self) -> bool:
        return self.kind == "windows"

    @property
    def null_device(self) -> str:
        return "NUL" if self.is_windows else "/dev/null"

    def home(self, environ: Mapping[str, str]) -> str:
        """The person's home folder, absolute."""
        named = environ.get("HOME", "")
        if not self._is_absolute(named) and self.is_windows:
            named = environ.get("USERPROFILE", "")
        return named if self._is_absolute(named) else os.path.expanduser("~")

    def find_other_ssh_home(self, environ: Mapping[str, str]) -> str | None:
        """The home that ssh itself uses, when it is not the one of the environment: ssh never looks at HOME."""
        if self.is_windows:
            return None
        import pwd

        try:
            own = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None
        return own if os.path.realpath(own) != os.path.realpath(self.home(environ)) else None

    def config_base(self, environ: Mapping[str, str]) -> str:
        """Where programs keep a person's settings: an explicit XDG_CONFIG_HOME, else the system's own."""
        return self._base(environ, "XDG_CONFIG_HOME", "APPDATA", ".config")

    def cache_base(self, environ: Mapping[str, str]) -> str:
        return self._base(environ, "XDG_CACHE_HOME", "LOCALAPPDATA", ".cache")

    def _base(self, environ: Mapping[str, str], xdg: str, windows: str, dotted: str) -> str:
        # The XDG specification: a relative path there is invalid and ignored.
        if self._is_absolute(environ.get(xdg, "")):
            return environ[xdg]
        if self.is_windows and self._is_absolute(environ.get(windows, "")):
            return environ[windows]
        return self.join(self.home(environ), dotted)

    def join(self, *parts: str) -> str:
        if not self.is_windows:
            return os.path.join(*parts)
        import ntpath

        return ntpath.join(*parts)

    def _is_absolute(self, path: str) -> bool:
        if not self.is_windows:
            return path.startswith("/")
        import ntpath

        return bool(ntpath.splitdrive(path)[0]) and ntpath.isabs(path)

    def program_file(self, name: str) -> str:
        """The file name of a program in a folder of PATH."""
        return f"{name}.exe" if self.is_windows else name

    def path_for_ssh(self, path: str) -> str:
        """A path as ssh_config takes it: how a backslash is read there differs between OpenSSH's versions."""
        return path.replace("\\", "/") if self.is_windows else path

    def quote_for_ssh_config(self, path: str) -> str:
        """A path as one argument of an ssh_config directive. Raises `unsafe_path`."""
        from runcode.core.sshconfig import quote_path

        return quote_path(self.path_for_ssh(path))

    def quote_for_proxy_command(self, word: str) -> str:
        """One word of a ProxyCommand: for the person's login shell, or for CreateProcess. Raises `unsafe_path`."""
        unquotable = _UNQUOTABLE_ON_WINDOWS if self.is_windows else _UNQUOTABLE
        if unquotable.search(word) or "${" in word:
            raise RunCodeError("unsafe_path", f"ssh cannot be given the path {word!r}")
        if not self.is_windows:
            # ssh runs the command in $SHELL: csh takes `!` for history, and fish reads a backslash, inside quotes.
            plain = _PLAIN.fullmatch(word)
            quoted = word if plain else "'" + re.sub(r"['\\!]", r"'\\\g<0>'", word) + "'"
            return quoted.replace("%", "%%")
        return word if _PLAIN_ON_WINDOWS.fullmatch(word) else f'"{word}"'

    def browser_commands(self, environ: Mapping[str, str], url: str) -> list[list[str]]:
        """Ways to open a page in the person's own browser, best first; none where there is no screen."""
        if self.is_windows:
            return [["rundll32.exe", "url.dll,FileProtocolHandler", url]]
        if self.kind == "macos":
            return [["open", url]]
        found = [[name, url] for name in environ.get("BROWSER", "").split(os.pathsep) if _is_program_name(name)]
        if environ.get("WSL_DISTRO_NAME"):
            found.append(["wslview", url])
        if environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"):
            found.append(["xdg-open", url])
        return found


def _is_program_name(name: str) -> bool:
    # `BROWSER` may hold a command line with `%s`; that is for shells, and not for us.
    return bool(name) and not re.search(r"[\s%]", name)


POSIX = Platform(kind="posix")
MACOS = Platform(kind="macos")
WINDOWS = Platform(kind="windows", can_multiplex=False, has_posix_processes=False)


def current() -> Platform:
    return {"win32": WINDOWS, "darwin": MACOS}.get(sys.platform, POSIX)


def make_binary(*descriptors: int) -> None:
    """Take these descriptors' bytes as they are. Windows would turn each newline into two bytes."""
    if sys.platform == "win32":
        import msvcrt

        for descriptor in descriptors:
            msvcrt.setmode(descriptor, os.O_BINARY)


def replace_process(argv: list[str], environ: Mapping[str, str]) -> NoReturn:
    """Become that program; where a process cannot be replaced, wait for it and end with its status."""
    if current().is_windows:
        # os.execv there returns to the shell at once, while the new program goes on beside it.
        import subprocess

        raise SystemExit(subprocess.run(argv, env=dict(environ), check=False).returncode)
    os.execve(argv[0], argv, dict(environ))  # noqa: S606 (a list, and no shell)


def read_hidden_line(descriptor: int, prompt: str, limit: int) -> str:
    """One line from the terminal at `descriptor`, without echo; the prompt goes to stderr."""
    try:
        return _read_silently(descriptor, prompt.encode(), limit)
    finally:
        os.write(2, b"\n")


if sys.platform == "win32":

    def _read_silently(_descriptor: int, prompt: bytes, limit: int) -> str:
        import msvcrt

        os.write(2, prompt)
        typed = ""
        while len(typed) < limit:
            key = msvcrt.getwch()
            if key in "\r\n":
                break
            if key == "\x03":
                raise KeyboardInterrupt
            typed = typed[:-1] if key == "\b" else typed + key
        return typed

else:

    def _read_silently(descriptor: int, prompt: bytes, limit: int) -> str:
        import termios

        before = termios.tcgetattr(descriptor)
        hidden = before[:3] + [before[3] & ~termios.ECHO] + before[4:]
        # Before the prompt: whoever is quick would see the token.
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, hidden)
        try:
            os.write(2, prompt)
            typed = b""
            while len(typed) < limit and not typed.endswith(b"\n"):
                chunk = os.read(descriptor, limit - len(typed))
                if not chunk:
                    break
                typed += chunk
            return typed.decode("ascii", "replace")
        finally:
            termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
