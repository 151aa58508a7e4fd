"""The judge of keys by itself: asyncssh cancels an overtaken request, but the judge must not need that."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import asyncssh
import pytest

from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.lobby import Lobby
from runcode.gateway.refusals import TOO_MANY_STRANGERS, RefusedConnection
from runcode.gateway.ssh_server import ClientCallbacks
from support.gateway_fakes import FakeDirectory, utc_now


class World:
    def __init__(self) -> None:
        self.directory = FakeDirectory()
        self.directory.add_workspace("royal-1", host_key="ssh-ed25519 A", socket_path="/s")
        self.refused: list[RefusedConnection] = []
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.directory.add_session("royal-1", self.key.export_public_key("openssh").decode())
        context = SimpleNamespace(
            directory=self.directory,
            policy=AdmissionPolicy(),
            clock=utc_now,
            watcher=SimpleNamespace(feed_age_s=0.0),
            lobby=Lobby(places=1, places_per_source=1),
            refusals=SimpleNamespace(note=self.refused.append),
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
    # Both set out in one turn of the loop, before any timer can end.
    first = asyncio.create_task(world.ask(True))
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


async def test_a_refusal_says_whose_session_it_was_only_at_its_own_workspace(world: World) -> None:
    other = world.directory.add_workspace("other-1", host_key="ssh-ed25519 B", socket_path="/t")
    assert not await world.ask(True, user="other-1")
    world.judge.connection_lost(None)
    (found,) = world.refused
    assert found.reason == "the key is registered for another workspace"
    assert (found.workspace_id, found.session_id, found.user_id) == (other.workspace_id, None, None)


async def test_a_connection_with_a_good_key_was_not_refused(world: World) -> None:
    assert not await world.ask(None, user="other-1")
    assert await world.ask(True)
    world.judge._connection = SimpleNamespace(ended=lambda: None)  # type: ignore[assignment]
    world.judge.connection_lost(None)
    assert world.refused == []


async def test_who_finds_no_place_at_the_door_is_counted(world: World) -> None:
    assert world.judge.admit_socket("192.0.2.1")
    assert not ClientCallbacks(world.judge._context).admit_socket("192.0.2.1")
    assert world.refused == [RefusedConnection("192.0.2.1", TOO_MANY_STRANGERS)]
