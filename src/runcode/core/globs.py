"""Path patterns with `**`, for names that a box reported.

Owns: turning a pattern into a matcher, and the part of it that is a plain folder.
`*` and `?` stay within one name, `**` as a whole name stands for any number of
folders, `[…]` is a set, `{a,b}` alternatives. A name that begins with a dot is
matched by a pattern that begins with one, or by `**`.

Threat: a pattern that takes exponential time on a name that a stranger chose. Stars
within a name never look back (atomic groups), and `**` is bounded in number.
"""

from __future__ import annotations

import re

from runcode.core.errors import RunCodeError

_MAGIC = re.compile(r"[*?\[\]{}]")
_ALTERNATIVES_MAX = 64
_ANY_FOLDERS_MAX = 4


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
    parts: list[str] = []
    for part in pattern.split("/"):
        if part != "**" or parts[-1:] != ["**"]:
            parts.append(part)
    if parts.count("**") > _ANY_FOLDERS_MAX:
        raise RunCodeError("bad_request", "the pattern has too many `**`", resolution="search in steps")
    text = ""
    for at, part in enumerate(parts):
        is_last = at == len(parts) - 1
        if part == "**":
            text += ".*" if is_last else "(?:[^/]+/)*"
            continue
        text += _translate_name(part) + ("" if is_last else "/")
    return f"(?:{text})\\Z"


def _translate_name(part: str) -> str:
    """Each star but the last takes the first place that fits and keeps it: trying others could not help."""
    chunks = _split_at_stars(part)
    text = "" if part.startswith(".") else r"(?!\.)"
    text += chunks[0]
    for chunk in chunks[1:-1]:
        text += f"(?>[^/]*?{chunk})"
    return text + (f"[^/]*{chunks[-1]}" if len(chunks) > 1 else "")


def _split_at_stars(part: str) -> list[str]:
    chunks = [""]
    at = 0
    while at < len(part):
        c = part[at]
        at += 1
        if c == "*":
            if chunks[-1] or len(chunks) == 1:
                chunks.append("")
        elif c == "?":
            chunks[-1] += "[^/]"
        elif c == "[" and (end := part.find("]", at + 1 + part.startswith("!", at))) > 0:
            inside = part[at:end]
            is_negated = inside.startswith(("!", "^"))
            # A doubled sign means a set operation to `re`; here it is a plain one.
            kept = re.sub(r"([\\\[\]^&~|]|-(?=-))", r"\\\1", inside[is_negated:])
            chunks[-1] += ("[^/" if is_negated else "(?!/)[") + kept + "]"
            at = end + 1
        else:
            chunks[-1] += re.escape(c)
    return chunks
