"""What our modules need of asyncssh and of cryptography: each broken in turn, and named."""

from __future__ import annotations

from typing import Any

import pytest
from asyncssh.connection import SSHConnection
from asyncssh.encryption import GCMEncryption
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runcode.gateway import asyncssh_check, framing
from runcode.gateway.asyncssh_cipher import GcmPackets
from runcode.gateway.asyncssh_trial import find_framing_obstacle
from runcode.server.doctor import check_framing


def test_the_installed_ones_pass_the_trial() -> None:
    assert find_framing_obstacle() is None
    assert check_framing().status == "ok"


def test_a_cryptography_without_the_in_place_calls_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __init__(self, key: bytes) -> None:
            self._aead = AESGCM(key)
            self.encrypt, self.decrypt = self._aead.encrypt, self._aead.decrypt

    monkeypatch.setattr(framing, "AESGCM", Old)
    obstacle = find_framing_obstacle()
    assert obstacle is not None
    assert "decrypt_into" in obstacle
    # The relay itself goes on: this is no reason to refuse to start.
    assert asyncssh_check.find_breakage() == []
    told = check_framing()
    assert (told.status, "decrypt_into" in told.detail) == ("warn", True)


def test_in_place_calls_that_spoil_what_they_read_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoils:
        def __init__(self, key: bytes) -> None:
            self._aead = AESGCM(key)
            self.encrypt, self.decrypt = self._aead.encrypt, self._aead.decrypt
            self.decrypt_into = self._aead.decrypt_into

        def encrypt_into(self, nonce: bytes, data: memoryview, header: bytes, buffer: memoryview) -> None:
            buffer[:] = bytes(len(buffer))
            self._aead.encrypt_into(nonce, data, header, buffer)

    monkeypatch.setattr(framing, "AESGCM", Spoils)
    assert "a packet changed" in str(find_framing_obstacle())


def test_another_way_of_reading_packets_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def reads_otherwise(self: Any) -> bool:
        self._inpbuf = b""
        return False

    monkeypatch.setattr(SSHConnection, "_recv_packet", reads_otherwise)
    assert "asyncssh took a packet differently" in str(find_framing_obstacle())


def test_other_nonces_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class CountsOtherwise(GcmPackets):
        def __init__(self, stock: GCMEncryption) -> None:
            super().__init__(stock)
            self.key.invocation += 1

    monkeypatch.setattr("runcode.gateway.asyncssh_trial.GcmPackets", CountsOtherwise)
    assert find_framing_obstacle() is not None


@pytest.mark.parametrize("name", ["_finish_recv_packet", "_recv_packet", "_recv_pkthdr"])
def test_a_method_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(SSHConnection, name)
    assert f"SSHConnection.{name}" in asyncssh_check.find_breakage()
