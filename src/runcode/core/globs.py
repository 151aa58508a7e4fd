"""Path patterns with `**`, for names that a box reported.

Owns: turning a pattern into a matcher, and the part of it that is a plain folder.
`*` and `?` stay within one name, `**` as a whole name stands for any number of
folders, `[…]` is a set, `{a,b}` alternatives. A name that begins with a dot is
matched by a pattern that begins with one, or by `**`.

Threat: a pattern that takes exponential time. Names and patterns are bounded by
their callers, and `*` becomes one class without nesting.
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError

_MAGIC = re.compile(r"[*?\[\]{}]")
_ALTERNATIVES_MAX = 64


def split_base(pattern: str) -> tuple[str, str]:
    """(the leading folders that are plain names, the rest): where a search has to begin."""
    parts = pattern.split("/")
    plain = 0
    while plain < len(parts) - 1 and not _MAGIC.search(parts[plain]):
        plain += 1
    base = "/".join(parts[:plain])
    return (base or "/") if pattern.startswith("/") and plain else base, "/".join(parts[plain:])


def expand(pattern: str) -> list[str]:
    """Every pattern without `{…}` that is meant. Raises `bad_request` for too many."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    expanded: list[str] = []
    for choice in found[1].split(","):
        expanded += expand(pattern[: found.start()] + choice + pattern[found.end() :])
        if len(expanded) > _ALTERNATIVES_MAX:
            raise RunCodeError("bad_request", "the pattern has too many alternatives", resolution="search in steps")
    return expanded


def compile_glob(pattern: str) -> re.Pattern[str]:
    """A matcher for whole relative paths (no leading `./`)."""
    return re.compile("|".join(_translate(one) for one in expand(pattern)), re.DOTALL)


def _translate(pattern: str) -> str:
    parts = pattern.split("/")
    text = ""
    for at, part in enumerate(parts):
        is_last = at == len(parts) - 1
        if part == "**":
            text += ".*" if is_last else "(?:[^/]+/)*"
            continue
        text += _translate_name(part) + ("" if is_last else "/")
    return f"(?:{text})\\Z"


def _translate_name(part: str) -> str:
    text = "" if part.startswith(".") else r"(?!\.)"
    at = 0
    while at < len(part):
        c = part[at]
        at += 1
        if c == "*":
            if not text.endswith("[^/]*"):
                text += "[^/]*"
        elif c == "?":
            text += "[^/]"
        elif c == "[" and (end := part.find("]", at + 1 + part.startswith("!", at))) > 0:
            inside = part[at:end]
            is_negated = inside.startswith(("!", "^"))
            # A doubled sign means a set operation to `re`; here it is a plain one.
            kept = re.sub(r"([\\\[\]^&~|]|-(?=-))", r"\\\1", inside[is_negated:])
            text += ("[^/" if is_negated else "(?!/)[") + kept + "]"
            at = end + 1
        else:
            text += re.escape(c)
    return text
