"""Unix sockets under paths of any length.

Owns: `open_unix_socket`, the one way to reach a `UnixEndpoint`. The gateway gets
it injected by the server, since it may not import a runtime.

A socket address holds 108 bytes, and a data folder may be longer than that: the
folder is opened first and the socket is named through the descriptor, so only
its last component counts. The same trick keeps a symlink swapped in above the
folder from mattering between the two steps.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time

from runcode.core.errors import RunCodeError

_ADDRESS_MAX = 107
_RETRY_S = 0.01


async def open_unix_socket(socket_path: str, timeout_s: float = 10.0) -> socket.socket:
    """A connected, non-blocking stream socket; the caller closes it.

    Raises `unavailable` when nobody listens there, `timed_out` when the listener's
    queue stays full for `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _connect(socket_path)
        except BlockingIOError:
            # A full queue answers EAGAIN at once on a unix socket, and the descriptor never
            # becomes writable for it: asyncio's sock_connect would call it connected.
            if time.monotonic() > deadline:
                raise RunCodeError("timed_out", "the workspace's ssh socket accepts no connection") from None
        except OSError as error:
            raise RunCodeError(
                "unavailable",
                f"nothing answers on the workspace's ssh socket ({error.strerror})",
                resolution="start the workspace, then retry",
            ) from error
        await asyncio.sleep(_RETRY_S)


def _connect(socket_path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        if len(os.fsencode(socket_path)) <= _ADDRESS_MAX:
            connection.connect(socket_path)
        else:
            folder, name = os.path.split(socket_path)
            folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{folder_fd}/{name}")
            finally:
                os.close(folder_fd)
    except BaseException:
        connection.close()
        raise
    return connection
