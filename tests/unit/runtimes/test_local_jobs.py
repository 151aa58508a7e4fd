"""What is a job in a box: the difference of two measures, and the measure of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from runcode.runtimes.local.jobs import BoxUse, ProcessUse, find_job, measure_box

LOOK_S = 30.0


def use(at_s: float, **processes: tuple[float, int]) -> BoxUse:
    found = {
        (number, 7): ProcessUse(name, cpu_s, moved, working=False)
        for number, (name, (cpu_s, moved)) in enumerate(processes.items())
    }
    return BoxUse(at_s, found)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"bash": (0.2, 9000)}, {"bash": (0.2, 9000)}, None),
        ({"node": (5.0, 0)}, {"node": (5.3, 90_000)}, None),
        ({"bash": (0.2, 0), "make": (1.0, 0)}, {"bash": (0.2, 0), "make": (4.0, 0)}, "make"),
        ({"wget": (1.0, 0)}, {"wget": (1.1, 90 * 2**20)}, "wget"),
        ({}, {"cc1": (2.0, 0)}, "cc1"),
        # Many that each do a little are a job together.
        ({}, {f"w{n}": (0.2, 0) for n in range(20)}, "w0"),
        # One that ended took its numbers with it.
        ({"make": (100.0, 2**40), "bash": (0.1, 5)}, {"bash": (0.1, 5)}, None),
    ],
)
def test_what_worked_in_between(
    before: dict[str, tuple[float, int]], after: dict[str, tuple[float, int]], expected: str | None
) -> None:
    assert find_job(use(0.0, **before), use(LOOK_S, **after)) == expected


def test_a_number_that_another_process_has_now_is_not_the_one_before() -> None:
    before = BoxUse(0.0, {(5, 1): ProcessUse("make", 90.0, 0, working=False)})
    after = BoxUse(LOOK_S, {(5, 2): ProcessUse("make", 91.0, 0, working=False)})
    assert find_job(before, after) == "make"


def test_the_first_look_finds_what_works_at_that_moment() -> None:
    waiting = ProcessUse("sleep", 0.0, 0, working=False)
    assert find_job(None, BoxUse(0.0, {(1, 1): waiting})) is None
    working = ProcessUse("cc1", 9.0, 0, working=True)
    assert find_job(None, BoxUse(0.0, {(1, 1): waiting, (2, 1): working})) == "cc1"


def test_real_processes_are_measured() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    spinner = subprocess.Popen([sys.executable, "-I", "-S", "-c", "while True: pass"])
    try:
        before = measure_box([sleeper.pid, spinner.pid, 2**22 + 1], None)
        deadline = time.monotonic() + 30
        while (found := find_job(before, measure_box([sleeper.pid, spinner.pid], None))) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found.startswith("python")
        only_sleeper = measure_box([sleeper.pid], None)
        assert find_job(only_sleeper, measure_box([sleeper.pid], None)) is None
        # The box's own first process is left out.
        assert measure_box([os.getpid()], os.getpid()).processes == {}
    finally:
        for process in (sleeper, spinner):
            process.kill()
            process.wait()
