"""The control plane's HTTP API, as one person's client calls it.

Called by `client.sessions`, `client.workspaces` and the sign-in commands. Knows
no token but the one it was made with, and no base but one.

Threat: the server, or whoever answers for it, may be hostile: a redirect that
takes the token elsewhere, a reply without end, a message that rewrites the
screen.

Guarantee: the token goes to one checked origin only; a redirect is followed
within that origin and nowhere else; a reply is bounded in size and in time, and so
is what a server may have us wait; what comes back is parsed by `core` or is an
error with a code.
"""

from __future__ import annotations

import io
import json
import time

from runcode.core import wire
from runcode.core.bundle import ConnectionBundle, parse_bundle
from runcode.core.errors import RunCodeError
from runcode.core.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import http.client
    import socket
    from collections.abc import Mapping
    from typing import Any

    from runcode.core.activity import Activity
    from runcode.core.wire import Workspace

REPLY_MAX = 4 * 1024 * 1024
CALL_TIMEOUT_S = 20.0
# One silent byte at a time could otherwise hold a call for ever.
REPLY_TIMEOUT_S = 60.0
REDIRECTS_MAX = 3
# What a call waits in all when the server says "later": enough for a crowd, too short to be taken for a hang.
PATIENCE_S = 10
_DEVICE_REFUSALS = frozenset(("authorization_pending", "slow_down", "access_denied", "expired_token"))


class DeviceAnswer(Value):
    """A poll of a device's sign-in: the token, or the server's word for why there is none yet (RFC 8628 §3.5)."""

    token: str | None
    untrusted_email: str
    refusal: str | None


class Api:
    """Calls to one origin with one token. Not for use by several threads."""

    def __init__(
        self,
        base: str,
        token: str | None,
        environ: Mapping[str, str] | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
        certificates: bool = True,
    ) -> None:
        """Without a token only the calls that sign in make sense. `certificates`: may a mint answer with one?

        `server_date` is the last reply's Date header, as it came.
        """
        self.base = base
        self.server_date: str | None = None
        self._certificates = certificates
        self._token = token
        self._environ = environ if environ is not None else {}
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"Api({self.base})"

    def list_workspaces(self) -> list[Workspace]:
        """Own and shared ones, without repeats."""
        own = wire.parse_workspaces(self._call("GET", "/workspaces?category=active"), shared=False)
        shared = wire.parse_workspaces(self._call("GET", "/workspaces?category=shared"), shared=True)
        return wire.merge_workspaces(own, shared)

    def verify_token(self) -> None:
        """Raises `unauthorized` when the server does not know the token."""
        wire.parse_workspaces(self._call("GET", "/workspaces?category=active"), shared=False)

    def start(self, workspace_id: int) -> None:
        """Idempotent. Raises `start_failed` with the server's reason when it refuses."""
        self._power("start", workspace_id)

    def stop(self, workspace_id: int) -> None:
        """Idempotent. Raises `stop_failed` with the server's reason when it refuses."""
        self._power("stop", workspace_id)

    def _power(self, verb: str, workspace_id: int) -> None:
        body = self._call("GET", f"/workspace/{verb}?workspace_id={workspace_id:d}")
        if not isinstance(body, dict) or body.get("error"):
            reason = wire.find_error_message(body) or "the server gave no reason"
            raise RunCodeError(f"{verb}_failed", reason)

    def mint(self, workspace_id: int, *, public_key: str, ttl_s: int, client: str) -> ConnectionBundle:
        """Register the public key for one workspace. Raises `conflict` while that is not running."""
        request: dict[str, object] = {"public_key": public_key, "ttl": ttl_s, "client": client}
        if self._certificates:
            request["certificates"] = True
        try:
            body = self._call("POST", f"/workspace/{workspace_id:d}/ssh-session", request)
        except RunCodeError as error:
            if error.code != "conflict":
                raise
            resolution = f"it must be running: `runcode connect {workspace_id:d} --start`"
            raise RunCodeError("conflict", error.message, resolution=resolution) from error
        if not isinstance(body, dict) or body.get("error"):
            raise RunCodeError("http_error", wire.find_error_message(body) or "the server sent no bundle")
        return parse_bundle(body.get("bundle"))

    def list_activity(
        self,
        workspace_id: int | None,
        *,
        before: int | None = None,
        limit: int = 50,
        session_id: int | None = None,
        kind: str | None = None,
        since_s: int | None = None,
    ) -> tuple[list[Activity], int | None]:
        """(what happened, newest first; the older page's cursor). One workspace's, or (None) this person's own.

        Raises `unavailable` where the server has no such call.
        """
        from runcode.core.activity import parse_page

        given = {"before": before, "limit": limit, "session": session_id, "kind": kind, "since_s": since_s}
        query = "&".join(f"{name}={value}" for name, value in given.items() if value is not None)
        path = "/activity" if workspace_id is None else f"/workspace/{workspace_id:d}/activity"
        try:
            return parse_page(self._call("GET", f"{path}?{query}"))
        except RunCodeError as error:
            if error.code != "not_found" or not self._may_use(workspace_id):
                raise
            raise RunCodeError(
                "unavailable",
                "this server does not tell what happened",
                resolution="ask its operator for a version that has `runcode history`",
            ) from error

    def _may_use(self, workspace_id: int | None) -> bool:
        """A server without a call and one without the workspace answer alike."""
        return workspace_id is None or any(one.id == workspace_id for one in self.list_workspaces())

    def redeem_code(self, code: str, code_verifier: str) -> tuple[str, str]:
        """(token, e-mail address) for a browser login's one-time code. The token is as the server sent it."""
        body = self._call("POST", "/auth/cli-token", {"code": code, "code_verifier": code_verifier})
        token, email = (body.get("token"), body.get("email")) if isinstance(body, dict) else (None, None)
        if not isinstance(token, str):
            raise RunCodeError("http_error", wire.find_error_message(body) or "the server sent no token")
        return token, email if isinstance(email, str) else ""

    def start_device_login(self, *, client: str, machine: str) -> object:
        """The codes for a machine without a browser, as the server sent them (RFC 8628 §3.2)."""
        return self._call("POST", "/auth/device", {"client": client, "machine": machine})

    def redeem_device_code(self, device_code: str) -> DeviceAnswer:
        """Where that sign-in stands. Raises `http_error` for an answer of no known kind."""
        body = self._call("POST", "/auth/device-token", {"device_code": device_code}, refusals=_DEVICE_REFUSALS)
        fields = body if isinstance(body, dict) else {}
        token, email, error = fields.get("token"), fields.get("email"), fields.get("error")
        refusal = error if isinstance(error, str) else None
        if refusal is None and not isinstance(token, str):
            raise RunCodeError("http_error", wire.find_error_message(body) or "the server sent no token")
        return DeviceAnswer(
            token=token if refusal is None else None,
            untrusted_email=email if isinstance(email, str) else "",
            refusal=refusal,
        )

    def revoke_token(self) -> None:
        """End this very token on the server. Raises `not_found` where the server has no such call."""
        self._call("POST", "/auth/revoke", {})

    def _call(
        self, method: str, path: str, request: object = None, *, refusals: frozenset[str] = frozenset()
    ) -> object:
        """The body of a success; also of a 400 whose `error` is one of `refusals`."""
        target = wire.API_PREFIX + path
        redirects, patience_s = 0, PATIENCE_S
        while redirects <= REDIRECTS_MAX:
            reply = self._exchange(method, target, request)
            if reply.status == 429:
                # RFC 6585 §4: nothing of the call was done, so it may be made again.
                wait_s = _parse_retry_after(reply.retry_after)
                if wait_s is None or wait_s > patience_s:
                    raise self._too_many(wait_s, reply)
                patience_s -= wait_s
                time.sleep(wait_s)
                continue
            if reply.status not in (301, 302, 303, 307, 308):
                return self._parse(reply.status, reply.raw, refusals)
            redirects += 1
            target = self._same_origin_target(reply.location)
            if reply.status not in (307, 308) and method != "GET":
                # 301 to 303 would turn a mint into a GET; no honest server does that here.
                raise RunCodeError("http_error", f"the server redirected a {method} with {reply.status}")
        raise RunCodeError("http_error", "the server redirects in circles")

    def _too_many(self, wait_s: int | None, reply: _Reply) -> RunCodeError:
        try:
            self._parse(reply.status, reply.raw, frozenset())
        except RunCodeError as error:
            if wait_s is None:
                return error
            return RunCodeError(error.code, error.message, resolution=f"wait {wait_s:d} s, then retry")
        raise AssertionError("429 is an error")

    def _same_origin_target(self, location: str | None) -> str:
        if location is not None and location.isascii() and location.isprintable() and " " not in location:
            if location.startswith(self.base + "/"):
                return location[len(self.base) :]
            if location.startswith("/") and not location.startswith(("//", "/\\")):
                return location
        raise RunCodeError(
            "insecure_base",
            "the server redirects to another address; the token was not sent there",
            resolution="check the server's address (`--api-base`)",
        )

    def _exchange(self, method: str, target: str, request: object) -> _Reply:
        import http.client

        body = None if request is None else json.dumps(request).encode()
        headers = {
            **({} if self._token is None else {"Authorization": f"Token {self._token}"}),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": _user_agent(),
        }
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connect()
        try:
            _set_deadline(connection, time.monotonic() + REPLY_TIMEOUT_S)
            connection.request(method, target, body=body, headers=headers)
            reply = connection.getresponse()
            self.server_date = reply.getheader("Date")
            return _Reply(
                status=reply.status,
                location=reply.getheader("Location"),
                retry_after=reply.getheader("Retry-After"),
                raw=_read_bounded(reply),
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            resolution = _CERTIFICATE_RESOLUTION if getattr(error, "verify_message", None) else None
            raise RunCodeError(
                "network", f"no answer from {self.base}: {_reason(error)}", resolution=resolution
            ) from error
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        import http.client

        scheme, _, authority = self.base.partition("://")
        if scheme == "http":  # loopback only: `settings.parse_base` saw to it
            return http.client.HTTPConnection(authority, timeout=self._timeout_s)
        import ssl

        try:
            context = ssl.create_default_context()
        except OSError as error:
            raise RunCodeError("network", f"the system's certificates cannot be read: {error.strerror}") from error
        proxy = find_proxy(self._environ, authority)
        if proxy is None:
            return http.client.HTTPSConnection(authority, timeout=self._timeout_s, context=context)
        tunnel = http.client.HTTPSConnection(proxy[0], timeout=self._timeout_s, context=context)
        tunnel.set_tunnel(authority, headers=proxy[1])
        return tunnel

    def _parse(self, status: int, raw_reply: bytes, refusals: frozenset[str]) -> object:
        try:
            body = json.loads(raw_reply, object_pairs_hook=_read_object)
        except (ValueError, RecursionError):
            body = None
        if (
            status == 400
            and isinstance(body, dict)
            and isinstance(body.get("error"), str)
            and body["error"] in refusals
        ):
            return body
        if not 200 <= status < 300:
            raise wire.error_from_response(status, body)
        if body is None:
            raise RunCodeError("http_error", "the server's answer is not JSON")
        return body


class _Reply(Value):
    """As it came: nothing of it is checked."""

    status: int
    location: str | None
    retry_after: str | None
    raw: bytes


def _parse_retry_after(raw: str | None) -> int | None:
    """Whole seconds, at least one; None for no header, a date (which needs a clock that agrees), or anything odd."""
    text = (raw or "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        return None
    return max(1, int(text))


def _read_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Raises ValueError for a name that stands twice: two readers would take different values for it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def find_proxy(environ: Mapping[str, str], authority: str) -> tuple[str, dict[str, str]] | None:
    """The CONNECT proxy for an https origin, as `host:port` and its headers; None for a direct connection."""
    raw_proxy = environ.get("https_proxy") or environ.get("HTTPS_PROXY") or ""
    host = authority.rpartition(":")[0] if authority.rpartition(":")[2].isdigit() else authority
    for part in (environ.get("no_proxy") or environ.get("NO_PROXY") or "").split(","):
        name = part.strip().lstrip(".").lower()
        if name and (name == "*" or host == name or host.endswith("." + name)):
            return None
    if not raw_proxy:
        return None
    scheme, mark, rest = raw_proxy.partition("://")
    if not mark:
        scheme, rest = "http", raw_proxy
    if scheme != "http":
        raise RunCodeError("network", "HTTPS_PROXY is not an http:// proxy", resolution="use an http:// proxy")
    credentials, _, address = rest.rstrip("/").rpartition("@")
    headers = {}
    if credentials:
        import binascii
        from urllib.parse import unquote

        encoded = binascii.b2a_base64(unquote(credentials).encode(), newline=False).decode()
        headers["Proxy-Authorization"] = f"Basic {encoded}"
    return address, headers


def _read_bounded(reply: http.client.HTTPResponse) -> bytes:
    if reply.getheader("Content-Encoding", "identity").lower() != "identity":
        raise RunCodeError("http_error", "the server's answer is compressed, and nobody asked for that")
    parts: list[bytes] = []
    size = 0
    while chunk := reply.read1(64 * 1024):
        size += len(chunk)
        if size > REPLY_MAX:
            raise RunCodeError("http_error", "the server's answer is too large")
        parts.append(chunk)
    if reply.length:
        raise RunCodeError("network", "the server's answer was cut short")
    return b"".join(parts)


def _set_deadline(connection: http.client.HTTPConnection, deadline: float) -> None:
    """Head and body of every reply on this connection, a proxy's too, are read until then and no longer.

    `http.client` would read for ever from whoever sends one header, or one
    `100 Continue`, after the other.
    """
    import http.client

    def make_response(source: socket.socket, *arguments: Any, **options: Any) -> http.client.HTTPResponse:
        timed: Any = _TimedSource(source, deadline)
        return http.client.HTTPResponse(timed, *arguments, **options)

    connection.response_class = make_response  # type: ignore[assignment]


class _TimedSource:
    """Stands for the socket from which a reply is read."""

    def __init__(self, source: socket.socket, deadline: float) -> None:
        self._source, self._deadline = source, deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        timed = _TimedReader(self._source, self._deadline)
        return io.BufferedReader(timed)


class _TimedReader(io.RawIOBase):
    def __init__(self, source: socket.socket, deadline: float) -> None:
        self._source, self._deadline = source, deadline
        self._raw = source.makefile("rb", buffering=0)
        self._silence_s = source.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._source.settimeout(left_s if self._silence_s is None else min(left_s, self._silence_s))
        return self._raw.readinto(buffer) or 0

    def close(self) -> None:
        self._raw.close()
        super().close()


_CERTIFICATE_RESOLUTION = "if the operator has a CA of their own, name its certificate: SSL_CERT_FILE=FILE"


def _reason(error: Exception) -> str:
    """Our own words for what went wrong; the exception's text may quote a header, hence the token."""
    if isinstance(error, TimeoutError):
        return "timed out"
    verify_message = getattr(error, "verify_message", None)
    if verify_message:
        return f"its certificate is not accepted ({verify_message})"
    return getattr(error, "strerror", None) or type(error).__name__


def _user_agent() -> str:
    from runcode import __version__

    return f"runcode/{__version__}"
