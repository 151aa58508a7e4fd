"""A TCP proxy that can end a connection after a chosen number of bytes: what a lost network looks like to ssh."""

from __future__ import annotations

import contextlib
import select
import socket
import threading


class CuttingProxy:
    """Forwards loopback connections to `port`. `cut_after` counts from when it is called, over one direction."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._left: dict[str, int] = {}
        self.cuts = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, direction: str, count: int) -> None:
        """End every connection when `count` more bytes went `up` (to the server) or `down`; the rest is lost."""
        with self._lock:
            self._left = {direction: count}

    def stop_cutting(self) -> None:
        with self._lock:
            self._left = {}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._end_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            threading.Thread(target=self._pump, args=(client, server), daemon=True).start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        routes = {client: (server, "up"), server: (client, "down")}
        try:
            while True:
                ready, _, _ = select.select([client, server], [], [], 60)
                for source in ready:
                    content = source.recv(65536)
                    if not content:
                        return
                    target, direction = routes[source]
                    allowed, over = self._take(direction, len(content))
                    target.sendall(content[:allowed])
                    if over:
                        return
        except (OSError, ValueError):
            return
        finally:
            with self._lock:
                self._open -= {client, server}
            for end in (client, server):
                end.close()

    def _take(self, direction: str, size: int) -> tuple[int, bool]:
        with self._lock:
            left = self._left.get(direction)
            if left is None:
                return size, False
            if size < left:
                self._left[direction] = left - size
                return size, False
            self._left = {}
            self.cuts += 1
            return left, True

    def _end_all(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
