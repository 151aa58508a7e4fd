"""Proofs that this server made something: form tokens, known browsers, sealed cookies, keyed hashes.

Owns: one key for all of it, and the form of what it signs. Called by the services
and routes that people's browsers meet.

Threat: a value that was made for one purpose is shown for another; two lists of
parts that read alike when they are joined; a value that another server made.
Guarantee: HMAC-SHA256 over purpose and parts, each with its length before it,
compared in constant time. The key comes from the client CA's, so every replica has
the same one, a restart keeps it, and no copy of the database holds it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from typing import Any

_SEALED = re.compile(r"([A-Za-z0-9_-]{1,4000})\.([0-9a-f]{64})", re.ASCII)


class Proofs:
    def __init__(self, key: bytes) -> None:
        self._key = key

    def make(self, purpose: str, *parts: str) -> str:
        """64 hexadecimal digits."""
        text = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in (purpose, *parts))
        return hmac.new(self._key, text, hashlib.sha256).hexdigest()

    def holds(self, proof: str, purpose: str, *parts: str) -> bool:
        return hmac.compare_digest(self.make(purpose, *parts).encode(), proof.encode())

    def seal(self, purpose: str, value: dict[str, str | int]) -> str:
        """Text that a browser may keep and show again: readable by it, and by nobody changed."""
        body = base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
        return f"{body}.{self.make(purpose, body)}"

    def find_sealed(self, purpose: str, text: str) -> dict[str, Any] | None:
        """What was sealed for this purpose, or None."""
        found = _SEALED.fullmatch(text)
        if found is None or not self.holds(found[2], purpose, found[1]):
            return None
        body: dict[str, Any] = json.loads(base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4)))
        return body
