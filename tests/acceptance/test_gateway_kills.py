"""Kills and cuts between ssh clients and their boxes: a few rounds (a hundred: `make chaos`), and the judge itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import gateway_kills
from support.cut_networks import find_obstacle
from support.gateway_kills import NEEDS_NETWORKS, Campaign
from support.gateway_load import COUNTER, Call, judge

SEED = 7
# Of those that `test_gateways_apart` does not play without a load.
VICTIMS = ("revocation", "full disk", "worker and control plane")


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    running = Campaign(SEED, apart=find_obstacle() is None, workers=1, pace_s=0.2)
    try:
        yield running.open()
    finally:
        left = running.close()
    assert left == []
    assert not running.folder.exists()


@pytest.mark.parametrize(("number", "victim"), list(enumerate(VICTIMS, start=1)))
def test_nothing_hangs_runs_twice_leaks_or_goes_untold(campaign: Campaign, number: int, victim: str) -> None:
    if victim in NEEDS_NETWORKS and not campaign.networks.can_cut:
        pytest.skip(find_obstacle() or "")
    outcome = campaign.play(number, victim=victim)
    assert outcome.faults == []
    assert campaign.books.ends["command: 0"] > 0, "the control: commands ran meanwhile"


# ------------------------------------------------------------------ the judge


def test_a_command_that_ran_twice_or_was_never_told_is_seen(campaign: Campaign) -> None:
    (campaign._home / COUNTER).write_text("command-1\ncommand-1\n")
    campaign.books.done[gateway_kills.TITLE] = {"command-2"}
    faults = campaign._compare_with_box()
    assert "command-1 ran 2 times" in faults
    assert "'command-1' was never issued" in faults
    assert "command-1 ran and was told 0 times" in faults
    assert "command-2 exited 0 and never ran" in faults


def test_a_connection_that_stays_and_an_event_without_an_end_are_seen(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = gateway_kills.Stream(campaign.clients[0])
    try:
        left = campaign._find_left()
        assert "1 connections at the gateway" in left
        assert any("sshd in the box" in one for one in left)
        campaign.wait_until(lambda: campaign._count_open() == 2, "its beginning is told")
    finally:
        stream.end()
    outcome = gateway_kills.Outcome(0, "")
    assert campaign._wait_for_quiet(outcome) == []


def test_no_other_end_of_a_call_is_clean() -> None:
    def ended(status: int, stderr: str = "", right: bool = True) -> list[str]:
        return judge(Call("command", "box", "x", 0.0, 1.0, status, right, stderr))

    assert ended(0) == ended(255, "Connection closed") == []
    assert ended(0, right=False)
    assert ended(255)
    assert ended(1, "Connection closed")
