"""Certificate mode: a short-lived certificate for the client's key, beside its registered session.

Owns: what such a certificate says, and whose signature it gets (a key on disk, or
one that an ssh agent holds). Called by the `ssh-session` route for a client that
announces `"certificates": true`, and by the gateway's adapter (`authorities`).

Threat: a certificate that outlives its session, or opens more than that; an
agent that hangs, lies or holds several keys.
Guarantee: one key, one principal, one session, to that session's end at most.
The key is registered as well, so a client that gets no certificate because the
agent is away still gets in, and revoking goes by the session in either case. A
signature that does not verify never leaves this module.

Source: OpenSSH's PROTOCOL.certkeys, PROTOCOL.agent; draft-ietf-sshm-ssh-agent.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from runcode.controlplane.clock import Clock
from runcode.controlplane.records import SessionGrant
from runcode.controlplane.services import inputs
from runcode.controlplane.services.certificates import VALID_BEFORE_NOW, CertificateAuthority
from runcode.controlplane.services.client_authorities import ClientAuthorities
from runcode.controlplane.services.principals import principal_for
from runcode.core import hostkeys
from runcode.core.certificate_names import CertifiedSession, render_key_id
from runcode.core.errors import RunCodeError, UnsafeInput

_log = logging.getLogger(__name__)

_SUFFIX = "-cert-v01@openssh.com"
_USER_CERTIFICATE = 1
_EXTENSIONS = ("permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty")
_ED25519 = b"ssh-ed25519"
# What a token can do that ssh-agent speaks to: PKCS#11 in OpenSSH before 10.1 knows ECDSA and RSA, no Ed25519.
_CURVES: dict[bytes, tuple[ec.EllipticCurve, hashes.HashAlgorithm]] = {
    b"ecdsa-sha2-nistp256": (ec.SECP256R1(), hashes.SHA256()),
    b"ecdsa-sha2-nistp384": (ec.SECP384R1(), hashes.SHA384()),
}
_AGENT_TIMEOUT_S = 5.0
_AGENT_ANSWER_MAX = 256 * 1024
_AGENT_KEYS_MAX = 256
_REQUEST_IDENTITIES, _IDENTITIES_ANSWER, _SIGN_REQUEST, _SIGN_RESPONSE = 11, 12, 13, 14


class ClientAuthority(Protocol):
    """Signs with one key, `public_line` (`algorithm base64`): Ed25519, or ECDSA on P-256 or P-384."""

    @property
    def public_line(self) -> str: ...

    async def sign(self, message: bytes) -> bytes:
        """The signature as it stands in a blob, after its algorithm's name (RFC 8709 §6, RFC 5656 §3.1.2).

        Raises `unavailable` when the key cannot be used just now.
        """
        ...


class DiskAuthority:
    """A key in a file of the server's."""

    def __init__(self, authority: CertificateAuthority) -> None:
        self._authority = authority
        self.public_line = authority.public_line

    async def sign(self, message: bytes) -> bytes:
        return self._authority.sign(message)


class AgentAuthority:
    """A key that an ssh agent holds (and may itself have from a PKCS#11 token). Made by `find`."""

    def __init__(self, socket_path: Path, public_line: str) -> None:
        self._socket_path = socket_path
        self.public_line = public_line

    @classmethod
    async def find(cls, socket_path: Path, fingerprint: str | None = None) -> AgentAuthority:
        """The key that is named, or its one Ed25519 key, or its one ECDSA key. Raises `unavailable`, `bad_request`."""
        held = await _list_agent_keys(socket_path)
        if fingerprint is not None:
            lines = [line for line in held if hostkeys.parse_public_key(line).fingerprint == fingerprint]
        else:
            lines = [line for line in held if line.startswith("ssh-ed25519 ")] or held
        if len(lines) != 1:
            raise RunCodeError(
                "bad_request",
                f"the agent at {socket_path} holds {len(lines)} keys that could be the client CA",
                resolution="name the one: --client-ca agent:SOCKET#SHA256:… (as `ssh-add -l` prints it)",
            )
        return cls(socket_path, lines[0])

    async def sign(self, message: bytes) -> bytes:
        blob = hostkeys.parse_public_key(self.public_line).blob
        request = bytes((_SIGN_REQUEST,)) + _string(blob) + _string(message) + _uint32(0)
        answer = _Reader(await _ask_agent(self._socket_path, request, _SIGN_RESPONSE))
        signature = _Reader(answer.string())
        if signature.string() != _algorithm_of(blob):
            raise _unavailable(self._socket_path, "it signed by another algorithm")
        return signature.string()


class ClientCertificates:
    """Off until `use` names an authority."""

    def __init__(self, clock: Clock, register: ClientAuthorities | None = None) -> None:
        self._clock = clock
        self._register = register
        self._authority: ClientAuthority | None = None
        self._follows_rotation = False
        self.authorities: frozenset[str] = frozenset()

    def use(self, authority: ClientAuthority, *, trusted: tuple[str, ...] = (), follow_rotation: bool = False) -> None:
        """Sign with `authority` from now on. `trusted`: others whose certificates still count (`algorithm base64`).

        `follow_rotation`: rather with the newest one of the register that this server has the key of, and let the
        register's others on disk count as well.
        """
        self._authority = authority
        self._follows_rotation = follow_rotation
        self.authorities = frozenset((authority.public_line, *trusted))

    async def load_authorities(self) -> frozenset[str]:
        """Whose certificates count at this moment; none in a server that signs none."""
        if self._authority is None or self._register is None:
            return self.authorities
        known = await self._register.load()
        counting = {*self.authorities, *known.on_disk} if self._follows_rotation else self.authorities
        return frozenset(counting) - known.retired

    async def _find_signer(self) -> ClientAuthority | None:
        """Never a retired one."""
        authority, register = self._authority, self._register
        if authority is None or register is None:
            return authority
        known = await register.load()
        if not self._follows_rotation:
            return None if authority.public_line in known.retired else authority
        signers = (register.find_signer(line) for line in known.on_disk)
        return next((DiskAuthority(signer) for signer in signers if signer is not None), None)

    async def certify(self, grant: SessionGrant, *, user_id: int, raw_public_key: object) -> str | None:
        """`algorithm base64` for the grant's session; None while there is no authority, or it cannot sign."""
        authority = await self._find_signer()
        if authority is None:
            if self._authority is not None:
                _log.warning("no certificate for session %d: no client CA that may sign is here", grant.session.id)
            return None
        key = inputs.parse_client_key(raw_public_key)
        now = int(self._clock.now().timestamp())
        certified = CertifiedSession(grant.session.id, user_id, grant.session.workspace_id)
        signed = _render_unsigned(
            key,
            authority.public_line,
            principal=principal_for(grant.session.workspace_id),
            key_id=render_key_id(certified),
            valid_after=now - int(VALID_BEFORE_NOW.total_seconds()),
            valid_before=int(grant.session.expires_at.timestamp()),
        )
        try:
            signature = await authority.sign(signed)
            _verify(authority.public_line, signature, signed)
        except RunCodeError as error:
            _log.warning("no certificate for session %d: %s", grant.session.id, error.message)
            return None
        algorithm = _algorithm_of(hostkeys.parse_public_key(authority.public_line).blob)
        blob = signed + _string(_string(algorithm) + _string(signature))
        return f"{key.algorithm}{_SUFFIX} {binascii.b2a_base64(blob, newline=False).decode()}"


def _render_unsigned(
    key: hostkeys.PublicKey,
    authority_line: str,
    *,
    principal: str,
    key_id: str,
    valid_after: int,
    valid_before: int,
) -> bytes:
    name = key.algorithm.encode()
    return b"".join(
        (
            _string(name + _SUFFIX.encode()),
            _string(secrets.token_bytes(32)),
            # The key's own fields, without the algorithm in front of them.
            key.blob[4 + len(name) :],
            secrets.randbits(63).to_bytes(8, "big"),
            _uint32(_USER_CERTIFICATE),
            _string(key_id.encode()),
            # A certificate without principals would be everybody's.
            _string(_string(principal.encode())),
            valid_after.to_bytes(8, "big"),
            valid_before.to_bytes(8, "big"),
            # No critical option: a source address would bind nobody, since the key is registered as well.
            _string(b""),
            _string(b"".join(_string(extension.encode()) + _string(b"") for extension in _EXTENSIONS)),
            _string(b""),
            _string(hostkeys.parse_public_key(authority_line).blob),
        )
    )


def _verify(authority_line: str, signature: bytes, message: bytes) -> None:
    blob = hostkeys.parse_public_key(authority_line).blob
    known_curve = _CURVES.get(_algorithm_of(blob))
    try:
        if known_curve is None:
            Ed25519PublicKey.from_public_bytes(blob[-32:]).verify(signature, message)
            return
        curve, digest = known_curve
        # The last field of the blob is the point, as SEC 1 writes it.
        point = blob[-(1 + 2 * ((curve.key_size + 7) // 8)) :]
        halves = _Reader(signature)
        r, s = (int.from_bytes(halves.string(), "big") for _ in range(2))
        key = ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
        key.verify(encode_dss_signature(r, s), message, ec.ECDSA(digest))
    except InvalidSignature as error:
        raise RunCodeError("unavailable", "the client CA's signature does not hold") from error


# ---------------------------------------------------------------- the agent


async def _list_agent_keys(socket_path: Path) -> list[str]:
    """Those of its keys that can sign certificates."""
    answer = _Reader(await _ask_agent(socket_path, bytes((_REQUEST_IDENTITIES,)), _IDENTITIES_ANSWER))
    lines = []
    for _ in range(min(answer.uint32(), _AGENT_KEYS_MAX)):
        blob, _comment = answer.string(), answer.string()
        algorithm = _algorithm_of(blob)
        if algorithm == _ED25519 or algorithm in _CURVES:
            text = binascii.b2a_base64(blob, newline=False).decode()
            lines.append(hostkeys.parse_public_key(f"{algorithm.decode()} {text}").line)
    return lines


def _algorithm_of(blob: bytes) -> bytes:
    return _Reader(blob).string()


async def _ask_agent(socket_path: Path, request: bytes, wanted: int) -> bytes:
    """The body of its answer, without the type. Raises `unavailable` for every other answer, and for none."""
    try:
        async with asyncio.timeout(_AGENT_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            try:
                writer.write(_string(request))
                await writer.drain()
                length = int.from_bytes(await reader.readexactly(4), "big")
                if not 1 <= length <= _AGENT_ANSWER_MAX:
                    raise _unavailable(socket_path, "its answer has no sane length")
                answer = await reader.readexactly(length)
            finally:
                writer.close()
    except TimeoutError as error:
        raise _unavailable(socket_path, "it does not answer") from error
    except (OSError, EOFError) as error:
        raise _unavailable(socket_path, getattr(error, "strerror", None) or "it hung up") from error
    if answer[0] != wanted:
        raise _unavailable(socket_path, "it refused")
    return answer[1:]


def _unavailable(socket_path: Path, what: str) -> RunCodeError:
    return RunCodeError(
        "unavailable",
        f"the client CA's agent at {socket_path} is of no use: {what}",
        resolution="start it and load the key: `ssh-add FILE`, or `ssh-add -s MODULE` for a token",
    )


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._raw):
            raise RunCodeError("unavailable", "the client CA's agent sent an answer that is cut short")
        taken, self._at = self._raw[self._at : end], end
        return taken

    def uint32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> bytes:
        return self._take(self.uint32())


def _uint32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _string(text: bytes) -> bytes:
    return _uint32(len(text)) + text


@dataclass(frozen=True)
class ClientCaPlace:
    """Where the client CA's private half is: the data folder (`kind` disk), a file of its own, or an ssh agent."""

    kind: str
    path: Path | None = None
    fingerprint: str | None = None


def parse_client_ca(raw_choice: str) -> ClientCaPlace:
    """`disk`, `file:PATH` or `agent:SOCKET[#SHA256:…]`. Raises UnsafeInput."""
    if raw_choice == "disk":
        return ClientCaPlace("disk")
    kind, _colon, rest = raw_choice.partition(":")
    path, _hash, fingerprint = rest.partition("#") if kind == "agent" else (rest, "", "")
    if kind not in ("file", "agent") or not path or "\0" in path:
        raise UnsafeInput("a client CA is `off`, `disk`, `file:PATH` or `agent:SOCKET`")
    return ClientCaPlace(kind, Path(path).absolute(), fingerprint or None)


async def load_client_authority(place: ClientCaPlace, on_disk: CertificateAuthority) -> ClientAuthority:
    """What signs. Raises when an agent does not answer, or a file is open to others; a missing file is made."""
    if place.path is None:
        return DiskAuthority(on_disk)
    if place.kind == "file":
        return DiskAuthority(CertificateAuthority.load_or_make(place.path))
    return await AgentAuthority.find(place.path, place.fingerprint)
