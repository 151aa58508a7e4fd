"""Shell command lines, read far enough to say what would run: for decisions about text that a model wrote.

Owns: `find_lone_command` (is this text exactly one plain command, and which words
would it get), and `list_commands` (every simple command in it, nested ones too, for
rules about commands), which `core.shell_reader` reads.

Threat: the text means to look like one thing and to run another: `runcode list; rm
-rf x`, a substitution in an argument, a here-document, an alias, a quote that ends early.

Guarantee: `find_lone_command` accepts by allowlist only what bash, zsh, dash and
busybox's sh read as the same literal words, without an expansion. `list_commands`
raises Unclear for what it cannot read to its end; what it lists may be more than what
runs, and is never less.

Source: POSIX.1-2017 Shell Command Language 2.2 to 2.10; bash(1), zshexpn(1).
"""

from __future__ import annotations

from runcode.core.shell_reader import BARE, RESERVED, Reader, SimpleCommand, Unclear, Word, is_assignment

__all__ = ["TEXT_MAX", "SimpleCommand", "Unclear", "Word", "find_lone_command", "list_commands"]

# Redirections that touch nothing of this machine.
_HARMLESS = ("2>&1", "1>&2", ">&2", "</dev/null", ">/dev/null", "2>/dev/null")
TEXT_MAX = 1024 * 1024


def find_lone_command(text: str) -> list[str] | None:
    """The words, when the text is one simple command whose words are all literal; None for everything else.

    Redirections to and from /dev/null and of one output to the other may stand in it.
    """
    words: list[str] = []
    for token in _split_plain(text.strip(" \t\n")):
        if token is None:
            return None
        raw, literal = token
        if raw in _HARMLESS:
            continue
        if literal is None:
            return None
        words.append(literal)
    if not words or words[0] in RESERVED or is_assignment(words[0]):
        return None
    return words


def _split_plain(text: str) -> list[tuple[str, str | None] | None]:
    """(raw, literal) for each word; a None among them when anything but plain words and quotes stands there."""
    tokens: list[tuple[str, str | None] | None] = []
    at = 0
    while at < len(text):
        if text[at] in " \t":
            at += 1
            continue
        start, literal = at, ""
        redirection = next((one for one in _HARMLESS if text.startswith(one, at)), None)
        if redirection is not None and text[at + len(redirection) : at + len(redirection) + 1] in ("", " ", "\t"):
            tokens.append((redirection, None))
            at += len(redirection)
            continue
        while at < len(text) and text[at] not in " \t":
            character = text[at]
            if character == "'":
                end = text.find("'", at + 1)
                if end < 0:
                    return [None]
                literal += text[at + 1 : end]
                at = end + 1
            elif character == '"':
                end, inside = _read_plain_quotes(text, at + 1)
                if end < 0:
                    return [None]
                literal += inside
                at = end + 1
            elif text.startswith("\\'", at):
                literal += "'"  # how a quote is put between two quoted parts
                at += 2
            elif character in BARE and not (character == "=" and at == start):
                literal += character
                at += 1
            else:
                return [None]
        if "\0" in literal:
            return [None]
        tokens.append((text[start:at], literal))
    return tokens


def _read_plain_quotes(text: str, at: int) -> tuple[int, str]:
    """Where the double quotes end and what is in them; (-1, "") when a shell would change anything there."""
    inside = ""
    while at < len(text):
        character = text[at]
        if character == '"':
            return at, inside
        if character == "\\":
            if text[at + 1 : at + 2] not in ('"', "\\", "$", "`"):
                return -1, ""
            at += 1
            inside += text[at]
        elif character in "$`!":
            return -1, ""
        else:
            inside += character
        at += 1
    return -1, ""


def list_commands(text: str) -> list[SimpleCommand]:
    """Every simple command that could run, those in substitutions, groups and here-documents among them.

    What the shell reads as code in this text; not what it makes later of a text that
    is data here: the argument of `eval`, `${x@P}`, the value of a name in arithmetic.
    """
    if len(text) > TEXT_MAX or "\0" in text or "\r" in text:
        raise Unclear
    found: list[SimpleCommand] = []
    try:
        Reader(text, found, 0).read()
    except RecursionError as error:
        raise Unclear from error
    return found
