"""The house's own rules: import directions, a client without dependencies, docs and targets in step."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _imported_names(file: Path) -> set[str]:
    """Top-level names of everything a module imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_imports_point_downwards() -> None:
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports"))], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout


def test_the_client_has_no_dependency() -> None:
    assert PROJECT["project"]["dependencies"] == []


# What runs with site-packages, behind `agents/mcp/start.py`: nobody else may import these (the next test).
MCP_SERVER = {"arguments", "calls", "results", "server", "start"}
SDK = {"anyio", "jsonschema", "mcp", "mcp_types"}


@pytest.mark.parametrize("room", ["core", "client", "cli", "agents"])
def test_the_client_half_imports_only_the_standard_library(room: str) -> None:
    """A third-party name would break `python -I -S`."""
    # `_sha2` is CPython 3.12's name of a built-in module; older ones do not list it.
    allowed = set(sys.stdlib_module_names) | {"runcode", "_sha2"}
    for file in (ROOT / "src" / "runcode" / room).rglob("*.py"):
        more = SDK if file.parent.name == "mcp" and file.stem in MCP_SERVER else set()
        assert _imported_names(file) <= allowed | more, file


def test_nothing_but_the_mcp_server_leads_to_the_sdk() -> None:
    """The command, the worker and the installers start without site-packages."""
    folder = ROOT / "src" / "runcode" / "agents" / "mcp"
    for file in (ROOT / "src" / "runcode").rglob("*.py"):
        if file.parent == folder and file.stem in MCP_SERVER:
            continue
        for name in MCP_SERVER:
            assert not re.search(rf"agents\.mcp(?:\.| import (?:\w+, )*){name}\b", file.read_text()), (file, name)


def test_core_does_no_io() -> None:
    """Core is pure: no module that opens files or sockets, reads a clock or the environment."""
    banned = {
        "os",
        "socket",
        "subprocess",
        "time",
        "pathlib",
        "io",
        "shutil",
        "tempfile",
        "threading",
        "asyncio",
        "random",
    }
    for file in (ROOT / "src" / "runcode" / "core").rglob("*.py"):
        assert not banned & _imported_names(file), file
        # Calls of ours: the texts of programs for a box hold such words too.
        called = {_name_called(node) for node in ast.walk(ast.parse(file.read_text()))}
        assert not {"open", "now", "utcnow", "today"} & called, f"{file}: I/O or a clock"


def _name_called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", "") or getattr(function, "attr", "")


def test_make_has_its_targets_and_help_lists_them() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "check", "bench", "fmt", "help"):
        assert re.search(rf"^  {target} ", listed, re.M), target


def test_the_readme_names_only_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"(?:`| {4})make ([a-z-]+)", (ROOT / "README.md").read_text())
    assert {"demo", "test"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_every_module_says_what_it_owns() -> None:
    for file in (ROOT / "src" / "runcode").rglob("*.py"):
        if "migrations/versions" in str(file):
            continue
        assert file.read_text().lstrip().startswith(('"""', 'r"""')), f"{file} has no module docstring"


def test_nothing_of_one_machine_is_in_the_tree() -> None:
    """No absolute path of a checkout, and no address of a package index."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, tracked):
        file = ROOT / name
        if file.is_symlink() or not file.is_file():
            continue
        text = file.read_text(errors="replace")
        # A whole path: a checkout in /tmp/t is not what /tmp/tun speaks of.
        assert str(ROOT) in ("/", "/src") or not re.search(rf"{re.escape(str(ROOT))}(?![\w-])", text), name
        assert "index-url" not in text or name.startswith("tests/architecture"), name
