"""SHA-256 for names and comparisons, without hashlib's start-up price (it loads OpenSSL: 3 ms here)."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        # By version, not by trial: a failed import lists every folder of the path.
        if sys.version_info >= (3, 12):
            from _sha2 import sha256
        else:
            from _sha256 import sha256
    except ImportError:
        from hashlib import sha256


def sha256_hex(content: bytes) -> str:
    return sha256(content).hexdigest()
