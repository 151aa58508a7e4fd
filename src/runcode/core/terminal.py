"""The one sanitizer between untrusted text and a person's terminal.

Threat: titles, error messages, paths and whatever a box prints about itself are
typed by strangers. An escape sequence can rewrite the screen, set the clipboard
(OSC 52) or fake a link (OSC 8); a bidi override makes `evil` read as `good`.

Guarantee: what comes back holds printable characters and spaces only
(`str.isprintable`: an allowlist that excludes every control, format, surrogate,
private-use and unassigned code point), and is bounded in length.
"""

from __future__ import annotations

REPLACEMENT = "\ufffd"


def printable(untrusted_text: str, *, limit: int = 300) -> str:
    """One printable line of at most `limit` characters; anything else becomes U+FFFD, a cut ends in `…`."""
    text = untrusted_text[: limit + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else REPLACEMENT for c in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable_lines(untrusted_text: str, *, limit: int = 300, lines: int = 200) -> str:
    """Like `printable`, line by line, keeping newlines; at most `lines` of them."""
    parts = untrusted_text.replace("\r\n", "\n").split("\n")
    kept = [printable(part, limit=limit) for part in parts[:lines]]
    if len(parts) > lines:
        kept.append(f"… ({len(parts) - lines} more lines)")
    return "\n".join(kept)


def printable_text(untrusted_text: str) -> str:
    """A text of many lines for a program that reads on: tabs and newlines stay, `\r\n` is a newline.

    All else is as in `printable`. Not bounded: whoever asked for the text has bounded it.
    """
    text = untrusted_text.replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else REPLACEMENT for c in text)
