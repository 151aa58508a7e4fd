"""Who may pass: a pure decision over facts.

Owns: the rules. Never: a lookup, a clock, a socket, a log. Called by
`ssh_server` for the key whose signature is on the table, and by `registry`'s
users when the change feed says that something may have changed.

Threat: someone tries titles and keys to learn which exist, reuses a key on
another workspace, or keeps a withdrawn one.

Threat: a certificate that an authority we trust signed for something else:
another workspace, another leg, another session, another place, another time.

Guarantee: every Refusal looks alike from outside: its reason is for our log
only. A Route is given only for a session of this very workspace, neither
withdrawn nor, when it opens a connection, expired. A certificate only ever
takes away: whoever presents one is admitted if the session behind its key would
be, and everything that the certificate says agrees.
"""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass, field

from runcode.core.certificate_names import CertifiedSession, parse_key_id
from runcode.core.channel_policy import EVERYTHING, ChannelPolicy
from runcode.core.errors import UnsafeInput
from runcode.gateway.client_certificates import USER_CERTIFICATE, ClientCertificate, read_option_text
from runcode.gateway.directory import AdmissionFacts, SessionFacts, WorkspaceFacts
from runcode.gateway.packets import MalformedPacket
from runcode.gateway.relay import RelayLimits

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class AdmissionPolicy:
    """What the operator allows. Times are in seconds.

    `source_networks` empty means: from anywhere. `feed_silence_s` is how long the
    change feed may say nothing before nobody new is let in. `max_connections` and its
    parts count who has authenticated, on this one gateway.
    """

    source_networks: tuple[IPNetwork, ...] = ()
    feed_silence_s: float = 2.0
    max_connection_age_s: float = 12 * 3600.0
    login_timeout_s: float = 30.0
    workspace_timeout_s: float = 20.0
    max_unauthenticated: int = 256
    max_unauthenticated_per_source: int = 128
    max_connections: int = 16_384
    max_connections_per_source: int = 8_192
    max_connections_per_user: int = 4_096
    max_auth_requests: int = 20
    max_early_bytes: int = 256 * 1024
    rekey_bytes: int = 1 << 30
    relay: RelayLimits = field(default_factory=RelayLimits)


@dataclass(frozen=True)
class Offer:
    """What a peer presents: the title as its user name, the fingerprint of its key, where it comes from.

    With a `certificate` the key is the one inside it.
    """

    title: str
    key_fingerprint: str
    source: str
    certificate: ClientCertificate | None = None


@dataclass(frozen=True)
class Route:
    """Admitted, for what `policy` allows.

    `obstacle` is set when the identity is good but there is nowhere to go; a person reads it.
    """

    session: SessionFacts
    workspace: WorkspaceFacts
    obstacle: str | None = None
    policy: ChannelPolicy = EVERYTHING


@dataclass(frozen=True)
class Refusal:
    """Not admitted. `reason` is for our log, never for the peer."""

    reason: str


def admit(
    offer: Offer,
    facts: AdmissionFacts,
    now: datetime.datetime,
    policy: AdmissionPolicy,
    *,
    feed_age_s: float,
) -> Route | Refusal:
    """May this offer open a connection now?"""
    decision = _decide(offer, facts, policy)
    if isinstance(decision, Refusal):
        return decision
    if decision.session.expires_at <= now:
        return Refusal("the session has expired")
    if offer.certificate is not None and not (
        offer.certificate.valid_after <= now.timestamp() < offer.certificate.valid_before
    ):
        return Refusal("the certificate is not valid now")
    if feed_age_s > policy.feed_silence_s:
        # The identity is proved; but were it withdrawn in a moment, we would not hear of it.
        return Route(decision.session, decision.workspace, "the gateway cannot check access just now: try again soon")
    return decision


def may_continue(offer: Offer, facts: AdmissionFacts, policy: AdmissionPolicy, *, opened_as: Route) -> Route | Refusal:
    """May a live connection go on? Expiry is left out: the TTL bounds authentication only.

    The same title may by now belong to another workspace, or the key to another
    session: that is not what was admitted.
    """
    decision = _decide(offer, facts, policy)
    if isinstance(decision, Refusal):
        return decision
    if decision.obstacle is not None:
        return Refusal(decision.obstacle)
    if decision.session.session_id != opened_as.session.session_id:
        return Refusal("the key belongs to another session now")
    if decision.workspace.workspace_id != opened_as.workspace.workspace_id:
        return Refusal("the title belongs to another workspace now")
    if not decision.policy.covers(opened_as.policy):
        # What is open under the old one cannot all be told apart; whoever connects anew has the new one.
        return Refusal("less is allowed now than when it was opened")
    return decision


def _decide(offer: Offer, facts: AdmissionFacts, policy: AdmissionPolicy) -> Route | Refusal:
    session, workspace = facts.session, facts.workspace
    if not _is_allowed_source(offer.source, policy.source_networks):
        return Refusal("the source address is not allowed")
    if workspace is None or workspace.title != offer.title:
        return Refusal("no such workspace")
    if session is None:
        return Refusal("no such key")
    if session.workspace_id != workspace.workspace_id:
        return Refusal("the key is registered for another workspace")
    if session.withdrawn:
        return Refusal("the session was withdrawn")
    if offer.certificate is not None:
        objection = _find_objection(offer.certificate, offer, facts.client_authorities, session, workspace)
        if objection is not None:
            return Refusal(objection)
    if not workspace.running or (workspace.socket_path is None and workspace.address is None):
        title = workspace.title
        return Route(session, workspace, f"workspace {title} is not running: type `runcode connect {title} --start`")
    return Route(session, workspace, policy=facts.policy)


def _find_objection(
    certificate: ClientCertificate,
    offer: Offer,
    authorities: frozenset[str],
    session: SessionFacts,
    workspace: WorkspaceFacts,
) -> str | None:
    """Why this certificate does not go with this session; None when it does. Time is `admit`'s."""
    if certificate.authority not in authorities:
        return "the certificate is of an unknown authority"
    if certificate.kind != USER_CERTIFICATE:
        return "the certificate is no user's"
    if certificate.key_fingerprint != offer.key_fingerprint:
        return "the certificate is for another key"
    # Exactly this one: none would mean everybody's, and a text with a comma is one name, not two.
    if certificate.principals != (workspace.principal,):
        return "the certificate is for another principal"
    try:
        certified = parse_key_id(certificate.key_id)
    except UnsafeInput:
        return "the certificate's key id is not one of ours"
    if certified != CertifiedSession(session.session_id, session.user_id, session.workspace_id):
        return "the certificate is for another session"
    for name, value in certificate.critical_options:
        if name != "source-address":
            return "the certificate has a critical option that is not known"
        if not _is_certified_source(offer.source, value):
            return "the certificate is for another source address"
    return None


def _is_certified_source(source: str, value: bytes) -> bool:
    try:
        networks = tuple(ipaddress.ip_network(text) for text in read_option_text(value).split(","))
    except (ValueError, MalformedPacket):
        return False
    return _is_allowed_source(source, networks)


def _is_allowed_source(source: str, networks: tuple[IPNetwork, ...]) -> bool:
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(source)
    except ValueError:
        return False
    # A dual-stack listener shows an IPv4 peer as ::ffff:a.b.c.d.
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks)
