"""Fixtures for every test: nobody's real home, environment or agent session leaks in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "TZ", "CI", "TMPDIR", "PYTHONDONTWRITEBYTECODE")


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME and nothing else of the person's environment; yields that HOME."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home
