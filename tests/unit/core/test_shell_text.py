"""Shell text is read as shells read it: bash, zsh, dash and busybox are asked what a text really starts."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adversarial.corpus.shell_lines import HIDING, PURE, SLIPPING
from runcode.core.shell_text import TEXT_MAX, Unclear, find_lone_command, list_commands
from support.shell_oracle import SHELLS, Oracle, lists

_PROGRAMS = ("a", "b", "c", "git")
# What decides about a text, in pieces that meet often enough.
_LONE = st.lists(
    st.sampled_from(
        [*"abx01 \t\n'\"\\$`!=~#*?[]{}()<>|&;^%@:,./-+_\r\v", "''", "\\'", "$'", " 2>&1", " >/dev/null", " =", "\u00a0"]
    ),
    max_size=12,
).map(lambda pieces: "runcode " + "".join(pieces))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"), ("runcode", *_PROGRAMS))


def holds_for_every_shell(oracle: Oracle, text: str, words: list[str]) -> None:
    for shell in SHELLS:
        assert oracle.run(shell, text) == [tuple(words)], (shell, text)
        assert not oracle.made, (shell, text)


@pytest.mark.parametrize(("text", "words"), PURE, ids=range(len(PURE)))
def test_a_plain_call_has_the_words_that_every_shell_gives_it(oracle: Oracle, text: str, words: list[str]) -> None:
    assert find_lone_command(text) == words
    holds_for_every_shell(oracle, text, words)


@pytest.mark.parametrize("text", SLIPPING, ids=range(len(SLIPPING)))
def test_nothing_else_is_a_plain_call(text: str) -> None:
    words = find_lone_command(text)
    assert words is None or words[0] != "runcode"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=_LONE)
def test_whatever_is_accepted_is_what_every_shell_runs(oracle: Oracle, text: str) -> None:
    words = find_lone_command(text)
    if words is not None:
        holds_for_every_shell(oracle, text, words)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=3
    )
)
def test_single_quotes_carry_every_text(oracle: Oracle, words: list[str]) -> None:
    text = "runcode " + " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    assert find_lone_command(text) == ["runcode", *words]
    for shell in ("bash", "zsh", "dash"):
        assert oracle.run(shell, text) == [("runcode", *words)]


class Writer:
    """Programs of the shell's grammar, as a draw decides, with pieces put in that do not belong there."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def one(self, *choices: str) -> str:
        return self._draw(st.sampled_from(choices))

    def number(self, most: int) -> int:
        return self._draw(st.integers(0, most))

    def word(self, depth: int) -> str:
        kind = self.number(12)
        if depth < 3 and kind == 0:
            return self.one("$(", '"$(', "<(").replace("$(", "$(" + self.program(depth + 1) + ")").replace(
                "<(", "<(" + self.program(depth + 1) + ")"
            ) + self.one("", '"')
        if depth < 2 and kind == 1:
            return "`" + self.program(depth + 1) + "`"
        if kind == 2:
            return self.one(
                "'x'", "'; git b'", "'\"'", "'#'", "')'", '"; git b"', '"\'"', '"#"', '")"', '"\\\\"', '"$x"'
            )
        if kind == 3:
            return self.one("${x:-y}", "${x:-'}'}", '"${x:-"b"}"', "${#x}", "$((1+2))", "$(( 1 # ))", "$'x'", "$'\\''")
        if kind == 4:
            return self.one(">f", "2>f", "2>&1", "<f", "&>f", ">&2", "3>f", "{x}>f", ">!f", ">| f", ">! f")
        if kind == 5:
            return self.one(
                "x", "-", "=", "!", "if", "do", "}", "]]", "y=1", "x[1]", "a#b", "{a,b}", "\\'", "\\\\", "\\ "
            )
        return self.one(*_PROGRAMS)

    def simple(self, depth: int) -> str:
        before = self.one("", "", "x=1 ", "2>f ", "time ", "! ", "coproc ")
        words = "".join(" " + self.word(depth) for _ in range(self.number(3)))
        return before + self.one(*_PROGRAMS, "g\\it", "'git'") + words

    def command(self, depth: int) -> str:
        kind = self.number(14)
        if depth > 2 or kind > 7:
            return self.simple(depth)
        if kind == 0:
            return f"if {self.program(depth + 1)}; then {self.program(depth + 1)}; fi"
        if kind == 1:
            return self.one("for x in a b; do ", "for x do ") + self.program(depth + 1) + "; done"
        if kind == 2:
            return "{ " + self.program(depth + 1) + "; }"
        if kind == 3:
            return "( " + self.program(depth + 1) + ")"
        if kind == 4:
            delimiter = self.one("E", "'E'", '"E"', "\\E", "-E")
            content = self.one("x'", "$(" + self.simple(depth) + ")", "\\", "E)", "x\\", '"')
            return f"a <<{delimiter} {self.word(depth)}\n{content}\nE\n{self.command(depth + 1)}"
        if kind == 5:
            return self.one("[[ a = a ]] && ", "if [[ a = a ]] ", "((1 # )) ; ", "((1<<2)) \n") + self.simple(depth)
        return self.one("function f { ", "f() { ") + self.program(depth + 1) + self.one("; }", "; } ; f")

    def program(self, depth: int = 0) -> str:
        text = self.command(depth)
        for _ in range(self.number(2)):
            between = self.one("; ", " && ", " || ", " | ", " & ", "\n", " # x\n", " # '\n", " |& ", " \\\n")
            text += between + self.command(depth)
        return text


@st.composite
def programs(draw: st.DrawFn) -> str:
    writer = Writer(draw)
    text = writer.program()
    for _ in range(writer.number(2)):
        at = writer.number(len(text))
        text = text[:at] + writer.one(*"'\"`\\#;()<>\n $", "<<E", "$'", "((", "\\\n") + text[at + writer.number(1) :]
    return text


def calls_itself(text: str) -> bool:
    """A function with a program's name might call itself without end, and dash knows no FUNCNEST."""
    plain = "".join(text.replace("\\\n", "").split())
    return "()" in plain.replace("f()", "")


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=programs())
def test_no_command_runs_that_was_not_listed(oracle: Oracle, text: str) -> None:
    if calls_itself(text):
        return
    try:
        found = list_commands(text)
    except Unclear:
        return
    for shell in SHELLS:
        for call in oracle.run(shell, text):
            assert lists(found, call), (shell, text, call, found)


@pytest.mark.parametrize("text", HIDING, ids=range(len(HIDING)))
def test_nothing_hides_from_the_list(oracle: Oracle, text: str) -> None:
    """Of what every shell really starts; what `env` or `sh` would start is for agents.boundary.calls."""
    try:
        found = list_commands(text)
    except Unclear:
        return
    for shell in SHELLS:
        for call in oracle.run(shell, text):
            assert lists(found, call), (shell, call)


@pytest.mark.parametrize(
    "text",
    [
        "git commit -m \"$(cat <<'EOF'\nIt's (done) #1 `x` $(\nEOF\n)\" && git status",
        "cd src && npm test -- --grep 'a b' 2>&1 | tail -5",
        'for f in *.py; do echo "$f" >> list; done',
        "x=$(date +%s); echo ${x:-none} ${#x} $((x + 1)) $1 $@ $?",
        "cat > a.py <<'EOF'\nprint(\"it's\")\nEOF\npython a.py",
        "if [[ -n $x ]]; then echo 'a' # why\nfi",
        "awk '{ print $1 }' a | sort -u > b && diff <(a) <(b)",
        "git \\\n  status",
        "f() { echo hi; }; f",
    ],
)
def test_what_agents_write_every_day_is_readable(text: str) -> None:
    assert list_commands(text)


def test_the_words_around_a_here_document_in_a_substitution_are_commands_of_their_own() -> None:
    found = list_commands("git commit -m \"$(cat <<'EOF'\nrm -rf x\nEOF\n)\"; git status")
    assert [command.words[0].raw for command in found] == ["cat", "git", "git"]


@pytest.mark.parametrize("opening", ["$(", "`", '"$(', "${x:-", "(", "<(", '${x:-"', "{ ", "'", '"'])
@pytest.mark.parametrize("count", [1, 19, 25, 5_001])
def test_depth_is_bounded(opening: str, count: int) -> None:
    try:
        list_commands(opening * count + "a")
    except Unclear:
        return
    assert opening in ("(", "{ "), "an unfinished text was read to its end"


def test_a_text_beyond_the_bound_is_unclear() -> None:
    assert list_commands("a" * TEXT_MAX)
    with pytest.raises(Unclear):
        list_commands("a" * (TEXT_MAX + 1))
