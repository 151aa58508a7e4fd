"""Admission is a function: facts in, decision out."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import replace

import pytest

from runcode.gateway.admission import AdmissionPolicy, Offer, Refusal, Route, admit, may_continue
from runcode.gateway.directory import AdmissionFacts, SessionFacts, WorkspaceFacts

NOW = datetime.datetime(2026, 11, 24, 12, 0, tzinfo=datetime.timezone.utc)
SESSION = SessionFacts(
    session_id=5,
    workspace_id=42,
    user_id=1,
    client="cli",
    expires_at=NOW + datetime.timedelta(seconds=1),
    withdrawn=False,
)
WORKSPACE = WorkspaceFacts(
    workspace_id=42, title="royal-1", running=True, principal="ws-42", host_key="ssh-ed25519 A", socket_path="/s"
)
FACTS = AdmissionFacts(session=SESSION, workspace=WORKSPACE)
OFFER = Offer(title="royal-1", key_fingerprint="SHA256:x", source="192.0.2.7")
POLICY = AdmissionPolicy()
OPENED = Route(SESSION, WORKSPACE)


def decide(facts: AdmissionFacts = FACTS, *, feed_age_s: float = 0.1, policy: AdmissionPolicy = POLICY) -> object:
    return admit(OFFER, facts, NOW, policy, feed_age_s=feed_age_s)


def test_a_valid_session_of_this_workspace_is_routed() -> None:
    assert decide() == OPENED


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, workspace=None),
        replace(FACTS, session=None),
        AdmissionFacts(session=None, workspace=None),
        replace(FACTS, session=replace(SESSION, workspace_id=43)),
        replace(FACTS, session=replace(SESSION, withdrawn=True)),
        replace(FACTS, session=replace(SESSION, expires_at=NOW)),
        replace(FACTS, session=replace(SESSION, expires_at=NOW - datetime.timedelta(days=1))),
        replace(FACTS, workspace=replace(WORKSPACE, title="royal-2")),
    ],
)
@pytest.mark.parametrize("feed_age_s", [0.1, 99.0])
@pytest.mark.parametrize("running", [True, False])
def test_refused(facts: AdmissionFacts, feed_age_s: float, running: bool) -> None:
    """Also while the feed is stale or the box is stopped: a stranger learns neither."""
    if facts.workspace is not None:
        facts = replace(facts, workspace=replace(facts.workspace, running=running))
    assert isinstance(decide(facts, feed_age_s=feed_age_s), Refusal)


def test_a_stopped_workspace_is_an_obstacle_not_a_refusal() -> None:
    decision = decide(replace(FACTS, workspace=replace(WORKSPACE, running=False)))
    assert isinstance(decision, Route)
    assert decision.obstacle == "workspace royal-1 is not running: type `runcode connect royal-1 --start`"


def test_running_without_an_endpoint_is_not_running() -> None:
    decision = decide(replace(FACTS, workspace=replace(WORKSPACE, socket_path=None)))
    assert isinstance(decision, Route)
    assert decision.obstacle is not None


def test_a_stale_feed_lets_nobody_in() -> None:
    decision = decide(feed_age_s=2.1)
    assert isinstance(decision, Route)
    assert decision.obstacle is not None
    assert isinstance(decide(feed_age_s=float("inf")), Route)
    assert decide(feed_age_s=1.9) == OPENED


def test_source_networks() -> None:
    policy = AdmissionPolicy(source_networks=(ipaddress.ip_network("192.0.2.0/24"),))
    assert decide(policy=policy) == OPENED
    for source, allowed in (("198.51.100.1", False), ("", False), ("::ffff:192.0.2.9", True), ("::1", False)):
        offer = replace(OFFER, source=source)
        decision = admit(offer, FACTS, NOW, policy, feed_age_s=0.0)
        assert isinstance(decision, Route) == allowed


class TestMayContinue:
    def decide(self, facts: AdmissionFacts) -> object:
        return may_continue(OFFER, facts, POLICY, opened_as=OPENED)

    def test_expiry_does_not_matter_any_more(self) -> None:
        expired = replace(SESSION, expires_at=NOW - datetime.timedelta(days=9))
        assert isinstance(self.decide(replace(FACTS, session=expired)), Route)

    @pytest.mark.parametrize(
        "facts",
        [
            replace(FACTS, session=None),
            replace(FACTS, workspace=None),
            replace(FACTS, session=replace(SESSION, withdrawn=True)),
            replace(FACTS, workspace=replace(WORKSPACE, running=False)),
            replace(FACTS, session=replace(SESSION, session_id=6)),
            AdmissionFacts(session=replace(SESSION, workspace_id=43), workspace=replace(WORKSPACE, workspace_id=43)),
        ],
    )
    def test_cut(self, facts: AdmissionFacts) -> None:
        assert isinstance(self.decide(facts), Refusal)
