"""What every test stands on: nobody's real home, environment or agent session, and no silent skips."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runcode.controlplane.store.location import Location, PostgresUrl
from support import agent_clients
from support.postgres import Cluster
from support.spread_run import FACTS, RunFacts, SpreadScheduling, count_workers

_KEPT = ("PATH", "LANG", "LC_ALL", "TERM", "TZ", "CI", "TMPDIR", "PYTHONDONTWRITEBYTECODE")
# A run in a shell's background inherits an ignored SIGINT, and so would every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# `nohup` does the same to SIGHUP.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HOME and nothing else of the person's environment; yields that HOME."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name not in _KEPT and not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A real Postgres server, of this test process alone."""
    cluster = Cluster()
    try:
        yield cluster.make()
    finally:
        cluster.remove()


@pytest.fixture
def postgres_url(postgres: Cluster) -> Iterator[PostgresUrl]:
    """A database of the test's own, migrated already."""
    url = postgres.make_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=["SQLite", "Postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where a store is: the test runs on both products. The summary says on which versions."""
    if request.param == "SQLite":
        request.node.user_properties.append(("store", f"SQLite {sqlite3.sqlite_version}"))
        return tmp_path / "runcode.db"
    cluster: Cluster = request.getfixturevalue("postgres")
    request.node.user_properties.append(("store", f"Postgres {cluster.version}"))
    found: PostgresUrl = request.getfixturevalue("postgres_url")
    return found


class _Gathering:
    """Feeds the run's facts: each process its own, and the controller of a spread run those of its workers."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._facts = config.stash[FACTS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._facts.tables.add_report(report)
        if report.failed and report.nodeid not in self._facts.failed:
            self._facts.failed.append(report.nodeid)
        if report.when == "call":
            self._facts.stores.update(str(value) for name, value in report.user_properties if name == "store")

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._facts.deselected.extend(item.nodeid for item in items)

    def pytest_sessionfinish(self) -> None:
        output = getattr(self._config, "workeroutput", None)
        if output is not None:
            self._facts.write_message(output)
        elif (path := self._config.getoption("--failures-file")) is not None:
            Path(path).write_text(json.dumps(self._facts.failed))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # A worker that crashed has no output.
        if self._facts.read_message(getattr(node, "workeroutput", {})):
            # The closing line counts them, as in a run that is not spread.
            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None and self._facts.deselected:
                reporter.pytest_deselected(items=[SimpleNamespace(nodeid=node) for node in self._facts.deselected])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> SpreadScheduling:
        return SpreadScheduling(config, log)


# Asked before `pytest_configure`, so it stands in the module itself.
@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers() -> int:
    return count_workers()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FACTS] = RunFacts()
    config.pluginmanager.register(_Gathering(config))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--agents", choices=["short", "all"], default="short", help="also the long stories (agents_long)")
    parser.addoption("--failures-file", metavar="FILE", help="for scripts/run_tests.py: which tests failed, as JSON")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What cannot run here is taken out, and listed by name at the end: never a silent skip."""
    facts = config.stash[FACTS]
    facts.add_items(items)
    reasons: dict[str, str] = {}
    if os.geteuid() != 0:
        reasons["root_only"] = "needs root"
    if config.getoption("--agents") == "short":
        reasons["agents_long"] = "left to `make test-agents`"
    obstacle = agent_clients.find_obstacle()
    if obstacle is not None:
        reasons["agents"] = obstacle
    left_out: list[pytest.Item] = []
    for item in items:
        found = [reason for marker, reason in reasons.items() if item.get_closest_marker(marker)]
        if found:
            left_out.append(item)
            facts.not_run[item.nodeid] = "; ".join(found)
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    facts = config.stash[FACTS]
    for title, lines in facts.tables.render():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)
    if facts.stores:
        terminalreporter.section("stores")
        for product, count in sorted(facts.stores.items()):
            terminalreporter.line(f"{product}: {count} tests")
    not_run = list(facts.not_run.items())
    for report in terminalreporter.stats.get("skipped", []):
        not_run.append((report.nodeid, str(report.longrepr[-1]) if report.longrepr else "skipped"))
    if not_run or not facts.told:
        terminalreporter.section("NOT RUN")
        for node, reason in not_run:
            terminalreporter.line(f"NOT RUN {node} ({reason})")
        if not facts.told:
            terminalreporter.line("NOT RUN is incomplete: no process of this run told what it left out", red=True)
