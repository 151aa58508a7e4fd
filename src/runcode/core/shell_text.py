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
    """Every simple command that could run, those in substitutions, groups and here-documents among them."""
    if len(text) > TEXT_MAX or "\0" in text or "\r" in text:
        raise Unclear
    found: list[SimpleCommand] = []
    _Reader(text, found, 0).read()
    return found


class _Reader:
    """One pass over a text. Nested texts (substitutions) get a reader of their own."""

    def __init__(self, text: str, found: list[SimpleCommand], depth: int) -> None:
        if depth > _DEPTH_MAX:
            raise Unclear
        self._text, self._found, self._depth = text, found, depth
        self._at = 0
        self._words: list[Word] = []
        self._assignments: list[str] = []
        self._redirections: list[str] = []
        self._pending: list[tuple[str, bool, bool]] = []

    def read(self) -> None:
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character in " \t":
                self._at += 1
            elif text.startswith(_CONTINUATION, self._at):
                self._at += 2
            elif character == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif character in _ONE_CHARACTER and not self._starts_process_substitution():
                self._take_operator()
            else:
                self._take_word()
        if self._pending:
            raise Unclear
        self._end_command()

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
            self._skip_blanks()
            word = self._read_word()
            delimiter = _unquote(word.raw)
            if delimiter is None:
                raise Unclear
            self._pending.append((delimiter, delimiter == word.raw, operator == "<<-"))
        elif "<" in operator or ">" in operator:
            self._skip_blanks()
            target = self._read_word()
            self._redirections.append(operator + target.raw)
        else:
            self._end_command()

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
                if (line.lstrip("\t") if strips else line) == delimiter:
                    break
                lines.append(line)
            if expands:
                self._find_substitutions("\n".join(lines))
        self._pending = []

    def _skip_blanks(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _take_word(self) -> None:
        word = self._read_word()
        if word.raw in ("{", "}"):  # after `function f` too, where no operator stands before it
            self._end_command()
            return
        if not self._words:
            if word.raw in _RESERVED:
                return
            if word.raw == "case":
                # Patterns end in an unpaired bracket; nobody needs them in one line that is to be judged.
                raise Unclear
            if _is_assignment(word.raw):
                self._assignments.append(word.raw)
                return
        self._words.append(word)

    def _end_command(self) -> None:
        if self._words or self._assignments or self._redirections:
            self._found.append(
                SimpleCommand(
                    words=tuple(self._words),
                    assignments=tuple(self._assignments),
                    redirections=tuple(self._redirections),
                )
            )
        self._words, self._assignments, self._redirections = [], [], []

    def _read_word(self) -> Word:
        text, start = self._text, self._at
        literal: str | None = ""
        while self._at < len(text):
            character = text[self._at]
            if character in " \t" or (character in _ONE_CHARACTER and not self._starts_process_substitution()):
                break
            piece = self._read_piece(character)
            literal = None if literal is None or piece is None else literal + piece
        if self._at == start:
            raise Unclear
        return Word(raw=text[start : self._at], literal=literal)

    def _read_piece(self, character: str) -> str | None:
        """One part of a word: its literal text, None when an expansion decides."""
        text, at = self._text, self._at
        if character == "\\":
            if at + 1 >= len(text):
                raise Unclear
            self._at += 2
            return "" if text[at + 1] == "\n" else text[at + 1]
        if character == "'":
            self._at = self._find_end(text, "'", at + 1)
            return text[at + 1 : self._at - 1]
        if character == '"':
            return self._read_double_quotes()
        if text.startswith("$'", at):
            self._at = at + 2
            while text[self._at : self._at + 1] != "'":
                self._at += 2 if text[self._at : self._at + 1] == "\\" else 1
                if self._at >= len(text):
                    raise Unclear
            self._at += 1
            inside = text[at + 2 : self._at - 1]
            return None if "\\" in inside else inside
        if character == "`":
            return self._read_backquotes()
        if character == "$" or self._starts_process_substitution():
            return self._read_dollar()
        self._at += 1
        return None if character in "*?[]{}~!^=" and not (character in "=!" and at > 0) else character

    @staticmethod
    def _find_end(text: str, mark: str, at: int) -> int:
        end = text.find(mark, at)
        if end < 0:
            raise Unclear
        return end + 1

    def _read_double_quotes(self) -> str | None:
        text = self._text
        self._at += 1
        literal: str | None = ""
        while True:
            character = text[self._at : self._at + 1]
            if not character:
                raise Unclear
            if character == '"':
                self._at += 1
                return literal
            piece: str | None
            if character == "\\":
                following = text[self._at + 1 : self._at + 2]
                piece = "" if following == "\n" else following if following in '"\\$`' else "\\" + following
                self._at += 2
            elif character == "`":
                piece = self._read_backquotes()
            elif character == "$":
                piece = self._read_dollar()
            else:
                piece = character
                self._at += 1
            literal = None if literal is None or piece is None else literal + piece

    def _read_backquotes(self) -> str | None:
        text, at = self._text, self._at + 1
        inside = ""
        while text[at : at + 1] != "`":
            if at >= len(text):
                raise Unclear
            if text[at] == "\\" and text[at + 1 : at + 2] in ("`", "\\", "$"):
                at += 1
            inside += text[at : at + 1]
            at += 1
        self._at = at + 1
        _Reader(inside, self._found, self._depth + 1).read()
        return None

    def _read_dollar(self) -> str | None:
        """`$name`, `${…}`, `$(…)`, `$((…))`, and `<(…)`; a dollar alone is itself."""
        text, at = self._text, self._at
        following = text[at + 1 : at + 2]
        if following == "(":
            end = self._find_bracket(at + 2)
            inside = text[at + 2 : end]
            self._at = end + 1
            # Arithmetic too: bash takes `$((a); (b))` for two commands.
            _Reader(inside, self._found, self._depth + 1).read()
            return None
        if following == "{":
            end = self._find_brace(at + 2)
            self._find_substitutions(text[at + 2 : end])
            self._at = end + 1
            return None
        if following == "[" or text.startswith(_CONTINUATION, at + 1):  # bash's old arithmetic; a split `$(`
            raise Unclear
        if following and following in _NAME_START | frozenset("0123456789@*#?$!-"):
            self._at += 2
            while following in _NAME_START and self._text[self._at : self._at + 1] in _NAME and self._at < len(text):
                self._at += 1
            return None
        self._at += 1
        return "$"

    def _find_bracket(self, at: int) -> int:
        """Where the bracket that opened before `at` closes, quotes heeded."""
        depth = 1
        while at < len(self._text):
            character = self._text[at]
            if character == "\\":
                at += 1
            elif character == "'":
                at = self._find_end(self._text, "'", at + 1) - 1
            elif character == '"':
                at = self._skip_double_quotes(at)
            elif character == "(":
                depth += 1
            elif character == ")":
                depth -= 1
                if not depth:
                    return at
            elif character == "#" and self._text[at - 1] in " \t\n;(":
                raise Unclear  # a comment in a substitution may hide a bracket
            elif self._text.startswith("<<", at):
                raise Unclear  # and so may a here-document
            at += 1
        raise Unclear

    def _find_brace(self, at: int) -> int:
        depth = 1
        while at < len(self._text):
            character = self._text[at]
            if character == "\\":
                at += 1
            elif character == "'":
                raise Unclear  # a quote here means one thing inside double quotes and another outside
            elif character == '"':
                at = self._skip_double_quotes(at)
            elif character == "{":
                depth += 1
            elif character == "}":
                depth -= 1
                if not depth:
                    return at
            at += 1
        raise Unclear

    def _skip_double_quotes(self, at: int) -> int:
        """From an opening quote to its closing one; substitutions in between are skipped whole."""
        at += 1
        while at < len(self._text):
            character = self._text[at]
            if character == '"':
                return at
            if character == "\\":
                at += 1
            elif self._text.startswith("$(", at):
                at = self._find_bracket(at + 2)
            elif character == "`":
                at = self._find_end(self._text, "`", at + 1) - 1
            at += 1
        raise Unclear

    def _find_substitutions(self, text: str) -> None:
        """Only what is expanded inside a text that is no command: `$(…)` and backquotes."""
        reader = _Reader(text, self._found, self._depth + 1)
        while reader._at < len(reader._text):
            character = reader._text[reader._at]
            if character == "\\":
                reader._at += 2
            elif character == "`":
                reader._read_backquotes()
            elif character == "$":
                reader._read_dollar()
            else:
                reader._at += 1


def _is_assignment(word: str) -> bool:
    name, separator, _ = word.partition("=")
    name = name.removesuffix("+")
    if name.endswith("]"):
        name = name.partition("[")[0]
    return bool(separator and name) and name[0] in _NAME_START and all(c in _NAME for c in name)


def _unquote(raw: str) -> str | None:
    """A here-document's delimiter without its quotes; None for one that this module does not read."""
    bare = raw.replace("'", "").replace('"', "").replace("\\", "")
    return bare if bare and all(c in _BARE for c in bare) else None
