"""`make demo` as a script: what it does is real, and the numbers that it prints are the project's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import demo_project
import pytest

ROOT = Path(demo_project.REPOSITORY)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> demo_project.Counts:
    """The same sdist's suite, run on this machine without any workspace."""
    folder = tmp_path_factory.mktemp("outside")
    project = demo_project.load_project()
    for file in (project.sdist, project.wheelhouse):
        shutil.copy(file, folder)
    for command in demo_project.prepare_commands():
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    subprocess.run(["sh", "-c", demo_project.SUITE], cwd=folder, check=True, capture_output=True)
    return demo_project.read_report(folder / "report.xml")


def test_the_demo_runs_the_projects_whole_suite_on_a_box(outside: demo_project.Counts, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RUNCODE_DEMO_FOLDER": str(tmp_path / "demo")},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    counted = re.findall(r"→ (\d+) tests, (\d+) failed, on the box", done.stdout)
    assert len(counted) == 3, done.stdout
    assert {int(tests) for tests, _ in counted} == {outside.tests}
    assert outside.tests > 600
    assert [int(failed) > 0 for _, failed in counted] == [False, True, False]
    assert outside.failures + outside.errors == 0
    # It says what it runs, what came back and how long it took, for each command.
    commands = done.stdout.count("   $ ")
    assert commands > 15
    assert len(re.findall(r"└ exit \d+, \d+\.\d\d s", done.stdout)) >= commands - 1
    assert not (tmp_path / ".ssh").exists()
    assert not (tmp_path / ".config").exists()
