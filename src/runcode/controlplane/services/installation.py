"""Whose keys this database goes with.

Owns: the one row that says so. Written at a first start, and looked at by every
later one. Called by the composition root.

Threat: a second server, or a restored folder, with other CAs on the same database:
its boxes and clients would refuse everybody, without a word on why.
Guarantee: the first server's public keys stand in the database, and a server whose
own are others does not serve.
"""

from __future__ import annotations

from runcode.controlplane.clock import Clock
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import InstallationRow
from runcode.core.errors import RunCodeError

_ID = 1


class Installation:
    def __init__(self, store: Store, clock: Clock, *, client_ca: str, workspace_ca: str) -> None:
        self._store = store
        self._clock = clock
        self._client_ca = client_ca
        self._workspace_ca = workspace_ca

    async def confirm(self, gateway_host_key: str) -> None:
        """Claim the database for this server's public keys, or see that they are its own. Raises `io_error`."""
        ours = (self._client_ca, self._workspace_ca, gateway_host_key)
        async with self._store.read() as session:
            known = await session.get(InstallationRow, _ID)
        if known is None:
            async with self._store.write() as session:
                known = await session.get(InstallationRow, _ID)
                if known is None:
                    known = InstallationRow(
                        id=_ID,
                        client_ca=self._client_ca,
                        workspace_ca=self._workspace_ca,
                        gateway_host_key=gateway_host_key,
                        created_at=self._clock.now(),
                    )
                    session.add(known)
        if (known.client_ca, known.workspace_ca, known.gateway_host_key) != ours:
            raise RunCodeError(
                "io_error",
                f"the database {self._store.shown} belongs to an installation with other keys",
                resolution="give a new data folder its keys with `up --keys DIR`, or name another database",
            )
