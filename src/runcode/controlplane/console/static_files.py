"""The console's static files, each under an address that names its content.

Owns: which files there are (a fixed list: no path of a request is ever opened), and
their addresses. A file that changed has another address, so that browsers may keep
one for a year.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

PREFIX: Final = "/assets/"
_FOLDER: Final = Path(__file__).with_name("static")
_KINDS: Final = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "htmx.LICENSE.txt": "text/plain; charset=utf-8",
    "mark.svg": "image/svg+xml",
}


@dataclass(frozen=True)
class StaticFile:
    name: str
    media_type: str
    content: bytes
    digest: str

    @property
    def address(self) -> str:
        return f"{PREFIX}{self.digest}/{self.name}"


def find_address(name: str) -> str:
    """Where a page finds one of our files. Raises KeyError for any other name."""
    return _load()[name].address


def find_file(digest: str, name: str) -> StaticFile | None:
    """The file at `/assets/DIGEST/NAME`, or None; an address of another version is None too."""
    found = _load().get(name)
    return found if found is not None and found.digest == digest else None


@cache
def _load() -> dict[str, StaticFile]:
    loaded = {}
    for name, media_type in _KINDS.items():
        content = (_FOLDER / name).read_bytes()
        loaded[name] = StaticFile(name, media_type, content, hashlib.sha256(content).hexdigest()[:16])
    return loaded
