"""Which host uid a box runs as.

Threat: a box that runs as host uid 0 reads the host's /etc/shadow and writes
/proc/sys however it is wrapped; two boxes with one uid can signal and trace each
other's processes once a namespace leaks.

Guarantee: as root, each workspace has a uid and gid of its own, from a block of
65,536 that this runtime's root folder drew once, far above what Debian's accounts,
subordinate ids, systemd's dynamic users and containers use. An ordinary user's
boxes run as that user; they have no other.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from runcode.core.errors import RunCodeError
from runcode.runtimes.local.layout import Layout, write_new_file

BLOCK_SIZE = 65_536
_FIRST = 1_900_000_000
_LAST = 2_147_000_000
_SUBORDINATE_FILES = (Path("/etc/subuid"), Path("/etc/subgid"))


def host_uid_for(layout: Layout, workspace_id: int) -> int | None:
    """The box's host uid and gid; None for an ordinary user, whose boxes run as that user."""
    if os.geteuid() != 0:
        return None
    if workspace_id >= BLOCK_SIZE:
        raise RunCodeError(
            "unavailable",
            f"the local runtime has no host uid left for workspace {workspace_id}",
            resolution="use a new data folder, or another runtime: one folder serves 65,535 workspaces over its life",
        )
    return load_block(layout) + workspace_id


def load_block(layout: Layout) -> int:
    """The block's first uid, drawn at first need and kept for ever: storage belongs to it."""
    try:
        return parse_block(layout.uid_block.read_text())
    except FileNotFoundError:
        pass
    new = layout.root / f".uid-block.{secrets.token_hex(8)}"
    write_new_file(new, f"{draw_block()}\n", 0o600)
    try:
        # link, not rename: of two that draw at once, the first one counts.
        os.link(new, layout.uid_block)
    except FileExistsError:
        pass
    finally:
        new.unlink()
    return parse_block(layout.uid_block.read_text())


def parse_block(text: str) -> int:
    try:
        base = int(text)
    except ValueError:
        base = 0
    if not _FIRST <= base <= _LAST or (base - _FIRST) % BLOCK_SIZE:
        raise RunCodeError(
            "io_error",
            "the local runtime's uid-block file is damaged",
            resolution="restore it from a backup; it says which uids own the workspaces' storage",
        )
    return base


def draw_block() -> int:
    taken = [span for path in _SUBORDINATE_FILES for span in read_subordinate_ranges(path)]
    blocks = (_LAST - _FIRST) // BLOCK_SIZE
    while True:
        base = _FIRST + BLOCK_SIZE * secrets.randbelow(blocks)
        if not any(first < base + BLOCK_SIZE and base < last for first, last in taken):
            return base


def read_subordinate_ranges(path: Path) -> list[tuple[int, int]]:
    """(first, one past the last) of each line of a subuid(5) file."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    ranges = []
    for line in lines:
        fields = line.split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit():
            ranges.append((int(fields[1]), int(fields[1]) + int(fields[2])))
    return ranges
