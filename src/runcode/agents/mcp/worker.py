"""One tool call in a process of its own: a JSON line in, a JSON line out.

Owns: the process around `acts`. Started by `calls` with `python -I -S`, so that it
loads the client's code alone; a process per call, since signals, time limits and a
hung connection then concern this call only.

Guarantee: stdout carries the answer and nothing else. When the server goes away,
however it ends, stdin ends too, and what was started on the box is ended. No
exception's raw text is in an answer.
"""

import json
import os
import signal
import sys
import threading

if __name__ == "__main__":
    # `-I -S` leaves neither this folder nor site-packages on the path.
    sys.path.insert(0, __file__.replace("\\", "/").rsplit("/", 4)[0])

from runcode.agents.mcp.acts import perform
from runcode.agents.mcp.sessions import Caller, choose_owner
from runcode.cli.crash import record_crash
from runcode.cli.endings import ended_by_signals
from runcode.client.settings import load_stored_settings
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MESSAGE_MAX = 1000
# Where the next step is another tool, not a command line.
_NEXT_STEPS = {
    "not_attached": "call `connect` with a workspace; `workspaces` lists them",
    "no_token": "the person has to sign in: `runcode login` in a terminal",
    "unauthorized": "the person has to sign in again: `runcode login` in a terminal",
    "conflict": "call `connect` with `start` true: the workspace has to run",
    "ambiguous": "give the id as `workspace`; `workspaces` lists them",
    "not_found": "look with `workspaces`, `list` or `glob`",
    "not_ready": "call it again, with a longer timeout_s",
}


def main() -> int:
    answer_to = os.dup(1)
    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    source = os.fdopen(lifeline, "rb")
    line = source.readline()
    threading.Thread(target=_end_with_the_server, args=(source,), daemon=True).start()
    with ended_by_signals():
        answer = _answer(line)
    with os.fdopen(answer_to, "wb") as stream:
        stream.write(json.dumps(answer, ensure_ascii=True).encode() + b"\n")
    return 0


def _end_with_the_server(source: "Any") -> None:
    while source.read(65536):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _answer(line: bytes) -> "dict[str, Any]":
    try:
        request = json.loads(line)
        caller = Caller(**request["caller"])
        owner = choose_owner(caller, load_stored_settings(os.environ))
        return {"result": perform(request["tool"], request["arguments"], os.environ, owner, request["client"])}
    except RunCodeError as error:
        return describe(error)
    except Exception as error:
        # The boundary: an unknown exception's text may hold a secret or an escape sequence.
        return describe(
            RunCodeError("internal", f"something unexpected went wrong ({record_crash(error, os.environ)})")
        )


def describe(error: RunCodeError) -> "dict[str, Any]":
    """The failure as a tool's answer: code, message, next step."""
    own = error.resolution != error.kind.resolution
    resolution = error.resolution if own else _NEXT_STEPS.get(error.code, error.resolution)
    return {
        "error": error.code,
        "message": printable(error.message, limit=_MESSAGE_MAX),
        "resolution": printable(resolution, limit=_MESSAGE_MAX),
    }


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)
