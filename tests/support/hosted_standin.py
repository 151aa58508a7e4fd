"""A stand-in of the hosted service, as strict as it may be: WIRE.md's required fields and nothing of ours.

`provider: "aws"` is the only sign of SSH, start and stop take GET and nothing
else, fields that only our own clients send are not known here, and the consent
page answers with the plain token: there is no code exchange. A team's workspace
stands in no list.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from support.client_standin import ControlPlane, Person, Sshd

EMAIL = "mira@example.net"
LOGIN_PATH = "/auth/cli-login/"
_WORKSPACE_FIELDS = ("id", "title", "custom_title", "provider", "current_state", "interim_state")


class HostedService(ControlPlane):
    """`refused` collects what a service that knows only WIRE.md would not have understood."""

    refused: list[str]

    def __init__(self, sshd: Sshd | None, workdir: Path) -> None:
        super().__init__(sshd, workdir)
        self.refused = []
        self.deny = False

    def answer(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any] | None) -> None:
        if handler.path.startswith(LOGIN_PATH):
            self.consent(handler)
        else:
            super().answer(handler, body)

    def consent(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        """What the page does once the signed-in person has pressed Authorize."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(handler.path).query).items()}
        found = {"error": "access_denied"} if self.deny else {"token": self.token, "email": EMAIL}
        answer = urlencode({"state": query["state"], **found})
        handler.send_response(302)
        handler.send_header("Location", f"http://127.0.0.1:{int(query['port'])}/callback?{answer}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def reply(self, handler: http.server.BaseHTTPRequestHandler, body: dict[str, Any] | None) -> tuple[int, object]:
        path = handler.path.partition("?")[0]
        if path.startswith("/api/rc/auth/"):
            return 404, {"detail": "Not found."}
        if path in ("/api/rc/workspace/start", "/api/rc/workspace/stop") and handler.command != "GET":
            self.refused.append(f"{handler.command} {path}")
            return 405, {"detail": "Method not allowed."}
        if body is not None and not re.fullmatch(r"ssh-[a-z0-9-]+ [A-Za-z0-9+/=]+( [ -~]*)?", str(body["public_key"])):
            self.refused.append("public_key")
            return 400, {"detail": "Bad key."}
        status, reply = super().reply(handler, body)
        return status, _only_required(reply)

    def mint(self, body: dict[str, Any]) -> dict[str, object]:
        bundle = super().mint(body)
        del bundle["workdir"]
        return bundle


def _only_required(reply: object) -> object:
    if isinstance(reply, dict) and "data" in reply:
        rows = reply["data"]["workspaces"]
        kept = [{name: row[name] for name in _WORKSPACE_FIELDS} for row in rows]
        return {"error": False, "data": {"workspaces": kept}}
    return reply


@contextlib.contextmanager
def hosted_service(folder: Path) -> Iterator[HostedService]:
    workdir = folder / "work"
    workdir.mkdir(parents=True)
    sshd = Sshd(folder / "sshd", options="MaxSessions 1000\nMaxStartups 1000")
    sshd.start()
    service = HostedService(sshd, workdir)
    try:
        yield service
    finally:
        service.close()
        sshd.stop()


class Waiting:
    """A `runcode login` that waits for its browser. `url` is what it printed."""

    def __init__(self, person: Person, *words: str, environment: dict[str, str] | None = None) -> None:
        self.process: subprocess.Popen[bytes] = person.start(
            "login",
            *words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            environment=environment or {},
        )
        assert self.process.stderr is not None
        self.said = b""
        while b"to sign in, open " not in self.said:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said += line
        self.url = re.search(rb"to sign in, open (\S+)", self.said)[1].decode()  # type: ignore[index]
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.url).query).items()}

    @property
    def port(self) -> int:
        return int(self.query["port"])

    @property
    def state(self) -> str:
        return self.query["state"]

    def end(self) -> tuple[int, bytes, bytes]:
        """(exit status, stdout, stderr) of the whole call."""
        stdout, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stdout, self.said + stderr

    def end_json(self) -> tuple[int, Any]:
        status, stdout, _ = self.end()
        return status, json.loads(stdout)
