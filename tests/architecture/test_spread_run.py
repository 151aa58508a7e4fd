"""A run that is spread over workers tells what a plain one does, and its tables name tests that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import spread_run

ROOT = Path(__file__).resolve().parents[2]

_INI = f"""
[pytest]
pythonpath = {ROOT / "tests"}
addopts = -p conftest -p no:cacheprovider --import-mode=importlib -ra
markers =
    root_only: x
    agents: x
    agents_long: x
    runtime_case: x
"""
_TESTS = """
import pytest

@pytest.mark.agents_long
def test_left_out(): pass

@pytest.mark.runtime_case("little")
@pytest.mark.parametrize("case", ["good", "bad", "skipped"])
def test_cell(case):
    assert case != "bad"
    if case == "skipped":
        pytest.skip("a reason")

@pytest.mark.agents_long
@pytest.mark.runtime_case("little")
@pytest.mark.parametrize("case", ["good"])
def test_never(case): pass

def test_named_away(): pass
"""
_CRASH = """
import os

def test_crash(): os._exit(3)
"""


def run_pytest(folder: Path, *words: str) -> tuple[int, list[str]]:
    return run_program(folder, "-m", "pytest", "-c", "pytest.ini", *words)


def run_program(folder: Path, *words: str) -> tuple[int, list[str]]:
    (folder / "pytest.ini").write_text(_INI)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout.splitlines()


def test_the_summary_of_a_spread_run_is_that_of_a_plain_one(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"test_{number}.py").write_text(_TESTS)
    told = {}
    for way in ("0", "2"):
        status, lines = run_pytest(tmp_path, "-n", way, "-k", "not named_away")
        assert status == 1
        start = next(number for number, line in enumerate(lines) if "runtime × case: little" in line)
        end = next(number for number, line in enumerate(lines) if "short test summary" in line)
        assert re.fullmatch(r"=+ 3 failed, 3 passed, 3 skipped, 9 deselected in [0-9.]+s =+", lines[-1]), lines[-1]
        told[way] = lines[start:end]
    # Skipped tests are told in the order in which they ended.
    assert sorted(told["0"]) == sorted(told["2"])
    for number in range(3):
        for line in (
            f"NOT RUN test_{number}.py::test_left_out (left to `make test-agents`)",
            f"NOT RUN test_{number}.py::test_never[good] (left to `make test-agents`)",
            f"NOT RUN test_{number}.py::test_cell[skipped] (Skipped: a reason)",
        ):
            assert line in told["2"]
    assert "cell   pass     FAIL     NOT RUN" in told["2"]
    assert "never  NOT RUN  –        –" in told["2"]


def test_a_worker_that_crashes_fails_the_run_and_what_it_left_is_run_by_another(tmp_path: Path) -> None:
    (tmp_path / "test_0.py").write_text(_CRASH + _TESTS)
    (tmp_path / "test_1.py").write_text(_TESTS)
    status, lines = run_pytest(tmp_path, "-n", "2", "-k", "not named_away")
    assert status == 1
    assert lines[-1].strip("= ").startswith("3 failed, 2 passed, 2 skipped, 6 deselected in ")
    assert "NOT RUN test_0.py::test_left_out (left to `make test-agents`)" in lines
    assert not any("incomplete" in line for line in lines)


def test_a_run_whose_every_worker_crashed_says_that_its_list_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "test_0.py").write_text(_CRASH + _TESTS)
    status, lines = run_pytest(tmp_path, "-n", "1", "--max-worker-restart", "0")
    assert status != 0
    assert "NOT RUN is incomplete: no process of this run told what it left out" in lines


_ORDER = """
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_it(number):
    log = Path({log!r})
    with log.open("a") as file: file.write("begin {name}\\n")
    time.sleep(0.05)
    with log.open("a") as file: file.write("end {name}\\n")
"""


def test_nothing_runs_beside_the_tests_that_run_alone(tmp_path: Path) -> None:
    """Through the real scheduler, with this run's tables replaced by one of ours."""
    log = tmp_path / "log"
    for name, count in (("a", 4), ("b", 4), ("lone", 3), ("long", 3), ("c", 4)):
        (tmp_path / f"test_{name}.py").write_text(_ORDER.format(count=count, log=str(log), name=name))
    (tmp_path / "conftest.py").write_text(
        "from support import spread_run\nspread_run.ALONE = ('test_lone.py',)\nspread_run.LONG = ('test_long.py',)\n"
    )
    status, lines = run_pytest(tmp_path, "-n", "3")
    assert status == 0, lines
    told = log.read_text().split("\n")[:-1]
    assert told[:6] == ["begin lone", "end lone"] * 3
    assert "lone" not in " ".join(told[6:])
    assert sorted(told) == sorted(
        line for name, count in (("a", 4), ("b", 4), ("lone", 3), ("long", 3), ("c", 4))
        for line in [f"begin {name}", f"end {name}"] * count
    )  # fmt: skip
    assert "begin long" in told[6:10]


def test_a_run_of_lone_tests_only_ends(tmp_path: Path) -> None:
    (tmp_path / "test_lone.py").write_text(_ORDER.format(count=3, log=str(tmp_path / "log"), name="lone"))
    (tmp_path / "conftest.py").write_text("from support import spread_run\nspread_run.ALONE = ('test_lone.py',)\n")
    for workers in ("1", "3"):
        status, lines = run_pytest(tmp_path, "-n", workers)
        assert (status, lines[-1].strip("= ")[:8]) == (0, "3 passed")


@pytest.mark.parametrize("name", [*spread_run.ALONE, *spread_run.APART, *spread_run.LONG])
def test_every_name_in_the_tables_is_a_test_of_ours(name: str) -> None:
    path, _, function = name.partition("::")
    assert f"def {function or 'test_'}" in (ROOT / path).read_text()


def test_auto_means_as_many_workers_as_we_say(tmp_path: Path) -> None:
    for number in range(spread_run.count_workers() + 1):
        (tmp_path / f"test_{number}.py").write_text("def test_it(): pass\n")
    status, lines = run_pytest(tmp_path, "-n", "auto", "-v")
    assert status == 0
    # Each worker is given a unit at the start.
    assert len(set(re.findall(r"^\[(gw\d+)\]", "\n".join(lines), re.MULTILINE))) == spread_run.count_workers()


# Fails as often as it says, then passes.
_WAVERING = """
from pathlib import Path

def test_it():
    file = Path(__file__).with_suffix(".runs")
    runs = len(file.read_text()) if file.exists() else 0
    file.write_text("x" * (runs + 1))
    assert runs >= {failures}
"""


def test_a_failure_is_forgiven_only_by_itself_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(_WAVERING.format(failures=1))
    (tmp_path / "test_b.py").write_text(_WAVERING.format(failures=0))
    status, lines = run_program(tmp_path, str(ROOT / "scripts/run_tests.py"), "-n", "2")
    assert status == 0, lines
    assert [line.partition(" (")[0] for line in lines if line.startswith("UNSTEADY")] == ["UNSTEADY test_a.py::test_it"]
    (tmp_path / "test_a.py").write_text(_WAVERING.format(failures=99))
    status, lines = run_program(tmp_path, str(ROOT / "scripts/run_tests.py"), "-n", "2")
    assert status == 1, lines
    assert lines[-1] == "FAILED test_a.py::test_it (also by itself)"


def test_a_run_that_was_none_is_not_forgiven(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_it(): pass\n")
    status, lines = run_program(tmp_path, str(ROOT / "scripts/run_tests.py"), "-k", "nothing-like-this")
    assert status > 1, lines


def test_units() -> None:
    assert spread_run.find_unit("tests/unit/x.py::test_a[b::c]") == "tests/unit/x.py"
    for path in spread_run.APART:
        assert spread_run.find_unit(f"{path}::test_a[b]") == f"{path}::test_a"
    for name in spread_run.ALONE:
        assert spread_run.rank_unit(spread_run.find_unit(name if "::" in name else f"{name}::test_a[b]")) == (0, 0)
    ranks = [spread_run.rank_unit(name) for name in [*spread_run.LONG, "tests/unit/x.py"]]
    assert ranks == sorted(ranks)
