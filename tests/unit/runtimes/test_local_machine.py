"""Obstacles: each names why, and what to type."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.local import machine
from runcode.runtimes.local.runtime import LocalRuntime


@pytest.mark.parametrize(("platform", "shown"), [("darwin", "macOS"), ("win32", "win32"), ("freebsd14", "freebsd14")])
def test_another_system_is_unavailable(
    platform: str, shown: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    said = LocalRuntime(tmp_path / "root").find_obstacle()
    assert said is not None
    assert "\n" not in said
    assert f"unavailable on {shown}" in said
    # Nothing was made there.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("missing", "package"), [("bwrap", "bubblewrap"), ("sshd", "openssh-server")])
def test_a_missing_program_names_its_package(missing: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = machine.shutil.which
    monkeypatch.setattr(machine.shutil, "which", lambda name, path: None if name == missing else real(name, path=path))
    with pytest.raises(machine.Obstacle, match=f"needs {missing}: apt install {package}"):
        machine.find_machine()


def test_a_program_outside_usr_is_not_seen_by_a_box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name, path: str(tmp_path / name))
    with pytest.raises(machine.Obstacle, match="under /usr"):
        machine.find_machine()


def test_no_interpreter_under_usr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "which", lambda name, path: f"/usr/bin/{name}")
    monkeypatch.setattr(machine, "find_interpreter", lambda: None)
    with pytest.raises(machine.Obstacle, match="apt install python3"):
        machine.find_machine()


@pytest.mark.parametrize(
    ("setting", "value", "fix"),
    [
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces="),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_a_forbidding_setting_is_named_with_its_fix(tmp_path: Path, setting: str, value: str, fix: str) -> None:
    (tmp_path / setting).parent.mkdir(parents=True)
    (tmp_path / setting).write_text(value + "\n")
    said = machine.explain("bwrap: No permissions to create a new namespace", tmp_path)
    assert fix in said
    assert "\n" not in said


def test_another_failure_quotes_bubblewrap_in_one_printable_line(tmp_path: Path) -> None:
    said = machine.explain("first\nbwrap: something \x1b[31m odd\n", tmp_path)
    assert "bwrap: something" in said
    assert said.isprintable()
    assert machine.explain("", tmp_path).isprintable()


def test_an_obstacle_is_asked_again_only_after_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def find_machine() -> machine.Machine:
        asked.append(1)
        raise machine.Obstacle("the local runtime needs bwrap: apt install bubblewrap")

    monkeypatch.setattr(machine, "find_machine", find_machine)
    runtime = LocalRuntime(tmp_path / "root")
    assert runtime.find_obstacle() == runtime.find_obstacle() == "the local runtime needs bwrap: apt install bubblewrap"
    assert len(asked) == 1


async def test_a_start_on_a_machine_that_cannot_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from support.runtime_ssh import WorkspaceCa

    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RunCodeError) as caught:
        async for _ in LocalRuntime(tmp_path / "root").start(WorkspaceCa().make_spec(1)):
            pass
    assert caught.value.code == "unavailable"
    assert "macOS" in caught.value.message
