"""SHA-256 for names and comparisons, without hashlib's start-up price (it loads OpenSSL: 3 ms here)."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha2 import sha256  # CPython 3.12 and later
    except ImportError:
        try:
            from _sha256 import sha256  # CPython 3.11
        except ImportError:
            from hashlib import sha256


def sha256_hex(content: bytes) -> str:
    return sha256(content).hexdigest()
