"""Host uids: far from everybody else's, one per workspace, never 0, kept for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.local import identity
from runcode.runtimes.local.layout import Layout


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Layout(tmp_path)


def test_the_block_is_drawn_once_and_kept(layout: Layout) -> None:
    base = identity.load_block(layout)
    assert 1_900_000_000 <= base <= 2_147_000_000
    assert identity.load_block(layout) == base
    assert [path.name for path in layout.root.iterdir()] == ["uid-block"]
    assert identity.host_uid_for(layout, 7) == base + 7
    assert identity.host_uid_for(layout, 65_535) == base + 65_535


def test_two_roots_draw_different_blocks(tmp_path: Path) -> None:
    assert len({identity.draw_block() for _ in range(40)}) > 1
    for base in (identity.draw_block() for _ in range(40)):
        assert identity.parse_block(str(base)) == base


def test_the_ids_do_not_run_over_into_the_next_block(layout: Layout) -> None:
    with pytest.raises(RunCodeError) as caught:
        identity.host_uid_for(layout, 65_536)
    assert caught.value.code == "unavailable"


def test_an_ordinary_user_has_no_other_uid(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert identity.host_uid_for(layout, 7) is None
    assert not layout.uid_block.exists()


@pytest.mark.parametrize("text", ["", "0", "-1", "1000", "x", "1900000001", "4294967296", "0\n0"])
def test_a_damaged_block_file_is_refused(text: str) -> None:
    # A 0 in there would make boxes run as root.
    with pytest.raises(RunCodeError) as caught:
        identity.parse_block(text)
    assert caught.value.code == "io_error"


def test_subordinate_ranges_are_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "subuid"
    taken.write_text("# comment\nalice:1900000000:240000000\nbroken:x:y\nbob:100000:65536\n")
    monkeypatch.setattr(identity, "_SUBORDINATE_FILES", (taken, tmp_path / "missing"))
    assert identity.read_subordinate_ranges(taken) == [(1_900_000_000, 2_140_000_000), (100_000, 165_536)]
    for _ in range(20):
        assert identity.draw_block() >= 2_140_000_000
