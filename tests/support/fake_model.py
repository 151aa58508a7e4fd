"""A scripted model behind the real agent clients: it plays what a test wrote, and keeps what the client sent.

Speaks `/v1/messages` (Claude Code) and `/v1/responses` (Codex), both streamed, on
loopback. It decides nothing: what the client does with a tool call, which tools it
offers and what it reports back is the real client's own doing, and `requests`
holds every body that arrived, so that a test asserts on what a model would see.

A script is a list of steps, one for each request of a conversation:

    Say("text")                          the model talks; in the end the client stops
    Call("Bash", command="ls")           Claude Code's tool, by name and input
    Call("exec_command", cmd="ls")       Codex's shell
    Call("mcp__runcode__exec", …)        an MCP tool: in Codex give namespace= as its tool list has it
    Patch("*** Begin Patch …")           Codex's apply_patch
    Code("text(await tools.exec_command({cmd: 'ls'}))")
                                         Codex's code mode, which its newest models are given
                                         in place of single tools (codex(..., model_name=CODE_MODE_MODEL))
    [Call(…), Call(…)]                   several at once
    lambda seen: Call(…)                 decided by what came back: `seen` is a Conversation

After its last step a conversation says "done". Requests without tools (titles,
summaries) get "ok" and no step. A subagent is a conversation of its own: begin it
with Call("Agent", …, prompt="MARK …") and give the model `others={"MARK": [...]}`;
a conversation whose first user text holds MARK plays that list.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Call:
    """A tool call. `namespace` is Codex's word for the MCP server that a tool belongs to."""

    tool: str
    namespace: str | None
    input: dict[str, Any]

    def __init__(self, tool: str, /, namespace: str | None = None, **arguments: Any) -> None:
        object.__setattr__(self, "tool", tool)
        object.__setattr__(self, "namespace", namespace)
        object.__setattr__(self, "input", arguments)


@dataclass(frozen=True)
class Patch:
    """Codex's apply_patch, a tool that takes free text."""

    text: str


@dataclass(frozen=True)
class Code:
    """Codex's code mode: JavaScript that calls the tools itself. It sees only what it hands to `text()`."""

    text: str


Action = Say | Call | Patch | Code
Step = Action | list[Action] | Callable[["Conversation"], Action | list[Action]]


@dataclass(frozen=True)
class ToolResult:
    """What a model is told after its tool call; `text` is all of it, images left out."""

    text: str
    is_error: bool


@dataclass(frozen=True)
class Conversation:
    """One request, read: what a model would have before it as it is asked for its next step."""

    body: dict[str, Any]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """Messages (Claude Code) or input items (Codex)."""
        return list(self.body.get("messages") or self.body.get("input") or [])

    @property
    def tools(self) -> list[str]:
        names = []
        for tool in find_tools(self.body):
            inner = tool.get("tools") if tool.get("type") == "namespace" else None
            names += [f"{tool['name']}.{one['name']}" for one in inner] if inner else [_tool_name(tool)]
        return names

    @property
    def first_user_text(self) -> str:
        """All that the user's side said before the model's first answer."""
        said = []
        for entry in self.entries:
            if entry.get("role") == "assistant" or "call" in entry.get("type", "message"):
                break
            if entry.get("role") == "user":
                said.append(_text_of(entry.get("content")))
        return "\n".join(said)

    @property
    def results(self) -> list[ToolResult]:
        """The results of all tool calls so far, in the order in which they came back."""
        found = []
        for entry in self.entries:
            if entry.get("type") in ("function_call_output", "custom_tool_call_output"):
                found.append(ToolResult(_text_of(entry.get("output")), is_error=False))
            elif isinstance(entry.get("content"), list):
                for part in entry["content"]:
                    if part.get("type") == "tool_result":
                        found.append(ToolResult(_text_of(part.get("content")), bool(part.get("is_error"))))
        return found

    @property
    def text(self) -> str:
        """Everything that a model would read, instructions included, tools left out."""
        return "\n".join(
            [_text_of(self.body.get("system")), _text_of(self.body.get("instructions"))]
            + [_text_of(entry) for entry in self.entries]
        )


def find_tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    """What the client offers the model: in the body's own list, or among the input, as Codex's code mode has it."""
    found = list(body.get("tools") or [])
    for entry in body.get("input") or []:
        if isinstance(entry, dict) and entry.get("type") == "additional_tools":
            found += entry["tools"]
    return found


def _tool_name(tool: dict[str, Any]) -> str:
    return str(tool.get("name") or tool.get("type"))


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_text_of(part) for part in content)
    if isinstance(content, dict):
        for name in ("text", "content", "output", "input", "arguments"):
            if name in content:
                inner = content[name]
                return json.dumps(inner) if name == "input" and isinstance(inner, dict) else _text_of(inner)
    return ""


@dataclass
class FakeModel:
    """Use as `with FakeModel([...]) as model:`, and hand it to a client's run."""

    script: list[Step] = field(default_factory=list)
    others: dict[str, list[Step]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __enter__(self) -> FakeModel:
        self._lock = threading.Lock()
        self._played: dict[str, int] = {}
        model = self

        class Handler(_Handler):
            owner = model

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_details: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def conversations(self) -> list[Conversation]:
        """Every request that carried tools, oldest first."""
        return [Conversation(body) for body in self.requests if find_tools(body)]

    def conversation(self, mark: str | None = None) -> Conversation:
        """The last request of the main conversation, or of the one that `mark` names: the whole of what it saw."""
        assert not self.faults, self.faults
        for one in reversed(self.conversations):
            if self._script_of(one)[0] == (mark or ""):
                return one
        raise AssertionError(f"no request of {mark or 'the main conversation'} arrived")

    @property
    def results(self) -> list[ToolResult]:
        """What the model was told about its tool calls in the main conversation."""
        return self.conversation().results

    def _script_of(self, conversation: Conversation) -> tuple[str, list[Step]]:
        for mark, steps in self.others.items():
            if mark in conversation.first_user_text:
                return mark, steps
        return "", self.script

    def next_actions(self, body: dict[str, Any]) -> list[Action]:
        conversation = Conversation(body)
        with self._lock:
            self.requests.append(body)
            if not find_tools(body):
                return [Say("ok")]
            mark, steps = self._script_of(conversation)
            position = self._played.get(mark, 0)
            self._played[mark] = position + 1
        if position >= len(steps):
            return [Say("done")]
        step = steps[position]
        try:
            actions = step(conversation) if callable(step) else step
        except Exception as error:
            # The client would hide it as a lost connection; the test is told when it asks for the conversation.
            self.faults.append(f"step {position} of {mark or 'the script'}: {error!r}")
            return [Say("the script failed")]
        return actions if isinstance(actions, list) else [actions]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FakeModel

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer_json({})

    def do_GET(self) -> None:
        self._answer_json({"data": [], "models": [], "object": "list", "has_more": False})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            self.owner.faults.append(f"{path}: a body that is no JSON ({self.headers.get('content-encoding')})")
            return self._answer_json({"error": "unreadable"}, 400)
        if path.endswith("/count_tokens"):
            return self._answer_json({"input_tokens": 10})
        if path.endswith("/messages"):
            return self._answer_messages(body, self.owner.next_actions(body))
        if path.endswith("/responses"):
            return self._answer_responses(self.owner.next_actions(body))
        return self._answer_json({})

    def _answer_json(self, document: object, status: int = 200) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _stream(self, events: Iterator[dict[str, Any]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        # A client that was ended by its test has gone away.
        with contextlib.suppress(ConnectionError):
            for event in events:
                self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()

    def _answer_messages(self, body: dict[str, Any], actions: list[Action]) -> None:
        content: list[dict[str, Any]] = []
        for action in actions:
            if isinstance(action, Call):
                content.append({"type": "tool_use", "id": _new_id("toolu"), "name": action.tool, "input": action.input})
            else:
                content.append({"type": "text", "text": action.text})
        stop = "tool_use" if any(isinstance(action, Call) for action in actions) else "end_turn"
        message = {
            "id": _new_id("msg"),
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "scripted"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
            },
        }
        if not body.get("stream"):
            return self._answer_json({**message, "content": content, "stop_reason": stop})
        return self._stream(_message_events(message, content, stop))

    def _answer_responses(self, actions: list[Action]) -> None:
        self._stream(_response_events(_new_id("resp"), [_response_item(action) for action in actions]))


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"


def _message_events(message: dict[str, Any], content: list[dict[str, Any]], stop: str) -> Iterator[dict[str, Any]]:
    yield {"type": "message_start", "message": message}
    for index, block in enumerate(content):
        if block["type"] == "text":
            start = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            start = {**block, "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        yield {"type": "content_block_start", "index": index, "content_block": start}
        yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {
        "type": "message_delta",
        "delta": {"stop_reason": stop, "stop_sequence": None},
        "usage": {"output_tokens": 5},
    }
    yield {"type": "message_stop"}


def _response_item(action: Action) -> dict[str, Any]:
    if isinstance(action, Say):
        content = [{"type": "output_text", "text": action.text}]
        return {"type": "message", "id": _new_id("msg"), "role": "assistant", "content": content}
    if isinstance(action, Patch | Code):
        call = {"type": "custom_tool_call", "id": _new_id("ctc"), "call_id": _new_id("call"), "input": action.text}
        names = {"name": "apply_patch"} if isinstance(action, Patch) else {"name": "exec", "namespace": "functions"}
        return {**call, **names}
    item = {"type": "function_call", "id": _new_id("fc"), "call_id": _new_id("call"), "name": action.tool}
    item["arguments"] = json.dumps(action.input)
    return {**item, "namespace": action.namespace} if action.namespace else item


def _response_events(identity: str, items: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield {"type": "response.created", "response": {"id": identity}}
    for index, item in enumerate(items):
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    usage = {
        "input_tokens": 10,
        "input_tokens_details": None,
        "output_tokens": 5,
        "output_tokens_details": None,
        "total_tokens": 15,
    }
    yield {"type": "response.completed", "response": {"id": identity, "usage": usage}}
