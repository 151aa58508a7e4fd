"""The judge of keys by itself: asyncssh cancels an overtaken request, but the judge must not need that."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import asyncssh
import pytest

from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.lobby import Lobby
from runcode.gateway.ssh_server import ClientCallbacks
from support.gateway_fakes import FakeDirectory, utc_now


class World:
    def __init__(self) -> None:
        self.directory = FakeDirectory()
        self.directory.add_workspace("royal-1", host_key="ssh-ed25519 A", socket_path="/s")
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.directory.add_session("royal-1", self.key.export_public_key("openssh").decode())
        context = SimpleNamespace(
            directory=self.directory,
            policy=AdmissionPolicy(),
            clock=utc_now,
            watcher=SimpleNamespace(feed_age_s=0.0),
            lobby=Lobby(places=1, places_per_source=1),
        )
        self.judge = ClientCallbacks(context)  # type: ignore[arg-type]

    async def ask(self, proved: bool | None, *, user: str = "royal-1") -> bool:
        return await self.judge.judge_key(user, self.key.public_data, proved)


@pytest.fixture
def world() -> World:
    return World()


async def test_an_offer_is_welcome_but_admits_nobody(world: World) -> None:
    assert await world.ask(None)
    assert world.judge._admitted is None


async def test_a_false_signature_takes_the_same_look_up_and_admits_nobody(world: World) -> None:
    assert not await world.ask(False)
    assert world.judge._admitted is None
    assert len(world.directory.asked) == 1


async def test_a_request_that_was_overtaken_admits_nobody(world: World) -> None:
    world.directory.delay_s = 0.02
    first = asyncio.create_task(world.ask(True))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(world.ask(None))
    assert not await first
    assert await second
    assert world.judge._admitted is None


async def test_a_later_refusal_takes_an_admission_back(world: World) -> None:
    assert await world.ask(True)
    assert world.judge._admitted is not None
    assert not await world.ask(True, user="other-1")
    assert world.judge._admitted is None


async def test_an_authentication_without_an_admission_is_cut(world: World) -> None:
    cuts: list[str] = []
    world.judge._leg = SimpleNamespace(cut=cuts.append, get_extra_info=lambda _name: "royal-1")  # type: ignore[assignment]
    world.judge.auth_completed()
    assert cuts == ["authentication failed"]
