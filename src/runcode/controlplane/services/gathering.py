"""Calls that come while a transaction runs share the next one.

Owns: the queue before a transaction that serves many (group commit), and who gets
which answer. Called by `sessions` (mints) and `tokens` (who calls).

Threat: one caller's question, failure or hang-up becomes another's; one caller
with many questions keeps the others waiting, or fills the memory.
Guarantee: rounds take questions in the order in which they came, so nobody waits
for a later one. A question begins to be answered only after it was asked: a round
never looks at the database as it was before. A refusal is its asker's alone; a round
that fails for a reason of its own is asked again one by one, unless the database as
a whole cannot answer. Whoever hangs up before the round is left out of it; a round
that has begun runs to its end. At most `waiting_max` wait; the next gets `busy`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from runcode.core.errors import RunCodeError

_Question = TypeVar("_Question")
_Answer = TypeVar("_Answer")

# The database as a whole: asking again, one by one, would only take as many times as long.
_FOR_ALL = frozenset(("busy", "io_error", "unavailable", "not_ready"))


class Gathering(Generic[_Question, _Answer]):
    """`answer_round` gives an answer for each question, in order; a RunCodeError among them is that asker's refusal.

    When there is a crowd, up to `pause_s` lie between two rounds: less, if it is back sooner.
    """

    def __init__(
        self,
        answer_round: Callable[[Sequence[_Question]], Awaitable[Sequence[_Answer | RunCodeError]]],
        *,
        round_max: int,
        waiting_max: int,
        pause_s: float = 0.0,
    ) -> None:
        self._answer_round = answer_round
        self._round_max = round_max
        self._waiting_max = waiting_max
        self._pause_s = pause_s
        self._waiting: deque[tuple[_Question, asyncio.Future[_Answer]]] = deque()
        self._rounds: asyncio.Task[None] | None = None
        # Done when as many wait as were answered last; only during the pause.
        self._crowd = 0
        self._crowded: asyncio.Future[None] | None = None

    async def ask(self, question: _Question) -> _Answer:
        """Raises what the round refuses it with, or `busy` when too many wait."""
        if len(self._waiting) >= self._waiting_max:
            raise RunCodeError("busy", "too many calls wait for the database", resolution="retry in a moment")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Answer] = loop.create_future()
        self._waiting.append((question, future))
        if self._crowded is not None and len(self._waiting) >= self._crowd and not self._crowded.done():
            self._crowded.set_result(None)
        if self._rounds is None:
            # A context of its own: a round is no part of the call that happens to begin it.
            self._rounds = loop.create_task(self._run_rounds(), context=contextvars.Context())
        return await future

    async def finish(self) -> None:
        """Wait until whoever asked so far is answered."""
        while self._rounds is not None:
            await asyncio.wait([self._rounds])

    async def _run_rounds(self) -> None:
        try:
            while self._waiting:
                taken: list[tuple[_Question, asyncio.Future[_Answer]]] = []
                while self._waiting and len(taken) < self._round_max:
                    pair = self._waiting.popleft()
                    if not pair[1].done():
                        taken.append(pair)
                if taken:
                    await self._run_round(taken)
                if len(taken) > 1 and self._pause_s:
                    # Whoever was answered together comes again together: one large round, not two halves for ever.
                    await self._pause(len(taken))
        finally:
            self._rounds = None
            # Only when this task was cancelled, which is the end of the event loop.
            for _, future in self._waiting:
                future.cancel()

    async def _pause(self, crowd: int) -> None:
        """Until as many wait as were answered, at most `pause_s`."""
        if len(self._waiting) < crowd:
            self._crowd = crowd
            self._crowded = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._crowded], timeout=self._pause_s)
            self._crowded = None

    async def _run_round(self, taken: list[tuple[_Question, asyncio.Future[_Answer]]]) -> None:
        try:
            answers = await self._answer_round([question for question, _ in taken])
            assert len(answers) == len(taken)
        except Exception as error:
            if len(taken) > 1 and not (isinstance(error, RunCodeError) and error.code in _FOR_ALL):
                for pair in taken:
                    await self._run_round([pair])
                return
            for _, future in taken:
                _settle(future, _copy(error))
            return
        except BaseException:
            for _, future in taken:
                future.cancel()
            raise
        for (_, future), answer in zip(taken, answers, strict=True):
            _settle(future, answer)


def _settle(future: asyncio.Future[_Answer], answer: _Answer | Exception) -> None:
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _copy(error: Exception) -> Exception:
    """One for each asker: an exception that is raised in many tasks collects all their frames."""
    if type(error) is not RunCodeError:
        return error
    copy = RunCodeError(error.code, error.message, resolution=error.resolution)
    copy.__cause__ = error.__cause__
    return copy
