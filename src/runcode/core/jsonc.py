"""Settings files as editors keep them: JSON with comments and trailing commas, edited in place.

Owns: reading such a text, and putting one member into an object of it or taking it
out. All else of the text stays byte for byte: comments, order, indentation, commas.

Threat: the text is a person's and may be anything; one that we do not understand whole
must not be touched.

Guarantee: what is written reads as the same document with that one member changed
(checked before it is returned), or `io_error` is raised.
"""

from __future__ import annotations

import json
import re

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLANK = re.compile(r"(?:[ \t\r\n\ufeff]+|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"', re.DOTALL)
_SCALAR = re.compile(r"true|false|null|-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_DEPTH_MAX = 200


class Member(Value):
    """`start` is where its key begins, `end` is behind its value; `comma` is behind its comma, or None."""

    key: str
    start: int
    value: Node
    comma: int | None


class Node(Value):
    """A value's place in the text. `members` is None for anything but an object."""

    start: int
    end: int
    plain: Any
    members: tuple[Member, ...] | None = None


def parse(text: str) -> Any:
    """The document as plain values; an empty text is an empty object. Raises `io_error`."""
    return _parse_document(text).plain


def set_member(text: str, path: tuple[str, ...], value: Any) -> str:
    """The text with the member at `path` set; objects on the way are made. The same text when it is so already."""
    node = _parse_document(text)
    if value is not None and find(node.plain, path) == value:
        return text
    at = 0
    while at < len(path) - 1 and (inner := _member(node, path[at])) is not None:
        if inner.value.members is None:
            raise _refuse(f"`{path[at]}` is not an object")
        node, at = inner.value, at + 1
    for key in reversed(path[at + 1 :]):
        value = {key: value}
    changed = _put(text if text.strip() else "{}\n", node, path[at], value)
    return _checked(text, changed, path)


def remove_member(text: str, path: tuple[str, ...]) -> str:
    """The text without the member at `path`; the same text when there is none."""
    node = _parse_document(text)
    for key in path[:-1]:
        inner = _member(node, key)
        if inner is None or inner.value.members is None:
            return text
        node = inner.value
    if _member(node, path[-1]) is None:
        return text
    return _checked(text, _cut(text, node, path[-1]), path)


def find(document: Any, path: tuple[str, ...]) -> Any:
    """What stands at `path`, or None."""
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _put(text: str, node: Node, key: str, value: Any) -> str:
    assert node.members is not None
    found = _member(node, key)
    unit = _find_unit(text)
    outer = _indent_at(text, found.start if found else node.start)
    if found is not None:
        return text[: found.value.start] + _render(value, outer, unit) + text[found.value.end :]
    if not node.members and text[node.start + 1 : node.end - 1].strip():
        # Nothing but a comment is inside: it stays above.
        inner = _indent_at(text, node.start) + unit
        cut = node.start + 1 + len(text[node.start + 1 : node.end - 1].rstrip())
        ended = "\n" + _indent_at(text, node.start) + "}"
        return text[:cut] + f"\n{inner}{json.dumps(key)}: {_render(value, inner, unit)}" + ended + text[node.end :]
    if not node.members:
        inner = outer + unit
        body = f"{{\n{inner}{json.dumps(key)}: {_render(value, inner, unit)}\n{outer}}}"
        return text[: node.start] + body + text[node.end :]
    last = node.members[-1]
    is_on_one_line = "\n" not in text[node.start : node.end]
    inner = _indent_at(text, last.start)
    gap = " " if is_on_one_line else f"\n{inner}"
    added = f"{json.dumps(key)}: {_render(value, inner, unit)}"
    if last.comma is not None:
        return text[: last.comma] + gap + added + "," + text[last.comma :]
    return text[: last.value.end] + "," + gap + added + text[last.value.end :]


def _cut(text: str, node: Node, key: str) -> str:
    """A member goes with its comma and with the line that it leaves empty."""
    assert node.members is not None
    index = next(i for i, member in enumerate(node.members) if member.key == key)
    member = node.members[index]
    start, end = member.start, member.value.end if member.comma is None else member.comma
    if member.comma is None and index > 0:
        before = node.members[index - 1].comma
        assert before is not None
        # The comma before it would be a trailing one now, which plain JSON does not know.
        text = text[: before - 1] + text[before:]
        start, end = start - 1, end - 1
    line = text.rfind("\n", 0, start) + 1
    rest = re.compile(r"[ \t]*\r?\n").match(text, end)
    if not text[line:start].strip() and rest is not None:
        return text[:line] + text[rest.end() :]
    return text[:start].rstrip(" \t") + text[end:]


def _checked(before: str, after: str, path: tuple[str, ...]) -> str:
    """Both read the same, but for what stands at `path`."""
    old, new = parse(before), parse(after)
    for document in (old, new):
        _drop(document, path)
    if old != new:
        raise _refuse("it cannot be changed without harm")
    return after


def _drop(document: Any, path: tuple[str, ...]) -> None:
    """Take out the member, and objects on the way that it leaves empty."""
    parents = [document]
    for key in path[:-1]:
        parents.append(find(parents[-1], (key,)))
    for parent, key in zip(reversed(parents), reversed(path), strict=True):
        if isinstance(parent, dict) and (key == path[-1] or parent.get(key) == {}):
            parent.pop(key, None)


def _render(value: Any, indent: str, unit: str) -> str:
    return json.dumps(value, indent=unit, ensure_ascii=False).replace("\n", "\n" + indent)


def _indent_at(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _find_unit(text: str) -> str:
    match = re.search(r"\n([ \t]+)\S", text)
    return match[1] if match is not None else "  "


def _member(node: Node, key: str) -> Member | None:
    found = [member for member in node.members or () if member.key == key]
    return found[-1] if found else None


# ---------------------------------------------------------------- reading


def _parse_document(text: str) -> Node:
    if not text.strip(" \t\r\n\ufeff"):
        return Node(start=0, end=2, plain={}, members=())
    node, at = _parse_value(text, _skip(text, 0), 0)
    if _skip(text, at) != len(text) or node.members is None:
        raise _refuse("it is not one JSON object")
    return node


def _parse_value(text: str, at: int, depth: int) -> tuple[Node, int]:
    if depth > _DEPTH_MAX:
        raise _refuse("it is nested too deeply")
    if text.startswith("{", at):
        return _parse_object(text, at, depth)
    if text.startswith("[", at):
        return _parse_array(text, at, depth)
    match = _STRING.match(text, at) or _SCALAR.match(text, at)
    if match is None:
        raise _refuse("it is not JSON")
    return Node(start=at, end=match.end(), plain=_load(match[0])), match.end()


def _parse_object(text: str, start: int, depth: int) -> tuple[Node, int]:
    members: list[Member] = []
    at = _skip(text, start + 1)
    while not text.startswith("}", at):
        key = _STRING.match(text, at)
        if key is None or (members and members[-1].comma is None):
            raise _refuse("it is not JSON")
        colon = _skip(text, key.end())
        if not text.startswith(":", colon):
            raise _refuse("it is not JSON")
        value, end = _parse_value(text, _skip(text, colon + 1), depth + 1)
        behind = _skip(text, end)
        comma = behind + 1 if text.startswith(",", behind) else None
        members.append(Member(key=_load(key[0]), start=at, value=value, comma=comma))
        at = _skip(text, comma or behind)
    names = [member.key for member in members]
    if len(set(names)) != len(names):
        # Which of the two counts is the reader's choice: not ours.
        raise _refuse("a name stands twice in it")
    plain = {member.key: member.value.plain for member in members}
    return Node(start=start, end=at + 1, plain=plain, members=tuple(members)), at + 1


def _parse_array(text: str, start: int, depth: int) -> tuple[Node, int]:
    plain: list[Any] = []
    at, has_comma = _skip(text, start + 1), True
    while not text.startswith("]", at):
        if not has_comma:
            raise _refuse("it is not JSON")
        value, end = _parse_value(text, at, depth + 1)
        plain.append(value.plain)
        at = _skip(text, end)
        has_comma = text.startswith(",", at)
        at = _skip(text, at + 1) if has_comma else at
    return Node(start=start, end=at + 1, plain=plain), at + 1


def _skip(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match is not None else at


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _refuse("it is not JSON") from error


def _refuse(reason: str) -> RunCodeError:
    return RunCodeError(
        "io_error", f"the settings were left as they are: {reason}", resolution="mend the file, then retry"
    )
