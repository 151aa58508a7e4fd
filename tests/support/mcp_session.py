"""`runcode mcp` as a client sees it: by the SDK's own client, and by bare JSON lines for what no SDK would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

RUNCODE = str(Path(sys.executable).with_name("runcode"))


class Tools:
    """One session. `call` gives the structured content of a success, `fail` the failure."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        done = await self.client.call_tool(name, arguments)
        assert not done.is_error, done.structured_content
        assert isinstance(done.structured_content, dict)
        return done.structured_content

    async def fail(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        done = await self.client.call_tool(name, arguments)
        assert done.is_error, done.structured_content
        assert isinstance(done.structured_content, dict)
        assert set(done.structured_content) == {"error", "message", "resolution"}
        assert "Traceback" not in json.dumps(done.structured_content)
        return done.structured_content

    async def text(self, name: str, /, **arguments: Any) -> str:
        done = await self.client.call_tool(name, arguments)
        (part,) = done.content
        return str(getattr(part, "text", ""))


@contextlib.asynccontextmanager
async def serving(environment: dict[str, str], cwd: Path) -> AsyncIterator[Tools]:
    """A server of its own, in `cwd`, with just this environment."""
    parameters = StdioServerParameters(command=RUNCODE, args=["mcp"], env=environment, cwd=str(cwd))
    async with Client(stdio_client(parameters)) as client:
        yield Tools(client)


@contextlib.asynccontextmanager
async def in_a_task(session: contextlib.AbstractAsyncContextManager[Tools]) -> AsyncIterator[Tools]:
    """The session in a task of its own: pytest-asyncio leaves a fixture in another one than it entered it in."""
    opened: asyncio.Future[Tools] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def hold() -> None:
        try:
            async with session as tools:
                opened.set_result(tools)
                await over.wait()
        except BaseException as error:
            if opened.done():
                raise
            opened.set_exception(error)

    task = asyncio.create_task(hold())
    try:
        yield await opened
    finally:
        over.set()
        await task


class Wire:
    """The same server by lines of JSON."""

    def __init__(self, environment: dict[str, str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [RUNCODE, "mcp"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            cwd=cwd,
        )
        self._number = 0

    def send_raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, method: str, params: dict[str, Any] | None = None, *, notify: bool = False) -> int:
        self._number += 1
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        message.update({} if params is None else {"params": params}, **({} if notify else {"id": self._number}))
        self.send_raw(json.dumps(message).encode())
        return self._number

    def receive(self, number: int) -> dict[str, Any]:
        """The answer to request `number`; whatever else comes before it has to be of the protocol, too."""
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            message = json.loads(line)
            assert message["jsonrpc"] == "2.0"
            if message.get("id") == number:
                return dict(message)
        raise AssertionError(f"the server ended: {self.process.stderr.read() if self.process.stderr else b''!r}")

    def ask(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.receive(self.send(method, params))

    def shake_hands(self, client: str = "a-test") -> dict[str, Any]:
        told = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": client, "version": "1"}}
        answer = self.ask("initialize", told)
        self.send("notifications/initialized", notify=True)
        return dict(answer["result"])

    def start_call(self, tool: str, meta: dict[str, Any] | None = None, /, **arguments: Any) -> int:
        params: dict[str, Any] = {"name": tool, "arguments": arguments}
        return self.send("tools/call", {**params, **({} if meta is None else {"_meta": meta})})

    def call(self, tool: str, meta: dict[str, Any] | None = None, /, **arguments: Any) -> dict[str, Any]:
        """The structured content, of a success or a failure."""
        answer = self.receive(self.start_call(tool, meta, **arguments))
        return dict(answer["result"]["structuredContent"])

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=60)


@contextlib.contextmanager
def on_the_wire(environment: dict[str, str], cwd: Path, *, client: str = "a-test") -> Iterator[Wire]:
    wire = Wire(environment, cwd)
    try:
        wire.shake_hands(client)
        yield wire
    finally:
        wire.process.kill()
        wire.process.wait()
        for stream in (wire.process.stdin, wire.process.stdout, wire.process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()
