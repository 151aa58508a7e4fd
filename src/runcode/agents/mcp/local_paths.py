"""Which local files `put` may read and `get` may write.

Threat: text on the box talks the model into `put ~/.ssh/id_ed25519` or into `get` over
a shell's start-up file. A client asks its person about tools, seldom about paths.

Guarantee: only paths that lie, links resolved, within the folder that the server was
started in, or within those that the person named in RUNCODE_MCP_LOCAL; neither `/` nor
a whole home folder counts as such a folder unless it was named.
"""

from __future__ import annotations

import os

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_HINT = (
    "use a path within the working folder; a person can allow others with RUNCODE_MCP_LOCAL=FOLDER[:FOLDER] "
    "in the server's environment"
)


# What makes a folder a plugin's.
_PLUGIN_MARKS = (".codex-plugin", ".claude-plugin")


def find_agents_folder(cwd: str, parent_pid: int) -> str | None:
    """Where the agent itself works, for a server that was started in its plugin's own folder; None to stay.

    Codex finds a plugin's program only from there, and tells the project's folder nowhere. Only Linux can be asked.
    """
    if not any(os.path.isdir(os.path.join(cwd, mark)) for mark in _PLUGIN_MARKS):
        return None
    try:
        found = os.readlink(f"/proc/{parent_pid:d}/cwd")
    except OSError:
        return None
    return found if os.path.isdir(found) else None


def require_local(path: str, environ: Mapping[str, str], cwd: str) -> str:
    """The path, made absolute. Raises `unsafe_path` for one outside of what was allowed."""
    absolute = os.path.join(cwd, path)
    # What is there behind a link counts, also for a name that is not there yet.
    real = os.path.realpath(absolute)
    if not any(_is_within(real, root) for root in _roots(environ, cwd)):
        raise RunCodeError("unsafe_path", f"{path!r} is outside of the local working folder", resolution=_HINT)
    return absolute


def _roots(environ: Mapping[str, str], cwd: str) -> list[str]:
    named = [part for part in environ.get("RUNCODE_MCP_LOCAL", "").split(os.pathsep) if os.path.isabs(part)]
    if named:
        return [os.path.realpath(part) for part in named]
    start = os.path.realpath(cwd)
    home = os.path.realpath(environ.get("HOME") or os.path.expanduser("~"))
    return [] if start == os.path.dirname(start) or _is_within(home, start) else [start]


def _is_within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
