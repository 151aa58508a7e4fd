"""What a client's hook says on stdin, parsed to one type.

Source: the hooks of Claude Code 2.1.330 and Codex 0.169.0, as the real ones send them
(tests/agents/test_hooks_wiring.py).
"""

from __future__ import annotations

import json
import re

from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLIENTS = ("claude", "codex")
EVENTS = ("session-start", "user-prompt-submit", "pre-tool-use")
# A tool may be handed a whole file.
INPUT_MAX = 64 * 1024 * 1024
_SESSION_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


class Request(Value):
    """One call of a hook. `tool_input` is the client's own object, to be echoed; `source` says why a session starts."""

    client: str
    event: str
    session_id: str
    cwd: str
    tool: str
    tool_input: dict[str, Any]
    source: str

    @property
    def agent_session(self) -> str:
        """The key of this agent session alone, without that of an agent around it."""
        return f"{self.client}:{self.session_id}"


def parse_request(client: str, event: str, raw_input: bytes) -> Request:
    """Raises `bad_request` for anything that a client does not send."""
    try:
        said = json.loads(raw_input)
    except (ValueError, RecursionError) as error:
        raise RunCodeError("bad_request", "the hook's input is not JSON") from error
    if not isinstance(said, dict):
        raise RunCodeError("bad_request", "the hook's input is not an object")
    session_id, cwd = said.get("session_id"), said.get("cwd")
    tool, tool_input = said.get("tool_name", ""), said.get("tool_input", {})
    if not isinstance(session_id, str) or not _SESSION_ID.fullmatch(session_id):
        raise RunCodeError("bad_request", "the hook's input names no session")
    if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
        raise RunCodeError("bad_request", "the hook's input names no folder")
    if not isinstance(tool, str) or (event == "pre-tool-use" and not tool):
        raise RunCodeError("bad_request", "the hook's input names no tool")
    if not isinstance(tool_input, dict):
        # Codex's apply_patch may be handed over as a text.
        if not isinstance(tool_input, str):
            raise RunCodeError("bad_request", "the hook's input holds no tool input")
        tool_input = {"command": tool_input}
    source = said.get("source", "")
    return Request(
        client=client,
        event=event,
        session_id=session_id,
        cwd=cwd,
        tool=tool,
        tool_input=tool_input,
        source=source if isinstance(source, str) else "",
    )
