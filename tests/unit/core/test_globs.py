"""Path patterns: what they match, that they end in time, and that none is an error of ours."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core.errors import RunCodeError
from runcode.core.globs import compile_glob, expand, split_base


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("*.py", ["a.py", "-x.py"], ["a/b.py", ".a.py", "a.pyc", "a\n.p"]),
        ("**/*.py", ["a.py", "a/b.py", "a/b/c.py", ".h/d.py"], ["a/.b.py", "py"]),
        ("src/**", ["src/a", "src/a/b", "src/.x"], ["src", "other/src/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "ab"]),
        ("[ab]?.t", ["ax.t", "b1.t"], ["cx.t", "a/.t", "a.t"]),
        ("[!a]x", ["bx"], ["ax", "/x"]),
        ("{a,b/*}.c", ["a.c", "b/x.c"], ["b.c", "c.c"]),
        (".*", [".git", ".x"], ["x", ".a/b"]),
        ("a+(b)", ["a+(b)"], ["aab"]),
        ("[a--b]x", [], ["\x00"]),
        ("[", ["["], ["x"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, matches: list[str], others: list[str]) -> None:
    matcher = compile_glob(pattern)
    assert [name for name in matches if not matcher.match(name)] == []
    assert [name for name in others if matcher.match(name)] == []


@given(st.text(alphabet="ab*?[]!{},/.-^&|~\\", max_size=24), st.text(alphabet="ab/.*", max_size=24))
def test_any_pattern_is_one_or_is_refused(pattern: str, name: str) -> None:
    try:
        compile_glob(pattern).match(name)
    except (RunCodeError, re.error):
        pass  # `remote_search` turns the second into the first


@given(st.text(alphabet="abc-_ ", min_size=1, max_size=10))
def test_a_plain_name_matches_itself(name: str) -> None:
    assert compile_glob(name).match(name)


def test_many_stars_end_in_time() -> None:
    """With a matcher that looks back these take years."""
    assert not compile_glob("a*" * 30 + "b").match("a" * 200)
    assert compile_glob("*a*b*" + "a*" * 12).match("a" * 20 + "b" + "a" * 20)
    assert not compile_glob("**/" * 30 + "b").match("/".join("a" * 50))
    assert not compile_glob("**/a/**/a/**/b").match("/".join("a" * 50))
    with pytest.raises(RunCodeError):
        compile_glob("**/a/" * 5)


def test_stars_never_look_back() -> None:
    """The shape itself, since a test must not wait for what never ends: all but the last star in atomic groups."""
    pattern = compile_glob("a*b*c*d").pattern
    assert pattern.count("(?>") == 2
    assert pattern.count("[^/]*") == 3


def test_alternatives_are_bounded() -> None:
    with pytest.raises(RunCodeError):
        expand("{a,b}" * 20)


@pytest.mark.parametrize(
    ("pattern", "base", "rest"),
    [
        ("*.py", "", "*.py"),
        ("src/lib/**/*.py", "src/lib", "**/*.py"),
        ("/etc/*.conf", "/etc", "*.conf"),
        ("/*.conf", "/", "*.conf"),
        ("plain/file", "plain", "file"),
    ],
)
def test_where_a_search_begins(pattern: str, base: str, rest: str) -> None:
    assert split_base(pattern) == (base, rest)
