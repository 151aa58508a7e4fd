"""What every test stands on: nobody's real home, environment or agent session, and no silent skips."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support import agent_clients
from support.runtime_table import RuntimeTables

_KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "TZ", "CI", "TMPDIR", "PYTHONDONTWRITEBYTECODE")
# A run in a shell's background inherits an ignored SIGINT, and so would every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_NOT_RUN = pytest.StashKey[list[tuple[str, str]]]()
_TABLES = pytest.StashKey[RuntimeTables]()


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME and nothing else of the person's environment; yields that HOME."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


class _FeedTables:
    def __init__(self, tables: RuntimeTables) -> None:
        self._tables = tables

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._tables.add_report(report)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLES] = RuntimeTables()
    config.pluginmanager.register(_FeedTables(config.stash[_TABLES]))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agents", choices=["short", "all"], default="short", help="also the long stories (agents_long)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What cannot run here is taken out, and listed by name at the end: never a silent skip."""
    config.stash[_TABLES].add_items(items)
    reasons: dict[str, str] = {}
    if os.geteuid() != 0:
        reasons["root_only"] = "needs root"
    if config.getoption("--agents") == "short":
        reasons["agents_long"] = "left to `make test-agents`"
    obstacle = agent_clients.find_obstacle()
    if obstacle is not None:
        reasons["agents"] = obstacle
    left_out: list[pytest.Item] = []
    config.stash[_NOT_RUN] = []
    for item in items:
        found = [reason for marker, reason in reasons.items() if item.get_closest_marker(marker)]
        if found:
            left_out.append(item)
            config.stash[_NOT_RUN].append((item.nodeid, "; ".join(found)))
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, lines in config.stash[_TABLES].render():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)
    not_run = list(config.stash.get(_NOT_RUN, []))
    for report in terminalreporter.stats.get("skipped", []):
        not_run.append((report.nodeid, str(report.longrepr[-1]) if report.longrepr else "skipped"))
    if not_run:
        terminalreporter.section("NOT RUN")
        for node, reason in not_run:
            terminalreporter.line(f"NOT RUN {node} ({reason})")
