"""The gateway that the fuzzer attacks, as a process of its own: real server, directory in memory.

Run as a program: `fuzzed_gateway.py FOLDER`. FOLDER has the keys (see `ssh_fuzz`). It
writes its port as the first line, then answers each line of its standard input with one
of facts about itself. `errors` are the log's lines that no peer may cause.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import asyncssh

from runcode.gateway.admission import AdmissionPolicy
from runcode.gateway.server import GatewayServer
from support.gateway_fakes import FakeDirectory

TITLE, OTHER_TITLE = "royal-1", "other-1"
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def _read_public(path: Path) -> str:
    return " ".join(path.read_text().split()[:2])


def make_directory(folder: Path) -> FakeDirectory:
    directory = FakeDirectory()
    for title in (TITLE, OTHER_TITLE):
        directory.add_workspace(
            title,
            host_key=_read_public(folder / "box.pub"),
            socket_path=str(folder / "door"),
            login="box",
        )
    directory.add_session(TITLE, _read_public(folder / "good.pub"))
    return directory


async def serve(folder: Path, errors: _Errors) -> None:
    directory = make_directory(folder)
    policy = AdmissionPolicy(login_timeout_s=60.0, workspace_timeout_s=60.0)
    gateway = GatewayServer(directory, host_key_path=folder / "gateway", policy=policy)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _loop, context: errors.lines.append(f"loop: {context['message']} {context.get('exception')!r}")
    )
    print(await gateway.start("127.0.0.1", 0), flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        health = gateway.health()
        facts: dict[str, Any] = {
            "strangers": health.strangers,
            "live": health.live_connections,
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "resident": int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE,
            "admitted": len(directory.signed),
            "errors": errors.lines[:200],
            "framing_obstacle": health.framing_obstacle,
        }
        print(json.dumps(facts), flush=True)
    await gateway.close()


def main() -> None:
    errors = _Errors()
    logging.basicConfig(level=logging.INFO, handlers=[errors, logging.FileHandler(Path(sys.argv[1]) / "log")])
    logging.captureWarnings(True)
    asyncssh.set_log_level(logging.CRITICAL)
    asyncio.run(serve(Path(sys.argv[1]), errors))


if __name__ == "__main__":
    main()
