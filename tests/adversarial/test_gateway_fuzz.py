"""Twisted recordings of real SSH sessions, from either side, before and after authentication.

The long form is `make fuzz-ssh`; here is a bounded part of it, and all that it ever found.
"""

from __future__ import annotations

from support.ssh_fuzz import CORPUS, fuzz, open_target
from support.ssh_plans import POSITIONS, load_findings, load_transcripts, make_plan, parse_plan

SEED = 20261125
PLANS = 120


def test_a_seed_says_everything_about_a_plan() -> None:
    transcripts = load_transcripts(CORPUS)
    plans = [make_plan(transcripts, SEED, index) for index in range(200)]
    assert plans == [make_plan(transcripts, SEED, index) for index in range(200)]
    assert plans == [parse_plan(plan.render()) for plan in plans]
    assert len({plan.render() for plan in plans}) == 200
    assert {plan.position for plan in plans} == set(POSITIONS)
    assert any(step.twists for plan in plans for step in plan.steps)


def test_untwisted_recordings_come_through_authentication() -> None:
    """The control: what is twisted would otherwise be taken."""
    transcripts = load_transcripts(CORPUS)
    whole = [each for each in transcripts if each.client_before[-2].words[:1] == ("signed",)]
    assert len(whole) >= 8
    with open_target() as target:
        for index, transcript in enumerate(whole):
            plan = parse_plan(
                "position client-before aes128-gcm@openssh.com\n"
                + "\n".join(step.render() for step in transcript.client_before)
            )
            assert fuzz(target, [(index, plan)], SEED, wait_s=30.0).is_clean
        # Each was let in, and a bystander for each.
        assert target.facts()["admitted"] == target.rightful == 2 * len(whole)


def test_what_the_fuzzer_ever_found_is_mended() -> None:
    findings = load_findings(CORPUS)
    assert len(findings) >= 7
    with open_target() as target:
        report = fuzz(target, list(enumerate(findings.values())), SEED, failures_max=len(findings))
    failed = {list(findings)[index]: found for index, (_plan, found) in report.failed.items()}
    assert (failed, report.rest) == ({}, []), "again: scripts/fuzz_gateway.py --replay FILE"


def test_nothing_that_a_peer_says_breaks_the_gateway() -> None:
    transcripts = load_transcripts(CORPUS)
    with open_target() as target:
        report = fuzz(target, ((index, make_plan(transcripts, SEED, index)) for index in range(PLANS)), SEED)
    assert report.is_clean, report.render(SEED)
    assert report.plans == PLANS
