"""A machine without the agent clients: it is told so, by name, and nothing fails or passes over it in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import agent_clients
from support.agent_clients import ROOT, SETUP, VERSIONS

STAMP = "claude {claude} codex {codex} before {claude_before}\n".format(**VERSIONS)


def run_setup(folder: Path, programs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(SETUP), str(folder)], env={"PATH": str(programs)}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A PATH that has what the script itself needs, and no npm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("cat", "mkdir", "tail"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


def put_program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def test_without_npm_it_says_so_with_a_status_of_its_own(tmp_path: Path, programs: Path) -> None:
    done = run_setup(tmp_path / "clients", programs)
    assert done.returncode == 3
    assert "node is missing (apt-get install npm)" in done.stderr


def test_without_a_registry_it_says_so_too(tmp_path: Path, programs: Path) -> None:
    put_program(programs, "node", "exit 0")
    put_program(programs, "npm", "echo no such host; exit 1")
    done = run_setup(tmp_path / "clients", programs)
    assert done.returncode == 3
    assert "no such host" in done.stderr
    assert not (tmp_path / "clients" / "stamp").exists()


def test_a_client_that_does_not_start_is_a_failure_and_leaves_no_stamp(tmp_path: Path, programs: Path) -> None:
    put_program(programs, "node", "exit 0")
    put_program(programs, "npm", "exit 0")
    done = run_setup(tmp_path / "clients", programs)
    assert done.returncode == 1
    assert "does not start here" in done.stderr
    assert not (tmp_path / "clients" / "stamp").exists()


def test_a_second_run_does_nothing(tmp_path: Path, programs: Path) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "stamp").write_text(STAMP)
    done = run_setup(tmp_path / "clients", programs)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_versions_stamp_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_clients, "CLIENTS", tmp_path)
    assert "make agent-clients" in str(agent_clients.find_obstacle())
    (tmp_path / "stamp").write_text(STAMP.replace("codex ", "codex 9"))
    assert "make agent-clients" in str(agent_clients.find_obstacle())
    (tmp_path / "stamp").write_text(STAMP)
    assert agent_clients.find_obstacle() is None or shutil.which("strace") is None


def test_what_is_left_out_is_listed_by_name(tmp_path: Path) -> None:
    """The real run of a module whose tests cannot run: every one of them is in the summary, with its reason."""
    tests = tmp_path / "tests"
    shutil.copytree(ROOT / "tests" / "support", tests / "support", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "tests" / "conftest.py", tests / "conftest.py")
    (tmp_path / "scripts").mkdir()
    shutil.copy2(SETUP, tmp_path / "scripts")
    shutil.copy2(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    (tests / "test_it.py").write_text(
        "import pytest\n\n\n@pytest.mark.agents\ndef test_one(): assert False\n\n\n"
        "@pytest.mark.agents\n@pytest.mark.agents_long\ndef test_two(): assert False\n\n\ndef test_three(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_it.py"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 2 deselected" in done.stdout
    assert "NOT RUN tests/test_it.py::test_one (the agent clients are not installed" in done.stdout
    assert "NOT RUN tests/test_it.py::test_two (left to `make test-agents`; the agent clients" in done.stdout
