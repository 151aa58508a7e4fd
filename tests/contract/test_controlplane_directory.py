"""The control plane behind the gateway's port: the same contract that the gateway's own fake passes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.reconciler import Reconciler
from runcode.controlplane.services.client_certificates import DiskAuthority
from runcode.controlplane.services.tokens import TokenBounds
from runcode.controlplane.store.location import Location
from runcode.controlplane.store.models import WorkspaceRow
from runcode.core.channel_policy import EVERYTHING, ChannelPolicy
from runcode.core.errors import RunCodeError
from runcode.gateway.directory import AdmissionFacts, ChangeBatch, SessionFacts, WorkspaceFacts
from runcode.runtimes.base import TcpEndpoint, UnixEndpoint
from runcode.server.remote_directory import ControlPlaneClient, RemoteDirectory
from support.controlplane_fakes import FakeRuntime, make_reconciler, open_plane, set_endpoint, until
from support.front import open_door
from support.gateway_directory_contract import DirectoryContract, find_batch, new_key

OWNER = "ann@example.org"


class Adapter:
    """What the composition root does, in small."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def load_admission_facts(self, title: str, key_fingerprint: str) -> AdmissionFacts:
        facts = await self._plane.admission.load_admission_facts(title, key_fingerprint)
        found, box = facts.session, facts.workspace
        return AdmissionFacts(
            policy=facts.policy,
            client_authorities=await self._plane.client_certificates.load_authorities(),
            session=None if found is None else SessionFacts(**vars(found)),
            workspace=None
            if box is None
            else WorkspaceFacts(
                workspace_id=box.workspace_id,
                title=box.title,
                running=box.running,
                principal=box.principal,
                host_key=box.host_key,
                socket_path=box.endpoint.socket_path if isinstance(box.endpoint, UnixEndpoint) else None,
                address=(box.endpoint.host, box.endpoint.port) if isinstance(box.endpoint, TcpEndpoint) else None,
            ),
        )

    async def sign_workspace_certificate(self, *, session_id: int, workspace_id: int, public_key: str) -> str:
        return await self._plane.certificates.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=public_key
        )

    async def watch_changes(self) -> AsyncIterator[ChangeBatch]:
        async for batch in self._plane.changes.watch():
            yield ChangeBatch(**vars(batch))


class World:
    def __init__(self, plane: ControlPlane, reconciler: Reconciler) -> None:
        self._plane = plane
        self._reconciler = reconciler
        self.directory = Adapter(plane)
        self.ca_line = plane.certificates.workspace_ca_line

    async def add_running_workspace(self, title: str) -> int:
        workspace = await self._plane.workspaces.create_workspace(title, OWNER, runtime="fake")
        await self._plane.workspaces.request_start(title)

        async def up() -> bool:
            return (await self._plane.workspaces.load_workspace(title)).running

        await until(up)
        return workspace.id

    async def add_session(self, title: str, public_line: str, *, ttl_s: float) -> int:
        token = await self._plane.tokens.create_token(OWNER, "laptop")
        caller = await self._plane.tokens.authenticate(token.plaintext)
        workspace = await self._plane.workspaces.load_workspace(title)
        grant = await self._plane.sessions.register_session(
            caller, workspace.id, raw_public_key=public_line, raw_ttl=int(ttl_s)
        )
        return grant.session.id

    async def withdraw_session(self, session_id: int) -> None:
        await self._plane.sessions.revoke_session(session_id)

    async def stop_workspace(self, title: str) -> None:
        await self._plane.workspaces.request_stop(title)


@pytest.fixture
async def world(tmp_path: Path, location: Location) -> AsyncIterator[World]:
    async with open_plane(tmp_path, database=location) as plane:
        set_endpoint(plane)
        await plane.users.create_user(OWNER)
        reconciler = make_reconciler(plane, FakeRuntime())
        await reconciler.start()
        yield World(plane, reconciler)
        await reconciler.close()


class PlaneContract(DirectoryContract):
    """What every way to a control plane owes beyond the port's contract."""

    async def test_the_policy_is_what_workspace_and_token_both_allow(self, world: World) -> None:
        plane = world._plane
        workspace_id = await world.add_running_workspace("alpha-8")
        line, fingerprint = new_key()
        bounds = TokenBounds(policy=ChannelPolicy(agent=False, sessions=4))
        token = await plane.tokens.create_token(OWNER, "narrow", bounds=bounds)
        caller = await plane.tokens.authenticate(token.plaintext)
        session_id = (await plane.sessions.register_session(caller, workspace_id, raw_public_key=line)).session.id

        async def policy(key: str = fingerprint) -> ChannelPolicy:
            return (await world.directory.load_admission_facts("alpha-8", key)).policy

        assert await policy() == bounds.policy
        assert await policy(new_key()[1]) == EVERYTHING
        feed = world.directory.watch_changes()
        assert (await anext(feed)).everything
        changed = await plane.workspaces.update_workspace("alpha-8", policy={"x11": False, "sessions": 9})
        assert changed.policy == ChannelPolicy(x11=False, sessions=9)
        await find_batch(feed, lambda batch: workspace_id in batch.workspace_ids)
        await feed.aclose()  # type: ignore[attr-defined]
        assert await policy() == ChannelPolicy(agent=False, x11=False, sessions=4)
        # What is said is laid over what is there; null is everything again.
        await plane.workspaces.update_workspace("alpha-8", policy={"sessions": None, "destinations": "loopback"})
        assert await policy() == ChannelPolicy(agent=False, x11=False, sessions=4, destinations="loopback")
        await plane.workspaces.update_workspace("alpha-8", policy=None)
        assert await policy() == bounds.policy
        for bad in ({"sessions": 0}, {"other": True}, {"direct": "no"}, [], "off"):
            with pytest.raises(RunCodeError) as raised:
                await plane.workspaces.update_workspace("alpha-8", policy=bad)
            assert raised.value.code == "bad_request"
        # A session is of no use to anybody whose stored policy cannot be read but for shells.
        async with plane.store.write() as session:
            row = await session.get(WorkspaceRow, workspace_id)
            assert row is not None
            row.policy = {"direct": "yes"}
        assert (await policy()).covers(ChannelPolicy(agent=False)) is False
        assert session_id > 0

    async def test_client_authorities_are_told(self, world: World) -> None:
        plane = world._plane
        older, fingerprint = new_key()
        assert (await world.directory.load_admission_facts("alpha-7", fingerprint)).client_authorities == frozenset()
        plane.client_certificates.use(DiskAuthority(plane.certificates.client_ca), trusted=(older,))
        facts = await world.directory.load_admission_facts("alpha-7", fingerprint)
        assert facts.client_authorities == {older, plane.certificates.client_ca.public_line}


class TestControlPlaneDirectory(PlaneContract):
    async def test_a_change_of_another_process_is_told_within_a_heartbeat_or_two(self, world: World) -> None:
        line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh"
        await world.add_running_workspace("alpha-9")
        session_id = await world.add_session("alpha-9", line, ttl_s=60)
        feed = world.directory.watch_changes()
        assert (await anext(feed)).everything
        script = (
            "import asyncio, sys\nfrom pathlib import Path\n"
            "from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings\n"
            "async def main():\n"
            "    database = Path(sys.argv[1])\n"
            "    if sys.argv[1].startswith('postgresql:'):\n"
            "        from runcode.controlplane.store.location import parse_database_url\n"
            "        database = parse_database_url(sys.argv[1])\n"
            "    plane = await ControlPlane.open(ControlPlaneSettings(database, Path(sys.argv[2])))\n"
            "    await plane.sessions.revoke_session(int(sys.argv[3]))\n"
            "    await plane.close()\n"
            "asyncio.run(main())\n"
        )
        settings = world._plane.settings
        database = getattr(settings.database, "conninfo", str(settings.database))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", script, database), *(str(settings.keys_folder), str(session_id))
        )
        async with asyncio.timeout(20):
            while session_id not in (batch := await anext(feed)).session_ids:
                assert not batch.everything
        assert await process.wait() == 0
        await feed.aclose()  # type: ignore[attr-defined]


class TestRemoteDirectory(PlaneContract):
    """The same over the internal API, through the real listener."""

    @pytest.fixture
    async def world(self, tmp_path: Path, location: Location) -> AsyncIterator[World]:
        async with open_plane(tmp_path, database=location) as plane:
            set_endpoint(plane)
            await plane.users.create_user(OWNER)
            reconciler = make_reconciler(plane, FakeRuntime())
            await reconciler.start()
            made = await plane.gateways.create_gateway("edge-1")
            async with open_door(plane) as door:
                client = ControlPlaneClient(f"http://127.0.0.1:{door.port}", made.credential)
                world = World(plane, reconciler)
                world.directory = RemoteDirectory(client)  # type: ignore[assignment]
                yield world
                await client.close()
                plane.gateways.closing = True
            await reconciler.close()
