"""Hostile workspace lists: whole shapes, single records, and names that pass for another's."""

from __future__ import annotations

import json
from typing import Any

from adversarial.corpus.payloads import CHARACTERS, TERMINAL

# Whole bodies that are no list: `http_error`.
SHAPES: dict[str, bytes] = {
    "no data": b"{}",
    "data is null": b'{"data": null}',
    "data is a list": b'{"data": []}',
    "workspaces is an object": b'{"data": {"workspaces": {}}}',
    "workspaces is a text": b'{"data": {"workspaces": "x"}}',
    "workspaces is a number": b'{"data": {"workspaces": 5}}',
    "top is a list": b'[{"data": {"workspaces": []}}]',
    "data twice": b'{"data": {"workspaces": []}, "data": {"workspaces": []}}',
    "deep": b'{"data": {"workspaces": ' + b"[" * 50_000 + b"]" * 50_000 + b"}}",
    "not json": b"workspaces",
    "empty": b"",
}

# Records that are left out: what is changed in a good one.
LEFT_OUT: dict[str, dict[str, Any]] = {
    **{f"title: {name}": {"title": f"a{text}b"} for name, text in CHARACTERS.items()},
    "title: empty": {"title": ""},
    "title: option": {"title": "-oProxyCommand=id"},
    "title: dot": {"title": "."},
    "title: 65 letters": {"title": "a" * 65},
    "title: 64 kilobytes": {"title": "a" * 65536},
    "title: null": {"title": None},
    "title: number": {"title": 5},
    "title: list": {"title": ["a"]},
    "id: zero": {"id": 0},
    "id: negative": {"id": -1},
    "id: text": {"id": "7"},
    "id: true": {"id": True},
    "id: float": {"id": 7.0},
    "id: 2**63": {"id": 2**63},
    "id: null": {"id": None},
    "id: path": {"id": "../../x"},
}
# In a record's place stands something else.
NO_RECORDS: list[object] = [None, 5, "x", [], [{"id": 1}], True, {}]

# Records that are shown, with their free text made harmless.
SHOWN: dict[str, dict[str, Any]] = {
    **{f"custom title: {name}": {"custom_title": text} for name, text in TERMINAL.items()},
    **{f"state: {name}": {"current_state": text} for name, text in TERMINAL.items()},
    "custom title: null": {"custom_title": None},
    "custom title: list": {"custom_title": ["\x1b"]},
    "state: number": {"current_state": 5},
    "state: interim object": {"interim_state": {"a": "\x1b"}},
    "provider: object": {"provider": {"\x1b": 1}, "ssh_capable": True},
    "provider: escape": {"provider": "\x1b[2J", "ssh_capable": True},
    "unknown fields": {"\x1b]52;c;x\x07": "\u202e", "web_url": "javascript:x"},
}

OWN_TITLE = "royal-tree"
# What a person types → (another's record beside the own one, whom it means: an id, or a code).
LOOKUPS: dict[str, tuple[str, dict[str, Any], int | str]] = {
    "a custom title like your title": (OWN_TITLE, {"custom_title": OWN_TITLE}, 42),
    "a custom title like your id": ("42", {"custom_title": "42"}, 42),
    "two of one custom title": ("Billing", {"custom_title": "Billing"}, "ambiguous"),
    "homoglyph custom title": (OWN_TITLE, {"custom_title": "roy\u0430l-tree"}, 42),
    "homoglyph typed": ("roy\u0430l-tree", {"custom_title": "x"}, "not_found"),
    "full-width digits typed": ("\uff14\uff12", {"custom_title": "x"}, "not_found"),
    "escape typed": ("\x1b]52;c;x\x07", {"custom_title": "x"}, "not_found"),
    "path typed": ("../../etc", {"custom_title": "x"}, "not_found"),
    "an id with zeros typed": ("0042", {"custom_title": "x"}, 42),
    "substitution typed": ("$(id)", {"custom_title": "x"}, "not_found"),
    "your id again": (OWN_TITLE, {"id": 42, "title": "other-tree"}, 42),
}


def body(records: list[object]) -> bytes:
    return json.dumps({"error": False, "data": {"workspaces": records}}).encode()


def record(**changes: Any) -> dict[str, Any]:
    good = {"id": 7, "title": "plain-tree", "custom_title": "", "provider": "aws", "interim_state": None}
    return {**good, "current_state": "running", **changes}
