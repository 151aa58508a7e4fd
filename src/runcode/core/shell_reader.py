"""A reader of shell text that finds every simple command in it: what `core.shell_text` lists commands with.

Owns: the grammar, as far as it says where a command begins and ends.

Threat: the text ends a quote, a comment, a here-document or a bracket for the shell
where it does not for us, and what stands there then runs unseen.

Guarantee: what bash, zsh, dash or busybox's sh would run by reading the text is found.
Where they differ, or a construct's end cannot be told, Unclear is raised.

Source: POSIX.1-2017 Shell Command Language 2.2 to 2.10; bash(1), zshexpn(1).
"""

from __future__ import annotations

import re

from runcode.core.values import Value

BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_@%+:,./-=")
_NAME_START = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_")
_NAME = _NAME_START | frozenset("0123456789")
# Words that stand before a command and are none.
RESERVED = frozenset(
    ("if", "then", "elif", "else", "fi", "do", "done", "while", "until", "for", "select", "in", "esac", "end")
    + ("!", "{", "}", "[[", "]]", "time", "function", "coproc", "always")
)
_OPERATORS = (";;&", "&>>", "<<<", "<<-", "&&", "||", ";;", ";&", ";|", "|&", "&>", "<<", ">>", "<&", ">&", "<>", ">|")
_ONE_CHARACTER = ";&|()<>\n"
_CONTINUATION = "\\\n"
_QUOTED_RUN = re.compile(r"[^\"\\`$]+")
_DOCUMENT_RUN = re.compile(r"[^\\`$]+")
_DEPTH_MAX = 20


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


class Reader:
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
        self._word_end = -1
        self._splits: list[int] = []

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
        inner = Reader(self._text, self._found, self._depth + 1, at)
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
            if operator.startswith("&"):
                self._splits.append(len(self._words))  # dash takes `a &>f b` for `a &` and `>f b`
            if target.raw.startswith("!"):
                raise Unclear  # zsh takes `>!` for an operator
            self._redirections.append(operator + target.raw)
        else:
            self._brackets += {"(": 1, ")": -1}.get(operator, 0)
            self._brackets = max(self._brackets, 0)
            self._end_command()

    def _drop_descriptor(self, at: int) -> None:
        """`2>file`: the number belongs to the redirection."""
        if self._words and at == self._word_end:
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
            if word.raw in RESERVED or (self._is_timed and word.raw in ("-p", "--")):
                self._is_timed = word.raw == "time"
                return
            if word.raw == "case":
                # Patterns end in an unpaired bracket; nobody needs them in one line that is to be judged.
                raise Unclear
            if is_assignment(word.raw):
                self._assignments.append(word.raw)
                return
        elif word.raw in ("case", "=~") and self._ends_at_bracket:
            raise Unclear
        if not _has_plain_subscript(word.raw):
            raise Unclear
        self._words.append(word)
        self._word_end = self._at

    def _end_command(self) -> None:
        if self._words or self._assignments or self._redirections:
            self._add(tuple(self._words), tuple(self._assignments))
        for split in self._splits:
            self._add(tuple(self._words[:split]), ())
            self._add(tuple(self._words[split:]), ())
        for at, word in enumerate(self._words):
            if word.raw in RESERVED and word.raw != "in":
                # `for x do CMD`, `coproc N while CMD`, zsh's `if [[ … ]] CMD`: a command without an operator before it.
                rest = self._words[at + 1 :]
                while rest and is_assignment(rest[0].raw):
                    rest = rest[1:]
                if rest and rest[0].raw not in RESERVED:
                    self._add(tuple(rest), ())
        self._words, self._assignments, self._redirections, self._splits = [], [], [], []

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
        Reader("".join(inside), self._found, self._depth + 1).read()
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
        reader = Reader(text, self._found, self._depth + 1)
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


def is_assignment(word: str) -> bool:
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
    return bool(closing) and all(c in BARE or c in "*?!$^" for c in inside)


def _parse_delimiter(raw: str) -> tuple[str, bool]:
    """(a here-document's delimiter, whether its text is expanded). Raises Unclear for unusual quoting."""
    for opening, closing in (("'", "'"), ('"', '"'), ("\\", "")):
        if raw.startswith(opening) and raw.endswith(closing):
            bare = raw[1 : len(raw) - len(closing)]
            break
    else:
        bare = raw
    if not bare or not all(c in BARE for c in bare):
        raise Unclear
    return bare, bare == raw
