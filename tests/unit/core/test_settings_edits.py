"""Settings files that are edited in place: JSON with comments, TOML, and what must never change in them."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core import jsonc, toml_tables
from runcode.core.errors import RunCodeError

PATH = ("context_servers", "runcode")
ENTRY = {"command": "/opt/run code/runcode", "args": ["mcp"], "env": {}}
ZED = """// Zed settings
//
// For information on how to configure Zed, see the documentation.
{
  "theme": "One Dark", // the person's own words, with "quotes" and a // in them
  /* a block: { "context_servers": 1 } */
  "context_servers": {
    // another one
    "other": { "command": "x", "args": ["a,b", "}",], },
  },
  "tab_size": 4,
}
"""
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_COMMENTS = st.sampled_from(["", " ", "\n", "// word: {\n", "/* , } */", "\t", "\r\n", '//"\n'])


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """(a text with comments and trailing commas strewn in, what it means)."""

    def render(value: Any) -> str:
        blank = draw(_COMMENTS)
        if isinstance(value, dict):
            parts = [f"{draw(_COMMENTS)}{json.dumps(k)}{draw(_COMMENTS)}:{render(v)}" for k, v in value.items()]
            body = ",".join(parts) + ("," if parts and draw(st.booleans()) else "")
            return f"{blank}{{{body}{draw(_COMMENTS)}}}{draw(_COMMENTS)}"
        if isinstance(value, list):
            body = ",".join(render(inner) for inner in value) + ("," if value and draw(st.booleans()) else "")
            return f"{blank}[{body}{draw(_COMMENTS)}]{draw(_COMMENTS)}"
        return f"{blank}{json.dumps(value)}{draw(_COMMENTS)}"

    meant = draw(st.dictionaries(st.text(max_size=5), _VALUES, max_size=3))
    if draw(st.booleans()):
        meant["context_servers"] = draw(
            st.dictionaries(st.sampled_from(["other", "runcode", "x"]), _VALUES, max_size=3)
        )
    return render(meant), meant


@given(documents())
def test_a_text_with_comments_reads_as_what_it_means(document: tuple[str, dict[str, Any]]) -> None:
    text, meant = document
    assert jsonc.parse(text) == meant


@given(documents(), _VALUES)
def test_setting_changes_that_member_and_keeps_every_comment(document: tuple[str, dict[str, Any]], value: Any) -> None:
    text, meant = document
    changed = jsonc.set_member(text, PATH, value)
    servers = dict(meant.get("context_servers", {}))
    assert jsonc.parse(changed) == {**meant, "context_servers": {**servers, "runcode": value}}
    assert jsonc.set_member(changed, PATH, value) == changed
    if "runcode" not in servers:
        # What stood there is all there still, in its order.
        assert is_subsequence(text, changed)


@given(documents())
def test_removing_takes_that_member_and_nothing_else(document: tuple[str, dict[str, Any]]) -> None:
    text, meant = document
    changed = jsonc.remove_member(text, PATH)
    wanted = json.loads(json.dumps(meant))
    had = wanted.get("context_servers", {}).pop("runcode", "none") != "none"
    assert jsonc.parse(changed) == wanted
    assert (changed == text) is not had
    assert is_subsequence(changed, text)


def is_subsequence(part: str, whole: str) -> bool:
    """But for blanks: an object that was empty may be laid out anew."""
    letters = iter(whole)
    return all(letter in letters for letter in part if not letter.isspace())


def test_a_real_file_in_and_out_is_byte_for_byte_the_same() -> None:
    changed = jsonc.set_member(ZED, PATH, ENTRY)
    assert changed != ZED
    for line in ZED.splitlines():
        assert line in changed
    assert jsonc.remove_member(changed, PATH) == ZED
    assert jsonc.find(jsonc.parse(changed), PATH) == ENTRY


@pytest.mark.parametrize("text", ["", " \n", "{}", "{ }", "{\n}\n", "// only words\n{\n  // in here\n}\n"])
def test_an_empty_file_gets_a_whole_one(text: str) -> None:
    changed = jsonc.set_member(text, PATH, ENTRY)
    assert jsonc.parse(changed) == {"context_servers": {"runcode": ENTRY}}
    for comment in re.findall(r"//.*", text):
        assert comment in changed


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"a": 1} x',
        '{"a": 1 "b": 2}',
        '{"a" 1}',
        "{'a': 1}",
        '{"a": tru}',
        '{"a": 1, "a": 2}',
        "{,}",
        '{"a": [1 2]}',
        '{"a": "\n"}',
        "/* no end",
        '{"context_servers": []}',
        '{"context_servers": "x"}',
        "[" * 1000,
        '{"a":' * 1000,
    ],
)
def test_what_is_not_understood_whole_is_left_alone(text: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        jsonc.set_member(text, PATH, ENTRY)
    assert caught.value.code == "io_error"


# ---------------------------------------------------------------- TOML

CODEX = """# my settings
model = "gpt-5"   # the good one

[mcp_servers.other]
command = "x"
args = ["[mcp_servers.runcode]"]

[profiles."a b".deep]
text = '''
[mcp_servers.runcode]
not a header
'''
"""
TABLE = {"command": "/opt/run code/runcode", "args": ["mcp"], "env": {"XDG_CACHE_HOME": "/c ä"}}
SERVER = ("mcp_servers", "runcode")


@pytest.mark.parametrize("text", ["", "# words\n", "a = 1", '[mcp_servers.other]\ncommand = "x"\n'])
def test_a_table_in_and_out_leaves_the_rest(text: str) -> None:
    changed = toml_tables.set_table(text, SERVER, TABLE)
    assert changed.startswith(text)
    assert toml_tables.find_table(changed, SERVER) == TABLE
    assert toml_tables.set_table(changed, SERVER, TABLE) == changed
    assert toml_tables.remove_table(changed, SERVER).strip() == text.strip()


def test_a_table_in_the_middle_is_replaced() -> None:
    text = '[mcp_servers.runcode]\ncommand = "old"\n\n[mcp_servers.runcode.env]\nA = "b"\n\n[z]\nk = 1 # kept\n'
    changed = toml_tables.set_table(text, SERVER, TABLE)
    assert tomllib.loads(changed) == {"z": {"k": 1}, "mcp_servers": {"runcode": TABLE}}
    assert "k = 1 # kept" in changed


@pytest.mark.parametrize(
    "text",
    ["a = ", 'mcp_servers = { runcode = { command = "x" } }\n', 'mcp_servers.runcode.command = "x"\n', CODEX],
)
def test_other_forms_are_left_alone(text: str) -> None:
    """The last one: a header's look-alike inside a longer text would be cut out with what follows it."""
    if text == CODEX:
        text += '\n[mcp_servers.runcode]\ncommand = "x"\n'
    with pytest.raises(RunCodeError) as caught:
        toml_tables.set_table(text, SERVER, TABLE)
    assert caught.value.code == "io_error"
