"""The real Claude Code and the real Codex, offline, for tests of the MCP server: a scripted model, and runs.

A ScriptedModel plays a list of steps to whichever client asks and keeps what it was
sent; what the model received is what tests look at. The clients come from
`make agent-clients`.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support import agent_clients

BIN = agent_clients.PROGRAMS["claude"].parent
HOW_TO_INSTALL = "the real clients are missing: make agent-clients"


def require_client(name: str) -> str:
    """The client's path; a missing one fails the test, with what installs it."""
    program = BIN / name
    assert os.access(program, os.X_OK), f"{HOW_TO_INSTALL} (no {program})"
    return str(program)


class ScriptedModel:
    """Answers each request that offers tools with the next step; everything else with a word."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self.steps = steps
        self.requests: list[dict[str, Any]] = []
        self._next = 0
        self._lock = threading.Lock()
        model = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self) -> None:
                self._reply({"data": [], "models": [], "object": "list", "has_more": False})

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    body = json.loads(raw)
                except ValueError:
                    body = {}
                path = self.path.partition("?")[0]
                if path.endswith("/count_tokens"):
                    self._reply({"input_tokens": 10})
                elif path.endswith("/messages"):
                    self._stream(_as_messages(model._take(body), str(body.get("model"))))
                elif path.endswith("/responses"):
                    self._stream(_as_responses(model._take(body)))
                else:
                    self._reply({})

            def _reply(self, value: object) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _stream(self, events: list[dict[str, Any]]) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                for event in events:
                    self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
                self.wfile.flush()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _take(self, body: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self.requests.append(body)
            if not body.get("tools"):
                return {"text": "ok"}
            self._next += 1
            return self.steps[self._next - 1] if self._next <= len(self.steps) else {"text": "done"}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def tool_results(self) -> list[str]:
        """What each tool call gave the model, as the text that it was sent, in order."""
        found: dict[str, str] = {}
        for body in self.requests:
            for message in body.get("messages", []):
                parts = message["content"] if isinstance(message["content"], list) else []
                for part in parts:
                    if part.get("type") == "tool_result":
                        found.setdefault(part["tool_use_id"], _text_of(part.get("content")))
            for item in body.get("input", []):
                if item.get("type") == "function_call_output":
                    found.setdefault(item["call_id"], _text_of(item.get("output")))
        return list(found.values())


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content or [])


def _as_messages(step: dict[str, Any], model: str) -> list[dict[str, Any]]:
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": []}
    message.update(stop_reason=None, stop_sequence=None, usage=usage)
    if "tool" in step:
        name = f"toolu_{os.urandom(8).hex()}"
        block = {"type": "tool_use", "id": name, "name": step["tool"], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(step["input"])}
    else:
        block = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": step["text"]}
    reason = "tool_use" if "tool" in step else "end_turn"
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 1},
        },
        {"type": "message_stop"},
    ]


def _as_responses(step: dict[str, Any]) -> list[dict[str, Any]]:
    name = f"resp_{os.urandom(8).hex()}"
    if "tool" in step:
        item = {"type": "function_call", "id": "fc_1", "call_id": f"call_{os.urandom(6).hex()}", "name": step["tool"]}
        item.update(arguments=json.dumps(step["input"]), **({"namespace": step["space"]} if "space" in step else {}))
    else:
        part = {"type": "output_text", "text": step["text"]}
        item = {"type": "message", "id": "msg_1", "role": "assistant", "content": [part]}
    usage = {"input_tokens": 1, "input_tokens_details": None, "output_tokens": 1, "output_tokens_details": None}
    return [
        {"type": "response.created", "response": {"id": name}},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": {"id": name, "usage": {**usage, "total_tokens": 2}}},
    ]


@contextlib.contextmanager
def scripted_model(steps: list[dict[str, Any]]) -> Iterator[ScriptedModel]:
    model = ScriptedModel(steps)
    try:
        yield model
    finally:
        model.close()


@contextlib.contextmanager
def client_home() -> Iterator[Path]:
    """A home for one client. Not below the temporary folder: Codex refuses helper programs there."""
    base = agent_clients.HOMES
    base.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(dir=base))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def client_environment(home: Path, more: dict[str, str]) -> dict[str, str]:
    """A person's environment with both clients on PATH and their state in `home`."""
    for name in (".claude", ".codex"):
        (home / name).mkdir(exist_ok=True)
    return {
        "CLAUDE_CONFIG_DIR": str(home / ".claude"),
        "CODEX_HOME": str(home / ".codex"),
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        **more,
        "PATH": f"{BIN}:{more['PATH']}",
    }


def run_claude(
    model: ScriptedModel, environment: dict[str, str], cwd: Path, *words: str, prompts: tuple[str, ...] = ("go",)
) -> subprocess.CompletedProcess[bytes]:
    """One session, a prompt after the other (each is sent when the one before has its answer)."""
    command = [require_client("claude"), "-p", "--input-format", "stream-json", "--output-format", "stream-json"]
    process = subprocess.Popen(
        [*command, "--verbose", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment, "ANTHROPIC_BASE_URL": model.base, "ANTHROPIC_API_KEY": "for-loopback-only"},
        cwd=cwd,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told = b""
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        for prompt in prompts:
            message = {"type": "user", "message": {"role": "user", "content": prompt}}
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                told += line
                if b'"type":"result"' in line:
                    break
        process.stdin.close()
        told += process.stdout.read()
        assert process.stderr is not None
        stderr = process.stderr.read()
        return subprocess.CompletedProcess(process.args, process.wait(), told, stderr)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def run_codex(
    model: ScriptedModel, environment: dict[str, str], cwd: Path, *words: str
) -> subprocess.CompletedProcess[bytes]:
    provider = (
        f'{{name="scripted",base_url="{model.base}/v1",wire_api="responses",env_key="SCRIPTED_KEY",'
        "supports_websockets=false,request_max_retries=0,stream_max_retries=0}"
    )
    return subprocess.run(
        [
            *(require_client("codex"), "exec", "--skip-git-repo-check", "--json"),
            *(
                "-c",
                "model_provider=scripted",
                "-c",
                "model=gpt-5.1-codex",
                "-c",
                f"model_providers.scripted={provider}",
                # Codex goes on without an optional server's tools after a moment; a busy machine needs more than that.
                "-c",
                "mcp_optional_startup_grace_ms=90000",
                "-c",
                "mcp_servers.runcode.startup_timeout_sec=90",
            ),
            *("--dangerously-bypass-approvals-and-sandbox", *words, "go"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**environment, "SCRIPTED_KEY": "for-loopback-only"},
        cwd=cwd,
        timeout=120,
        check=False,
    )
