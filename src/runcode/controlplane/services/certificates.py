"""The two certificate authorities, and the one certificate that a connection to a box needs.

Owns: the CA keys (0600 files) and the making of boxes' host key pairs. Called by
the gateway's adapter (`sign_workspace_certificate`), the reconciler
(`workspace_ca_line`) and `services.workspaces`.

Threat: a certificate that opens more than the one box it was made for, a
gateway that asks for one after access was withdrawn, and a CA that both sides
trust, so that a client could present itself to a box directly.
Guarantee: two CAs. The client CA is never named in a box's spec; the workspace
CA signs only here, only for the principal of the session's own workspace, for
minutes, and only while the session may use it. Private keys never leave this
process.

Source: OpenSSH's PROTOCOL.certkeys; sshd_config(5) AuthorizedPrincipalsFile.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import ssh

from runcode.controlplane.clock import Clock
from runcode.controlplane.services.admission import Admission
from runcode.core import hostkeys
from runcode.core.errors import RunCodeError

_VALID_BEFORE_NOW = datetime.timedelta(seconds=60)
_VALID_AFTER_NOW = datetime.timedelta(minutes=5)
_EXTENSIONS = (b"permit-X11-forwarding", b"permit-agent-forwarding", b"permit-port-forwarding", b"permit-pty")


@dataclass(frozen=True)
class HostKey:
    """`public` is `algorithm base64`, `private` OpenSSH's PEM."""

    public: str
    private: str = field(repr=False)


def make_host_key() -> HostKey:
    key = Ed25519PrivateKey.generate()
    return HostKey(public=_public_line(key), private=_private_pem(key).decode())


class CertificateAuthority:
    """One signing key. Made by `load_or_make`."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_line = _public_line(key)

    @classmethod
    def load_or_make(cls, path: Path) -> CertificateAuthority:
        """The CA kept at `path`; made there, complete or not at all, when there is none.

        Raises `unsafe_path` when others could read or have planted the file.
        """
        try:
            if not path.exists():
                _make_key_file(path)
            return cls(_load_key_file(path))
        except OSError as error:
            raise RunCodeError(
                "io_error",
                f"the key {path} cannot be read or made: {error.strerror}",
                resolution="check the folder's permissions and the disk's free space",
            ) from error

    def derive_key(self, purpose: str) -> bytes:
        """32 bytes for one purpose, the same in every process that holds this key, which they tell nothing of."""
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=f"runcode {purpose}".encode()).derive(
            self._key.private_bytes_raw()
        )

    def sign_user_certificate(
        self, public_key: str, *, principal: str, key_id: str, serial: int, now: datetime.datetime
    ) -> str:
        """`algorithm base64` of a certificate for exactly one principal. Raises UnsafeInput for a bad key."""
        line = hostkeys.parse_public_key(public_key).line
        loaded = ssh.load_ssh_public_key(line.encode())
        builder = (
            ssh.SSHCertificateBuilder()
            .public_key(loaded)  # type: ignore[arg-type]  # parse_public_key leaves only the types it takes
            .serial(serial)
            .type(ssh.SSHCertificateType.USER)
            .key_id(key_id.encode())
            # A certificate without principals would open every box.
            .valid_principals([principal.encode()])
            .valid_after(int((now - _VALID_BEFORE_NOW).timestamp()))
            .valid_before(int((now + _VALID_AFTER_NOW).timestamp()))
        )
        for extension in _EXTENSIONS:
            builder = builder.add_extension(extension, b"")
        return builder.sign(self._key).public_bytes().decode()


class Certificates:
    """Signs for the workspace leg, after asking admission's facts once more."""

    def __init__(
        self, admission: Admission, clock: Clock, *, client_ca: CertificateAuthority, workspace_ca: CertificateAuthority
    ) -> None:
        self._admission = admission
        self._clock = clock
        # Made and kept from the first start, so that certificate mode (issue 7) needs no new key.
        self._client_ca = client_ca
        self._workspace_ca = workspace_ca

    @property
    def workspace_ca_line(self) -> str:
        return self._workspace_ca.public_line

    @property
    def client_ca_line(self) -> str:
        return self._client_ca.public_line

    async def sign_workspace_certificate(self, *, session_id: int, workspace_id: int, public_key: str) -> str:
        """A user certificate for one connection. Raises `forbidden` unless the session may, right now."""
        principal = await self._admission.find_principal(session_id, workspace_id)
        if principal is None:
            raise RunCodeError("forbidden", "the session may not use this workspace any more")
        return self._workspace_ca.sign_user_certificate(
            public_key,
            principal=principal,
            key_id=f"runcode session {session_id} workspace {workspace_id}",
            serial=secrets.randbits(63),
            now=self._clock.now(),
        )


def load_authorities(keys_folder: Path) -> tuple[CertificateAuthority, CertificateAuthority]:
    """(client CA, workspace CA), made at the first start as 0600 files in a 0700 folder."""
    try:
        keys_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RunCodeError(
            "io_error", f"the folder {keys_folder} cannot be made: {error.strerror}", resolution="check its permissions"
        ) from error
    return (
        CertificateAuthority.load_or_make(keys_folder / "client_ca"),
        CertificateAuthority.load_or_make(keys_folder / "workspace_ca"),
    )


def _make_key_file(path: Path) -> None:
    draft = path.with_name(f".{path.name}.new-{secrets.token_hex(6)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_private_pem(Ed25519PrivateKey.generate()))
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces the key that another process made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def _load_key_file(path: Path) -> Ed25519PrivateKey:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        if path.is_symlink():
            raise _unsafe(path, "a symlink") from error
        raise
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise _unsafe(path, "not a file of this user")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise _unsafe(path, "open to other users")
        raw = file.read(16 * 1024)
    try:
        key = serialization.load_ssh_private_key(raw, password=None)
    except ValueError as error:
        raise RunCodeError(
            "io_error", f"the key {path} is damaged", resolution="put its backup in place; boxes trust that key only"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RunCodeError("io_error", f"the key {path} is not an Ed25519 key", resolution="put its backup in place")
    return key


def _unsafe(path: Path, what: str) -> RunCodeError:
    return RunCodeError(
        "unsafe_path",
        f"the key {path} is {what}",
        resolution="find out who touched it, then make it a 0600 file of the server's user",
    )


def _public_line(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
