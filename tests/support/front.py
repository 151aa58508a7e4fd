"""The control plane behind its real listener (`server/web.py`), spoken to in raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from runcode.controlplane.app import make_app
from runcode.controlplane.edge import EdgeSettings
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.proxies import TrustedProxies
from runcode.server.web import ConnectionLimits, Doorman, WebServer
from support.controlplane_fakes import until


@dataclass(frozen=True)
class Reply:
    """One answer, as it came. `status` 0: the connection ended without one."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Door:
    """A listener on 127.0.0.1; callers may come from any 127.x address."""

    def __init__(self, port: int, server: WebServer, doorman: Doorman) -> None:
        self.port, self.server, self.doorman = port, server, doorman

    async def open(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))

    async def say(self, raw: bytes, *, source: str = "127.0.0.1") -> Reply:
        """Send these bytes, and read one answer."""
        reader, writer = await self.open(source)
        try:
            writer.write(raw)
            return await read_reply(reader)
        finally:
            writer.close()

    async def get(self, path: str, *headers: str, source: str = "127.0.0.1", host: str | None = "127.0.0.1") -> Reply:
        lines = [f"GET {path} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), *headers, "Connection: close"]
        return await self.say("\r\n".join([*lines, "", ""]).encode(), source=source)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    async with asyncio.timeout(20):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return Reply(0, {}, b"")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(first.split()[1]), headers, body)


def list_routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path template) of all that the app serves."""
    contexts = iter_route_contexts(app.routes)
    return sorted({(m, context.path or "") for context in contexts for m in context.methods or () if m != "HEAD"})


@contextlib.asynccontextmanager
async def open_door(
    plane: ControlPlane,
    settings: EdgeSettings | None = None,
    *,
    limits: ConnectionLimits | None = None,
    app: Any = None,
    metrics_token: str | None = None,
) -> AsyncIterator[Door]:
    limits = limits or ConnectionLimits()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    doorman = Doorman(limits, settings.proxies if settings is not None else TrustedProxies())
    server = WebServer(app or make_app(plane, settings, metrics_token=metrics_token), doorman, limits=limits)
    serving = asyncio.create_task(server.serve_on(listener))
    try:
        await until(lambda: server.started)
        yield Door(listener.getsockname()[1], server, doorman)
    finally:
        await server.finish(1.0)
        await serving
        listener.close()
