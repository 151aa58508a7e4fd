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
from runcode.controlplane.metrics import Metrics
from runcode.controlplane.readiness import Readiness
from runcode.controlplane.retention import Retention, RetentionPolicy
from runcode.controlplane.services.admission import Admission
from runcode.controlplane.services.audit_statements import load_or_make_signer
from runcode.controlplane.services.bootstrap import InitialAccess, initialise
from runcode.controlplane.services.browser_logins import BrowserLogins
from runcode.controlplane.services.census import Census
from runcode.controlplane.services.certificates import Certificates, load_authorities
from runcode.controlplane.services.client_authorities import ClientAuthorities
from runcode.controlplane.services.client_certificates import ClientCertificates
from runcode.controlplane.services.device_logins import DeviceLogins
from runcode.controlplane.services.events import Events
from runcode.controlplane.services.gateways import Gateways
from runcode.controlplane.services.identities import Identities
from runcode.controlplane.services.idle import IdleStops
from runcode.controlplane.services.installation import Installation
from runcode.controlplane.services.live_sessions import LiveSessions
from runcode.controlplane.services.offers import RuntimeOffers
from runcode.controlplane.services.oidc import OidcSignIns
from runcode.controlplane.services.oidc_records import OidcPolicy, OidcSettings
from runcode.controlplane.services.people import People
from runcode.controlplane.services.proofs import Proofs
from runcode.controlplane.services.quotas import Quotas
from runcode.controlplane.services.refusals import Refusals
from runcode.controlplane.services.sessions import SessionPolicy, Sessions, SshEndpointHolder
from runcode.controlplane.services.shares import Shares
from runcode.controlplane.services.sign_in_links import SignInLinks
from runcode.controlplane.services.sign_ins import SignIns
from runcode.controlplane.services.teams import Teams
from runcode.controlplane.services.timeline import Timeline
from runcode.controlplane.services.tokens import Tokens
from runcode.controlplane.services.users import Users
from runcode.controlplane.services.web_sessions import PLAIN_HTTP, WebSessionPolicy, WebSessions
from runcode.controlplane.services.workspaces import WorkspacePolicy, Workspaces
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.location import Location


@dataclass(frozen=True)
class ControlPlaneSettings:
    """`keys_folder` holds the two CAs; `public_url` is what a person may be told as this server's address.

    `masking`: the operator's own patterns of secrets in commands.
    """

    database: Location
    keys_folder: Path
    public_url: str | None = None
    sessions: SessionPolicy = field(default_factory=SessionPolicy)
    workspaces: WorkspacePolicy = field(default_factory=WorkspacePolicy)
    # Who may make a team: everybody, or admins of the server only.
    teams_by_anyone: bool = True
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)
    masking: tuple[Pattern, ...] = ()
    checkpoints: CheckpointPolicy | None = None
    oidc: OidcSettings | None = None
    oidc_policy: OidcPolicy = field(default_factory=OidcPolicy)

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
        self.metrics = Metrics(Census(store).count_workspaces)
        store.on_write = self.metrics.observe_write
        self.readiness = Readiness(store)
        self.ssh_endpoint = SshEndpointHolder()
        self.proofs = Proofs(client_ca.derive_key("browser proofs"))
        self.users = Users(store, clock, hasher)
        secure = (settings.public_url or "").startswith("https://")
        policy = WebSessionPolicy() if secure else PLAIN_HTTP
        self.tokens = Tokens(store, clock, self.proofs, fresh_for=None if secure else policy.fresh)
        self.web_sessions = WebSessions(store, clock, policy)
        self.refusals = Refusals(store, clock)
        self.sign_ins = SignIns(store, clock, self.users, self.web_sessions, self.proofs, self.refusals)
        self.sign_in_links = SignInLinks(store, clock, self.web_sessions)
        self.browser_logins = BrowserLogins(store, clock, self.tokens, self.proofs)
        self.device_logins = DeviceLogins(store, clock, self.tokens, self.proofs)
        self.identities = Identities(store, clock, self.users)
        self.oidc_sign_ins = None if settings.oidc is None else self._make_oidc(settings.oidc)
        self.offers = RuntimeOffers()
        self.shares = Shares(store, clock)
        self.workspaces = Workspaces(store, clock, self.shares, self.offers, settings.workspaces)
        self.teams = Teams(store, clock, made_by_anyone=settings.teams_by_anyone)
        self.quotas = Quotas(store, clock, settings.workspaces.quotas)
        self.people = People(store, self.users, self.quotas)
        self.sessions = Sessions(store, clock, self.ssh_endpoint, settings.sessions)
        self.live_sessions = LiveSessions(store, clock, self.sessions)
        self.admission = Admission(store, clock)
        self.events = Events(store, clock, settings.masking)
        self.gateways = Gateways(store, clock)
        self.timeline = Timeline(store)
        self.idle_stops = IdleStops(store, clock, default_s=settings.workspaces.idle_stop_after_s)
        self.certificates = Certificates(self.admission, clock, client_ca=client_ca, workspace_ca=workspace_ca)
        self.client_authorities = ClientAuthorities(store, clock, settings.keys_folder, first=client_ca)
        self.client_certificates = ClientCertificates(clock, self.client_authorities)
        self.installation = Installation(
            store, clock, client_ca=client_ca.public_line, workspace_ca=workspace_ca.public_line
        )
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

    @property
    def provider_name(self) -> str | None:
        """What people call the OpenID provider; None where there is none."""
        return None if self.settings.oidc is None else self.settings.oidc.name

    def _make_oidc(self, settings: OidcSettings) -> OidcSignIns:
        # Authlib and httpx take 0.2 s to import, and most processes have nobody to speak to.
        from runcode.controlplane.services.oidc_provider import OidcProvider

        provider = OidcProvider(settings, self.clock)
        return OidcSignIns(
            self.store,
            self.clock,
            self.web_sessions,
            self.identities,
            self.proofs,
            provider,
            self.settings.oidc_policy,
            self.refusals,
        )

    async def initialise(self, admin_email: str) -> InitialAccess | None:
        """At the first start: an admin and a token. None when there are users already."""
        return await initialise(self.store, self.users, self.tokens, admin_email=admin_email)

    async def close(self) -> None:
        await self.retention.close()
        await self.sessions.close()
        await self.tokens.close()
        await self.web_sessions.close()
        if self.oidc_sign_ins is not None:
            await self.oidc_sign_ins.provider.close()
        # After everybody else: the last checkpoint vouches for what they wrote on their way out.
        await self.checkpoints.close()
        await self.store.close()
