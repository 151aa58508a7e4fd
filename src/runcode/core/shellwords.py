"""Command lines for the remote shell.

Threat: a path or an argument that a person or an agent named reaches the box as
shell text; one that is not quoted becomes another command. The login shell on
the box may be dash, bash, zsh or fish.

Guarantee: `quote` yields one word with exactly these characters in each of them.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[A-Za-z0-9_@%+:,./-]+", re.ASCII)
_SPECIAL = re.compile(r"['\\]")


def quote(word: str) -> str:
    """One shell word. A backslash stands outside the quotes, since fish reads it inside them."""
    if _PLAIN.fullmatch(word):
        return word
    return "'" + _SPECIAL.sub(r"'\\\g<0>'", word) + "'"


def join(words: list[str] | tuple[str, ...]) -> str:
    """A command line that the remote shell splits into exactly these words."""
    return " ".join(quote(word) for word in words)
