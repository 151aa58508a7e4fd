"""kill -9 at any moment, a few rounds of it (a hundred: `make chaos`), and that the judge would see a fault."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import kill_load, kill_proc
from support.kill_load import COUNTER, SENTINEL, Books, check_storage, find_code, sentinel_content
from support.kills import Campaign

SEED = 7
VICTIMS = ("server", "keeper", "bwrap", "box init", "sshd", "cli exec", "cli put", "server+keeper")
TITLE = "north-box"


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    running = Campaign(SEED)
    try:
        yield running.open()
    finally:
        left = running.close()
    assert left == []
    assert not running.folder.exists()


@pytest.mark.parametrize(("number", "victim"), list(enumerate(VICTIMS, start=1)))
def test_nothing_is_untrue_orphaned_lost_or_run_twice(campaign: Campaign, number: int, victim: str) -> None:
    outcome = campaign.play(number, victim=victim)
    assert outcome.faults == []
    assert outcome.killed, "the control: something was killed"
    assert campaign.books.ends["exec: 0"] > 0, "the control: commands ran meanwhile"


# ------------------------------------------------------------------ the judge


def test_an_orphan_is_seen(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that carries the data folder, and one below nobody's keeper that was seen there before."""
    monkeypatch.setattr("support.kills.QUIET_S", 0.5)
    orphan = subprocess.Popen(["sleep", "300"], env={"WHERE": str(campaign.service.data_dir)})
    try:
        _, found = campaign._wait_for_quiet(campaign._find_owned)
        assert [process.pid for process in found] == [orphan.pid]
    finally:
        orphan.kill()
        orphan.wait()
    assert campaign._wait_for_quiet(campaign._find_owned)[1] == []
    plain = subprocess.Popen(["sleep", "300"], env={})
    try:
        campaign.footprint.remember([plain.pid], kill_proc.look())
        _, found = campaign._wait_for_quiet(campaign._find_owned)
        assert [process.pid for process in found] == [plain.pid]
    finally:
        plain.kill()
        plain.wait()


def test_a_box_that_lost_its_keeper_is_nobodys(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the keeper's lock not asked, every box would look owned."""
    monkeypatch.setattr("support.kills.QUIET_S", 0.0)
    monkeypatch.setattr("support.kills.keepers.find_keeper", lambda folder: None)
    _, found = campaign._wait_for_quiet(campaign._find_owned)
    assert {"bwrap"} <= {process.name for process in found}


def test_a_state_that_is_not_true_is_seen(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.kills import TITLES, Outcome

    monkeypatch.setattr("support.kills.BACK_S", 0.5)
    monkeypatch.setattr(campaign, "_claims", lambda: dict.fromkeys(TITLES, False))
    outcome = Outcome(0, "nobody", TITLE)
    campaign._wait_until_true(outcome, 0.0)
    assert [fault for fault in outcome.faults if "not every box runs as it should" in fault]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A box's storage in which everything is as it was promised."""
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / SENTINEL).write_bytes(sentinel_content(TITLE))
    (tmp_path / "workspace" / "up.bin").write_bytes(b"whole")
    (tmp_path / COUNTER).write_text("a\nb\n")
    return tmp_path


def books_of(home: Path) -> Books:
    books = Books(issued={TITLE: {"a", "b", "c"}}, done={TITLE: {"a"}})
    digest = kill_load.hashlib.sha256(b"whole").hexdigest()
    books.uploads[TITLE] = {"up.bin": (digest, True), "refused.bin": (digest, False)}
    check_storage(home, TITLE, books)
    return books


def test_storage_that_is_as_promised_has_no_fault(home: Path) -> None:
    assert books_of(home).faults == []


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (lambda home: (home / COUNTER).write_text("a\nb\na\n"), "a ran 2 times"),
        (lambda home: (home / COUNTER).write_text("b\n"), "a exited 0 and never ran"),
        (lambda home: (home / COUNTER).write_text("a\nb\nd\n"), "'d' was never issued"),
        (lambda home: os.truncate(home / "workspace" / SENTINEL, 99), "written first has changed"),
        (lambda home: (home / "workspace" / "up.bin").write_bytes(b"who"), "up.bin is half-written"),
        (lambda home: (home / "workspace" / "up.bin").unlink(), "up.bin exited 0 and is not there"),
        (lambda home: shutil.copy(home / COUNTER, home / "workspace" / "refused.bin"), "refused.bin is half-written"),
    ],
)
def test_storage_that_is_not_as_promised_is_seen(home: Path, harm: object, fault: str) -> None:
    harm(home)  # type: ignore[operator]
    assert [seen for seen in books_of(home).faults if fault in seen]


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("runcode: network: no connection (retry)\n", "network"),
        ("runcode: waiting for SSH on a …\nruncode: not_ready: it does not answer (retry)\n", "not_ready"),
        ("", None),
        ("runcode: network: no connection (retry)\nruncode: network: no connection (retry)\n", None),
        ("Traceback (most recent call last):\nruncode: network: no connection (retry)\n", None),
        ("runcode: unheard_of: no connection (retry)\n", None),
        ("client_loop: send disconnect: Broken pipe\n", None),
    ],
)
def test_a_clean_end_is_one_line_with_a_code_of_ours(stderr: str, code: str | None) -> None:
    assert find_code(stderr) == code
