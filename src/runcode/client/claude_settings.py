"""Claude Code's own settings.json: which status line it runs, and putting ours there.

Called by `install-statusline` and `doctor`. The file belongs to the person
(`client.person_files`); only its `statusLine` is ever changed.

Guarantee: another program's status line is replaced only by force; a file that
is not plain JSON is left as it is; every other setting keeps its value and place.
"""

from __future__ import annotations

import json
import os
import re

from runcode.client import platforms
from runcode.client.person_files import read_person_file, replace_person_file
from runcode.core.errors import RunCodeError
from runcode.core.shellwords import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# A command of ours, whatever folder it is in and however the path is quoted.
_OURS = re.compile(r"""(?:^|[\\/'"])runcode[^\\/'"\s]*['"]?\s+statusline(?:\s|$)""")
_INDENT = re.compile(rb'\{\r?\n([ \t]+)"')
_ATTEMPTS = 5


def settings_path(environ: Mapping[str, str]) -> str:
    folder = environ.get("CLAUDE_CONFIG_DIR") or os.path.join(platforms.current().home(environ), ".claude")
    return os.path.join(folder, "settings.json")


def find_status_line(environ: Mapping[str, str]) -> str | None:
    """The command of the status line that is set, ours or not; None without one. Raises for an unreadable file."""
    return _command_of(_parse(read_person_file(settings_path(environ)), settings_path(environ)))


def is_our_status_line(command: str) -> bool:
    return _OURS.search(command) is not None


def render_command(program: str) -> str:
    """What Claude Code is to run: it hands the text to a shell."""
    return f'"{program}" statusline' if platforms.current().is_windows else f"{quote(program)} statusline"


def install_status_line(environ: Mapping[str, str], program: str, *, force: bool) -> bool:
    """Say whether anything had to change. Raises `conflict` over another program's line."""
    wanted = {"type": "command", "command": render_command(program), "padding": 0}

    def change(settings: dict[str, Any], path: str) -> bool:
        found = _command_of(settings)
        if settings.get("statusLine") is not None and not force and not (found and is_our_status_line(found)):
            raise RunCodeError(
                "conflict",
                f"{path} has a status line of another program: {found or 'of another kind'}",
                resolution="`--force` replaces it; the file before is kept as settings.json.bak",
            )
        if found == wanted["command"]:
            return False
        settings["statusLine"] = wanted
        return True

    return _edit(environ, change)


def remove_status_line(environ: Mapping[str, str]) -> bool:
    """Take our line out, if it is ours. Says whether it was there."""

    def change(settings: dict[str, Any], _path: str) -> bool:
        found = _command_of(settings)
        if found is None or not is_our_status_line(found):
            return False
        del settings["statusLine"]
        return True

    return _edit(environ, change)


def _edit(environ: Mapping[str, str], change: Any) -> bool:
    path = settings_path(environ)
    for _ in range(_ATTEMPTS):
        before = read_person_file(path)
        settings = _parse(before, path)
        if not change(settings, path):
            return False
        if replace_person_file(path, before, _render(settings, before)):
            return True
    raise RunCodeError("busy", f"{path} keeps changing under us", resolution="close Claude Code, then retry")


def _render(settings: dict[str, Any], before: bytes | None) -> bytes:
    """In the manner of the file as it was: its indentation, and whether a newline ends it."""
    found = _INDENT.match(before or b"")
    text = json.dumps(settings, ensure_ascii=False, indent=found[1].decode() if found else 2)
    ending = "\n" if before is None or before.endswith(b"\n") else ""
    return (text + ending).encode("utf-8", "surrogatepass")


def _parse(content: bytes | None, path: str) -> dict[str, Any]:
    if content is None or not content.strip():
        return {}
    try:
        settings = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _refuse(path) from error
    if not isinstance(settings, dict):
        raise _refuse(path)
    return settings


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Writing it back would drop one of the two.
        raise ValueError("a key stands twice")
    return found


def _refuse(path: str) -> RunCodeError:
    return RunCodeError(
        "io_error", f"{path} is not plain JSON, so it was left as it is", resolution="mend the file, then retry"
    )


def _command_of(settings: dict[str, Any]) -> str | None:
    line = settings.get("statusLine")
    command = line.get("command") if isinstance(line, dict) else None
    return command if isinstance(command, str) else None
