"""The Directory port's contract, as a suite: subclass it with a `world` fixture.

    class TestMyDirectory(DirectoryContract):
        @pytest.fixture
        async def world(self): ...yield a DirectoryWorld...

A world arranges through the implementation's own means (services, tables); the
tests only read through the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from typing import Protocol

import asyncssh
import pytest

from runcode.core.errors import RunCodeError
from runcode.gateway.directory import ChangeBatch, Directory


class DirectoryWorld(Protocol):
    """What the contract's tests need to arrange. Every method may be called in any order after `add_*`."""

    directory: Directory
    ca_line: str

    async def add_running_workspace(self, title: str) -> int: ...

    async def add_session(self, title: str, public_line: str, *, ttl_s: float) -> int:
        """Register a client key for a workspace; returns the session's id."""
        ...

    async def withdraw_session(self, session_id: int) -> None: ...

    async def stop_workspace(self, title: str) -> None: ...


def new_key() -> tuple[str, str]:
    """(public line, fingerprint)"""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_public_key("openssh").decode().strip(), key.get_fingerprint()


async def find_batch(feed: object, wanted: object, *, timeout_s: float = 5.0) -> ChangeBatch:
    """The next batch for which `wanted(batch)` holds."""
    async with asyncio.timeout(timeout_s):
        async for batch in feed:  # type: ignore[attr-defined]
            if wanted(batch):  # type: ignore[operator]
                return batch
    raise AssertionError("the feed ended")


class DirectoryContract:
    async def test_facts_of_a_registered_key(self, world: DirectoryWorld) -> None:
        workspace_id = await world.add_running_workspace("alpha-1")
        line, fingerprint = new_key()
        session_id = await world.add_session("alpha-1", line, ttl_s=600)
        facts = await world.directory.load_admission_facts("alpha-1", fingerprint)
        assert facts.session is not None
        assert facts.workspace is not None
        assert facts.session.session_id == session_id
        assert facts.session.workspace_id == facts.workspace.workspace_id == workspace_id
        assert not facts.session.withdrawn
        assert facts.workspace.running
        assert facts.workspace.title == "alpha-1"
        assert facts.workspace.principal
        assert facts.workspace.host_key.startswith("ssh-ed25519 ")
        assert (facts.workspace.socket_path is None) != (facts.workspace.address is None)
        left = facts.session.expires_at - datetime.datetime.now(datetime.timezone.utc)
        assert 0 < left.total_seconds() <= 600

    async def test_each_half_is_looked_up_by_itself(self, world: DirectoryWorld) -> None:
        await world.add_running_workspace("alpha-2")
        line, fingerprint = new_key()
        await world.add_session("alpha-2", line, ttl_s=600)
        unknown = new_key()[1]
        only_workspace = await world.directory.load_admission_facts("alpha-2", unknown)
        assert only_workspace.session is None
        assert only_workspace.workspace is not None
        only_session = await world.directory.load_admission_facts("no-such-title", fingerprint)
        assert only_session.session is not None
        assert only_session.workspace is None
        for odd in ("", "' OR 1=1 --", "\x00", "a" * 1000):
            neither = await world.directory.load_admission_facts(odd, "unacceptable:00")
            assert neither.session is None
            assert neither.workspace is None

    async def test_a_withdrawn_session_says_so(self, world: DirectoryWorld) -> None:
        await world.add_running_workspace("alpha-3")
        line, fingerprint = new_key()
        session_id = await world.add_session("alpha-3", line, ttl_s=600)
        await world.withdraw_session(session_id)
        facts = await world.directory.load_admission_facts("alpha-3", fingerprint)
        assert facts.session is None or facts.session.withdrawn

    async def test_the_certificate_is_for_this_key_and_this_workspace_only(self, world: DirectoryWorld) -> None:
        workspace_id = await world.add_running_workspace("alpha-4")
        line, fingerprint = new_key()
        session_id = await world.add_session("alpha-4", line, ttl_s=600)
        facts = await world.directory.load_admission_facts("alpha-4", fingerprint)
        assert facts.workspace is not None
        ephemeral = new_key()[0]
        text = await world.directory.sign_workspace_certificate(
            session_id=session_id, workspace_id=workspace_id, public_key=ephemeral
        )
        certificate = asyncssh.import_certificate(text)
        assert certificate.principals == [facts.workspace.principal]  # type: ignore[attr-defined]
        assert certificate.key.public_data == asyncssh.import_public_key(ephemeral).public_data
        assert certificate.signing_key.public_data == asyncssh.import_public_key(world.ca_line).public_data  # type: ignore[attr-defined]
        certificate.validate(1, facts.workspace.principal)  # type: ignore[attr-defined]  # 1: a user certificate

    async def test_no_certificate_without_the_right(self, world: DirectoryWorld) -> None:
        workspace_id = await world.add_running_workspace("alpha-5")
        other_id = await world.add_running_workspace("alpha-6")
        line, _ = new_key()
        session_id = await world.add_session("alpha-5", line, ttl_s=600)
        ephemeral = new_key()[0]
        for asked_session, asked_workspace in ((session_id, other_id), (session_id + 999, workspace_id)):
            with pytest.raises(RunCodeError):
                await world.directory.sign_workspace_certificate(
                    session_id=asked_session, workspace_id=asked_workspace, public_key=ephemeral
                )
        await world.withdraw_session(session_id)
        with pytest.raises(RunCodeError):
            await world.directory.sign_workspace_certificate(
                session_id=session_id, workspace_id=workspace_id, public_key=ephemeral
            )

    async def test_the_feed_beats_and_names_what_changed(self, world: DirectoryWorld) -> None:
        workspace_id = await world.add_running_workspace("alpha-7")
        line, fingerprint = new_key()
        session_id = await world.add_session("alpha-7", line, ttl_s=600)
        async with contextlib.aclosing(world.directory.watch_changes()) as feed:  # type: ignore[type-var]
            first = await find_batch(feed, lambda _batch: True)
            second = await find_batch(feed, lambda _batch: True)
            assert second.cursor >= first.cursor
            await world.withdraw_session(session_id)
            batch = await find_batch(feed, lambda b: session_id in b.session_ids or b.everything)
            assert batch.cursor >= second.cursor
            # By the time a change is told, the facts already show it.
            facts = await world.directory.load_admission_facts("alpha-7", fingerprint)
            assert facts.session is None or facts.session.withdrawn
            await world.stop_workspace("alpha-7")
            await find_batch(feed, lambda b: workspace_id in b.workspace_ids or b.everything)
            facts = await world.directory.load_admission_facts("alpha-7", fingerprint)
            assert facts.workspace is None or not facts.workspace.running
