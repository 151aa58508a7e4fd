"""The real `runcode-server`, which also takes orders on stdin: what its own process does with the control plane.

Run as a program with runcode-server's own words. Each line of stdin is
`["service", "method", [arguments]]`; the answer is one JSON line on stdout, with
the monotonic moment at which the call (its commit included) had returned. Beside
it, `OrderedService` speaks that from a test.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if __package__:
    from support.service import Service


if __package__:

    class OrderedService(Service):
        """A Service whose control plane a test can call in process."""

        _stdin = subprocess.PIPE
        _stdout = subprocess.PIPE

        def __init__(self, folder: Path, **options: Any) -> None:
            super().__init__(folder, program=(sys.executable, str(Path(__file__).resolve())), **options)

        def order(self, service: str, method: str, *arguments: object) -> tuple[Any, float]:
            """(what the call returned, the monotonic moment when it had)."""
            assert self.process is not None
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps([service, method, arguments]).encode() + b"\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
            assert "error" not in answer, answer
            return answer["value"], answer["at"]


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: str(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


async def _take_orders(plane: Any) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while raw := await lines.readline():
        service, method, arguments = json.loads(raw)
        try:
            value = await getattr(getattr(plane, service), method)(*arguments)
            answer = {"value": _plain(value), "at": time.monotonic()}
        except Exception as error:
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


def _main() -> int:
    from runcode.server import main, up

    serve = up._run

    async def serve_and_listen(options: Any, folder: Any, plane: Any, *rest: Any) -> None:
        orders = asyncio.create_task(_take_orders(plane))
        try:
            await serve(options, folder, plane, *rest)
        finally:
            orders.cancel()

    up._run = serve_and_listen
    return main.main()


if __name__ == "__main__":
    sys.exit(_main())
