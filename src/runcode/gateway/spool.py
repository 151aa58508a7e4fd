"""Events on disk between the moment they are seen and the moment the sink has them.

Owns: one private folder of numbered files, a line an event. Written by `recorder` as it
accepts an event, emptied by it as events are delivered; what a killed gateway left is
read at its next start. Never: waits for the disk (no fsync): a line survives the end of
the process, not that of the machine.

Threat: a full disk; files that are cut short by a kill, damaged, planted by somebody
else, links, pipes.
Guarantee: `append` never raises. When the disk is full or the spool at its limit, serving
goes on: events wait in memory only, up to the recorder's bound, then they are dropped
and counted, and `obstacle` says so until writing works again. Only plain files of our
own, with one name, are read; what in them is not an event is passed over and counted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from runcode.core.errors import RunCodeError
from runcode.gateway.events import GatewayEvent

_log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 1024 * 1024
# A line may go over the size at which a file is ended.
_FILE_MAX: Final = 2 * 1024 * 1024
SPOOL_BYTES: Final = 64 * 1024 * 1024
_RETRY_S: Final = 1.0
_NAME = re.compile(r"[0-9]{12}\.events", re.ASCII)
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Render = Callable[[GatewayEvent], dict[str, object]]
Parse = Callable[[object], GatewayEvent]


class EventSpool:
    """One process's. `open` it before use; lives on one event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        render: Render,
        parse: Parse,
        limit_bytes: int = SPOOL_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`render` makes of an event what may stand on a disk, `parse` reads it (ValueError: it is none)."""
        self._folder = folder
        self._render, self._parse = render, parse
        self._limit = limit_bytes
        self._monotonic = monotonic
        self._lock = -1
        self._file = -1
        self._number = 0
        self._size = 0
        self._total = 0
        self._sizes: dict[int, int] = {}
        # Events in each file that are not delivered yet.
        self._undelivered: Counter[int] = Counter()
        self._leftovers: list[Path] = []
        self._try_again_at = 0.0
        self.obstacle: str | None = None

    def open(self) -> None:
        """Raises `io_error`, `unsafe_path`, or `busy` when another process has this folder."""
        try:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            seen = self._folder.lstat()
            if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o077:
                raise RunCodeError("unsafe_path", f"{self._folder} is not a private folder of this user")
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._leftovers = sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
            self._total = sum(_size_of(path) for path in self._leftovers)
        except BlockingIOError as error:
            self.close()
            raise RunCodeError("busy", f"another gateway keeps its events in {self._folder}") from error
        except OSError as error:
            self.close()
            raise RunCodeError("io_error", f"{self._folder} cannot be used: {error.strerror}") from error
        if self._leftovers:
            self._number = int(self._leftovers[-1].name[:12])

    def close(self) -> None:
        for descriptor in (self._file, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._lock = -1

    # -- in -----------------------------------------------------------------

    def append(self, event: GatewayEvent) -> int:
        """The number of the file that has it now, to be given back with `delivered`; 0: it is in memory only."""
        if self.obstacle is not None and self._monotonic() < self._try_again_at:
            return 0
        try:
            line = json.dumps(self._render(event), separators=(",", ":")).encode() + b"\n"
            self._write(line)
        except (OSError, ValueError) as error:
            self._note_obstacle(error)
            return 0
        if self.obstacle is not None:
            self.obstacle = None
            _log.warning("events are kept on disk again")
        self._undelivered[self._number] += 1
        return self._number

    def _write(self, line: bytes) -> None:
        if self._total + len(line) > self._limit:
            raise OSError(errno.EDQUOT, "the spool is at its limit")
        if self._file < 0 or self._size >= SEGMENT_BYTES:
            self._begin_file()
        try:
            written = os.write(self._file, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # Half a line must not stand before whole ones.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)
        self._total += len(line)
        self._sizes[self._number] = self._size

    def _begin_file(self) -> None:
        number = self._number + 1
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | _FLAGS
        made = os.open(self._path(number), flags, 0o600)
        self._end_file()
        self._file, self._number, self._size = made, number, 0

    def _end_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if self._undelivered[self._number] == 0:
                self._remove(self._number)

    def _note_obstacle(self, error: Exception) -> None:
        self._try_again_at = self._monotonic() + _RETRY_S
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        if self.obstacle is None:
            _log.error("events wait in memory only, for they cannot be kept on disk: %s", reason)
        self.obstacle = reason

    # -- out ----------------------------------------------------------------

    def delivered(self, number: int) -> None:
        """One event of that file needs to be kept no longer."""
        if number == 0:
            return
        self._undelivered[number] -= 1
        if self._undelivered[number] > 0:
            return
        if number == self._number and self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._remove(number)

    def _remove(self, number: int) -> None:
        del self._undelivered[number]
        self._total -= self._sizes.pop(number, 0)
        with contextlib.suppress(OSError):
            self._path(number).unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:012}.events"

    # -- what an earlier run left -------------------------------------------

    def load_leftovers(self) -> tuple[Path, list[GatewayEvent]] | None:
        """The oldest file of an earlier run and its events; None when there is none (any more)."""
        while self._leftovers:
            path = self._leftovers[0]
            raw = _read_own_file(path)
            if raw is not None:
                return path, self._parse_lines(path, raw)
            # Not ours to read, and not ours to delete.
            _log.error("%s is not a plain file of this user, and is left alone", path.name)
            self._leftovers.pop(0)
        return None

    def forget_leftovers(self, path: Path) -> None:
        """Its events are delivered."""
        self._leftovers.remove(path)
        with contextlib.suppress(OSError):
            self._total -= _size_of(path)
            path.unlink()

    def _parse_lines(self, path: Path, raw: bytes) -> list[GatewayEvent]:
        # What stands after the last newline was being written when the process was killed.
        *lines, _cut_short = raw.split(b"\n")
        found: list[GatewayEvent] = []
        damaged = 0
        for line in lines:
            try:
                found.append(self._parse(json.loads(line)))
            except (ValueError, RecursionError):
                damaged += 1
        if damaged:
            _log.error("%s: %d lines are no events, and are passed over", path.name, damaged)
        return found


def _read_own_file(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError:
        return None
    try:
        if not _is_own(os.fstat(descriptor)):
            return None
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(_FILE_MAX)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _is_own(seen: os.stat_result) -> bool:
    plain = stat.S_ISREG(seen.st_mode) and seen.st_uid == os.geteuid() and seen.st_nlink == 1
    return plain and seen.st_size <= _FILE_MAX


def _size_of(path: Path) -> int:
    """What counts against the limit: a planted file of any size takes no room from events."""
    seen = path.lstat()
    return seen.st_size if _is_own(seen) else 0
