"""The leg from the gateway to a workspace: one certificate, one pinned host key, one connection.

Owns: dialling. Never: a key that outlives the connection, an agent, a key file or
an ssh configuration of the operator's machine. Called by `connection`.

Threat: whoever answers at the endpoint may not be the workspace; the certificate
may not be the one that was asked for.

Guarantee: the leg is handed over only after the peer proved to hold the pinned
host key and took a certificate for our fresh key with the one expected principal.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable

import asyncssh

from runcode.core.errors import RunCodeError, UnsafeInput
from runcode.core.hostkeys import parse_public_key
from runcode.gateway.admission import Route
from runcode.gateway.algorithms import CIPHERS, KEY_EXCHANGES, MACS, VERSION
from runcode.gateway.asyncssh_framing import Framing
from runcode.gateway.asyncssh_legs import SIGNATURE_ALGORITHMS, BoxLeg, options_for_box
from runcode.gateway.asyncssh_relay import LegOwner
from runcode.gateway.directory import Directory

_log = logging.getLogger(__name__)

ConnectUnix = Callable[[str], Awaitable[socket.socket]]


class WorkspaceUnreachable(Exception):
    """There is no leg. `public_reason` may be shown to the client; the text itself is for our log."""

    def __init__(self, public_reason: str, detail: str) -> None:
        super().__init__(f"{public_reason}: {detail}")
        self.public_reason = public_reason


async def connect_unix_plainly(path: str) -> socket.socket:
    """Connect to a unix socket whose path fits into sockaddr_un (107 bytes)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


class WorkspaceDialer:
    def __init__(
        self,
        directory: Directory,
        *,
        connect_unix: ConnectUnix | None,
        timeout_s: float,
        rekey_bytes: int,
        framing: Framing,
    ) -> None:
        self._framing = framing
        self._directory = directory
        self._connect_unix = connect_unix or connect_unix_plainly
        self._timeout_s = timeout_s
        self._base_options = asyncssh.SSHClientConnectionOptions(
            host="workspace",
            config=None,
            username="nobody",
            client_version=VERSION,
            client_keys=None,
            client_host_keys=None,
            agent_path=None,
            agent_forwarding=False,
            known_hosts=([], [], []),
            x509_trusted_certs=None,
            x509_trusted_cert_paths=[],
            preferred_auth="publickey",
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_host=None,
            pkcs11_provider=None,
            kex_algs=KEY_EXCHANGES,
            encryption_algs=CIPHERS,
            mac_algs=MACS,
            compression_algs=["none"],
            signature_algs=SIGNATURE_ALGORITHMS,
            keepalive_interval=0,
            login_timeout=timeout_s,
            rekey_bytes=rekey_bytes,
        )

    async def dial(self, route: Route, owner: LegOwner) -> BoxLeg:
        """An authenticated leg that reports to `owner`. Raises WorkspaceUnreachable."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._dial(route, owner)
        except TimeoutError as error:
            raise WorkspaceUnreachable("the workspace did not answer in time", "timeout") from error
        except RunCodeError as error:
            raise WorkspaceUnreachable("access to the workspace was not granted", error.message) from error
        except asyncssh.HostKeyNotVerifiable as error:
            raise WorkspaceUnreachable("the workspace's identity could not be verified", "host key") from error
        except (OSError, asyncssh.Error, asyncssh.KeyImportError) as error:
            raise WorkspaceUnreachable("the workspace could not be reached", type(error).__name__) from error

    async def _dial(self, route: Route, owner: LegOwner) -> BoxLeg:
        loop = asyncio.get_running_loop()
        workspace = route.workspace
        key = asyncssh.generate_private_key("ssh-ed25519")
        public_line = key.export_public_key("openssh").decode().strip()
        text = await self._directory.sign_workspace_certificate(
            session_id=route.session.session_id, workspace_id=workspace.workspace_id, public_key=public_line
        )
        certificate = _check_certificate(text, key, workspace.principal)
        options = options_for_box(
            self._base_options,
            username=workspace.login,
            key_pairs=asyncssh.load_keypairs([(key, certificate)]),
            host_key=_read_host_key(workspace.host_key),
            waiter=loop.create_future(),
        )

        def make_leg() -> BoxLeg:
            return BoxLeg(loop, options, owner, framing=self._framing, shared_options=self._base_options)

        if workspace.socket_path is not None:
            sock = await self._connect_unix(workspace.socket_path)
            try:
                _, leg = await loop.create_connection(make_leg, sock=sock)
            except BaseException:
                sock.close()
                raise
        else:
            assert workspace.address is not None  # a route without an endpoint is never dialled
            _, leg = await loop.create_connection(make_leg, *workspace.address)
        try:
            await leg.wait_authenticated()
        except BaseException:
            leg.cut("not authenticated")
            raise
        return leg


@functools.lru_cache(maxsize=1024)
def _read_host_key(line: str) -> asyncssh.SSHKey:
    """One object for all connections to a workspace."""
    return asyncssh.import_public_key(parse_public_key(line).line)


def _check_certificate(text: str, key: asyncssh.SSHKey, principal: str) -> asyncssh.SSHCertificate:
    """The control plane's answer, if it is what was asked for. Raises RunCodeError."""
    try:
        certificate = asyncssh.import_certificate(text)
    except asyncssh.KeyImportError as error:
        raise UnsafeInput("the workspace certificate does not parse", code="internal") from error
    if getattr(certificate, "principals", None) != [principal]:
        # One without principals would be a key to every account of the box.
        raise UnsafeInput("the workspace certificate names other principals", code="internal")
    if certificate.key.public_data != key.public_data:
        raise UnsafeInput("the workspace certificate is for another key", code="internal")
    return certificate
