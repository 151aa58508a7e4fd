"""Fixtures for stories in the real agent clients: `pytest_plugins = ["support.agent_fixtures"]` in the module."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.agent_clients import HOMES, OTHER, TITLE, AgentLaptop
from support.service import Service, running_service


@pytest.fixture
def agent_laptop() -> Iterator[AgentLaptop]:
    """A machine with both clients and nothing else; it is removed afterwards."""
    HOMES.mkdir(parents=True, exist_ok=True)
    laptop = AgentLaptop(Path(tempfile.mkdtemp(dir=HOMES)) / "home")
    try:
        yield laptop
    finally:
        laptop.close()
        laptop.home.parent.rmdir()


@pytest.fixture(scope="module")
def agent_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Our own service with two real workspaces, TITLE and OTHER."""
    with running_service(tmp_path_factory.mktemp("service")) as running:
        for title in (TITLE, OTHER):
            running.operator("workspace", "create", title)
        yield running
