"""Which local paths belong to the work, so that a file tool here would read or write the wrong machine.

Threat: the model reaches the laptop's copy of the work by another name, or changes what
the boundary itself is told by: the person's exemptions, our state, a client's settings.

Guarantee: a path is judged by what it leads to, links resolved, as well as by how it
is spelled; one that is in doubt belongs to the work. No exemption opens our own folders.
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
# These go into folders below what they name.
SEARCHING = ("Glob", "Grep")
_READING = ("Read", "Glob", "Grep", "view_image")
# Codex 0.169.0 takes blanks before a header.
_PATCHED = re.compile(r"^\s*\*\*\* (?:(?:Add|Update|Delete) File|Move to): (.+)$", re.MULTILINE)
_GLOB_START = re.compile(r"[^*?\[{(]*")
# A pattern that goes up behind a star, or begins anew within braces.
_GLOB_DOUBT = re.compile(r"\.\.|\\|[{,(|][/~]")
# What tells a client which hooks, rules and programs count.
_CLIENT_SETTINGS = ("settings.json", "settings.local.json", "plugins", "hooks", "config.toml", "hooks.json", "rules")


class Places(Value):
    """`work` are folders of the work here and `workdir` the one on the box; `own` are the client's own files.

    `guarded` are files and folders that no tool touches while attached, `settings` those
    of the client that no tool changes.
    """

    work: tuple[str, ...]
    workdir: str
    own: tuple[str, ...]
    guarded: tuple[str, ...]
    settings: tuple[str, ...]
    exemptions: Exemptions

    def belongs(self, path: str, *, tool: str) -> bool:
        """Is this absolute path out of bounds for the tool?"""
        spelled, real = os.path.normpath(path), os.path.realpath(path)
        if self.guards(path) or (tool not in _READING and _is_below_any(real, self.settings)):
            return True
        if self.exemptions.cover_path(real) or _is_below_any(real, self.own):
            return False
        places = (*self.work, self.workdir)
        if any(_is_below_any(one, places) for one in (spelled, real)) or _is_same_below(real, self.work):
            return True
        if tool in SEARCHING and any(_is_below_any(one, (real,)) for one in self.work):
            return True  # the search would come through it
        # What is not here was seen there.
        makes = tool in MAKING or tool == "apply_patch"
        return os.path.islink(real) or not os.path.exists(os.path.dirname(real) if makes else real)

    def guards(self, path: str) -> bool:
        """Is this one of our own folders, or in one?"""
        real = os.path.realpath(path)
        return _is_below_any(real, self.guarded) or _is_same_below(real, self.guarded)

    def holds_guarded(self, path: str) -> bool:
        """Would a folder that is written here reach one of our own?"""
        real = os.path.realpath(path)
        return self.guards(path) or any(_is_below_any(one, (real,)) for one in self.guarded)


def find_places(
    request: Request,
    environ: Mapping[str, str],
    workdir: str,
    exemptions: Exemptions,
    *,
    guarded: tuple[str, ...] = (),
) -> Places:
    """`guarded`: our own files and folders."""
    project = environ.get("CLAUDE_PROJECT_DIR", "") if request.client == "claude" else ""
    home = environ.get("HOME", "")
    clients = [environ.get("CLAUDE_CONFIG_DIR") or (home and os.path.join(home, ".claude"))]
    clients += [environ.get("CODEX_HOME") or (home and os.path.join(home, ".codex"))]
    folders = [os.path.realpath(one) for one in clients if one and os.path.isabs(one)]
    root = _find_repository(request.cwd, home)
    work = {
        one for name in (project, request.cwd, root) if name for one in (os.path.normpath(name), os.path.realpath(name))
    }
    plugins = [environ.get(name, "") for name in ("CLAUDE_PLUGIN_ROOT", "PLUGIN_ROOT", "CLAUDE_PLUGIN_DATA")]
    # A plugin under development is work.
    own = [
        one for name in plugins if os.path.isabs(name) and not _is_below_any(one := os.path.realpath(name), tuple(work))
    ]
    if hasattr(os, "getuid"):
        own.append(f"/tmp/claude-{os.getuid()}")  # noqa: S108 (where Claude Code keeps what its tools printed)
    return Places(
        work=tuple(sorted(work)),
        workdir=workdir,
        own=(*folders, *own),
        guarded=tuple(os.path.realpath(one) for one in guarded),
        settings=(
            *(os.path.join(folder, name) for folder in folders for name in _CLIENT_SETTINGS),
            *(os.path.realpath(name) for name in plugins[:2] if os.path.isabs(name)),
        ),
        exemptions=exemptions,
    )


def _find_repository(folder: str, home: str) -> str:
    """The repository around a folder, "" without one. A home that is one, for its settings, is not meant."""
    at = os.path.realpath(folder)
    while at != os.path.dirname(at) and not (home and _is_below_any(os.path.realpath(home), (at,))):
        if os.path.lexists(os.path.join(at, ".git")):
            return at
        at = os.path.dirname(at)
    return ""


def list_paths(request: Request) -> list[str] | None:
    """Each absolute path that a file tool names; None when that cannot be told."""
    if request.tool == "apply_patch":
        texts = [text for text in request.tool_input.values() if isinstance(text, str)]
        named = [name.strip() for text in texts for name in _PATCHED.findall(text)]
        return [_absolute(name, request.cwd) for name in named] or None
    given = request.tool_input.get(PATH_ARGUMENTS[request.tool])
    if given is None and request.tool in SEARCHING:
        given = request.cwd
    if not isinstance(given, str) or not given or "\0" in given:
        return None
    found = [_absolute(given, request.cwd)]
    pattern = request.tool_input.get("pattern") if request.tool == "Glob" else None
    if isinstance(pattern, str):
        # A pattern may lead elsewhere than its folder.
        start = _GLOB_START.match(pattern)
        before = start[0] if start else ""
        if _GLOB_DOUBT.search(pattern[len(before) :]) or "\\" in before or "\0" in before:
            return None
        found.append(_absolute(os.path.dirname(before), found[0]))
    return found


def _absolute(path: str, folder: str) -> str:
    return os.path.join(folder, os.path.expanduser(path) if path.startswith("~") else path)


def _is_below_any(path: str, folders: tuple[str, ...]) -> bool:
    return any(folder and (path == folder or path.startswith(folder.rstrip("/") + "/")) for folder in folders)


def _is_same_below(path: str, folders: tuple[str, ...]) -> bool:
    """The same by the file system's own word: where case does not count, and for folders that are mounted twice."""
    known = {one for one in map(_identity, folders) if one is not None}
    while known:
        if _identity(path) in known:
            return True
        if path == os.path.dirname(path):
            break
        path = os.path.dirname(path)
    return False


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
