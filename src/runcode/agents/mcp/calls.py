"""Workers: one process for each tool call, waited for without ever holding up the protocol.

Owns: starting a worker, reading its one answer, and its end. Called by `server`.

Threat: a worker hangs, dies, or answers without end; a client cancels, or is killed,
in the middle of a call.

Guarantee: every call ends, by an answer, by its patience or by a cancellation; when it
ends early the worker gets TERM, with time to end what it started on the box, and KILL
after that. Workers are in sessions of their own: whoever kills the server's process
group does not kill them before they have cleaned up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import anyio
import anyio.abc

from runcode.agents.mcp import worker
from runcode.agents.mcp.worker import describe
from runcode.core.errors import RunCodeError

PARALLEL_MAX = 32
# TERM there, 2 s, KILL there, and hanging up: see client.interrupts.
_GRACE_S = 8.0
_ANSWER_MAX = 16 * 1024 * 1024
_HARD = signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM
_WORKER = os.path.abspath(worker.__file__)


class Calls:
    """Every worker of one server."""

    def __init__(self) -> None:
        self._room = anyio.CapacityLimiter(PARALLEL_MAX)
        self._running: set[anyio.CancelScope] = set()
        self._rest = anyio.Event()

    async def perform(self, request: dict[str, Any], *, patience_s: float) -> dict[str, Any]:
        """The worker's answer: `{"result": …}`, or a failure. Never raises RunCodeError."""
        with anyio.CancelScope() as scope:
            self._running.add(scope)
            try:
                return await self._perform(request, patience_s)
            finally:
                self._running.discard(scope)
                if not self._running:
                    self._rest.set()
        return describe(RunCodeError("connection_lost", "the server is being ended"))

    async def end_all(self) -> None:
        """Cancel what runs, and return when nothing does any more."""
        while self._running:
            self._rest = anyio.Event()
            for scope in self._running:
                scope.cancel()
            await self._rest.wait()

    async def _perform(self, request: dict[str, Any], patience_s: float) -> dict[str, Any]:
        async with self._room:
            process = await anyio.open_process(
                [sys.executable, "-I", "-S", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None,
                start_new_session=True,
            )
            try:
                with anyio.move_on_after(patience_s):
                    answer = await _converse(process, request)
                    # One that has answered goes by itself.
                    with anyio.move_on_after(_GRACE_S):
                        await process.wait()
                    return answer
                return describe(
                    RunCodeError(
                        "timed_out",
                        f"no answer in {patience_s:.0f} s; it was ended",
                        resolution="look at its effects first",
                    )
                )
            finally:
                with anyio.CancelScope(shield=True):
                    await _end(process)


async def _converse(process: anyio.abc.Process, request: dict[str, Any]) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    answer = bytearray()
    try:
        await process.stdin.send(json.dumps(request).encode() + b"\n")
        while not answer.endswith(b"\n"):
            answer += await process.stdout.receive()
            if len(answer) > _ANSWER_MAX:
                break
        parsed = json.loads(answer)
    except (anyio.EndOfStream, anyio.BrokenResourceError, ValueError):
        parsed = None
    if not isinstance(parsed, dict):
        return describe(
            RunCodeError(
                "connection_lost", "the call ended without an answer", resolution="it may have run: look at its effects"
            )
        )
    return parsed


async def _end(process: anyio.abc.Process) -> None:
    """See that it is gone."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (_HARD, None)):
        if process.returncode is not None:
            break
        try:
            # Not `process.terminate`: that reaps by itself, and asyncio's watcher then reports a stranger (3.11).
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass
        with anyio.move_on_after(patience_s):
            await process.wait()
    await process.aclose()
