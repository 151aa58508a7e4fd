"""The fake directory keeps the contract that the server's own is held to."""

from __future__ import annotations

from dataclasses import dataclass

import asyncssh
import pytest

from support.gateway_directory_contract import DirectoryContract
from support.gateway_fakes import FakeDirectory


@dataclass
class _FakeWorld:
    directory: FakeDirectory

    @property
    def ca_line(self) -> str:
        return self.directory.ca_line

    async def add_running_workspace(self, title: str) -> int:
        host_key = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode().strip()
        return self.directory.add_workspace(title, host_key=host_key, socket_path="/run/none").workspace_id

    async def add_session(self, title: str, public_line: str, *, ttl_s: float) -> int:
        return self.directory.add_session(title, public_line, ttl_s=ttl_s).session_id

    async def withdraw_session(self, session_id: int) -> None:
        self.directory.withdraw(session_id)

    async def stop_workspace(self, title: str) -> None:
        self.directory.set_running(title, False)


class TestFakeDirectory(DirectoryContract):
    @pytest.fixture
    def world(self) -> _FakeWorld:
        return _FakeWorld(FakeDirectory())
