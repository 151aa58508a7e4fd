"""Fixtures for real boxes: `pytest_plugins = ["support.runtime_fixtures"]` in the module that needs them.

After each test it is looked at from outside, as the host sees it, whether any
process of a box or a keeper is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.runtimes.base import ObservedState
from runcode.runtimes.local.runtime import LocalRuntime
from support.runtime_boxes import Boxes, find_host_processes


@pytest.fixture(scope="session")
def local_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # pytest's own folder is 0700: as root, every box here stands where its uid could not go by path.
    return tmp_path_factory.mktemp("local") / "root"


@pytest.fixture(scope="session")
def local_runtime(local_root: Path) -> LocalRuntime:
    runtime = LocalRuntime(local_root)
    obstacle = runtime.find_obstacle()
    # A missing real part fails the run, with the fix.
    assert obstacle is None, obstacle
    return runtime


@pytest.fixture
async def boxes(local_runtime: LocalRuntime, local_root: Path, tmp_path: Path) -> AsyncIterator[Boxes]:
    boxes = Boxes(local_runtime, local_root, tmp_path)
    yield boxes
    for workspace_id in boxes.specs:
        await local_runtime.destroy(workspace_id)
        assert (await local_runtime.inspect(workspace_id)).state is ObservedState.ABSENT
    assert find_host_processes(local_root) == {}
    assert list((local_root / "workspaces").iterdir()) == []
    assert list((local_root / "trash").iterdir()) == []
    assert list((local_root / "locks").iterdir()) == []
