"""Secrets in command lines, found by rule and replaced by `[masked]`, before anything is kept.

Owns: the rules, and what a command's record says instead of what ran. Pure. Called by `services.events` for every
command, and by the migration for those of before.

Threat: agents and people type secrets into command lines, where whoever may read the audit would find them; a
client words a command so that a rule takes forever.
Guarantee: a secret in one of the forms below never reaches the database, nor does the digest that would let
somebody guess it. Each rule's work grows with the text's length and no faster: tokens are found by
patterns that cannot backtrack (possessive, bounded), words by one pass for each level of quotes, of which
`_LEVELS_MAX` are looked into.

Not promised: every secret. One in a form that no rule knows (`echo hunter2`) stays. Nothing is masked that is not
in one of these places:

- the value of a name that says so: `API_KEY=…`, `--password …`, `"password": "…"`, `password: …` in a here-document;
- where a known program takes a password: `mysql -p…`, `curl -u user:…`, `sshpass -p …`, `docker login -p …`, …;
- `scheme://user:…@host`, `Authorization: …`, `Bearer …`, `Cookie: …`;
- texts that say themselves what they are: `ghp_…`, `sk-…`, `AKIA…`, `rct_…`, JWTs, PEM private keys, …;
- what the operator's own patterns match (`parse_patterns`).

A reference such as `$TOKEN` or `$(cat file)` is no secret and stays.
"""

from __future__ import annotations

import bisect
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from runcode.controlplane import masking_rules as rules
from runcode.core.remote_calls import describe
from runcode.core.shellwords import join

MASK: Final = "[masked]"
_LEVELS_MAX = 4
# Where the gateway has left out a long command's middle (`gateway.journal`): words beside it may be halves of secrets.
_CUT = re.compile(r" …\[cut: [0-9]{1,12} bytes in all\]… ")
# As the gateway bounds a command that is not our own client's, with room for its mark.
_KEPT_HEAD, _KEPT_TAIL = 3072, 1024
_KEPT_MAX = _KEPT_HEAD + _KEPT_TAIL + 60
_BLANK = re.compile(r"\s")
# A long call of our own client: cut, so that it cannot be read back, with our own quotes around the person's.
_WRAPPED = "exec /usr/bin/env 'SHLVL=1' 'RUNCODE_EXEC="
_COMMAND: Final = "command"
Detail = Mapping[str, str | int | None]
Pattern = re.Pattern[str]


def mask_detail(kind: str, detail: Detail, patterns: Sequence[Pattern] = ()) -> dict[str, str | int | None]:
    """What is kept of a record's detail.

    A command's `text` becomes what the person's agent asked for: a call of our own client loses the
    wrapper, and `ours` is 1. `masked` counts what was replaced; the digest of the whole is then left out. Of a
    forward's and a connection's texts, only what says itself that it is secret is replaced.
    """
    kept = dict(detail)
    kept.pop("ours", None)
    kept.pop("masked", None)
    text = kept.get("text")
    if kind != _COMMAND or not isinstance(text, str):
        return kept
    asked = describe(text)
    if asked is not None:
        kept["ours"] = 1
        text = asked
    elif text.startswith(_WRAPPED):
        # Quotes around quotes, of which the cut took some: without them the words stand where they stood.
        text = "runcode exec -- " + text.replace("\\", "").replace("'", "").partition(" set -- ")[2]
    elif len(text) > _KEPT_MAX:
        # It began like a script of our own client, so the gateway left it long; but it was no call of ours.
        size = kept.get("text_bytes")
        told = size if isinstance(size, int) else len(text.encode())
        text = f"{text[:_KEPT_HEAD]} …[cut: {told} bytes in all]… {text[-_KEPT_TAIL:]}"
    masked, count = mask_words(asked, patterns) if asked is not None else mask_text(text, patterns)
    kept["text"] = masked
    if count:
        kept["masked"] = count
        kept.pop("text_sha256", None)
    return kept


def mask_words(command: str, patterns: Sequence[Pattern] = ()) -> tuple[str, int]:
    """Like `mask_text`, for a line that `shellwords.join` made: each word is looked at as it was given."""
    words = shlex.split(command)
    # What stands after `--` is a command line of its own, or the words of one.
    start = words.index("--") + 1 if "--" in words else 0
    if len(words) - start == 1:
        masked, count = mask_text(words[start], patterns)
        return join([*words[:start], masked]), count
    inner = [mask_text(word, patterns) if _LOOKS_LIKE_COMMAND.search(word) else (word, 0) for word in words[start:]]
    found = sum(count for _, count in inner)
    # Quoted by the plain rules of sh, which the lexer below reads.
    masked, count = mask_text(shlex.join(word for word, _ in inner), patterns)
    if not count and not found:
        return command, 0
    prefix = "".join(f"{word} " for word in words[:start])
    try:
        return prefix + join(shlex.split(masked)), count + found
    except ValueError:
        return prefix + masked, count + found


def mask_text(text: str, patterns: Sequence[Pattern] = ()) -> tuple[str, int]:
    """(the text without its secrets, how many were replaced)."""
    spans: list[tuple[int, int]] = []
    # One cut is the gateway's; others are somebody's words.
    if (cut := _CUT.search(text)) is not None:
        # A half cannot be told by its looks.
        before = max((text.rfind(blank, 0, cut.start()) for blank in " \t\n"), default=-1) + 1
        after = _BLANK.search(text, cut.end())
        spans += [(before, cut.start()), (cut.end(), after.start() if after is not None else len(text))]
    for pattern, group in rules.TOKENS:
        spans += [match.span(group) for match in pattern.finditer(text)]
    for pattern in patterns:
        spans += [match.span() for match in pattern.finditer(text) if match.end() > match.start()]
    _find_in_words(text, 0, len(text), spans, level=0)
    return _replace(text, spans)


# ---------------------------------------------------------------- words

# One lexical piece: blanks, a separator of commands, or a part of a word. Lenient: an open quote goes to the end.
_PIECE = re.compile(
    r"(?P<blank>(?:[^\S\n]|\\\n)++)|(?P<break>[\n;|&()]++)"
    r"|(?P<single>'[^']*+'?+)|(?P<double>\"(?:[^\"\\]|\\.)*+\"?+)|(?P<plain>(?:[^\s'\"\\;|&()]|\\.|\\$)++|\\)",
    re.DOTALL,
)


class _Word:
    """A shell word: where it stands in the text, and its value without quotes. `ends`: value offset → text offset."""

    __slots__ = ("end", "literals", "parts", "pieces", "size", "start", "value")

    def __init__(self) -> None:
        self.start = self.end = -1
        self.value = ""
        self.size = 0
        self.pieces: list[str] = []
        # (offset in the value, offset in the text) of each part.
        self.parts: list[tuple[int, int]] = []
        # (offset in the value, offset behind it) of what stands in single quotes.
        self.literals: list[tuple[int, int]] = []

    def append(self, text: str, start: int, end: int, outer_end: int, *, literal: bool = False) -> None:
        if literal and self.pieces and self.pieces[-1].endswith("$") and not self.pieces[-1].endswith("\\$"):
            # `$'…'` of bash: the dollar sign belongs to the quotes.
            self.pieces[-1] = self.pieces[-1][:-1]
            self.size -= 1
        if literal:
            self.literals.append((self.size, self.size + end - start))
        self.parts.append((self.size, start))
        self.pieces.append(text[start:end])
        self.size += end - start
        self.end = outer_end

    def position(self, offset: int) -> int:
        """Where the value's character at `offset` stands in the text."""
        found = self.parts[bisect.bisect_right(self.parts, (offset, sys.maxsize)) - 1]
        return found[1] + offset - found[0]

    def is_literal(self, offset: int) -> bool:
        return any(start <= offset < end for start, end in self.literals)


def _find_in_words(text: str, start: int, end: int, spans: list[tuple[int, int]], *, level: int) -> None:
    commands: list[list[_Word]] = [[]]
    breaks: list[str] = []
    word: _Word | None = None
    at = start
    while at < end:
        match = _PIECE.match(text, at, end)
        assert match is not None
        kind, at = match.lastgroup, match.end()
        if kind in ("blank", "break"):
            word = None
            if kind == "break":
                breaks.append(match.group())
                commands.append([])
            continue
        if word is None:
            word = _Word()
            word.start = match.start()
            commands[-1].append(word)
        inner_start, inner_end = match.span()
        if kind in ("single", "double"):
            inner_start += 1
            inner_end -= match.group()[1:].endswith(match.group()[0])
            if level < _LEVELS_MAX and _LOOKS_LIKE_COMMAND.search(text, inner_start, inner_end):
                _find_in_words(text, inner_start, inner_end, spans, level=level + 1)
        word.append(text, inner_start, inner_end, match.end(), literal=kind == "single")
    for words in commands:
        _find_in_command(words, spans)
    for number, words in enumerate(commands):
        if number + 1 < len(commands) and breaks[number] == "|":
            _find_in_pipe(words, commands[number + 1], spans)


_SCRIPT_FOLLOWS = re.compile(r"-[a-z]{0,4}c")
_LOOKS_LIKE_COMMAND = re.compile(r"[\s=:]")


def _find_in_command(words: list[_Word], spans: list[tuple[int, int]]) -> None:
    """The words of one simple command: assignments, options that take secrets, programs that do."""
    for word in words:
        word.value = "".join(word.pieces)
    values = [word.value for word in words]
    for at, word in enumerate(words):
        name, is_assigned, value = word.value.partition("=")
        if name.startswith("--") and "=" in value and not rules.is_secret_name(name):
            # `--env=NAME=value`
            name, _, value = word.value.rpartition("=") if value.count("=") == 1 else word.value.partition("=")
        following = words[at + 1] if at + 1 < len(words) else None
        if at and _SCRIPT_FOLLOWS.fullmatch(values[at - 1]):
            # A whole command line, which was looked into already.
            continue
        header = rules.find_header_value(values[at - 1] if at else "", word.value)
        if header is not None:
            _mask_from(word, header, word.value[header:], spans)
        elif is_assigned and rules.is_secret_name(name.rpartition("=")[2].removesuffix("+")):
            _mask_from(word, len(name) + 1, value, spans)
        elif is_assigned or following is None or following.value.startswith("--"):
            continue
        elif name.startswith("--") and rules.is_secret_name(name):
            _mask_from(following, 0, following.value, spans)
    for at, offset in rules.find_by_program(values):
        _mask_from(words[at], offset, values[at][offset:], spans)
    if any(value.startswith("<<<") for value in values) and rules.reads_password(values):
        _find_in_here_string(words, spans)


def _find_in_here_string(words: list[_Word], spans: list[tuple[int, int]]) -> None:
    """`sudo -S … <<< SECRET`: what a program that reads a password is given."""
    for at, word in enumerate(words):
        if word.value == "<<<" and at + 1 < len(words):
            _mask_from(words[at + 1], 0, words[at + 1].value, spans)
        elif word.value.startswith("<<<"):
            _mask_from(word, 3, word.value[3:], spans)


def _find_in_pipe(writer: list[_Word], reader: list[_Word], spans: list[tuple[int, int]]) -> None:
    """`echo SECRET | docker login --password-stdin`: what is piped to a program that reads a password."""
    if not writer or writer[0].value not in ("echo", "printf") or not rules.reads_password([w.value for w in reader]):
        return
    for word in writer[1:]:
        if not word.value.startswith("-") and word.value not in ("%s", "%s\\n"):
            _mask_from(word, 0, word.value, spans)


def _mask_from(word: _Word, offset: int, value: str, spans: list[tuple[int, int]]) -> None:
    if value and not rules.is_harmless(value, literal=word.is_literal(offset)):
        last = word.position(len(word.value) - 1) + 1
        spans.append((word.position(offset), last))


def _replace(text: str, spans: list[tuple[int, int]]) -> tuple[str, int]:
    pieces: list[str] = []
    count, at = 0, 0
    for start, end in sorted(spans):
        if end <= at or end <= start:
            continue
        if start > at or not count:
            pieces.append(text[at:start])
            # What was masked before is not masked anew, or an upgrade would count it twice.
            pieces.append(MASK)
            count += 1
        at = end
    pieces.append(text[at:])
    return "".join(pieces), count
