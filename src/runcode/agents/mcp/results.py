"""A worker's answer as a tool's result: structured content, and the same as text.

Claude Code and Codex give the model the structured content alone, where there is any;
other clients give the text. So each carries the machine, the folder and the mark that
what follows is data.

Threat: a message of the day, a file's name or a command's output poses as the end of
the data, as a word of ours or of the person.

Guarantee: in JSON a text cannot end its own string; in the text every value from a
worker is JSON too, between two lines that carry a nonce which the box never saw.
"""

from __future__ import annotations

import json
import os
from typing import Any

import mcp_types as types

_FIRST = ("machine", "cwd")


def render_result(answer: dict[str, Any]) -> types.CallToolResult:
    is_error = "result" not in answer
    result = answer if is_error else answer["result"]
    text = _render_failure(result) if is_error else _render_text(result)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)], structured_content=result, is_error=is_error
    )


def _render_failure(failure: dict[str, Any]) -> str:
    return f"{failure['error']}: {failure['message']}\nnext: {failure['resolution']}"


def _render_text(result: dict[str, Any]) -> str:
    head = [f"{name}: {result[name]}" for name in _FIRST if name in result]
    rest = {name: value for name, value in result.items() if name not in (*_FIRST, "note")}
    if "note" not in result:
        return "\n".join([*head, json.dumps(rest, ensure_ascii=False)])
    nonce = os.urandom(8).hex()
    opened, closed = f"<remote-data {nonce}>", f"</remote-data {nonce}>"
    return "\n".join([*head, result["note"], opened, json.dumps(rest, ensure_ascii=False), closed])
