"""Public keys and known_hosts lines, read by structure and written by us.

Threat: the known_hosts text of a bundle is under the server's control. A
`@cert-authority` line, a wildcard or a second host would make ssh trust more
than the one gateway; a weak key could be forged.

Guarantee: only keys whose blob parses completely as one of the accepted
algorithms come out, without comment or option, and `render_known_hosts` writes
the host field from a host that `core.names` accepted.

Source: RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709 §4, OpenSSH's sshd(8) SSH_KNOWN_HOSTS.
"""

from __future__ import annotations

import binascii

from runcode.core.errors import UnsafeInput
from runcode.core.values import Value

RSA_MIN_BITS = 2048
RSA_MAX_BITS = 16384
_BLOB_MAX = 4096
_TEXT_MAX = 64 * 1024

_ECDSA_POINT_BYTES = {"nistp256": 65, "nistp384": 97, "nistp521": 133}


class PublicKey(Value):
    """An ssh public key: algorithm name and canonical base64 of its blob."""

    algorithm: str
    blob_base64: str

    @property
    def blob(self) -> bytes:
        return binascii.a2b_base64(self.blob_base64)

    @property
    def line(self) -> str:
        """`algorithm base64`, without a comment."""
        return f"{self.algorithm} {self.blob_base64}"

    @property
    def fingerprint(self) -> str:
        """`SHA256:…` as ssh-keygen prints it."""
        import hashlib

        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + binascii.b2a_base64(digest, newline=False).decode().rstrip("=")


class _Reader:
    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.at = 0

    def string(self) -> bytes:
        end = self.at + 4
        length = int.from_bytes(self.blob[self.at : end], "big")
        if end + length > len(self.blob) or end > len(self.blob):
            raise UnsafeInput("a public key is cut short")
        self.at = end + length
        return self.blob[end : self.at]

    def finish(self) -> None:
        if self.at != len(self.blob):
            raise UnsafeInput("a public key has bytes after its end")


def parse_public_key(raw_line: object) -> PublicKey:
    """`algorithm base64 [comment]` → PublicKey. Raises UnsafeInput for anything else, options included."""
    if not isinstance(raw_line, str) or len(raw_line) > _TEXT_MAX or not raw_line.isprintable():
        raise UnsafeInput("a public key is not one printable line")
    fields = raw_line.split(" ", 2)
    if len(fields) < 2:
        raise UnsafeInput("a public key has no base64 field")
    return _parse_key(fields[0], fields[1])


def parse_known_hosts(raw_text: object) -> tuple[PublicKey, ...]:
    """The well-formed keys of a bundle's known_hosts text, in order, without repeats.

    Lines with a marker (`@cert-authority`, `@revoked`) or a key we do not accept
    are left out; the host field is ignored, since we write our own. Raises
    UnsafeInput when no key is left.
    """
    if not isinstance(raw_text, str) or len(raw_text) > _TEXT_MAX:
        raise UnsafeInput("the bundle's known_hosts is not a text of sane size")
    keys: list[PublicKey] = []
    for line in raw_text.splitlines():
        fields = line.split()
        if len(fields) < 3 or line.lstrip().startswith(("#", "@")):
            continue
        try:
            key = _parse_key(fields[1], fields[2])
        except UnsafeInput:
            continue
        if key not in keys:
            keys.append(key)
    if not keys:
        raise UnsafeInput("the bundle pins no acceptable host key")
    return tuple(keys)


def render_known_hosts(host: str, port: int, keys: tuple[PublicKey, ...]) -> str:
    """known_hosts lines for exactly this host and port (`[host]:port` unless the port is 22)."""
    name = host if port == 22 else f"[{host}]:{port}"
    return "".join(f"{name} {key.line}\n" for key in keys)


def _parse_key(algorithm: str, text: str) -> PublicKey:
    try:
        blob = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise UnsafeInput("a public key is not valid base64") from error
    if len(blob) > _BLOB_MAX:
        raise UnsafeInput("a public key is too large")
    reader = _Reader(blob)
    if reader.string() != algorithm.encode("ascii", "replace"):
        raise UnsafeInput("a public key's name and content differ")
    _check_structure(algorithm, reader)
    reader.finish()
    return PublicKey(algorithm=algorithm, blob_base64=text)


def _check_structure(algorithm: str, reader: _Reader) -> None:
    if algorithm == "ssh-ed25519":
        if len(reader.string()) != 32:
            raise UnsafeInput("an Ed25519 key has the wrong length")
    elif algorithm.startswith("ecdsa-sha2-") and algorithm[11:] in _ECDSA_POINT_BYTES:
        curve, point = reader.string(), reader.string()
        if curve != algorithm[11:].encode() or len(point) != _ECDSA_POINT_BYTES[algorithm[11:]] or point[0] != 4:
            raise UnsafeInput("an ECDSA key is malformed")
    elif algorithm == "ssh-rsa":
        exponent, modulus = reader.string(), reader.string()
        bits = int.from_bytes(modulus, "big").bit_length()
        if modulus[:1] > b"\x7f" or not RSA_MIN_BITS <= bits <= RSA_MAX_BITS:
            raise UnsafeInput("an RSA key is outside 2,048 to 16,384 bits")
        if int.from_bytes(exponent, "big") < 3 or exponent[:1] > b"\x7f" or len(exponent) > 8:
            raise UnsafeInput("an RSA key has a bad exponent")
    else:
        raise UnsafeInput("a public key's algorithm is not accepted")
