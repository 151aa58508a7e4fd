"""Shell command lines, read far enough to say what would run: for decisions about text that a model wrote.

Owns: `find_lone_command` (is this text exactly one plain command, and which words
would it get), and `list_commands` (every simple command in it, nested ones too, for
rules about commands). Knows bash and zsh, since agents run either.

Threat: the text means to look like one thing and to run another: `runcode list; rm
-rf x`, a substitution in an argument, a here-document, an alias, a quote that ends early.

Guarantee: `find_lone_command` accepts by allowlist only what every one of these
shells reads as the same literal words, with no expansion of any kind. `list_commands`
raises Unclear for what it cannot read to its end; what it lists may be more than what
runs, and is never less.

Source: POSIX.1-2017 Shell Command Language 2.2 to 2.10; bash(1), zshexpn(1).
"""

from __future__ import annotations

import re

from runcode.core.values import Value

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+:,./-=")
_NAME_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_NAME = _NAME_START | frozenset("0123456789")
# Redirections that touch nothing of this machine.
_HARMLESS = ("2>&1", "1>&2", ">&2", "</dev/null", ">/dev/null", "2>/dev/null")
# Words that stand before a command and are none.
_RESERVED = frozenset(
    ("if", "then", "elif", "else", "fi", "do", "done", "while", "until", "for", "select", "in", "esac", "end")
    + ("!", "{", "}", "[[", "]]", "time", "function", "coproc", "always")
)
_OPERATORS = (";;&", "&>>", "<<<", "<<-", "&&", "||", ";;", ";&", ";|", "|&", "&>", "<<", ">>", "<&", ">&", "<>", ">|")
_ONE_CHARACTER = ";&|()<>\n"
_CONTINUATION = "\\\n"
_QUOTED_RUN = re.compile(r"[^\"\\`$]+")
_DOCUMENT_RUN = re.compile(r"[^\\`$]+")
_DEPTH_MAX = 20
TEXT_MAX = 1024 * 1024


class Unclear(Exception):
    """The text is not what this module can read to its end: treat it as if it could be anything."""


class Word(Value):
    """`raw` as it stands; `literal` what the command would get, None when an expansion decides."""

    raw: str
    literal: str | None


class SimpleCommand(Value):
    """One simple command: its words without assignments before them. `is_bare`: nothing but literal words."""

    words: tuple[Word, ...]
    assignments: tuple[str, ...]
    redirections: tuple[str, ...]

    @property
    def raw(self) -> str:
        return " ".join(word.raw for word in self.words)

    @property
    def literals(self) -> tuple[str, ...] | None:
        """The words as the command gets them, None where an expansion decides about one."""
        found = tuple(word.literal for word in self.words if word.literal is not None)
        return found if len(found) == len(self.words) else None


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
    if not words or words[0] in _RESERVED or _is_assignment(words[0]):
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
            elif character in _BARE and not (character == "=" and at == start):
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
        _Reader(text, found, 0).read()
    except RecursionError as error:
        raise Unclear from error
    return found


class _Reader:
    """One pass over a text. A substitution gets a reader of its own, which ends at the bracket that closes it."""

    def __init__(self, text: str, found: list[SimpleCommand], depth: int, at: int = 0) -> None:
        if depth > _DEPTH_MAX:
            raise Unclear
        self._text, self._found, self._depth, self._at = text, found, depth, at
        self._brackets = 0
        self._words: list[Word] = []
        self._assignments: list[str] = []
        self._redirections: list[str] = []
        self._pending: list[tuple[str, bool, bool]] = []
        self._ends_at_bracket = False
        self._is_timed = False

    def read(self) -> None:
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character in " \t":
                self._at += 1
            elif text.startswith(_CONTINUATION, self._at):
                self._at += 2
            elif character == "#":
                if self._brackets:
                    raise Unclear  # in arithmetic and in patterns it begins no comment
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif character == ")" and self._ends_at_bracket and not self._brackets:
                break
            elif character in _ONE_CHARACTER and not self._starts_process_substitution():
                self._take_operator()
            else:
                self._take_word()
        if self._pending or (self._ends_at_bracket and self._at >= len(text)):
            raise Unclear
        self._end_command()

    def _read_substitution(self, at: int, brackets: int) -> None:
        """What stands between the bracket before `at` and the one that closes it; then goes on behind that one."""
        inner = _Reader(self._text, self._found, self._depth + 1, at)
        inner._ends_at_bracket = True
        if brackets:
            # `$((…))` is arithmetic, and sometimes two commands: neither a comment nor a here-document is read in it.
            inner._brackets = brackets
            inner._at += brackets
        inner.read()
        self._at = inner._at + 1

    def _starts_process_substitution(self) -> bool:
        return self._text[self._at : self._at + 2] in ("<(", ">(")

    def _take_operator(self) -> None:
        text, at = self._text, self._at
        operator = next((one for one in _OPERATORS if text.startswith(one, at)), text[at])
        self._at += len(operator)
        if operator == "\n":
            self._end_command()
            self._take_documents()
        elif operator in ("<<", "<<-"):
            if self._brackets:
                raise Unclear  # a shift in arithmetic, and then no document follows
            self._drop_descriptor(at)
            self._skip_blanks()
            delimiter, expands = _parse_delimiter(self._read_word().raw)
            self._pending.append((delimiter, expands, operator == "<<-"))
            self._redirections.append(operator + delimiter)
        elif "<" in operator or ">" in operator:
            self._drop_descriptor(at)
            self._skip_blanks()
            target = self._read_word()
            if target.raw.startswith("!"):
                raise Unclear  # zsh takes `>!` for an operator
            self._redirections.append(operator + target.raw)
        else:
            self._brackets += {"(": 1, ")": -1}.get(operator, 0)
            self._brackets = max(self._brackets, 0)
            self._end_command()

    def _drop_descriptor(self, at: int) -> None:
        """`2>file`: the number belongs to the redirection."""
        if at and self._words and self._text[at - 1] not in " \t\n" and self._text.endswith(self._words[-1].raw, 0, at):
            raw = self._words[-1].raw
            if len(raw) == 1 and raw in "0123456789":
                self._words.pop()
            elif raw.isdecimal() or raw.startswith("{"):
                raise Unclear  # a descriptor in some shells only

    def _take_documents(self) -> None:
        for delimiter, expands, strips in self._pending:
            lines = []
            while True:
                if self._at >= len(self._text):
                    raise Unclear
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line = self._text[self._at : end]
                self._at = end + 1
                line = line.lstrip("\t") if strips else line
                if line == delimiter:
                    break
                if self._ends_at_bracket and line.startswith(delimiter):
                    raise Unclear  # bash 5.2 ends the document there when a bracket follows
                if expands and (len(line) - len(line.rstrip("\\"))) % 2:
                    raise Unclear  # a continued line may hide or make the last one
                lines.append(line)
            if expands:
                self._find_substitutions("\n".join(lines))
        self._pending = []

    def _skip_blanks(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _take_word(self) -> None:
        word = self._read_word()
        if self._pending and "\n" in word.raw:
            raise Unclear  # shells differ in where the document begins then
        if not self._words:
            if word.raw in _RESERVED or (self._is_timed and word.raw in ("-p", "--")):
                self._is_timed = word.raw == "time"
                return
            if word.raw == "case":
                # Patterns end in an unpaired bracket; nobody needs them in one line that is to be judged.
                raise Unclear
            if _is_assignment(word.raw):
                self._assignments.append(word.raw)
                return
        elif word.raw in ("case", "=~") and self._ends_at_bracket:
            raise Unclear
        if not _has_plain_subscript(word.raw):
            raise Unclear
        self._words.append(word)

    def _end_command(self) -> None:
        if self._words or self._assignments or self._redirections:
            self._add(tuple(self._words), tuple(self._assignments))
        for at, word in enumerate(self._words):
            if word.raw in _RESERVED:
                # `for x do CMD`, `coproc N while CMD`, zsh's `if [[ … ]] CMD`: a command without an operator before it.
                rest = self._words[at + 1 :]
                while rest and _is_assignment(rest[0].raw):
                    rest = rest[1:]
                if rest and rest[0].raw not in _RESERVED:
                    self._add(tuple(rest), ())
        self._words, self._assignments, self._redirections = [], [], []

    def _add(self, words: tuple[Word, ...], assignments: tuple[str, ...]) -> None:
        self._found.append(SimpleCommand(words=words, assignments=assignments, redirections=tuple(self._redirections)))

    def _read_word(self) -> Word:
        text, start = self._text, self._at
        pieces: list[str] | None = []
        while self._at < len(text):
            character = text[self._at]
            if character in " \t" or (character in _ONE_CHARACTER and not self._starts_process_substitution()):
                break
            piece = self._read_piece(character, is_first=self._at == start)
            if piece is None or pieces is None:
                pieces = None
            else:
                pieces.append(piece)
        if self._at == start:
            raise Unclear
        return Word(raw=text[start : self._at], literal=None if pieces is None else "".join(pieces))

    def _read_piece(self, character: str, *, is_first: bool) -> str | None:
        """One part of a word: its literal text, None when an expansion decides."""
        text, at = self._text, self._at
        if character == "\\":
            if at + 1 >= len(text) or text[at + 1] == "\n":
                raise Unclear  # two halves of one word, or of an operator
            self._at += 2
            return text[at + 1]
        if character == "'":
            end = text.find("'", at + 1)
            if end < 0:
                raise Unclear
            self._at = end + 1
            return text[at + 1 : end]
        if character == '"':
            return self._read_double_quotes()
        if text.startswith("$'", at):
            self._read_dollar_quotes()
            return None
        if character == "`":
            return self._read_backquotes(in_double_quotes=False)
        if self._starts_process_substitution():
            self._read_substitution(at + 2, 0)
            return None
        if character == "$":
            if text.startswith('$"', at):
                raise Unclear  # a translated text in bash, a dollar and a text elsewhere
            return self._read_dollar()
        self._at += 1
        return None if character in "*?[]{}~^" or (is_first and character in "=!") else character

    def _read_dollar_quotes(self) -> None:
        """`$'…'`: what it is depends on the shell, where it ends must not."""
        end = self._text.find("'", self._at + 2)
        if end < 0 or self._text.endswith("\\", 0, end):
            raise Unclear  # dash ends it at a quote that bash takes for a character of it
        self._at = end + 1

    def _read_double_quotes(self) -> str | None:
        text = self._text
        self._at += 1
        pieces: list[str] | None = []
        while True:
            match = _QUOTED_RUN.match(text, self._at)
            piece: str | None = match[0] if match else ""
            self._at += len(piece or "")
            character = text[self._at : self._at + 1]
            if not character:
                raise Unclear
            if character == '"':
                self._at += 1
                return None if pieces is None else "".join([*pieces, piece or ""])
            if pieces is not None:
                pieces.append(piece or "")
            if character == "\\":
                following = text[self._at + 1 : self._at + 2]
                piece = "" if following == "\n" else following if following in '"\\$`' else "\\" + following
                self._at += 2
            elif character == "`":
                piece = self._read_backquotes(in_double_quotes=True)
            else:
                piece = self._read_dollar()
            if piece is None or pieces is None:
                pieces = None
            else:
                pieces.append(piece)

    def _read_backquotes(self, *, in_double_quotes: bool) -> str | None:
        text, at = self._text, self._at + 1
        inside = []
        while text[at : at + 1] != "`":
            if at >= len(text):
                raise Unclear
            if text[at] == "\\":
                following = text[at + 1 : at + 2]
                if following == "\n" or (following == '"' and in_double_quotes):
                    raise Unclear  # shells differ in who takes the backslash away
                at += following in ("`", "\\", "$")
            inside.append(text[at : at + 1])
            at += 1
        self._at = at + 1
        _Reader("".join(inside), self._found, self._depth + 1).read()
        return None

    def _read_dollar(self) -> str | None:
        """`$name`, `${…}`, `$(…)`, `$((…))`; always None, since shells differ in what else a dollar begins."""
        text, at = self._text, self._at
        following = text[at + 1 : at + 2]
        if following == "(":
            self._read_substitution(at + 2, int(text.startswith("(", at + 2)))
        elif following == "{":
            self._at = at + 2
            self._read_braces()
        elif following == "[" or text.startswith(_CONTINUATION, at + 1):  # bash's old arithmetic; a split `$(`
            raise Unclear
        else:
            self._at += 1
            while self._text[self._at : self._at + 1] in _NAME and self._at < len(text):
                self._at += 1
            if self._at == at + 1 and following and following in "*@#?$!-":
                self._at += 1
        return None

    def _read_braces(self) -> None:
        text = self._text
        if text[self._at : self._at + 1] in (" ", "\t", "\n", "|", "("):
            raise Unclear  # commands in bash 5.3 and ksh, flags in zsh that evaluate
        while self._at < len(text):
            character = text[self._at]
            if character == "}":
                self._at += 1
                return
            if character == "\\":
                self._at += 2
            elif character == '"':
                self._read_double_quotes()
            elif character == "`":
                self._read_backquotes(in_double_quotes=True)
            elif character == "$":
                if text[self._at + 1 : self._at + 2] in ("'", '"'):
                    raise Unclear
                self._read_dollar()
            elif character in "'{" or text[self._at : self._at + 2] in ("<(", ">(", "=("):
                raise Unclear  # shells differ in what a quote or a second brace means here
            else:
                self._at += 1
        raise Unclear

    def _find_substitutions(self, text: str) -> None:
        """Only what is expanded inside a here-document: `$(…)` and backquotes."""
        reader = _Reader(text, self._found, self._depth + 1)
        while reader._at < len(text):
            match = _DOCUMENT_RUN.match(text, reader._at)
            reader._at += len(match[0]) if match else 0
            character = text[reader._at : reader._at + 1]
            if character == "\\":
                reader._at += 2
            elif character == "`":
                reader._read_backquotes(in_double_quotes=True)
            elif character == "$":
                reader._read_dollar()


def _is_assignment(word: str) -> bool:
    name, separator, _ = word.partition("=")
    name = name.removesuffix("+")
    if name.endswith("]"):
        name = name.partition("[")[0]
    return bool(separator and name) and name[0] in _NAME_START and all(c in _NAME for c in name)


def _has_plain_subscript(raw: str) -> bool:
    """False for `a[…` that goes on after the word: bash reads to the bracket, over blanks, operators and lines."""
    name, bracket, rest = raw.partition("[")
    if not bracket or not name or name[0] not in _NAME_START or not all(c in _NAME for c in name):
        return True
    inside, closing, _ = rest.partition("]")
    return bool(closing) and all(c in _BARE or c in "*?!$^" for c in inside)


def _parse_delimiter(raw: str) -> tuple[str, bool]:
    """(a here-document's delimiter, whether its text is expanded). Raises Unclear for unusual quoting."""
    for opening, closing in (("'", "'"), ('"', '"'), ("\\", "")):
        if raw.startswith(opening) and raw.endswith(closing):
            bare = raw[1 : len(raw) - len(closing)]
            break
    else:
        bare = raw
    if not bare or not all(c in _BARE for c in bare):
        raise Unclear
    return bare, bare == raw
