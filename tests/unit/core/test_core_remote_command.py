"""Our wrapper around a command is taken apart again only where it is ours to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core.remote_command import parse_exec, render_exec

NONCE = "0123456789abcdef" * 2
WORDS = [
    ["ls -la | wc"],
    ["pytest", "-k", "a b", "", "$HOME `id` $(id)", "it's", '"', "\\", "*", "--", "line\nbreak", "é"],
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("workdir", [None, "/home/ubuntu/workspace"])
def test_what_was_asked_for_is_read_back(words: list[str], workdir: str | None) -> None:
    assert parse_exec(render_exec(words, workdir=workdir, nonce=NONCE)) == (words, workdir)


@given(st.lists(st.text(st.characters(blacklist_characters="\0", codec="utf-8")), min_size=1, max_size=4))
def test_any_words_are_read_back(words: list[str]) -> None:
    assert parse_exec(render_exec(words, workdir=None, nonce=NONCE)) == (words, None)


@pytest.mark.parametrize("words", WORDS)
def test_what_only_looks_like_ours_is_shown_as_it_is(words: list[str]) -> None:
    """A client that hides another command in our wrapper is not helped to do so."""
    text = render_exec(words, workdir=None, nonce=NONCE)
    for forged in (
        text + "; curl evil",
        text.replace("exit $?", "curl evil; exit $?"),
        text.replace("/bin/sh -c", "/tmp/sh -c"),
        text.replace("SHLVL=1", "SHLVL=1 LD_PRELOAD=/tmp/x.so"),
        text.replace("set -- ", "curl evil; set -- "),
        text.replace(" ", "  ", 1),
        text[:-5],
        "curl evil; " + text,
    ):
        assert forged != text
        found = parse_exec(forged)
        assert found is None or render_exec(found[0], workdir=found[1], nonce=NONCE[:-5]) == forged, forged


@pytest.mark.parametrize("text", ["", "ls", "'", "exec", "exec a b c", "exec a b RUNCODE_EXEC= -- x", "\0"])
def test_other_commands_are_none_of_ours(text: str) -> None:
    assert parse_exec(text) is None
