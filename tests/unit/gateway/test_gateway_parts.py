"""The small parts: reader, registry, lobby, bridge, watcher, self-check. No sockets."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import asyncssh
import pytest
from asyncssh.connection import SSHConnection

from runcode.core.errors import RunCodeError
from runcode.gateway import asyncssh_check, watcher
from runcode.gateway.admission import AdmissionPolicy, Offer, Route
from runcode.gateway.bridge import Bridge
from runcode.gateway.directory import ChangeBatch
from runcode.gateway.lobby import Lobby
from runcode.gateway.packets import MalformedPacket, Reader, render_string
from runcode.gateway.registry import ConnectionRegistry
from runcode.gateway.relay import Leg, RelayLimits
from support.gateway_fakes import FakeDirectory

KEEPALIVE = b"\x50" + render_string(b"keepalive@openssh.com") + b"\0"


class TestReader:
    def test_fields_in_order(self) -> None:
        reader = Reader(b"\x00" + render_string(b"abc") + b"\x00\x00\x00\x07\x02")
        assert (reader.string(), reader.uint32(), reader.boolean()) == (b"abc", 7, True)

    @pytest.mark.parametrize("payload", [b"\x00", b"\x00\x00\x00", b"\x00\x00\x00\x00\x02a", b"\x00\xff\xff\xff\xff"])
    def test_past_the_end(self, payload: bytes) -> None:
        with pytest.raises(MalformedPacket):
            Reader(payload).string()


@dataclass(eq=False)
class FakeLive:
    offer: Offer
    route: Route
    cuts: list[str] = field(default_factory=list)
    carried: tuple[int, int] = (0, 0)

    def cut(self, reason: str) -> None:
        self.cuts.append(reason)

    def finish(self, reason: str) -> None:
        raise AssertionError("nothing here finishes")


def make_directory() -> tuple[FakeDirectory, list[FakeLive]]:
    """Two workspaces, three users' connections: a/1, a/2, b/1."""
    directory = FakeDirectory()
    lives = []
    for title in ("a", "b"):
        directory.add_workspace(title, host_key="ssh-ed25519 A", socket_path="/s")
    for title, user_id in (("a", 1), ("a", 2), ("b", 1)):
        key = asyncssh.generate_private_key("ssh-ed25519")
        session = directory.add_session(title, key.export_public_key("openssh").decode(), user_id=user_id)
        offer = Offer(title, key.get_fingerprint(), "127.0.0.1")
        lives.append(FakeLive(offer, Route(session, directory.workspaces[title])))
    return directory, lives


class TestRegistry:
    def test_finds_by_workspace_session_and_user(self) -> None:
        _, (a1, a2, b1) = make_directory()
        registry = ConnectionRegistry()
        for live in (a1, a2, b1):
            registry.enter(live)
        workspace, session = a1.route.workspace.workspace_id, a2.route.session.session_id

        def touched(**named: object) -> set[object]:
            return set(registry.find_touched(ChangeBatch(cursor=1, **named)))  # type: ignore[arg-type]

        assert touched() == set()
        assert touched(workspace_ids=frozenset({workspace})) == {a1, a2}
        assert touched(session_ids=frozenset({session})) == {a2}
        assert touched(user_ids=frozenset({1})) == {a1, b1}
        assert touched(user_ids=frozenset({2}), session_ids=frozenset({999})) == {a2}
        assert touched(everything=True) == {a1, a2, b1}
        registry.leave(a1)
        registry.leave(a1)
        assert touched(user_ids=frozenset({1})) == {b1}
        assert len(registry) == 2

    def test_forgets_all_names(self) -> None:
        _, lives = make_directory()
        registry = ConnectionRegistry()
        for live in lives:
            registry.enter(live)
        for live in lives:
            registry.leave(live)
        assert registry._by_name == {}


class TestLobby:
    def test_places_in_all_and_by_source(self) -> None:
        lobby = Lobby(places=3, places_per_source=2)
        assert [lobby.enter(source) for source in ("a", "a", "a", "b", "c")] == [True, True, False, True, False]
        lobby.leave("a")
        assert lobby.enter("c")
        for source in ("a", "b", "c"):
            lobby.leave(source)
        assert len(lobby) == 0
        assert lobby._waiting == {}

    def test_one_network_of_ipv6_is_one_source(self) -> None:
        lobby = Lobby(places=9, places_per_source=2)
        near = ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", "2001:db8:0:1::2%eth0")
        assert [lobby.enter(source) for source in near] == [True, True, False]
        assert lobby.enter("2001:db8:0:2::1")
        assert [lobby.enter(source) for source in ("::ffff:192.0.2.1", "192.0.2.1", "192.0.2.1")] == [True, True, False]
        assert lobby.enter("192.0.2.2")
        for source in (*near[1:], "2001:db8:0:2::9", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"):
            lobby.leave(source)
        assert lobby._waiting == {}


class FakeLeg:
    def __init__(self, side: Leg) -> None:
        self.side = side
        self.sent: list[bytes] = []
        self.ends: list[tuple[str, str]] = []

    def deliver(self, payload: bytes) -> None:
        self.sent.append(payload)

    def finish(self, reason: str) -> None:
        self.ends.append(("finish", reason))

    def cut(self, reason: str) -> None:
        self.ends.append(("cut", reason))


class TestBridge:
    def make(self) -> tuple[Bridge, FakeLeg, FakeLeg]:
        client, box = FakeLeg(Leg.CLIENT), FakeLeg(Leg.BOX)
        return Bridge(client, "t/1", limits=RelayLimits(), max_early_bytes=1000), client, box

    def test_early_packets_arrive_in_order_once_joined(self) -> None:
        bridge, client, box = self.make()
        bridge.received(Leg.CLIENT, KEEPALIVE + b"1")
        bridge.received(Leg.CLIENT, KEEPALIVE + b"2")
        bridge.join(box)
        bridge.received(Leg.CLIENT, KEEPALIVE + b"3")
        assert box.sent == [KEEPALIVE + n for n in (b"1", b"2", b"3")]
        assert client.ends == []

    @pytest.mark.parametrize("payload", [b"\x5e" + bytes(900), b"\x50"])
    def test_early_packets_are_bounded_also_when_tiny(self, payload: bytes) -> None:
        bridge, client, _ = self.make()
        for _ in range(10):
            bridge.received(Leg.CLIENT, payload)
        assert client.ends[0][0] == "cut"
        assert bridge.over

    def test_data_passes_untouched(self) -> None:
        bridge, client, box = self.make()
        bridge.join(box)
        for number in (93, 94, 95):
            payload = bytes([number]) + b"whatever"
            bridge.received(Leg.CLIENT, payload)
            bridge.received(Leg.BOX, payload)
            assert box.sent[-1] is client.sent[-1] is payload

    def test_when_one_leg_ends_the_other_finishes_and_hears_our_words_only(self) -> None:
        bridge, client, box = self.make()
        bridge.join(box)
        bridge.leg_ended(Leg.BOX, "\x1b[31mgive me your password")
        bridge.leg_ended(Leg.CLIENT, "")
        assert client.ends == [("finish", "the workspace closed the connection")]
        bridge.received(Leg.CLIENT, KEEPALIVE)
        assert box.sent == []

    def test_a_violation_cuts_both(self) -> None:
        bridge, client, box = self.make()
        bridge.join(box)
        bridge.received(Leg.BOX, b"\x51")
        assert client.ends[0][0] == box.ends[0][0] == "cut"


class TestWatcher:
    @pytest.fixture
    async def watched(self) -> AsyncIterator[tuple[FakeDirectory, list[FakeLive], ConnectionRegistry]]:
        directory, lives = make_directory()
        registry = ConnectionRegistry()
        for live in lives:
            registry.enter(live)
        running = watcher.ChangeWatcher(directory, registry, AdmissionPolicy())
        assert running.feed_age_s == float("inf")
        await running.start()
        assert running.feed_age_s < 1
        yield directory, lives, registry
        await running.close()

    async def settle(self, directory: FakeDirectory, looks: int) -> None:
        async with asyncio.timeout(5):
            while len(directory.asked) < looks:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)

    async def test_only_the_touched_are_looked_at_and_only_the_refused_cut(self, watched: tuple) -> None:  # type: ignore[type-arg]
        directory, (a1, a2, b1), _ = watched
        fingerprint = a1.offer.key_fingerprint
        directory.sessions[fingerprint] = replace(directory.sessions[fingerprint], withdrawn=True)
        directory.tell(workspace_ids=frozenset({a1.route.workspace.workspace_id}))
        await self.settle(directory, 2)
        assert (len(a1.cuts), a2.cuts, b1.cuts) == (1, [], [])

    async def test_expiry_cuts_nobody(self, watched: tuple) -> None:  # type: ignore[type-arg]
        directory, lives, _ = watched
        long_ago = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
        for fingerprint, facts in directory.sessions.items():
            directory.sessions[fingerprint] = replace(facts, expires_at=long_ago)
        directory.tell(everything=True)
        await self.settle(directory, 3)
        assert [live.cuts for live in lives] == [[], [], []]

    async def test_a_named_connection_whose_facts_cannot_be_had_is_cut(
        self,
        watched: tuple,  # type: ignore[type-arg]
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(watcher, "_PATIENCE_S", 0.1)
        monkeypatch.setattr(watcher, "_RETRY_S", 0.02)
        directory, (a1, a2, _b1), _ = watched
        directory.lookups = False
        directory.tell(session_ids=frozenset({a1.route.session.session_id}))
        async with asyncio.timeout(5):
            while not a1.cuts:
                await asyncio.sleep(0.01)
        assert a2.cuts == []

    async def test_an_outage_cuts_nobody_but_is_made_up_for(
        self,
        watched: tuple,  # type: ignore[type-arg]
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(watcher, "_PATIENCE_S", 0.1)
        monkeypatch.setattr(watcher, "_RETRY_S", 0.02)
        directory, (a1, a2, _b1), _ = watched
        directory.lookups = False
        directory.tell(everything=True)
        await self.settle(directory, 30)
        assert a1.cuts == a2.cuts == []
        del directory.sessions[a1.offer.key_fingerprint]
        directory.lookups = True
        async with asyncio.timeout(5):
            while not a1.cuts:
                await asyncio.sleep(0.01)
        assert a2.cuts == []

    async def test_after_a_broken_feed_everybody_is_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(watcher, "_RETRY_S", 0.02)
        directory, lives = make_directory()
        registry = ConnectionRegistry()
        for live in lives:
            registry.enter(live)
        whole = directory.watch_changes

        async def breaks_once() -> AsyncIterator[ChangeBatch]:
            directory.watch_changes = whole  # type: ignore[method-assign]
            yield ChangeBatch(cursor=1)
            del directory.sessions[lives[0].offer.key_fingerprint]  # its batch is lost
            raise ConnectionError("the stream broke")

        directory.watch_changes = breaks_once  # type: ignore[method-assign]
        running = watcher.ChangeWatcher(directory, registry, AdmissionPolicy())
        await running.start()
        await self.settle(directory, 3)
        assert [len(live.cuts) for live in lives] == [1, 0, 0]
        await running.close()


class TestKnownAsyncssh:
    def test_the_installed_one_is_known(self) -> None:
        assert asyncssh_check.find_breakage() == []
        asyncssh_check.require_known_asyncssh()

    def test_another_version_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asyncssh, "__version__", "9.9.9")
        with pytest.raises(RunCodeError, match=r"version 9\.9\.9") as raised:
            asyncssh_check.require_known_asyncssh()
        assert "2.24.1" in raised.value.resolution

    def test_a_changed_method_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SSHConnection, "send_packet", lambda self, kind, payload: None)
        monkeypatch.delattr(SSHConnection, "_send_deferred_packets")
        assert asyncssh_check.find_breakage() == [
            "SSHConnection._send_deferred_packets",
            "SSHConnection.send_packet",
        ]

    def test_a_lost_attribute_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(asyncssh_check, "_ATTRIBUTES", ("_transport", "_gone_in_3_0"))
        assert asyncssh_check.find_breakage() == ["SSHConnection._gone_in_3_0"]
