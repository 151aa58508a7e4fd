"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

import make_docs
import pytest

PAGES = make_docs.render_all()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_reference_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path], "run `make docs`"


def test_every_command_has_a_help_that_names_it() -> None:
    page = PAGES[make_docs.ROOT / "docs" / "cli.md"]
    for name in make_docs.COMMANDS:
        assert f"usage: runcode {name}" in page
