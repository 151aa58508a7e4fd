"""The gateway's ports (directory, event sink), answered over HTTP by a control plane in another process.

Owns: the calls of the internal API, and reading its answers into the gateway's own
types. Called by `gateway_process`. Never: a decision, or a cache: a fact that is not
asked for now is no fact.

Threat: a control plane that is down, hangs, or answers nonsense (somebody else's
server, a proxy's page, a line without end); a network that goes silent in mid-stream.
Guarantee: every call has a time and a size that it may take, and an answer that is
not of the expected types is an error, never a fact. A stream that is silent for longer
than its heartbeats is torn down, and the next one begins with `everything`. No
redirect is followed and no proxy of the environment used: the credential goes to the
address that the operator named.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import logging
import ssl
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from runcode import __version__
from runcode.core.channel_policy import ChannelPolicy, parse_policy
from runcode.core.errors import ERRORS, RunCodeError, UnsafeInput
from runcode.gateway.directory import AdmissionFacts, ChangeBatch, SessionFacts, WorkspaceFacts
from runcode.gateway.events import GatewayEvent
from runcode.server.event_lines import render_event

_log = logging.getLogger(__name__)

_PREFIX: Final = "/internal/gateway"
_CALL_S: Final = 5.0
# Heartbeats come every 500 ms; a gateway admits nobody after 2 s of silence.
_SILENCE_S: Final = 1.5
_RETRY_S: Final = 0.2
_ANSWER_MAX: Final = 256 * 1024
_LINE_MAX: Final = 1024 * 1024
# The control plane takes bodies of 64 KB.
_PIECE_MAX: Final = 48 * 1024
_LIVE_AT_ONCE: Final = 1000
_HEX: Final = "0123456789abcdef"


class ControlPlaneClient:
    """One gateway worker's way to its control plane. `close` it."""

    def __init__(self, base: str, credential: str, *, worker: int = 0, ca_file: Path | None = None) -> None:
        """`base` is an origin, `https://HOST[:PORT]`. Raises `io_error` for a CA file that cannot be used."""
        try:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except (OSError, ssl.SSLError) as error:
            raise RunCodeError("io_error", f"{ca_file} holds no certificates that can be used") from error
        headers = {
            "authorization": f"Gateway {credential}",
            "x-runcode-version": __version__,
            "x-runcode-worker": str(worker),
            "accept-encoding": "identity",
        }
        self._http = httpx.AsyncClient(
            base_url=base,
            headers=headers,
            verify=context,
            trust_env=False,
            timeout=httpx.Timeout(_CALL_S, pool=_CALL_S),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=10.0),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, name: str, body: Mapping[str, object]) -> dict[str, Any]:
        """One call's answer. Raises RunCodeError: `network`, `http_error`, or what the control plane says."""
        try:
            async with asyncio.timeout(_CALL_S), self._http.stream("POST", f"{_PREFIX}/{name}", json=body) as response:
                raw = await _read_bounded(response)
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            raise RunCodeError("network", f"the control plane does not answer: {type(error).__name__}") from error
        answer = _parse_object(raw)
        if response.status_code != 200:
            raise _explain(response.status_code, answer)
        return answer

    async def stream_lines(self) -> AsyncIterator[bytes]:
        """Lines of the change feed until it ends. Raises RunCodeError, also for silence and for a line too long."""
        timeout = httpx.Timeout(_CALL_S, connect=_SILENCE_S, read=_SILENCE_S)
        try:
            async with self._http.stream("GET", f"{_PREFIX}/changes", timeout=timeout) as response:
                if response.status_code != 200:
                    raise _explain(response.status_code, _parse_object(await _read_bounded(response)))
                rest = b""
                async for chunk in response.aiter_raw():
                    *lines, rest = (rest + chunk).split(b"\n")
                    if len(rest) > _LINE_MAX:
                        raise RunCodeError("http_error", "the control plane's change feed sends a line without end")
                    for line in lines:
                        yield line
        except (httpx.HTTPError, OSError) as error:
            raise RunCodeError("network", f"the change feed broke: {type(error).__name__}") from error


class RemoteDirectory:
    """`runcode.gateway.directory.Directory` over the internal API."""

    def __init__(self, client: ControlPlaneClient) -> None:
        self._client = client

    async def load_admission_facts(self, title: str, key_fingerprint: str) -> AdmissionFacts:
        # No title and no fingerprint is longer; what would not fit a call is nothing that exists.
        asked = {"title": title[:256], "key_fingerprint": key_fingerprint[:256]}
        return parse_facts(await self._client.call("facts", asked))

    async def sign_workspace_certificate(self, *, session_id: int, workspace_id: int, public_key: str) -> str:
        answer = await self._client.call(
            "certificate", {"session_id": session_id, "workspace_id": workspace_id, "public_key": public_key}
        )
        return _text(answer, "certificate")

    async def watch_changes(self) -> AsyncIterator[ChangeBatch]:
        """Silent while there is no feed; then all connections are looked at."""
        trouble: str | None = None
        while True:
            first = True
            try:
                async for line in self._client.stream_lines():
                    batch = parse_batch(line)
                    if trouble is not None:
                        trouble = None
                        _log.warning("the change feed speaks again")
                    if first:
                        first = False
                        batch = ChangeBatch(cursor=batch.cursor, everything=True)
                    yield batch
                problem = "it ended"
            except RunCodeError as error:
                problem = error.message
            if problem != trouble:
                trouble = problem
                _log.error("no change feed, and nobody new is let in: %s", problem)
            await asyncio.sleep(_RETRY_S)


class RemoteEventSink:
    """`runcode.gateway.events.EventSink` over the internal API. The name is the credential's, whatever is passed."""

    def __init__(self, client: ControlPlaneClient) -> None:
        self._client = client

    async def record(self, gateway: str, events: Sequence[GatewayEvent]) -> None:
        """In pieces: a batch whose second half fails is delivered again whole, which changes nothing."""
        for piece in _cut_pieces([render_event(event) for event in events]):
            await self._tell("events", {"events": piece})

    async def end_missing(self, gateway: str, live: Collection[str], reason: str) -> None:
        for beginning, subjects in _cut_live(sorted(live), ""):
            await self._tell("end-missing", {"live": subjects, "reason": reason, "beginning": beginning})

    async def _tell(self, name: str, body: Mapping[str, object]) -> None:
        """Whatever is not wrong with the events themselves may pass: a revoked credential, another version."""
        try:
            await self._client.call(name, body)
        except RunCodeError as error:
            if error.kind.retryable or error.code == "bad_request":
                raise
            raise RunCodeError("network", f"events are not taken: {error.message}") from error


def _cut_pieces(events: Sequence[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    piece: list[dict[str, object]] = []
    size = 0
    for event in events:
        cost = len(json.dumps(event)) + 2
        if piece and size + cost > _PIECE_MAX:
            yield piece
            piece, size = [], 0
        piece.append(event)
        size += cost
    if piece:
        yield piece


def _cut_live(live: list[str], beginning: str) -> Iterator[tuple[str, list[str]]]:
    """All of the live subjects, in parts by how they begin: each part says of its own share what is still open."""
    if len(live) <= _LIVE_AT_ONCE or len(beginning) == 4:
        yield beginning, live
        return
    for digit in _HEX:
        longer = beginning + digit
        yield from _cut_live([subject for subject in live if subject.startswith(longer)], longer)


# ---------------------------------------------------------------- reading answers


def parse_facts(answer: dict[str, Any]) -> AdmissionFacts:
    """Raises `http_error` for whatever is not facts."""
    if not {"session", "workspace", "policy", "client_authorities"} <= answer.keys():
        raise _nonsense("facts")
    session, workspace = answer["session"], answer["workspace"]
    return AdmissionFacts(
        session=None if session is None else _parse_session(session),
        workspace=None if workspace is None else _parse_workspace(workspace),
        policy=_parse_policy(answer["policy"]),
        client_authorities=_texts(answer, "client_authorities"),
    )


def parse_batch(line: bytes) -> ChangeBatch:
    """Raises `http_error` for whatever is not a batch of changes."""
    value = _parse_object(line)
    return ChangeBatch(
        cursor=_number(value, "cursor", least=0),
        workspace_ids=_numbers(value, "workspace_ids"),
        session_ids=_numbers(value, "session_ids"),
        user_ids=_numbers(value, "user_ids"),
        everything=_flag(value, "everything"),
    )


def _parse_session(value: object) -> SessionFacts:
    found = _object(value)
    try:
        expires_at = datetime.datetime.fromisoformat(_text(found, "expires_at"))
    except ValueError:
        raise _nonsense("expires_at") from None
    if expires_at.tzinfo is None:
        raise _nonsense("expires_at")
    return SessionFacts(
        session_id=_number(found, "session_id"),
        workspace_id=_number(found, "workspace_id"),
        user_id=_number(found, "user_id"),
        client=_text(found, "client"),
        expires_at=expires_at.astimezone(datetime.timezone.utc),
        withdrawn=_flag(found, "withdrawn"),
    )


def _parse_workspace(value: object) -> WorkspaceFacts:
    found = _object(value)
    address = found.get("address")
    if address is not None:
        if not (isinstance(address, list) and len(address) == 2 and isinstance(address[0], str)):
            raise _nonsense("address")
        if type(address[1]) is not int or not 0 < address[1] < 65536:
            raise _nonsense("address")
        address = (address[0], address[1])
    return WorkspaceFacts(
        workspace_id=_number(found, "workspace_id"),
        title=_text(found, "title"),
        running=_flag(found, "running"),
        principal=_text(found, "principal"),
        host_key=_text(found, "host_key"),
        socket_path=None if found.get("socket_path") is None else _text(found, "socket_path"),
        address=address,
    )


def _parse_policy(value: object) -> ChannelPolicy:
    """Every key is there: what a policy leaves out would be allowed."""
    found = _object(value)
    if found.keys() != {field.name for field in dataclasses.fields(ChannelPolicy)}:
        raise _nonsense("policy")
    try:
        return parse_policy(found)
    except UnsafeInput:
        raise _nonsense("policy") from None


def _parse_object(raw: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(raw))
    except (ValueError, RecursionError):
        raise _nonsense("JSON") from None


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _nonsense("an object")
    return value


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str) or len(value) > 16 * 1024:
        raise _nonsense(name)
    return value


def _flag(found: dict[str, Any], name: str) -> bool:
    value = found.get(name)
    if not isinstance(value, bool):
        raise _nonsense(name)
    return value


def _number(found: dict[str, Any], name: str, *, least: int = 1) -> int:
    value = found.get(name)
    if type(value) is not int or not least <= value < 2**63:
        raise _nonsense(name)
    return value


def _numbers(found: dict[str, Any], name: str) -> frozenset[int]:
    values = found.get(name)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise _nonsense(name)
    return frozenset(values)


def _texts(found: dict[str, Any], name: str) -> frozenset[str]:
    values = found.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) and len(value) <= 16 * 1024 for value in values):
        raise _nonsense(name)
    return frozenset(values)


async def _read_bounded(response: httpx.Response) -> bytes:
    raw = b""
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) > _ANSWER_MAX:
            raise RunCodeError("http_error", "the control plane's answer is too large")
    return raw


def _nonsense(what: str) -> RunCodeError:
    return RunCodeError("http_error", f"the control plane's answer makes no sense: {what}")


def _explain(status: int, answer: dict[str, Any]) -> RunCodeError:
    """The control plane's own code where it is one of ours; its words are for the log."""
    code, message = answer.get("code"), answer.get("message")
    if not isinstance(code, str) or code not in ERRORS:
        return RunCodeError("http_error", f"the control plane answered with status {status}")
    return RunCodeError(code, message[:300] if isinstance(message, str) else f"status {status}")
