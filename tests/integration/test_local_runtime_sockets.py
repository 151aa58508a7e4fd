"""Unix sockets under long paths, full queues, and nobody there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from runcode.core.errors import RunCodeError
from runcode.runtimes.unix_sockets import open_unix_socket


def listen(folder: Path, queue: int) -> socket.socket:
    folder.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    at = os.open(folder, os.O_PATH)
    listener.bind(f"/proc/self/fd/{at}/s")
    os.close(at)
    listener.listen(queue)
    return listener


@pytest.mark.parametrize("depth", [0, 1, 5])
async def test_a_path_of_any_length_is_reached(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["d" * 120] * depth)
    with listen(folder, 1) as listener, await open_unix_socket(str(folder / "s")) as connection:
        assert not connection.getblocking()
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(b"hello")
            connection.setblocking(True)
            assert connection.recv(16) == b"hello"


async def test_a_full_queue_waits_and_then_says_so(tmp_path: Path) -> None:
    # Non-blocking connect answers EAGAIN here, and asyncio's own sock_connect would call that connected.
    with listen(tmp_path, 0):
        held = await open_unix_socket(str(tmp_path / "s"))
        with held, pytest.raises(RunCodeError) as caught:
            await open_unix_socket(str(tmp_path / "s"), timeout_s=0.05)
    assert caught.value.code == "timed_out"


@pytest.mark.parametrize("kind", ["missing", "stale", "file", "folder"])
async def test_nobody_there_is_unavailable(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    if kind == "stale":
        listen(folder, 1).close()
    elif kind == "file":
        (folder / "s").touch()
    elif kind == "folder":
        folder.rmdir()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RunCodeError) as caught:
        await open_unix_socket(str(folder / "s"))
    assert caught.value.code == "unavailable"
    assert len(os.listdir("/proc/self/fd")) == descriptors
