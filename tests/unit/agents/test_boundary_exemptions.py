"""Exemptions count from the person's own file alone, and only as it was meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runcode.agents.boundary.exemptions import NOTHING, exemptions_path, load_exemptions
from runcode.client.settings import Settings, load_settings
from runcode.core.errors import RunCodeError


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    found = load_settings({"HOME": str(tmp_path)})
    os.makedirs(found.config_folder, mode=0o700)
    return found


def write(settings: Settings, text: str) -> Path:
    path = Path(exemptions_path(settings))
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_both_lists_are_read(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "notes")
    write(settings, 'commands = ["open", "git  status"]\npaths = ["~/notes", "/opt/x/../y", "~/link"]\n')
    found = load_exemptions(settings)
    notes = str(tmp_path / "notes")
    assert found.commands == (("open",), ("git", "status"))
    assert found.paths == (notes, "/opt/y", notes)


def test_no_file_exempts_nothing(settings: Settings) -> None:
    assert load_exemptions(settings) == NOTHING


def test_a_file_in_the_project_says_nothing(settings: Settings) -> None:
    for name in ("local.toml", ".runcode/local.toml", ".config/runcode/local.toml"):
        path = Path.cwd() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('commands = ["rm"]')
    assert load_exemptions(settings) == NOTHING


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("commands = open", "usage"),
        ("commands = [", "usage"),
        ('command = ["open"]', "usage"),
        ('commands = ["open"]\n[paths]\nx = 1', "usage"),
        ('commands = "open"', "usage"),
        ('commands = ["open", 7]', "usage"),
        ('commands = ["open", ["x"]]', "usage"),
        ('commands = [""]', "usage"),
        ('commands = ["  "]', "usage"),
        ('commands = ["a\\u0007"]', "usage"),
        ('commands = ["a\\u202eb"]', "usage"),
        ('paths = ["notes"]', "usage"),
        ('paths = ["../x"]', "usage"),
        ('paths = ["~other/x"]', "usage"),
        ('paths = [""]', "usage"),
        ("paths = [true]", "usage"),
        ("other = 1", "usage"),
        ('commands = ["a"]\ncommands = ["b"]', "usage"),
    ],
)
def test_a_mistake_is_an_error_and_no_exemption(settings: Settings, text: str, code: str) -> None:
    path = write(settings, text)
    with pytest.raises(RunCodeError) as caught:
        load_exemptions(settings)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_what_is_no_text_is_an_error(settings: Settings) -> None:
    Path(exemptions_path(settings)).write_bytes(b'commands = ["\xff"]')
    with pytest.raises(RunCodeError):
        load_exemptions(settings)


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_does_not_count(settings: Settings, mode: int) -> None:
    write(settings, 'commands = ["rm"]').chmod(mode)
    with pytest.raises(RunCodeError) as caught:
        load_exemptions(settings)
    assert caught.value.code == "unsafe_path"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_may_write_does_not_count(settings: Settings, mode: int) -> None:
    path = write(settings, 'commands = ["rm"]')
    path.parent.chmod(mode)
    with pytest.raises(RunCodeError) as caught:
        load_exemptions(settings)
    assert caught.value.code == "unsafe_path"


@pytest.mark.root_only
def test_somebody_elses_file_does_not_count(settings: Settings) -> None:
    os.chown(write(settings, 'commands = ["rm"]'), 54321, 54321)
    with pytest.raises(RunCodeError) as caught:
        load_exemptions(settings)
    assert caught.value.code == "unsafe_path"


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_plain_file_does_not_count(settings: Settings, kind: str) -> None:
    path = exemptions_path(settings)
    os.mkfifo(path) if kind == "fifo" else os.mkdir(path)
    with pytest.raises(RunCodeError):
        load_exemptions(settings)


def test_a_link_that_leads_nowhere_exempts_nothing(settings: Settings, tmp_path: Path) -> None:
    os.symlink(tmp_path / "nowhere", exemptions_path(settings))
    assert load_exemptions(settings) == NOTHING
