"""The MCP server: tools over stdin and stdout, by the official SDK.

Owns: the protocol's handlers. Called by `start`. What a tool does happens in workers (`calls`); nothing here waits
without letting others go on.

Guarantee: stdout carries the protocol alone; every failure of a call is an answer with
a code and the next step, never a traceback; when the client goes away, what its calls
had started on the box ends.
"""

import os
import signal
import sys
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from runcode import __version__
from runcode.agents.mcp import tools
from runcode.agents.mcp.arguments import check_arguments
from runcode.agents.mcp.calls import Calls
from runcode.agents.mcp.local_paths import find_agents_folder
from runcode.agents.mcp.results import render_result
from runcode.agents.mcp.sessions import is_codex, parse_thread_id
from runcode.agents.mcp.worker import describe
from runcode.cli.crash import record_crash
from runcode.core.errors import RunCodeError

_CLIENT_INFO = "io.modelcontextprotocol/clientInfo"
_SLACK_S = 30.0


def make_server(calls: Calls) -> Server[dict[str, Any]]:
    own_key = f"mcp:{os.urandom(16).hex()}"
    # Asked now: when the agent is gone, somebody else is our parent.
    parent_pid = os.getppid()

    async def list_tools(_context: Any, _params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_describe_tool(tool) for tool in tools.TOOLS])

    async def call_tool(
        context: ServerRequestContext[dict[str, Any]], params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        arguments = params.arguments or {}
        try:
            tool = tools.BY_NAME.get(params.name)
            if tool is None:
                raise RunCodeError("usage", "there is no such tool", resolution="list the tools")
            check_arguments(tool, arguments)
            meta = dict(context.meta or {})
            client = _client_name(context, meta)
            caller = {
                "client": client,
                "thread_id": parse_thread_id(client, meta),
                "parent_pid": parent_pid,
                "own_key": own_key,
            }
            request = {"tool": tool.name, "arguments": arguments, "caller": caller, "client": _told_name(client)}
            answer = await calls.perform(request, patience_s=_patience_s(tool, arguments))
        except RunCodeError as error:
            answer = describe(error)
        except Exception as error:
            # The boundary: an unknown exception's text may hold a secret.
            reference = record_crash(error, os.environ)
            answer = describe(RunCodeError("internal", f"something unexpected went wrong ({reference})"))
        return render_result(answer)

    return Server(
        "runcode",
        version=__version__,
        title="RunCode",
        instructions=tools.INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _describe_tool(tool: tools.Tool) -> types.Tool:
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=tool.description,
        input_schema=tool.input_schema,
        annotations=types.ToolAnnotations(
            title=tool.title,
            read_only_hint=tool.reads,
            destructive_hint=tool.destroys,
            idempotent_hint=tool.repeats,
            open_world_hint=tool.is_open,
        ),
    )


def _patience_s(tool: tools.Tool, arguments: dict[str, Any]) -> float:
    if tool.name == "exec":
        # A session and a connection may have to be made first.
        return float(arguments.get("timeout_s", tools.EXEC_TIMEOUT_S)) + tool.patience_s
    return max(tool.patience_s, float(arguments.get("timeout_s", 0)) + _SLACK_S)


def _client_name(context: ServerRequestContext[dict[str, Any]], meta: dict[str, Any]) -> str:
    """What the client calls itself: at the handshake, or in each request of the newer protocol."""
    told = context.session.client_params
    name = told.client_info.name if told is not None else None
    newer = meta.get(_CLIENT_INFO)
    if name is None and isinstance(newer, dict):
        name = newer.get("name")
    return name if isinstance(name, str) and len(name) <= 64 else ""


def _told_name(client: str) -> str:
    """The same for the service's record of who connects."""
    if is_codex(client):
        return "codex"
    return "".join(c for c in client if c.isascii() and (c.isalnum() or c in " ._-"))


async def serve() -> None:
    calls = Calls()
    server = make_server(calls)
    async with anyio.create_task_group() as group:
        if sys.platform != "win32":
            group.start_soon(_heed_signals, calls)
        async with stdio_server() as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())
        group.cancel_scope.cancel()


async def _heed_signals(calls: Calls) -> None:
    """TERM, INT and HUP end the calls, and then us."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            await calls.end_all()
            # The SDK reads stdin in a thread that only the end of stdin wakes up.
            os._exit(128 + number)


def main() -> int:
    folder = find_agents_folder(os.getcwd(), os.getppid())
    if folder is not None:
        os.chdir(folder)
    anyio.run(serve)
    return 0
