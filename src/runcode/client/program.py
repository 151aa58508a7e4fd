"""Where this very program stands, for what has to call it again later.

Owns: the absolute path that ssh configs and status lines are given, and the
launcher that stands in for a path that will not last.

A plugin's folder and the launcher's cache carry a version: a path into them is
gone after the next update. Then a launcher of our own, in the config folder, is
named instead; it starts what was current when it was written, else the newest
one that the cache holds.

Guarantee: the path is absolute; nothing is looked up in the current folder.
"""

from __future__ import annotations

import os
import re
import sys

from runcode.client import platforms
from runcode.client.private_files import ensure_private_folder, read_private_file, write_private_file
from runcode.client.processes import find_program
from runcode.core.errors import RunCodeError
from runcode.core.shellwords import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runcode.client.settings import Settings

# `<cache>/bin/runcode-<version>-<os>-<arch>`, Homebrew's cellar, and where agents unpack plugins.
_VERSIONED = re.compile(
    r"(?:^|[\\/])runcode-[^\\/]+-(?:linux|darwin|windows)-(?:amd64|arm64)(?:\.exe)?$"
    r"|[\\/]plugins[\\/]|[\\/]Cellar[\\/]"
)
_LAUNCHER = """#!/bin/sh
# runcode: starts the newest runcode; written by `runcode`, which calls it by this path.
program={program}
if [ ! -x "$program" ]; then
    for found in {cache}/bin/runcode-*; do
        [ -f "$found" ] && [ -x "$found" ] && program=$found
    done
fi
[ -x "$program" ] && exec "$program" "$@"
[ "$1" = statusline ] && exit 0
echo 'runcode: missing_program: runcode is not installed any more (install it, then run `runcode config-ssh` again)' >&2
exit 255
"""


def find_own_program(environ: Mapping[str, str]) -> str:
    """The path by which this program was started, made absolute. Raises `missing_program`."""
    named = sys._xoptions.get("self")
    if isinstance(named, str) and os.path.isfile(named):
        # The folder's links are resolved, so that the path holds from anywhere; the name itself may be a link.
        return os.path.join(os.path.realpath(os.path.dirname(named) or "."), os.path.basename(named))
    beside = os.path.join(os.path.dirname(sys.executable), platforms.current().program_file("runcode"))
    return beside if os.access(beside, os.X_OK) else find_program("runcode", environ)


def is_passing(program: str, environ: Mapping[str, str]) -> bool:
    """Does the path carry a version, so that an update takes it away?"""
    roots = [environ.get(name, "") for name in ("CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT")]
    inside = any(root and program.startswith(root.rstrip("/\\") + os.sep) for root in roots)
    return inside or _VERSIONED.search(program) is not None


def ensure_lasting_program(settings: Settings) -> str:
    """A path that survives updates: our own, else that of a launcher, which is written when it is missing or old."""
    program = find_own_program(settings.environ)
    if not is_passing(program, settings.environ) or platforms.current().is_windows:
        return program
    if any(ord(c) < 32 for c in program + settings.cache_folder):
        raise RunCodeError("unsafe_path", "a launcher cannot name a path with control characters")
    ensure_private_folder(settings.config_folder)
    folder = ensure_private_folder(os.path.join(settings.config_folder, "bin"))
    launcher = os.path.join(folder, "runcode")
    text = _LAUNCHER.format(program=quote(program), cache=quote(settings.cache_folder)).encode()
    if read_private_file(launcher) != text:
        write_private_file(launcher, text)
    # Also when an interruption came between the two.
    os.chmod(launcher, 0o700)
    return launcher
