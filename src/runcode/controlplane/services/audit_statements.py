"""Signed statements about the audit chain: what stood where, when; and what was pruned.

Owns: the statement's form, the key that signs, and what is believed. No database, no clock. Called by
`audit_checkpoints` (writes them to a file), `audit_chain`'s callers (pruning) and `audit_verification`.

Threat: whoever can write the database, or the file of checkpoints, makes both tell another past.
Guarantee: a statement counts only with the signature of this server's audit key over all of it but the signature,
and each line of a file holds the digest of the line before it, so none can be left out, moved or put in between.

The form, one JSON object a line, as `audit_format.render_json` spells it:
`{"at", "chain", "count", "hash", "kind": "checkpoint" | "pruned", "key", "previous", "signature", "v": 1}`.
Signed, with Ed25519 (RFC 8032), is "runcode audit statement v1\\n" followed by the object without its `signature`.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from runcode.controlplane.audit_format import render_json
from runcode.core.errors import RunCodeError

CHECKPOINT: Final = "checkpoint"
PRUNED: Final = "pruned"
NO_LINE: Final = "0" * 64
LINE_MAX: Final = 4096
_DOMAIN: Final = b"runcode audit statement v1\n"


@dataclass(frozen=True)
class Statement:
    """`count` records had been added and `hash` was the newest's; or, pruned: they were removed. `at` is UTC text."""

    kind: str
    chain_id: str
    count: int
    hash: str
    at: str
    previous: str
    key_id: str = ""
    signature: str = ""

    def render(self) -> bytes:
        """What is signed."""
        return render_json(self._fields())

    def render_line(self) -> bytes:
        return render_json({**self._fields(), "signature": self.signature}) + b"\n"

    def _fields(self) -> dict[str, str | int]:
        return {
            "v": 1,
            "kind": self.kind,
            "chain": self.chain_id,
            "count": self.count,
            "hash": self.hash,
            "at": self.at,
            "previous": self.previous,
            "key": self.key_id,
        }


def digest_line(line: bytes) -> str:
    """What the next line says of this one, whatever it holds."""
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def parse_line(line: bytes) -> Statement | None:
    """None for anything that `render_line` did not make, to the letter."""
    if len(line) > LINE_MAX:
        return None
    try:
        raw = json.loads(line)
        found = Statement(
            kind=raw["kind"],
            chain_id=raw["chain"],
            count=raw["count"],
            hash=raw["hash"],
            at=raw["at"],
            previous=raw["previous"],
            key_id=raw["key"],
            signature=raw["signature"],
        )
        same = found.render_line().rstrip(b"\n") == line.rstrip(b"\n")
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_sane = found.kind in (CHECKPOINT, PRUNED) and type(found.count) is int and found.count >= 0
    return found if same and is_sane else None


class AuditVerifier:
    """Believes one key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.key_id = _key_id(key)

    def believes(self, statement: Statement) -> bool:
        try:
            signature = base64.b64decode(statement.signature, validate=True)
            self._key.verify(signature, _DOMAIN + statement.render())
        except (ValueError, InvalidSignature):
            return False
        return statement.key_id == self.key_id


class AuditSigner(AuditVerifier):
    """Made by `load_or_make`. The key never leaves this process."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        super().__init__(key.public_key())
        self._private = key

    def sign(self, statement: Statement) -> Statement:
        """The statement in this key's name."""
        ours = replace(statement, key_id=self.key_id)
        signature = self._private.sign(_DOMAIN + ours.render())
        return replace(ours, signature=base64.b64encode(signature).decode("ascii"))


def load_or_make_signer(path: Path) -> AuditSigner:
    """The key kept at `path`, made there when there is none; its public half stands beside it (`….pub`).

    Raises `unsafe_path` when others could read or have planted it, `io_error` when it cannot be used.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise RunCodeError(
                "unsafe_path",
                f"{path} can be read by others, or is not this user's",
                resolution="find out who touched it; then give it back to this user, mode 0600",
            )
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise RunCodeError("io_error", f"the audit key {path} cannot be read or made: {error.strerror}") from error
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _damaged(path)
    return AuditSigner(key)


def load_verifier(path: Path) -> AuditVerifier:
    """A public key (PEM). Raises `io_error`."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise RunCodeError(
            "io_error", f"the public key {path} cannot be read", resolution="name another with --public-key FILE"
        ) from error
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _damaged(path)
    return AuditVerifier(key)


def render_now(now: datetime.datetime) -> str:
    return now.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _damaged(path: Path) -> RunCodeError:
    return RunCodeError(
        "io_error", f"{path} is not an Ed25519 key", resolution="restore it from a backup of the data folder"
    )


def _key_id(key: Ed25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def _make_key(path: Path) -> None:
    """Complete under its name, or not there; the public half first, so that it is never missing."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for target, content in ((path.with_name(path.name + ".pub"), public), (path, private)):
        draft = target.with_name(f".{target.name}.{os.getpid()}.new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
