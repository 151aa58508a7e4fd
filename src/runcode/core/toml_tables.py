"""One table of a TOML file put in or taken out, all else left byte for byte.

Owns: finding a table's lines (and those of its subtables) by their headers. The
standard library reads TOML and does not write it.

Guarantee: what is written reads as the same document but for that table (checked
before it is returned), or `io_error` is raised; a table that is written in another
form (dotted keys, an inline table) is left alone.
"""

from __future__ import annotations

import json
import re
import tomllib

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HEADER = re.compile(r"^[ \t]*\[\[?(.*?)\]\]?[ \t]*(?:#.*)?$")


def find_table(text: str, path: tuple[str, ...]) -> Any:
    """The table's plain values, or None. Raises `io_error` for what is not TOML."""
    found: Any = _parse(text)
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def set_table(text: str, path: tuple[str, ...], table: dict[str, Any]) -> str:
    """The text with this table; its values are strings, lists of strings, or one level of tables of strings."""
    if find_table(text, path) == table:
        return text
    bare = remove_table(text, path)
    lines = [f"[{'.'.join(path)}]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, inner in table.items():
        if isinstance(inner, dict):
            lines += ["", f"[{'.'.join((*path, key))}]", *(f"{k} = {json.dumps(v)}" for k, v in inner.items())]
    gap = "" if not bare else "\n" if bare.endswith("\n") else "\n\n"
    changed = bare + gap + "\n".join(lines) + "\n"
    _check(text, changed, path)
    if find_table(changed, path) != table:
        raise _refuse("the table cannot be written")
    return changed


def remove_table(text: str, path: tuple[str, ...]) -> str:
    """The text without the table and its subtables; the same text when there is none."""
    if find_table(text, path) is None:
        return text
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        header = _HEADER.match(line.rstrip("\r\n"))
        if header is not None:
            inside = _keys_of(header[1])[: len(path)] == path
        if not inside:
            kept.append(line)
    changed = "".join(kept)
    _check(text, changed, path)
    if find_table(changed, path) is not None:
        raise _refuse("the table is written in a form that is not ours")
    return changed


def _keys_of(header: str) -> tuple[str, ...]:
    """`a."b c".d` → its keys; nothing for what is no header after all (a line inside a longer text)."""
    found: Any
    try:
        found = tomllib.loads(f"{header} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    keys = []
    while isinstance(found, dict):
        key = next(iter(found))
        keys.append(key)
        found = found[key]
    return tuple(keys)


def _check(before: str, after: str, path: tuple[str, ...]) -> None:
    old, new = _parse(before), _parse(after)
    for document in (old, new):
        parents = [document]
        for key in path[:-1]:
            inner = parents[-1].get(key)
            parents.append(inner if isinstance(inner, dict) else {})
        for parent, key in zip(reversed(parents), reversed(path), strict=True):
            if key == path[-1] or parent.get(key) == {}:
                parent.pop(key, None)
    if old != new:
        raise _refuse("it cannot be changed without harm")


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refuse("it is not TOML") from error


def _refuse(reason: str) -> RunCodeError:
    return RunCodeError(
        "io_error", f"the settings were left as they are: {reason}", resolution="mend the file, then retry"
    )
