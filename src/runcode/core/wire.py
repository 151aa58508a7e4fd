"""Shapes of the HTTP API that the client and the control plane exchange.

Owns: paths, states, the workspace record, the error body. Facts of the service
that is live today: add freely, never rename or retype.

Threat: a list comes from a server that may be hostile; `custom_title` and error
messages are free text that some person typed.
"""

from __future__ import annotations

from runcode.core.errors import ERRORS, RunCodeError
from runcode.core.names import is_title
from runcode.core.terminal import printable
from runcode.core.values import Value

API_PREFIX = "/api/rc"
DEFAULT_API_BASE = "https://app.runcode.io"
DEFAULT_WEB_BASE = "https://runcode.io"
DEFAULT_TTL_S = 1800
# What clients in the field take as "this workspace has SSH", whatever runs it.
SSH_CAPABLE_PROVIDER = "aws"

RUNNING = "running"
STOPPED = "stopped"
STARTING = "starting"
STOPPING = "stopping"

_STATUS_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    429: "rate_limited",
    503: "unavailable",
}


class Workspace(Value):
    """One workspace as the client sees it. `custom_title` is untrusted free text."""

    id: int
    title: str
    custom_title: str
    state: str
    ssh_capable: bool
    shared: bool

    @property
    def connectable(self) -> bool:
        return self.ssh_capable and self.state == RUNNING


def parse_workspaces(raw_body: object, *, shared: bool) -> list[Workspace]:
    """The workspaces of one category; a record without a usable id and title is left out.

    Raises `http_error` when the body has not the shape of a list at all.
    """
    raw_data = raw_body.get("data") if isinstance(raw_body, dict) else None
    raw_list = raw_data.get("workspaces") if isinstance(raw_data, dict) else None
    if not isinstance(raw_list, list):
        raise RunCodeError("http_error", "the server's workspace list has an unknown shape")
    parsed = (_parse_workspace(raw, shared=shared) for raw in raw_list)
    return [workspace for workspace in parsed if workspace is not None]


def merge_workspaces(own: list[Workspace], shared: list[Workspace]) -> list[Workspace]:
    """Both categories without repeats by id; the caller's own sighting wins."""
    merged: dict[int, Workspace] = {}
    for workspace in own + shared:
        merged.setdefault(workspace.id, workspace)
    return list(merged.values())


def _parse_workspace(raw: object, *, shared: bool) -> Workspace | None:
    if not isinstance(raw, dict):
        return None
    workspace_id, title = raw.get("id"), raw.get("title")
    if type(workspace_id) is not int or not 0 < workspace_id < 2**63 or not is_title(title):
        return None
    assert isinstance(title, str)
    custom_title = raw.get("custom_title")
    state = raw.get("interim_state") or raw.get("current_state")
    return Workspace(
        id=workspace_id,
        title=title,
        custom_title=custom_title[:500] if isinstance(custom_title, str) else "",
        state=printable(state, limit=40) if isinstance(state, str) else "unknown",
        ssh_capable=raw.get("provider") == SSH_CAPABLE_PROVIDER or raw.get("ssh_capable") is True,
        shared=shared,
    )


def error_code_for_status(status: int) -> str:
    return _STATUS_CODES.get(status, "http_error")


def error_from_response(status: int, raw_body: object) -> RunCodeError:
    """What a failed call means: the code from the status, the server's own words as the message."""
    code = error_code_for_status(status)
    message = find_error_message(raw_body) or f"the server answered {status}"
    return RunCodeError(code, message)


def find_error_message(raw_body: object) -> str | None:
    """The server's own words (`message`, `detail`, or a string `error`), made printable; or None."""
    if not isinstance(raw_body, dict):
        return None
    for name in ("message", "detail", "error"):
        text = raw_body.get(name)
        if isinstance(text, str) and text.strip():
            return printable(text.strip())
    return None


def render_error(error: RunCodeError) -> dict[str, object]:
    """The body of a failed call; `code` and `resolution` are our additions to the wire."""
    return {
        "error": True,
        "message": error.message,
        "code": error.code,
        "resolution": error.resolution,
    }


def http_status_for(code: str) -> int:
    return ERRORS[code].http_status
