"""Public keys for the corpus, good and forged: built here, so that no private half of any exists."""

from __future__ import annotations

import base64


def string(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def key_line(algorithm: str, *parts: bytes, inner: str | None = None, tail: bytes = b"") -> str:
    """`algorithm base64`; `inner` is what the blob calls itself, `tail` what follows its end."""
    blob = string((inner or algorithm).encode()) + b"".join(map(string, parts)) + tail
    return f"{algorithm} {base64.b64encode(blob).decode()}"


POINT_256 = b"\x04" + bytes(range(64))
ED25519 = key_line("ssh-ed25519", bytes(range(32)))
OTHER_ED25519 = key_line("ssh-ed25519", bytes(range(32, 64)))
ECDSA = key_line("ecdsa-sha2-nistp256", b"nistp256", POINT_256)
RSA_1024 = key_line("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 128)
RSA_2047 = key_line("ssh-rsa", b"\x01\x00\x01", b"\x7f" + b"\xff" * 255)
RSA_2048 = key_line("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 256)
RSA_EXPONENT_1 = key_line("ssh-rsa", b"\x01", b"\x00" + b"\xff" * 256)
RSA_NEGATIVE = key_line("ssh-rsa", b"\x01\x00\x01", b"\xff" * 257)
RSA_HUGE = key_line("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 2049)
DSS = key_line("ssh-dss", b"\x01", b"\x02", b"\x03", b"\x04")
SK_ED25519 = key_line("sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:")
CERTIFICATE_AS_KEY = key_line("ssh-ed25519-cert-v01@openssh.com", b"nonce", bytes(32))
SHORT_ED25519 = key_line("ssh-ed25519", bytes(31))
ED25519_AND_MORE = key_line("ssh-ed25519", bytes(range(32)), b"more")
ED25519_TAIL = key_line("ssh-ed25519", bytes(range(32)), tail=b"\0")
RENAMED = key_line("ssh-ed25519", bytes(range(32)), inner="ssh-ed25518")
WRONG_CURVE = key_line("ecdsa-sha2-nistp256", b"nistp384", POINT_256)
COMPRESSED_POINT = key_line("ecdsa-sha2-nistp256", b"nistp256", b"\x02" + bytes(32))
ODD_POINT = key_line("ecdsa-sha2-nistp256", b"nistp256", b"\x02" + bytes(range(64)))
UNKNOWN_CURVE = key_line("ecdsa-sha2-nistk163", b"nistk163", POINT_256)
CUT = ED25519[:-8]
_LYING = string(b"ssh-ed25519") + bytes((255, 255, 255, 255))
LYING_LENGTH = f"ssh-ed25519 {base64.b64encode(_LYING).decode()}"
