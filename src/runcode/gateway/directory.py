"""The gateway's port to the control plane: facts for admission, certificates, changes.

Owns: the questions that a gateway may ask. Implemented in process by the server
(and over the control plane's internal API); tests use a fake that passes
the same contract suite. Nothing here decides: `admission` does.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from runcode.core.channel_policy import EVERYTHING, ChannelPolicy


@dataclass(frozen=True)
class SessionFacts:
    """A registered client key. `expires_at` is aware UTC and bounds authentication, not the connection.

    `withdrawn` is true once the session, its token or its user was revoked, or the
    user may no longer use the workspace.
    """

    session_id: int
    workspace_id: int
    user_id: int
    client: str
    expires_at: datetime.datetime
    withdrawn: bool


@dataclass(frozen=True)
class WorkspaceFacts:
    """A workspace by its title. Where its sshd answers: a unix socket path, or a host and port.

    `host_key` is the pinned public key (`algorithm base64`) of its sshd.
    `principal` is what the workspace leg's certificate must carry; the box lands
    as `login`.
    """

    workspace_id: int
    title: str
    running: bool
    principal: str
    host_key: str
    login: str = "ubuntu"
    socket_path: str | None = None
    address: tuple[str, int] | None = None


@dataclass(frozen=True)
class AdmissionFacts:
    """Everything known about (title, key). Both parts are looked up always, found or not.

    `client_authorities` are the client CAs (`algorithm base64`) whose certificates
    count just now; none: no certificate does. `policy` is what the workspace and the
    session's token both allow.
    """

    session: SessionFacts | None
    workspace: WorkspaceFacts | None
    client_authorities: frozenset[str] = frozenset()
    policy: ChannelPolicy = EVERYTHING


@dataclass(frozen=True)
class ChangeBatch:
    """What may have taken access away since the cursor before; empty batches are heartbeats.

    `everything` asks for a look at every connection (the consumer may have missed changes).
    """

    cursor: int
    workspace_ids: frozenset[int] = frozenset()
    session_ids: frozenset[int] = frozenset()
    user_ids: frozenset[int] = frozenset()
    everything: bool = False


class Directory(Protocol):
    async def load_admission_facts(self, title: str, key_fingerprint: str) -> AdmissionFacts:
        """Facts for a title and a client key (`SHA256:…`). Same work whether either exists or not."""
        ...

    async def sign_workspace_certificate(self, *, session_id: int, workspace_id: int, public_key: str) -> str:
        """An OpenSSH user certificate of the workspace CA for this one connection.

        `public_key` is the ephemeral key that the gateway made for it. Valid for
        minutes, its only principal the workspace's. Raises RunCodeError when the
        session may not (any more).
        """
        ...

    def watch_changes(self) -> AsyncIterator[ChangeBatch]:
        """Changes from now on, never ending, with a heartbeat at least every 500 ms."""
        ...
