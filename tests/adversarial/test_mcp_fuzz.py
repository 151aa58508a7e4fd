"""Every MCP tool with arguments that no honest client sends: a clear answer, never a traceback, never a hang."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from runcode.agents.mcp.tools import BY_NAME, TOOLS
from runcode.core.errors import ERRORS
from support.client_standin import ControlPlane, service, signed_in
from support.mcp_session import Wire, on_the_wire

NAMES = [tool.name for tool in TOOLS]
WEIRD = [
    "",
    " ",
    "-",
    "--help",
    "-rf",
    "/",
    "..",
    "a" * 5000,
    "\0",
    "\n",
    "\u202e",
    "$(id)",
    "`id`",
    "'",
    '"',
    "\\",
    "%s",
]
_JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(WEIRD),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_QUICKLY = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def wire(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    home = tmp_path_factory.mktemp("person")
    with signed_in(home, plane) as person, on_the_wire(person.environment, person.project) as one:
        assert one.call("connect", workspace="42")["workspace_id"] == 42
        yield one


def require_clear(result: dict[str, Any]) -> dict[str, Any]:
    """A tool's result: structured, without a traceback, and with a code of the table when it failed."""
    structured = result["structuredContent"]
    if result["isError"]:
        assert set(structured) == {"error", "message", "resolution"}
        assert structured["error"] in ERRORS
        assert structured["error"] != "internal", structured
        assert structured["message"].isprintable()
        assert structured["resolution"]
    assert "Traceback" not in json.dumps(result)
    return dict(structured)


def arguments_for(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema takes, bounded; wild where it says little."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        # Small: a limit of an hour is legal, and would be waited for.
        return st.integers(schema["minimum"], min(schema["maximum"], max(schema["minimum"], 3)))
    if kind == "string":
        plain = st.text(max_size=12) | st.sampled_from([text for text in WEIRD if len(text) < 100])
        return plain.filter(lambda text: len(text) >= schema.get("minLength", 0))
    if kind == "array":
        return st.lists(arguments_for(schema["items"]), min_size=1, max_size=2)
    names = schema["properties"]
    optional = {name: arguments_for(inner) for name, inner in names.items() if name not in schema["required"]}
    return st.fixed_dictionaries({name: arguments_for(names[name]) for name in schema["required"]}, optional=optional)


@pytest.mark.parametrize("name", NAMES)
@given(junk=st.dictionaries(st.text(max_size=8) | st.sampled_from(["path", "command", "workspace"]), _JUNK, max_size=3))
@_QUICKLY
def test_junk(wire: Wire, name: str, junk: dict[str, Any]) -> None:
    schema = BY_NAME[name].input_schema
    result = wire.receive(wire.send("tools/call", {"name": name, "arguments": junk}))["result"]
    structured = require_clear(result)
    if not Draft202012Validator(schema).is_valid(junk):
        assert structured["error"] == "usage"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("exec", "connect", "disconnect", "forward")])
@given(data=st.data())
@_QUICKLY
def test_what_the_schema_takes_but_makes_no_sense(wire: Wire, name: str, data: st.DataObject) -> None:
    arguments = data.draw(arguments_for(BY_NAME[name].input_schema))
    arguments.pop("workspace", None)
    require_clear(wire.receive(wire.send("tools/call", {"name": name, "arguments": arguments}))["result"])


@pytest.mark.parametrize("name", ["exec", "read", "context"])
@given(workspace=st.text(min_size=1, max_size=20))
@_QUICKLY
def test_workspaces_that_are_none(wire: Wire, name: str, workspace: str) -> None:
    arguments = {"workspace": workspace, **({"command": "true"} if name == "exec" else {})}
    arguments |= {"path": "x"} if name == "read" else {}
    structured = require_clear(wire.receive(wire.send("tools/call", {"name": name, "arguments": arguments}))["result"])
    assert "error" in structured


@pytest.mark.parametrize("name", NAMES)
def test_each_bound_is_kept(wire: Wire, name: str) -> None:
    """One beyond each limit of each argument is refused before anything runs."""
    tool = BY_NAME[name]
    for key, schema in tool.input_schema["properties"].items():
        beyond: list[Any] = []
        if schema["type"] == "integer":
            beyond = [schema["minimum"] - 1, schema["maximum"] + 1, "1", 1.5, None, True]
        elif schema["type"] == "string":
            beyond = [
                1,
                None,
                ["x"],
                *(["x" * (schema["maxLength"] + 1)] if schema.get("maxLength", 10**9) < 10**5 else []),
            ]
        elif schema["type"] == "boolean":
            beyond = ["true", 1, None]
        for value in beyond:
            result = wire.receive(wire.send("tools/call", {"name": name, "arguments": {key: value}}))["result"]
            assert require_clear(result)["error"] == "usage", (key, value)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": 5},
        {"name": None, "arguments": {}},
        {"name": "exec", "arguments": []},
        {"name": "exec", "arguments": "command"},
        {"name": "no-such-tool", "arguments": {}},
        {"name": "exec", "arguments": {"command": "true"}, "_meta": "no object"},
        {"name": "exec\n", "arguments": {"command": "true"}},
    ],
)
def test_calls_that_are_no_calls_are_answered(wire: Wire, params: dict[str, Any]) -> None:
    answer = wire.receive(wire.send("tools/call", params))
    assert "Traceback" not in json.dumps(answer)
    if "result" in answer:
        require_clear(answer["result"])
    else:
        assert answer["error"]["code"] in (-32602, -32600, -32603)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe\x00",
        b'{"jsonrpc": "2.0", "method": "no/such"}',
        b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}',
        b'{"jsonrpc": "2.0", "id": {"a": 1}, "method": "ping"}',
        b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 99999}}',
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_lines_that_are_no_protocol_end_nothing(wire: Wire, line: bytes) -> None:
    wire.send_raw(line)
    assert wire.call("exec", command="echo on", workspace="42")["stdout"] == "on\n"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("exec", {"command": "a\0b"}),
        ("read", {"path": "a\0"}),
        ("edit", {"edits": [{"path": "\0", "old": "a", "new": ""}]}),
    ],
)
def test_a_nul_is_refused_before_anything_runs(wire: Wire, name: str, arguments: dict[str, Any]) -> None:
    failed = wire.call(name, **arguments, workspace="42")
    assert failed["error"] == "usage"
    assert "NUL" in failed["message"]


def test_half_a_surrogate_is_refused_or_answered(wire: Wire) -> None:
    """JSON can say it, and no text can hold it."""
    wire.send_raw(
        b'{"jsonrpc":"2.0","id":"odd","method":"tools/call","params":{"name":"read","arguments":{"path":"\\ud800"}}}'
    )
    assert wire.call("exec", command="echo on", workspace="42")["stdout"] == "on\n"


def test_a_thread_of_codex_counts_from_codex_alone(
    plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Another client cannot take on a Codex thread's attachment by naming it, nor can an odd name make a key."""
    home = tmp_path_factory.mktemp("threads")
    meta = {"threadId": "01a2-thread", "sessionId": "01a2-thread"}
    with signed_in(home, plane) as person:
        with on_the_wire(person.environment, person.project, client="codex-mcp-client") as codex:
            made = codex.receive(codex.start_call("connect", meta, workspace="42"))["result"]["structuredContent"]
            assert made["attached_for"].startswith("this agent session")
            assert codex.call("exec", meta, command="echo a")["stdout"] == "a\n"
            for other in ({"threadId": "01a2-other"}, {}, {"threadId": ["x"]}, {"threadId": "../x"}, {"threadId": ""}):
                assert codex.call("exec", other, command="true")["error"] == "not_attached", other
        with on_the_wire(person.environment, person.project, client="someone-else") as other_client:
            assert other_client.call("exec", meta, command="true")["error"] == "not_attached"
        seen = person.json("current", environment={"CODEX_THREAD_ID": "01a2-thread"})
        assert (seen["workspace_id"], seen["attached_by"]) == (42, "session")


def test_no_tool_takes_a_session(wire: Wire) -> None:
    for tool in TOOLS:
        assert not [name for name in tool.input_schema["properties"] if "session" in name or "thread" in name]
    assert wire.call("exec", command="true", agent_session="claude:x")["error"] == "usage"
