"""Which local paths belong to the work, so that a file tool here would read or write the wrong machine.

Guarantee: a path is judged by what it leads to, links resolved, as well as by how it
is spelled; one that is in doubt belongs to the work.
"""

from __future__ import annotations

import os
import re

from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from runcode.agents.boundary.exemptions import Exemptions
    from runcode.agents.boundary.requests import Request

# Tool → the argument that names its path; a missing one means the current folder.
PATH_ARGUMENTS = {
    "Read": "file_path",
    "Write": "file_path",
    "Edit": "file_path",
    "MultiEdit": "file_path",
    "NotebookEdit": "notebook_path",
    "Glob": "path",
    "Grep": "path",
    "view_image": "path",
}
MAKING = ("Write", "NotebookEdit")
_PATCHED = re.compile(r"^\*\*\* (?:(?:Add|Update|Delete) File|Move to): (.+)$", re.MULTILINE)
_GLOB_START = re.compile(r"[^*?\[{]*")


class Places(Value):
    """`work` are folders of the work here and `workdir` the one on the box; `own` are the client's own files."""

    work: tuple[str, ...]
    workdir: str
    own: tuple[str, ...]
    exemptions: Exemptions

    def belongs(self, path: str, *, is_made: bool) -> bool:
        """Does this absolute path belong to the work? `is_made`: the tool may make it."""
        spelled, real = os.path.normpath(path), os.path.realpath(path)
        if self.exemptions.cover_path(real) or _is_below_any(real, self.own):
            return False
        if any(_is_below_any(one, (*self.work, self.workdir)) for one in (spelled, real)):
            return True
        # What is not here was seen there.
        return not os.path.lexists(os.path.dirname(real) if is_made else real)


def find_places(request: Request, environ: Mapping[str, str], workdir: str, exemptions: Exemptions) -> Places:
    project = environ.get("CLAUDE_PROJECT_DIR", "") if request.client == "claude" else ""
    home = environ.get("HOME", "")
    own = [environ.get("CLAUDE_CONFIG_DIR") or (home and os.path.join(home, ".claude"))]
    own += [environ.get("CODEX_HOME") or (home and os.path.join(home, ".codex"))]
    own += [environ.get(name, "") for name in ("CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT", "CLAUDE_PLUGIN_DATA")]
    if hasattr(os, "getuid"):
        own.append(f"/tmp/claude-{os.getuid()}")  # noqa: S108 (where Claude Code keeps what its tools printed)
    work = {one for name in (project, request.cwd) if name for one in (os.path.normpath(name), os.path.realpath(name))}
    return Places(
        work=tuple(sorted(work)),
        workdir=workdir,
        own=tuple(os.path.realpath(one) for one in own if one and os.path.isabs(one)),
        exemptions=exemptions,
    )


def list_paths(request: Request) -> list[tuple[str, bool]] | None:
    """(absolute path, may the tool make it) for each path that a file tool names; None when that cannot be told."""
    if request.tool == "apply_patch":
        texts = [text for text in request.tool_input.values() if isinstance(text, str)]
        named = [name for text in texts for name in _PATCHED.findall(text)]
        return [(_absolute(name.strip(), request.cwd), True) for name in named] or None
    given = request.tool_input.get(PATH_ARGUMENTS[request.tool])
    if given is None and request.tool in ("Glob", "Grep"):
        given = request.cwd
    if not isinstance(given, str) or not given or "\0" in given:
        return None
    found = [(_absolute(given, request.cwd), request.tool in MAKING)]
    pattern = request.tool_input.get("pattern") if request.tool == "Glob" else None
    if isinstance(pattern, str):
        # A pattern may lead elsewhere than its folder.
        start = _GLOB_START.match(pattern)
        found.append((_absolute(os.path.dirname(start[0]) if start else "", found[0][0]), False))
    return found


def _absolute(path: str, folder: str) -> str:
    return os.path.join(folder, os.path.expanduser(path) if path.startswith("~") else path)


def _is_below_any(path: str, folders: tuple[str, ...]) -> bool:
    return any(folder and (path == folder or path.startswith(folder.rstrip("/") + "/")) for folder in folders)
