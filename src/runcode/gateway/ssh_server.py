"""asyncssh's callbacks for one client connection, as thin as they can be.

Owns: handing what asyncssh knows to `admission`, and an admitted client to
`connection`. Never: rules. Called by asyncssh.

Threat: the key that is offered is not the key that signs; the user name changes
between two requests; a request is cancelled by the next while facts are loaded.

Guarantee: what counts is the decision of the one request whose signature
verified, for the user name in that very request, and only if no later request
has begun. Unknown, expired, withdrawn and foreign keys, and unknown workspaces,
take the same path and the same look-up.

asyncssh traps: `begin_auth` that returns False means *authenticated*; a
certificate goes to `validate_ca_key`, which never sees what it says, and is never
reached here because `ClientLeg.validate_public_key` asks `judge_key` instead.
"""

from __future__ import annotations

import binascii
import hashlib
import logging

import asyncssh

from runcode.core.errors import UnsafeInput
from runcode.core.hostkeys import parse_public_key
from runcode.core.names import is_title
from runcode.core.terminal import printable
from runcode.gateway.admission import Offer, Refusal, Route, admit
from runcode.gateway.asyncssh_legs import ClientLeg
from runcode.gateway.client_certificates import ClientCertificate, is_certificate, read_certificate
from runcode.gateway.connection import TRY_AGAIN, GatewayConnection, GatewayContext
from runcode.gateway.directory import AdmissionFacts
from runcode.gateway.packets import MalformedPacket
from runcode.gateway.refusals import TOO_MANY_STRANGERS, RefusedConnection

_log = logging.getLogger(__name__)


class ClientCallbacks(asyncssh.SSHServer):
    """asyncssh's SSHServer and the leg's KeyJudge, for one connection."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._leg: ClientLeg | None = None
        self._source = ""
        self._waits_in_lobby = False
        self._request = 0
        self._admitted: tuple[Offer, Route] | None = None
        self._connection: GatewayConnection | None = None
        # The most telling refusal so far: of a key that has a session here, else the last.
        self._refused: RefusedConnection | None = None

    # -- the socket ---------------------------------------------------------

    def admit_socket(self, source: str) -> bool:
        self._source = source
        self._waits_in_lobby = self._context.lobby.enter(source)
        if not self._waits_in_lobby:
            self._context.refusals.note(RefusedConnection(source=_render_source(source), reason=TOO_MANY_STRANGERS))
        return self._waits_in_lobby

    def socket_closed(self) -> None:
        self._leave_lobby()

    def _leave_lobby(self) -> None:
        if self._waits_in_lobby:
            self._waits_in_lobby = False
            self._context.lobby.leave(self._source)

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, ClientLeg)
        self._leg = conn

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connection.ended()
        elif self._refused is not None:
            # One of its keys may have been good: what counts is the connection that came to nothing.
            self._context.refusals.note(self._refused)
        elif exc is not None:
            _log.info("a stranger from %s left: %s", printable(self._source, limit=64), type(exc).__name__)

    # -- authentication -----------------------------------------------------

    def begin_auth(self, username: str) -> bool:
        return True  # False would mean: authenticated already

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return False

    def kbdint_auth_supported(self) -> bool:
        return False

    def host_based_auth_supported(self) -> bool:
        return False

    async def judge_key(self, username: str, key_blob: bytes, proved: bool | None) -> bool:
        """Is this key good for this user name? With `proved` true, it is what opens the connection."""
        self._request += 1
        request, self._admitted = self._request, None
        certificate, fingerprint = _read_key(key_blob)
        offer = Offer(
            # A name that cannot be a title is looked up too, as one that no workspace has.
            title=username if is_title(username) else "",
            key_fingerprint=fingerprint,
            source=self._source,
            certificate=certificate,
        )
        try:
            facts = await self._context.directory.load_admission_facts(offer.title, offer.key_fingerprint)
        except Exception as error:
            _log.error("facts cannot be loaded: %s", type(error).__name__)
            raise asyncssh.DisconnectError(asyncssh.DISC_SERVICE_NOT_AVAILABLE, TRY_AGAIN) from error
        decision = admit(
            offer,
            facts,
            self._context.clock(),
            self._context.policy,
            feed_age_s=self._context.watcher.feed_age_s,
        )
        if isinstance(decision, Refusal):
            if self._refused is None or self._refused.session_id is None:
                self._refused = _describe_refusal(self._source, facts, decision)
            _log.info(
                "refused %s with %s from %s: %s",
                printable(username, limit=64),
                offer.key_fingerprint,
                printable(self._source, limit=64),
                decision.reason,
            )
            return False
        if proved is None:
            return True
        if not proved or request != self._request:
            return False
        self._admitted = (offer, decision)
        return True

    def auth_completed(self) -> None:
        leg, admitted = self._leg, self._admitted
        assert leg is not None
        self._leave_lobby()
        if admitted is None or leg.get_extra_info("username") != admitted[0].title:
            # asyncssh let someone in whom we did not admit: whatever the reason, nobody passes.
            _log.error("an authentication without an admission was cut")
            leg.cut("authentication failed")
            return
        self._connection = GatewayConnection(self._context, leg, *admitted)
        self._connection.begin()


def _describe_refusal(source: str, facts: AdmissionFacts, refusal: Refusal) -> RefusedConnection:
    """For those who may see the workspace: whose session it is only if it is one of this workspace."""
    workspace, session = facts.workspace, facts.session
    if workspace is None:
        return RefusedConnection(source=_render_source(source), reason=refusal.reason)
    ours = session is not None and session.workspace_id == workspace.workspace_id
    return RefusedConnection(
        source=_render_source(source),
        reason=refusal.reason,
        workspace_id=workspace.workspace_id,
        session_id=session.session_id if session is not None and ours else None,
        user_id=session.user_id if session is not None and ours else None,
    )


def _render_source(source: str) -> str:
    return printable(source, limit=64)


def _read_key(key_blob: bytes) -> tuple[ClientCertificate | None, str]:
    """A certificate and its key's fingerprint, or None and a plain key's. One that does not hold is no key at all."""
    if not is_certificate(key_blob):
        return None, _fingerprint(key_blob)
    try:
        certificate = read_certificate(key_blob)
    except (MalformedPacket, UnsafeInput):
        return None, _unacceptable(key_blob)
    return certificate, certificate.key_fingerprint


def _fingerprint(key_blob: bytes) -> str:
    """`SHA256:…` of a blob that parses as a key we accept, else of nothing that anybody registered."""
    length = int.from_bytes(key_blob[:4], "big")
    algorithm = key_blob[4 : 4 + length].decode("ascii", "replace")
    encoded = binascii.b2a_base64(key_blob, newline=False).decode()
    try:
        return parse_public_key(f"{algorithm} {encoded}").fingerprint
    except UnsafeInput:
        return _unacceptable(key_blob)


def _unacceptable(key_blob: bytes) -> str:
    """Same work as for a key, and a text that is no fingerprint, so that no table can hold it."""
    return "unacceptable:" + hashlib.sha256(key_blob).hexdigest()
