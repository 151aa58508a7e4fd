"""The pages say what the code says: generated ones, and what the hand-written ones point at."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import make_docs
import mutate_guards
import pytest

from runcode.core.errors import ERRORS

ROOT = make_docs.ROOT
DOCS = ROOT / "docs"
SOURCES = ROOT / "src" / "runcode"
PAGES = make_docs.render_all()
HAND_WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_reference_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path], "run `make docs`"


def test_every_command_has_a_help_that_names_it() -> None:
    page = PAGES[DOCS / "cli.md"]
    for name in make_docs.COMMANDS:
        assert f"usage: runcode {name}" in page


# ---------------------------------------------------------------- threat model


@functools.cache
def defined_tests() -> dict[str, list[Path]]:
    """Name of each test function → the files that define it."""
    found: dict[str, list[Path]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.setdefault(node.name, []).append(file)
    return found


def read_promises() -> Iterator[tuple[str, list[str], list[str]]]:
    """(promise, what is named as code, what is named as test) of each row."""
    for line in (DOCS / "threat-model.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith(("| promise |", "| --- |")):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 3, line
            yield cells[0], re.findall(r"`([^`]+)`", cells[1]), re.findall(r"`([^`]+)`", cells[2])


def find_named(path: str) -> Path:
    """A file that the page names: below src/runcode, or, of the plugin and of releases, below the root."""
    return (ROOT if path.startswith(("plugin/", "packaging/", "scripts/")) else SOURCES) / path


PROMISES = list(read_promises())


@pytest.mark.parametrize(("promise", "code", "tests"), PROMISES, ids=[row[0][:50] for row in PROMISES])
def test_a_promise_names_code_and_tests_that_exist(promise: str, code: list[str], tests: list[str]) -> None:
    assert promise
    assert code
    assert tests
    for path in code:
        assert find_named(path).exists(), path
    for test in tests:
        assert (ROOT / test).exists() if test.startswith("tests/") else test in defined_tests(), test


def test_every_guard_stands_in_a_file_that_some_promise_names() -> None:
    """What `make mutate-guards` takes out is what the page tells of."""
    named = [find_named(path) for _, code, _ in PROMISES for path in code]
    for guard in mutate_guards.load_guards():
        file = ROOT / guard.file
        assert any(file == path or path in file.parents for path in named), (guard.name, guard.file)


# ---------------------------------------------------------------- troubleshooting


def test_every_code_has_its_row_with_what_is_shown_and_what_to_type() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("\n## By code\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| (.+) \|$", table, re.MULTILINE))
    assert set(rows) == set(ERRORS)
    for code, rest in rows.items():
        cells = re.split(r"(?<!\\) \| ", rest)
        assert len(cells) == 2, code
        assert all(cell.strip() for cell in cells), code


def test_the_worst_ones_say_to_stop_and_report() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    part = page.partition("\n## Stop and report\n")[2].partition("\n## ")[0]
    for word in ("unsafe_bundle", "host-key", "Host key verification failed", "report"):
        assert word in part, word


# ---------------------------------------------------------------- architecture


def test_the_architecture_page_knows_every_room() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    for init in SOURCES.rglob("__init__.py"):
        room = init.parent.relative_to(SOURCES)
        if room.parts and "migrations" not in room.parts:
            assert f"`{room.name}`" in page or f"`{room.as_posix()}`" in page or f"{room.as_posix()}/" in page, room


# ---------------------------------------------------------------- what pages point at


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda path: path.name)
def test_every_link_within_the_tree_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda path: path.name)
def test_every_path_and_test_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    roots = (ROOT, SOURCES, SOURCES / "cli", page.parent)
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|md|toml|sh|yml))`", text):
        assert any((root / path).exists() for root in roots), path
    for test in re.findall(r"`(test_[a-z0-9_]+)`", text):
        assert test in defined_tests(), test


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda path: path.name)
def test_every_command_that_a_page_tells_to_type_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    typed = re.findall(r"(?:`| {4})(?:\.venv/bin/)?runcode ([a-z][a-z-]*)", text)
    for command in typed:
        assert command in {*make_docs.COMMANDS, "help"}, command
    for noun, verb in re.findall(r"(?:`| {4})(?:\S*/)?runcode-server ([a-z]+)(?: ([a-z-]+))?", text):
        assert re.search(rf"^## {noun}$", PAGES[DOCS / "server-cli.md"], re.MULTILINE), noun
        has_verbs = re.search(rf"^### {noun} ", PAGES[DOCS / "server-cli.md"], re.MULTILINE)
        if verb and has_verbs:
            assert re.search(rf"^### {noun} {verb}$", PAGES[DOCS / "server-cli.md"], re.MULTILINE), (noun, verb)
