"""A keeper's files across versions: older shapes, fields of later versions, and what is not guessed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runcode.runtimes.local import plan

# What the first release wrote, word for word; a released shape is never edited here, only added to.
FIRST_PLAN: dict[str, Any] = {
    "title": "royal-tree",
    "host_uid": 2_000_001,
    "etc_folder": "../../etc/abc",
    "box_folder": "box-012345",
    "bwrap": "/usr/bin/bwrap",
    "command": ["/usr/bin/python3", "-I", "-S", "/opt/runcode/init.py"],
    "disable_userns": True,
    "start_timeout_s": 15.0,
}
FIRST_STATE: dict[str, Any] = {"pid": 4711, "started_ticks": 99, "serving": True, "pid_namespace": 4026531836}


def write(folder: Path, record: object) -> str:
    path = folder / "file.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return str(path)


def test_the_first_releases_files_are_understood(tmp_path: Path) -> None:
    found = plan.load_plan(write(tmp_path, FIRST_PLAN))
    assert (found.title, found.host_uid, found.command[0]) == ("royal-tree", 2_000_001, "/usr/bin/python3")
    state = plan.find_keeper_state(write(tmp_path, FIRST_STATE))
    assert state is not None
    assert (state.pid, state.serving, state.pid_namespace) == (4711, True, 4026531836)


def test_fields_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    later = {"cgroup": "/x", "network": {"mode": "pasta"}, "format": plan.FORMAT}
    assert plan.load_plan(write(tmp_path, FIRST_PLAN | later)) == plan.load_plan(write(tmp_path, FIRST_PLAN))
    state = plan.find_keeper_state(write(tmp_path, FIRST_STATE | later))
    assert state == plan.find_keeper_state(write(tmp_path, FIRST_STATE))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = plan.load_plan(write(tmp_path, FIRST_PLAN))
    plan.write_private_json(str(tmp_path / "again"), written)
    assert plan.load_plan(str(tmp_path / "again")) == written
    assert json.loads((tmp_path / "again").read_text())["format"] == plan.FORMAT


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '"text"', {}, {"format": "1"}, {"format": True}])
def test_half_a_file_is_no_file(tmp_path: Path, damage: Any) -> None:
    path = write(tmp_path, damage)
    with pytest.raises(ValueError):
        plan.load_plan(path)
    assert plan.find_keeper_state(path) is None


def test_a_later_format_is_not_guessed_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        plan.load_plan(write(tmp_path, FIRST_PLAN | {"format": plan.FORMAT + 1}))
    assert plan.find_keeper_state(write(tmp_path, FIRST_STATE | {"format": plan.FORMAT + 1})) is None
    with pytest.raises(ValueError):
        plan.load_plan(write(tmp_path, FIRST_PLAN | {"command": "sh -c x"}))
