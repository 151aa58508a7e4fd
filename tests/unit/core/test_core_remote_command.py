"""Our wrapper around a command is taken apart again only where it is ours to the letter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core import (
    remote_context,
    remote_edits,
    remote_files,
    remote_reads,
    remote_runs,
    remote_search,
    remote_trees,
)
from runcode.core.remote_calls import describe, measure_script
from runcode.core.remote_command import parse_exec, render_exec, render_script, render_shell

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


TARGET = remote_files.RemoteFile(workdir="/w d", path="it's a", name="n")
CALLS = {
    "runcode exec -- ls -l 'a b'": render_exec(["ls", "-l", "a b"], workdir="/w", nonce=NONCE),
    "runcode get 'a b'": remote_files.render_download(NONCE, algorithm="cksum", workdir="/w", path="a b"),
    "runcode put 'it'\\''s a'": remote_files.render_upload(NONCE, TARGET, algorithm="sha256", size=7, mode=0o644),
    "runcode put --resume 'it'\\''s a'": remote_files.render_partial(NONCE, TARGET, algorithm="sha256"),
    "runcode get -r f": remote_trees.render_tree_download(NONCE, algorithm="sha256", workdir="/w", path="f"),
    "runcode put -r f": remote_trees.render_tree_upload(NONCE, algorithm="sha256", workdir="/w", path="f", name="n"),
    "runcode context": remote_context.render_context(NONCE, workdir="/w"),
    "runcode forward": render_script("exec cat >/dev/null", NONCE),
    "runcode shell": render_shell(workdir="/w d"),
    "runcode shell --home": render_shell(workdir=None),
}


def test_what_is_ours_of_a_call_is_measured_by_its_first_bytes() -> None:
    for told, command in CALLS.items():
        own = measure_script(command.encode())
        is_script = not told.startswith("runcode exec") and told != "runcode shell --home"
        assert bool(own) == is_script, told
    put = CALLS["runcode put 'it'\\''s a'"].encode()
    assert measure_script(put[:-1]) == measure_script(put)
    assert measure_script(put.replace(b"fail() {", b"fail() { curl evil;")) == 0
    assert measure_script(b" " + put) == measure_script(b"") == 0


def through_exec(words: list[str]) -> str:
    return render_exec(words, workdir=None, nonce=NONCE)


BUDGET = remote_runs.Budget.of(12_000)
COMMIT, _ = remote_edits.commit_words(NONCE, workdir="/w d", changes=[("a b", b"old", b"new"), ("c", b"", b"x")])
AGENTS = {
    "runcode mcp exec 'make test; ls'": remote_runs.run_words(
        NONCE, workdir="/w d", cwd="sub", command="make test; ls", log_id="0123456789abcdef", budget=BUDGET
    ),
    "runcode mcp log 0123456789abcdef": remote_runs.left_words(
        NONCE, workdir="/w", log_id="0123456789abcdef", budget=BUDGET
    ),
    "runcode mcp read 'a b'": remote_reads.read_words(
        NONCE, workdir="/w", path="a b", log="", by_lines=False, start=5, count=7, most=9
    ),
    "runcode mcp glob src": remote_search.glob_words(NONCE, workdir="/w", path="src", pattern="**/*.py"),
    "runcode mcp grep .": remote_search.grep_words(
        NONCE, workdir="/w", path="", pattern="a|b", glob="*.c", fixed=True, ignore_case=True, context=3
    ),
    "runcode mcp list .": remote_search.list_words(NONCE, workdir="/w", path=""),
    "runcode mcp edit a": remote_edits.fetch_words(NONCE, workdir="/w", paths=["a", "b c"]),
    "runcode mcp edit 'a b'": COMMIT,
}


@pytest.mark.parametrize("told", AGENTS)
def test_a_tools_script_is_told_as_the_tool(told: str) -> None:
    words = AGENTS[told]
    assert describe(through_exec(words)) == told
    changed = [*words[:2], words[2].replace("fail() {", "fail() { curl evil;"), *words[3:]]
    assert changed != words
    assert (describe(through_exec(changed)) or "").startswith("runcode exec -- /bin/sh -c")


@pytest.mark.parametrize("told", AGENTS)
def test_a_tools_script_with_a_number_that_is_none_is_not_told_as_ours(told: str) -> None:
    """bash's arithmetic runs what stands in a subscript: it must not hide behind a harmless line."""
    words = AGENTS[told]
    numbers = [at for at, word in enumerate(words) if at > 5 and word.isdigit()]
    for at in numbers:
        forged = [*words[:at], "x[$(curl evil)]", *words[at + 1 :]]
        assert not (describe(through_exec(forged)) or "").startswith("runcode mcp"), at
    for forged in ([*words, "x[$(curl evil)]", "1"], words[:-1], [words[0], "-xc", *words[2:]]):
        assert not (describe(through_exec(forged)) or "").startswith("runcode mcp") or told.startswith(
            "runcode mcp edit"
        )


@pytest.mark.parametrize("told", CALLS)
def test_a_call_of_ours_is_told_as_it_was_typed(told: str) -> None:
    assert describe(CALLS[told]) == told


@pytest.mark.parametrize("told", CALLS)
def test_a_changed_call_is_not_told_as_ours(told: str) -> None:
    text = CALLS[told]
    for forged in (
        text + "; curl evil",
        text + " $(curl evil)",
        "curl evil; " + text,
        text.replace("exec ", "curl evil; exec ", 1),
        text.replace("/bin/sh", "/tmp/sh"),
        text.replace("cd ", "curl evil; cd ", 1) if "cd " in text else text + "\ncurl evil",
        text.replace(" runcode", " $(curl evil) runcode", 1) if " runcode" in text else text + "&",
    ):
        assert forged != text
        assert describe(forged) is None, forged


@pytest.mark.parametrize("text", ["", "ls", "'", "exec /bin/sh -c 'rm -rf /' runcode x", "exec /bin/sh -c runcode"])
def test_what_is_not_ours_is_not_told_as_ours(text: str) -> None:
    assert describe(text) is None
