"""The chain's head, signed and written where the database's writer may not reach: the file of checkpoints.

Owns: that file, and the task that adds to it: every `every_records` records or `every_s` seconds in which something
was noted, at the start and at the end. Started by the server only. Never: reads secrets, changes the database.

Threat: the database is set back or cut short, together with its own head.
Guarantee: the file is opened for appending only and each line is on the disk before the next is made (fsync). A
line that a crash or a full disk left half-written is ended, never written over. A database that stands behind the last
checkpoint gets no new ones: `trouble` says so, and the proof stays as it was. Serving never waits for this file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from runcode.controlplane.clock import Clock
from runcode.controlplane.services.audit_chain import ChainHead, load_head
from runcode.controlplane.services.audit_statements import (
    CHECKPOINT,
    LINE_MAX,
    NO_LINE,
    AuditSigner,
    Statement,
    digest_line,
    parse_line,
    render_now,
)
from runcode.controlplane.store.engine import Store
from runcode.core.errors import RunCodeError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointPolicy:
    """`path` is the file; it may lie on another disk. `to_log`: the log has each of them as well."""

    path: Path
    every_records: int = 1000
    every_s: float = 300.0
    look_every_s: float = 5.0
    to_log: bool = False


@dataclass(frozen=True)
class AuditStanding:
    """For an admin: where the chain stands, what was signed last (unchecked), what is in the way."""

    head: ChainHead
    last: Statement | None
    trouble: str | None


class Checkpointer:
    """Made with the control plane. `trouble` is None, or what an operator has to know, in one line."""

    def __init__(self, store: Store, clock: Clock, signer: AuditSigner, policy: CheckpointPolicy) -> None:
        self._store = store
        self._clock = clock
        self._signer = signer
        self._policy = policy
        self._task: asyncio.Task[None] | None = None
        self._last_written_s = float("-inf")
        self.trouble: str | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="audit-checkpoints")

    async def close(self) -> None:
        """Ends the task, with one last checkpoint."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        await self._try_once(force=True)

    async def checkpoint(self, *, force: bool = True) -> bool:
        """Write one if the chain has grown; returns whether one was written. Raises RunCodeError."""
        async with self._store.read() as session:
            head = await load_head(session)
        due = force or asyncio.get_running_loop().time() - self._last_written_s >= self._policy.every_s
        written = await asyncio.to_thread(self._append, head, due)
        if written:
            self._last_written_s = asyncio.get_running_loop().time()
        return written

    async def load_standing(self) -> AuditStanding:
        """Raises RunCodeError when the database cannot be read."""
        async with self._store.read() as session:
            head = await load_head(session)
        try:
            last = await asyncio.to_thread(find_last_checkpoint, self._policy.path)
        except OSError as error:
            return AuditStanding(head, None, f"{self._policy.path} cannot be read: {error.strerror}")
        return AuditStanding(head, last, self.trouble)

    async def _run(self) -> None:
        await self._try_once(force=True)
        while True:
            await asyncio.sleep(self._policy.look_every_s)
            await self._try_once(force=False)

    async def _try_once(self, *, force: bool) -> None:
        try:
            await self.checkpoint(force=force)
        except RunCodeError as error:
            if self.trouble != error.message:
                _log.error("the audit has no new checkpoint: %s (%s)", error.message, error.resolution)
            self.trouble = error.message
        except Exception:
            _log.exception("the audit has no new checkpoint")
            self.trouble = "checkpoints cannot be written; see the log"
        else:
            if self.trouble is not None:
                _log.warning("the audit's checkpoints are written again")
            self.trouble = None

    def _append(self, head: ChainHead, due: bool) -> bool:
        path = self._policy.path
        try:
            last_line = _read_last_line(path)
            last = find_last_checkpoint(path) if last_line else None
            if last is not None and last.chain_id != head.chain_id:
                raise RunCodeError(
                    "io_error",
                    f"{path} belongs to another database",
                    resolution="move that file away, and keep it; a new one is begun",
                )
            if last is not None and (last.count > head.count or (last.count == head.count and last.hash != head.hash)):
                raise RunCodeError(
                    "io_error",
                    f"the database stands behind its last checkpoint ({head.count} records, {last.count} were signed)",
                    resolution="unless you restored a backup, somebody set it back: run `runcode-server audit verify`",
                )
            grown = head.count - (last.count if last is not None else 0)
            if not grown or not (due or grown >= self._policy.every_records):
                return False
            previous = digest_line(last_line) if last_line else NO_LINE
            statement = self._signer.sign(
                Statement(
                    kind=CHECKPOINT,
                    chain_id=head.chain_id,
                    count=head.count,
                    hash=head.hash,
                    at=render_now(self._clock.now()),
                    previous=previous,
                )
            )
            _append_line(path, statement.render_line(), end_last=bool(last_line) and not last_line.endswith(b"\n"))
        except OSError as error:
            raise RunCodeError(
                "io_error",
                f"{path} cannot be written: {error.strerror}",
                resolution="free space on its disk, or name another file with --audit-checkpoints",
            ) from error
        if self._policy.to_log:
            _log.warning("audit checkpoint %s", statement.render_line().decode().rstrip())
        return True


def find_last_checkpoint(path: Path) -> Statement | None:
    """The last line that is one, without reading all of the file. Its signature is `verify`'s to check."""
    for line in reversed(_read_tail(path).split(b"\n")):
        statement = parse_line(line) if line else None
        if statement is not None:
            return statement
    return None


def _read_tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * LINE_MAX))
            return file.read(4 * LINE_MAX)
    except FileNotFoundError:
        return b""


def _read_last_line(path: Path) -> bytes:
    """With its newline, where it has one; empty for a file that is empty or not there."""
    tail = _read_tail(path)
    return tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :] if tail.strip(b"\n") else b""


def _append_line(path: Path, line: bytes, *, end_last: bool) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        content = (b"\n" if end_last else b"") + line
        if os.write(descriptor, content) != len(content):
            raise OSError(28, "No space left on device")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
