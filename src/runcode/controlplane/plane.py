"""The control plane as one object: a store, and the services over it.

Owns: how they are wired. Made by the composition root: by `runcode-server up`
(which adds the HTTP app and a reconciler) and by each of the operator's verbs,
in their own process on the same database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import argon2

from runcode.controlplane.audit_checkpoints import Checkpointer, CheckpointPolicy
from runcode.controlplane.changes import ChangeFeed
from runcode.controlplane.clock import Clock, SystemClock
from runcode.controlplane.masking import Pattern
from runcode.controlplane.retention import Retention, RetentionPolicy
from runcode.controlplane.services.admission import Admission
from runcode.controlplane.services.audit_statements import load_or_make_signer
from runcode.controlplane.services.bootstrap import InitialAccess, initialise
from runcode.controlplane.services.browser_logins import BrowserLogins
from runcode.controlplane.services.certificates import Certificates, load_authorities
from runcode.controlplane.services.events import Events
from runcode.controlplane.services.sessions import SessionPolicy, Sessions, SshEndpointHolder
from runcode.controlplane.services.timeline import Timeline
from runcode.controlplane.services.tokens import Tokens
from runcode.controlplane.services.users import Users
from runcode.controlplane.services.workspaces import Workspaces
from runcode.controlplane.store.engine import Store


@dataclass(frozen=True)
class ControlPlaneSettings:
    """`keys_folder` holds the two CAs; `public_url` is what a person may be told as this server's address.

    `masking`: the operator's own patterns of secrets in commands.
    """

    database: Path
    keys_folder: Path
    public_url: str | None = None
    sessions: SessionPolicy = field(default_factory=SessionPolicy)
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    masking: tuple[Pattern, ...] = ()
    checkpoints: CheckpointPolicy | None = None

    @property
    def audit_key(self) -> Path:
        return self.keys_folder / "audit_ed25519"

    @property
    def checkpoint_policy(self) -> CheckpointPolicy:
        """By default beside the database, in a folder of its own."""
        return self.checkpoints or CheckpointPolicy(self.keys_folder.parent / "audit" / "checkpoints.jsonl")


class ControlPlane:
    """Made by `open`, ends with `close`. Each attribute is a service; none holds another's state."""

    def __init__(
        self, store: Store, settings: ControlPlaneSettings, *, clock: Clock, hasher: argon2.PasswordHasher
    ) -> None:
        client_ca, workspace_ca = load_authorities(settings.keys_folder)
        self.settings = settings
        self.clock = clock
        self.store = store
        self.ssh_endpoint = SshEndpointHolder()
        self.users = Users(store, clock, hasher)
        self.tokens = Tokens(store, clock)
        self.browser_logins = BrowserLogins(store, self.users, self.tokens)
        self.workspaces = Workspaces(store, clock)
        self.sessions = Sessions(store, clock, self.ssh_endpoint, settings.sessions)
        self.admission = Admission(store, clock)
        self.events = Events(store, clock, settings.masking)
        self.timeline = Timeline(store)
        self.certificates = Certificates(self.admission, clock, client_ca=client_ca, workspace_ca=workspace_ca)
        self.changes = ChangeFeed(store)
        signer = load_or_make_signer(settings.audit_key)
        # Started by the server only: a verb of the operator's prunes nothing, and signs nothing.
        self.retention = Retention(store, clock, self.events, settings.retention, signer)
        self.checkpoints = Checkpointer(store, clock, signer, settings.checkpoint_policy)

    @classmethod
    async def open(
        cls,
        settings: ControlPlaneSettings,
        *,
        clock: Clock | None = None,
        hasher: argon2.PasswordHasher | None = None,
        verify: bool = False,
        upgrade: bool = True,
    ) -> ControlPlane:
        """Open (make, migrate) the database and the keys. `verify` reads all of the database for damage first.

        Without `upgrade` an older schema is refused rather than migrated.
        """
        store = await Store.open(settings.database, verify=verify, upgrade=upgrade)
        try:
            return cls(store, settings, clock=clock or SystemClock(), hasher=hasher or argon2.PasswordHasher())
        except BaseException:
            await store.close()
            raise

    async def initialise(self, admin_email: str) -> InitialAccess | None:
        """At the first start: an admin and a token. None when there are users already."""
        return await initialise(self.store, self.users, self.tokens, admin_email=admin_email)

    async def close(self) -> None:
        await self.retention.close()
        await self.checkpoints.close()
        await self.tokens.close()
        await self.store.close()
