"""The troubleshooting page knows every code, and promises nothing that the commands do not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runcode.cli.main import COMMANDS
from runcode.core.errors import ERRORS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text()


@pytest.mark.parametrize("code", ERRORS)
def test_every_code_is_explained(code: str) -> None:
    assert re.search(rf"`{code}[`:]", PAGE), code


def test_the_commands_it_names_exist() -> None:
    named = set(re.findall(r"`runcode ([a-z-]+)", PAGE)) - {"help"}
    assert {name for name in named if not name.startswith("-")} <= set(COMMANDS)


def test_a_host_key_prompt_is_to_be_reported() -> None:
    report = PAGE.split("## Signing in")[0]
    assert "unsafe_bundle" in report
    assert "authenticity of host" in report
