"""One run spread over several processes (pytest-xdist), and told as one.

Owns: how many workers there are, which tests stay together, which run by themselves, and
what workers hand to the process that prints the summary. `conftest` wires it up. Without
`-n` there is one process, and only the gathering for the summary is used.

A test file is a unit: one worker runs it, in its own order, so that a module's fixtures are
made once. The tables below name what differs. The controller collects nothing and knows
tests by their names only, so names stand here and not marks on tests.

Guarantee: what a worker left out, deselected or never reached is in the summary by name.
If no worker could tell (each of them crashed), the summary says so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from support.runtime_table import RuntimeTables

# Tests that measure time or fill the machine: they run first, in one worker, while the others wait.
ALONE = (
    "tests/adversarial/test_local_box_limits.py",
    "tests/integration/test_gateway_cutting.py::test_a_transfer_dies_within_a_second",
)
# Long files whose tests share nothing but small fixtures: each function of theirs is a unit.
APART = (
    "tests/integration/test_data_folder_edges.py",
    "tests/acceptance/test_bad_input.py",
    "tests/agents/test_hooks_wiring.py",
)
# What takes longest starts first, or one worker is left with it at the end.
LONG = (
    "tests/acceptance/test_ordinary_user.py",
    "tests/adversarial/test_local_box_network.py",
    "tests/contract/test_runtime_contract.py",
    "tests/integration/test_cutting_end_to_end.py",
    "tests/acceptance/test_kill_rounds.py",
    "tests/acceptance/test_gateway_kills.py",
    "tests/integration/test_backup.py",
    "tests/integration/test_two_servers.py",
    "tests/integration/test_gateways_apart.py",
    "tests/contract/test_store_kills.py",
    "tests/acceptance/test_story.py",
    "tests/integration/test_gateway_fidelity.py",
    "tests/integration/test_console_stories.py",
    "tests/integration/test_console_pages.py",
    "tests/adversarial/test_console_attacks.py",
    "tests/acceptance/test_json_contract.py",
    "tests/integration/test_gateway_events.py",
    "tests/integration/test_client_mux.py",
    "tests/acceptance/test_demo.py",
    "tests/integration/test_data_folder_edges.py",
    "tests/acceptance/test_bad_input.py",
    "tests/agents/test_hooks_wiring.py",
    "tests/agents/test_boundary.py",
    "tests/agents/test_story.py",
    "tests/integration/test_front.py",
    "tests/contract/test_openapi_fuzz.py",
)

_ALONE = "alone"
_KEY = "runcode_run"
# More workers than processors, since much of the suite waits; a big machine gains nothing beyond this.
_MOST_WORKERS = 8


def count_workers() -> int:
    """How many `-n auto` means on this machine."""
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0)) + 1)


class RunFacts:
    """What a process knows of the run beside its reports. The controller's come from its workers."""

    def __init__(self) -> None:
        self.tables = RuntimeTables()
        self.not_run: dict[str, str] = {}
        self.deselected: list[str] = []
        # How many tests ran on which database, by product and version.
        self.stores: Counter[str] = Counter()
        self.failed: list[str] = []
        self.told = False

    def add_items(self, items: Iterable[pytest.Item]) -> None:
        """Everything collected, also what is about to be left out."""
        self.tables.add_items(items)
        self.told = True

    def write_message(self, output: dict[str, Any]) -> None:
        """Into a worker's output, as the plain values that execnet carries."""
        output[_KEY] = {"places": self.tables.places, "not_run": self.not_run, "deselected": self.deselected}

    def read_message(self, output: Mapping[str, Any]) -> bool:
        """Take a worker's facts over; True the first time. All workers collect the same, so one is enough."""
        message = output.get(_KEY)
        if message is None or self.told:
            return False
        self.told = True
        self.tables.add_places(message["places"])
        self.not_run.update(message["not_run"])
        self.deselected.extend(message["deselected"])
        return True


FACTS = pytest.StashKey[RunFacts]()


def find_unit(node: str) -> str:
    """The unit that a test belongs to, from its node id."""
    path, _, name = node.partition("::")
    function = f"{path}::{name.partition('[')[0]}"
    if path in ALONE or function in ALONE:
        return _ALONE
    return function if path in APART else path


def rank_unit(unit: str) -> tuple[int, int]:
    """Smaller starts earlier; equal ones start in the order of the collection."""
    if unit == _ALONE:
        return (0, 0)
    for name in (unit, unit.partition("::")[0]):
        if name in LONG:
            return (1, LONG.index(name))
    return (2, 0)


class SpreadScheduling(LoadScopeScheduling):
    """Hands units out by rank, and holds every other one back while those that run alone do.

    pytest-xdist 3.8: a worker starts a test only once it knows the next one. So the worker
    that has the lone tests gets one ordinary unit behind them, or their last would never start.
    """

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        self._holding = False

    def _split_scope(self, nodeid: str) -> str:
        return find_unit(nodeid)

    def schedule(self) -> None:
        if self.collection is None:
            collected = next(iter(self.registered_collections.values()), [])
            self._holding = any(find_unit(node) == _ALONE for node in collected)
        super().schedule()

    def _assign_work_unit(self, node: WorkerController) -> None:
        chosen = min(self.workqueue, key=rank_unit)
        if self._holding and chosen != _ALONE:
            return
        self._assign(node, chosen)
        if self._holding and self.workqueue:
            self._assign(node, min(self.workqueue, key=rank_unit))

    def _assign(self, node: WorkerController, unit: str) -> None:
        self.workqueue.move_to_end(unit, last=False)
        super()._assign_work_unit(node)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        super().mark_test_complete(node, item_index, duration)
        if self._holding and all(self.assigned_work[node].get(_ALONE, {"": False}).values()):
            self._release()

    def remove_node(self, node: WorkerController) -> str | None:
        """The test that a worker crashed in, or None. The rest of its units are handed out again.

        pytest-xdist 3.8 would hand that test out as well, and lose one worker after another to it.
        """
        workload = self.assigned_work.pop(node)
        crashed = next((test for unit in workload.values() for test, done in unit.items() if not done), None)
        for name, unit in workload.items():
            if crashed in unit:
                unit[crashed] = True
            if not all(unit.values()):
                self.workqueue[name] = unit
        # Nobody waits for a worker that is gone.
        if crashed is not None:
            self._release()
        return crashed

    def _release(self) -> None:
        self._holding = False
        # Twice: a worker wants a second test before it starts the first.
        for _ in range(2):
            for node in self.nodes:
                self._reschedule(node)
