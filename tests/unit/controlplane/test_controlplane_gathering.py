"""Calls that share a round: order, isolation, hang-ups, bounds. No database: rounds are what the test says."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence

import pytest

from runcode.controlplane.services.gathering import Gathering
from runcode.core.errors import RunCodeError

_Round = Callable[[Sequence[str]], Awaitable[Sequence[str | RunCodeError]]]


class Rounds:
    """Answers with upper case; `gate` holds every round back until the test opens it."""

    def __init__(self, *, round_max: int = 10, waiting_max: int = 100, pause_s: float = 0.0) -> None:
        self.seen: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail: dict[str, Exception] = {}
        self.gathering: Gathering[str, str] = Gathering(
            self._answer, round_max=round_max, waiting_max=waiting_max, pause_s=pause_s
        )

    async def _answer(self, questions: Sequence[str]) -> list[str | RunCodeError]:
        self.seen.append(list(questions))
        await self.gate.wait()
        for question in questions:
            if question in self.fail:
                raise self.fail[question]
        return [
            RunCodeError("not_found", question) if question.startswith("no") else question.upper()
            for question in questions
        ]

    def ask(self, *questions: str) -> list[asyncio.Task[str]]:
        return [asyncio.ensure_future(self.gathering.ask(question)) for question in questions]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_that_come_meanwhile_make_the_next_round_in_their_order() -> None:
    rounds = Rounds(round_max=3)
    rounds.gate.clear()
    first = rounds.ask("a")
    await settle()
    rest = rounds.ask("b", "c", "d", "e")
    await settle()
    assert rounds.seen == [["a"]]
    rounds.gate.set()
    assert await asyncio.gather(*first, *rest) == ["A", "B", "C", "D", "E"]
    assert rounds.seen == [["a"], ["b", "c", "d"], ["e"]]


async def test_a_question_is_never_answered_by_a_round_that_began_before_it() -> None:
    rounds = Rounds()
    rounds.gate.clear()
    early = rounds.ask("same")
    await settle()
    late = rounds.ask("same")
    await settle()
    rounds.gate.set()
    await asyncio.gather(*early, *late)
    assert rounds.seen == [["same"], ["same"]]


async def test_a_refusal_is_its_askers_alone() -> None:
    rounds = Rounds()
    answers = await asyncio.gather(*rounds.ask("a", "no", "b"), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["A", "no", "B"]
    assert isinstance(answers[1], RunCodeError)
    assert len(rounds.seen) == 1


@pytest.mark.parametrize("error", [ValueError("poison"), RunCodeError("internal", "the database refused a statement")])
async def test_one_that_breaks_its_round_breaks_it_for_itself_alone(error: Exception) -> None:
    rounds = Rounds()
    rounds.fail["poison"] = error
    answers = await asyncio.gather(*rounds.ask("a", "poison", "b"), return_exceptions=True)
    assert (answers[0], answers[2]) == ("A", "B")
    assert str(answers[1]) == str(error)
    assert rounds.seen == [["a", "poison", "b"], ["a"], ["poison"], ["b"]]


async def test_a_database_that_cannot_answer_is_asked_once_for_all_and_each_gets_an_error_of_its_own() -> None:
    rounds = Rounds()
    rounds.fail["b"] = RunCodeError("busy", "held by another process")
    answers = await asyncio.gather(*rounds.ask("a", "b", "c"), return_exceptions=True)
    assert [getattr(answer, "code", None) for answer in answers] == ["busy"] * 3
    assert len({id(answer) for answer in answers}) == 3
    assert len(rounds.seen) == 1
    del rounds.fail["b"]
    assert await asyncio.gather(*rounds.ask("d")) == ["D"]


async def test_who_hangs_up_before_the_round_is_left_out_and_within_it_changes_nothing_for_others() -> None:
    rounds = Rounds()
    rounds.gate.clear()
    running = rounds.ask("a", "b")
    await settle()
    waiting = rounds.ask("c", "d")
    await settle()
    running[0].cancel()
    waiting[0].cancel()
    await settle()
    rounds.gate.set()
    answers = await asyncio.gather(*running, *waiting, return_exceptions=True)
    assert [answers[1], answers[3]] == ["B", "D"]
    assert all(isinstance(answers[index], asyncio.CancelledError) for index in (0, 2))
    assert rounds.seen == [["a", "b"], ["d"]]


async def test_who_waits_beyond_the_bound_is_told_at_once_and_there_is_room_again_afterwards() -> None:
    rounds = Rounds(waiting_max=2)
    rounds.gate.clear()
    running = rounds.ask("a")
    await settle()
    waiting = rounds.ask("b", "c")
    await settle()
    with pytest.raises(RunCodeError) as refused:
        async with asyncio.timeout(10):
            await rounds.gathering.ask("d")
    assert refused.value.code == "busy"
    rounds.gate.set()
    assert await asyncio.gather(*running, *waiting, *rounds.ask("e")) == ["A", "B", "C", "E"]


async def test_a_round_belongs_to_none_of_its_askers() -> None:
    name = contextvars.ContextVar("name", default="nobody")
    heard: list[str] = []

    async def answer(questions: Sequence[str]) -> list[str]:
        heard.append(name.get())
        return list(questions)

    gathering: Gathering[str, str] = Gathering(answer, round_max=10, waiting_max=10)
    name.set("ann")
    await gathering.ask("a")
    assert heard == ["nobody"]


async def test_finishing_waits_for_whoever_asked() -> None:
    rounds = Rounds(round_max=1, pause_s=0.0)
    rounds.gate.clear()
    asked = rounds.ask("a", "b", "c")
    await settle()
    rounds.gate.set()
    await rounds.gathering.finish()
    assert [task.done() or await task for task in asked] == [True, True, True]
    await rounds.gathering.finish()


async def test_a_pause_ends_when_as_many_are_back_as_were_answered() -> None:
    rounds = Rounds(pause_s=3600)
    assert await asyncio.gather(*rounds.ask("a", "b")) == ["A", "B"]
    early = rounds.ask("c")
    await settle()
    assert rounds.seen == [["a", "b"]]
    assert await asyncio.gather(*early, *rounds.ask("d")) == ["C", "D"]
    assert rounds.seen == [["a", "b"], ["c", "d"]]


async def test_a_pause_is_bounded_for_the_one_who_comes_alone() -> None:
    rounds = Rounds(pause_s=0.001)
    await asyncio.gather(*rounds.ask("a", "b"))
    assert await asyncio.gather(*rounds.ask("c")) == ["C"]
    assert rounds.seen == [["a", "b"], ["c"]]
