"""A client's OpenSSH certificate: read by structure, and its authority's signature checked.

Owns: what a certificate says and whether its own signature holds. Never: whether
that is enough (`admission` decides), the control plane, a clock. Called by
`ssh_server` for a key blob of a certificate's type.

Threat: the blob is a stranger's. A field may run past the end, the key inside may
be weak, the signature another authority's, a list may hold one name twice or hide
something behind its end.

Guarantee: what comes out was read to the last byte, its key is one that
`core.hostkeys` takes, and its signature is over exactly these bytes by
`authority`. Anything else is MalformedPacket or UnsafeInput.

asyncssh trap: its own certificate check lets any user name pass when there are
no principals; it is not used here, only its signature check of a plain key is.

Source: OpenSSH's PROTOCOL.certkeys.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass

import asyncssh
from asyncssh.public_key import decode_ssh_public_key

from runcode.core.errors import UnsafeInput
from runcode.core.hostkeys import parse_public_key
from runcode.gateway.packets import MalformedPacket, Reader, render_string

USER_CERTIFICATE = 1
CERTIFICATE_BYTES_MAX = 8 * 1024
_SUFFIX = b"-cert-v01@openssh.com"
# How many strings the key itself has in front of the certificate's own fields.
_KEY_FIELDS = {
    b"ssh-ed25519": 1,
    b"ecdsa-sha2-nistp256": 2,
    b"ecdsa-sha2-nistp384": 2,
    b"ecdsa-sha2-nistp521": 2,
    b"ssh-rsa": 2,
}
_AUTHORITY_SIGNATURES = frozenset(
    {b"ssh-ed25519", b"ecdsa-sha2-nistp256", b"ecdsa-sha2-nistp384", b"ecdsa-sha2-nistp521"}
)


@dataclass(frozen=True)
class ClientCertificate:
    """What a certificate says, its signature checked. Times are epoch seconds, `valid_before` exclusive.

    `key_blob` is the plain key that must sign for whoever presents it; `authority`
    is the signer (`algorithm base64`).
    """

    key_blob: bytes
    key_fingerprint: str
    authority: str
    kind: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical_options: tuple[tuple[str, bytes], ...]


def is_certificate(key_blob: bytes) -> bool:
    """Does the blob call itself a certificate? Says nothing about its worth."""
    length = int.from_bytes(key_blob[:4], "big")
    return key_blob[4 : 4 + length].endswith(_SUFFIX)


def read_certificate(blob: bytes) -> ClientCertificate:
    """Raises MalformedPacket or UnsafeInput for anything but a whole certificate that its authority signed."""
    if len(blob) > CERTIFICATE_BYTES_MAX:
        raise UnsafeInput("a certificate is too large")
    reader = Reader(blob, 0)
    name = reader.string()
    algorithm = name.removesuffix(_SUFFIX)
    if algorithm == name or algorithm not in _KEY_FIELDS:
        raise UnsafeInput("a certificate's type is not accepted")
    reader.string()  # the nonce
    key_blob = render_string(algorithm) + b"".join(
        render_string(reader.string()) for _ in range(_KEY_FIELDS[algorithm])
    )
    key = parse_public_key(_render_line(key_blob))
    _uint64(reader)  # the serial: a revocation goes by the session, not by it
    kind, key_id, principals = reader.uint32(), reader.string(), _read_strings(reader.string())
    valid_after, valid_before = _uint64(reader), _uint64(reader)
    options = _read_options(reader.string())
    _read_options(reader.string())  # extensions grant nothing here: what may pass is the relay's to say
    if reader.string():
        raise UnsafeInput("a certificate's reserved field is not empty")
    authority_blob = reader.string()
    signed = blob[: reader.at]
    signature = reader.string()
    if reader.at != len(blob):
        raise MalformedPacket("a certificate has bytes after its end")
    authority = parse_public_key(_render_line(authority_blob))
    if not _is_signed(authority_blob, signed, signature):
        raise UnsafeInput("a certificate's signature does not hold")
    return ClientCertificate(
        key_blob=key_blob,
        key_fingerprint=key.fingerprint,
        authority=authority.line,
        kind=kind,
        key_id=_text(key_id),
        principals=tuple(_text(each) for each in principals),
        valid_after=valid_after,
        valid_before=valid_before,
        critical_options=tuple((_text(option), value) for option, value in options),
    )


def read_option_text(value: bytes) -> str:
    """An option's value is a string inside a string."""
    reader = Reader(value, 0)
    text = reader.string()
    if reader.at != len(value):
        raise MalformedPacket("a certificate's option has bytes after its end")
    return _text(text)


def _is_signed(authority_blob: bytes, signed: bytes, signature: bytes) -> bool:
    if Reader(signature, 0).string() not in _AUTHORITY_SIGNATURES:
        return False
    try:
        return decode_ssh_public_key(authority_blob).verify(signed, signature)
    except (ValueError, asyncssh.KeyImportError):
        return False


def _render_line(key_blob: bytes) -> str:
    algorithm = Reader(key_blob, 0).string().decode("ascii", "replace")
    return f"{algorithm} {binascii.b2a_base64(key_blob, newline=False).decode()}"


def _read_strings(packed: bytes) -> list[bytes]:
    reader, found = Reader(packed, 0), []
    while reader.at < len(packed):
        found.append(reader.string())
    return found


def _read_options(packed: bytes) -> list[tuple[bytes, bytes]]:
    parts = _read_strings(packed)
    names = parts[::2]
    if len(parts) % 2 or len(set(names)) != len(names):
        raise UnsafeInput("a certificate's options are malformed")
    return list(zip(names, parts[1::2], strict=True))


def _uint64(reader: Reader) -> int:
    return reader.uint32() << 32 | reader.uint32()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
