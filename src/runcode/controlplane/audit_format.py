"""The audit chain's bytes: how a record, and a signed statement about records, become something to hash or to sign.

Owns: version 1 of both formats. Pure; called by `services.audit_chain`, `services.audit_statements`,
`services.audit_verification` and the migration that chained what was there before. Version 1 never changes: a
record of today must hash the same in ten years, on either database and any Python.

Threat: whoever can write the database edits, reorders, removes or adds records.
Guarantee: each record's hash covers every one of its columns and the hash before it, so that
none of these leaves the hashes after it, or the head that was signed elsewhere, as they were.

The format. A record's bytes are one JSON object (RFC 8259): ASCII, keys in order of code points,
no blanks; texts, integers and null only, since a float has no one spelling; times as microseconds since
1970-01-01 UTC. With `‖` for "followed by":

    hash of nothing  = SHA-256("runcode audit chain v1\\n" ‖ chain id)
    hash of record n = SHA-256("runcode audit record v1\\n" ‖ hash of record n-1, 32 bytes ‖ record n's bytes)
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

_CHAIN: Final = b"runcode audit chain v1\n"
_RECORD: Final = b"runcode audit record v1\n"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_MICROSECOND = datetime.timedelta(microseconds=1)
_PLAIN: Final = frozenset((str, int, bool, type(None)))
# Made once: `json.dumps` makes an encoder for each record.
_encode: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode
TIMES: Final = ("at", "recorded_at", "started_at")
# Every column of the table but the hash itself; a test holds them against the table.
COLUMNS: Final = (
    "id",
    "gateway",
    "subject_id",
    "phase",
    "kind",
    *TIMES,
    "connection_id",
    "workspace_id",
    "session_id",
    "user_id",
    "detail",
)


def hash_of_nothing(chain_id: str) -> str:
    """What stands before a chain's first record; no two chains begin alike."""
    return hashlib.sha256(_CHAIN + chain_id.encode("ascii")).hexdigest()


def hash_record(previous: str, values: Mapping[str, Any]) -> str:
    """The hash of a record: `previous` and the answer are 64 hex digits, `values` has all of COLUMNS.

    Raises ValueError for what no record of ours holds (a float, a time without a zone).
    """
    return hashlib.sha256(_RECORD + bytes.fromhex(previous) + render_record(values)).hexdigest()


def render_record(values: Mapping[str, Any]) -> bytes:
    """The record's bytes. Raises ValueError."""
    shown = {name: values[name] for name in COLUMNS}
    for name in TIMES:
        shown[name] = _render_time(shown[name])
    return render_json(shown)


def render_json(value: Mapping[str, Any]) -> bytes:
    """One spelling for one value. Raises ValueError for a float, or any type but text, integer, null, bool and dict."""
    _check(value)
    return _encode(value).encode("ascii")


def _render_time(moment: datetime.datetime | None) -> int | None:
    if moment is None:
        return None
    if not isinstance(moment, datetime.datetime) or moment.tzinfo is None:
        raise ValueError("not a time with a zone")
    # Not `timestamp()`: a float cannot hold every microsecond.
    return (moment - _EPOCH) // _MICROSECOND


def _check(value: Mapping[str, Any]) -> None:
    for key, inner in value.items():
        if type(key) is not str:
            raise ValueError("a key that is no text")
        if type(inner) in _PLAIN:
            continue
        if not isinstance(inner, Mapping):
            raise ValueError(f"a {type(inner).__name__} has no one spelling")
        _check(inner)
