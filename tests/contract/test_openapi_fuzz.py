"""The API is what `/api/openapi.json` says: Schemathesis makes up calls, in form and out of it, and judges the answers.

A bounded, repeatable part runs in `make test`; `make fuzz` runs more of it, from another seed each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from runcode.controlplane.app import make_app
from runcode.controlplane.openapi import render_document
from runcode.controlplane.plane import ControlPlane
from support.controlplane_fakes import mark_running, open_plane, set_endpoint

_T = TypeVar("_T")
OWNER, GUEST = "ann@example.org", "bob@example.org"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "5"))
REPEATABLE = "FUZZ_EXAMPLES" not in os.environ
# What any answer must hold to. Whether odd input is refused is a matter of rules, which have tests of their own.
JUDGES = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
# Ends the token that it is called with.
_REVOKES = "/api/rc/auth/revoke"


class Backstage:
    """A control plane and its app on an event loop in another thread: Hypothesis's tests are plain functions."""

    def __init__(self, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._context = open_plane(folder)
        self.plane: ControlPlane = self.run(self._context.__aenter__())
        self.run(self._furnish())
        app = make_app(self.plane)
        self.document = render_document(app)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
        self.token = self.make_token()

    def run(self, doing: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(doing, self._loop).result(60)

    def make_token(self) -> str:
        return self.run(self.plane.tokens.create_token(OWNER, "fuzz")).plaintext

    def close(self) -> None:
        self.run(self.client.aclose())
        self.run(self._context.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _furnish(self) -> None:
        await self.plane.users.create_user(OWNER, admin=True)
        await self.plane.users.create_user(GUEST)
        set_endpoint(self.plane)
        await self.plane.workspaces.create_workspace("box", OWNER, runtime="fake", custom_title="Bück 漢")
        theirs = await self.plane.workspaces.create_workspace("theirs", GUEST, runtime="fake")
        await self.plane.workspaces.share(theirs.id, OWNER, "use")
        await mark_running(self.plane, "box")


@pytest.fixture(scope="module")
def backstage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backstage]:
    opened = Backstage(tmp_path_factory.mktemp("fuzz"))
    yield opened
    opened.close()


@pytest.mark.parametrize("signed_in", [True, False], ids=["with a token", "without one"])
def test_every_answer_is_as_documented(backstage: Backstage, signed_in: bool) -> None:
    schema = schemathesis.openapi.from_dict(backstage.document)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} == set(backstage.document["paths"])
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            _drive(backstage, operation, mode, signed_in)


def _drive(backstage: Backstage, operation: Any, mode: Any, signed_in: bool) -> None:
    judged = 0

    @settings(
        # Without a token nearly all of it is one answer.
        max_examples=EXAMPLES if signed_in else max(2, EXAMPLES // 3),
        derandomize=REPEATABLE,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def judge(case: Any) -> None:
        nonlocal judged
        token = None
        if signed_in:
            token = backstage.make_token() if operation.path == _REVOKES else backstage.token
        answer = backstage.run(_send(backstage.client, case, token))
        if answer is None:
            return
        if not signed_in and operation.definition.raw["security"]:
            assert answer.status_code == 401
        case.validate_response(answer, checks=JUDGES)
        judged += 1

    with contextlib.suppress(Unsatisfiable):
        judge()
    # One that takes nothing cannot be called out of form; every other way is really taken.
    takes_something = bool(operation.definition.raw.keys() & {"parameters", "requestBody"})
    assert judged or (mode is schemathesis.GenerationMode.NEGATIVE and not takes_something), (operation.label, mode)


async def _send(client: httpx.AsyncClient, case: Any, token: str | None) -> httpx.Response | None:
    sent = case.as_transport_kwargs(base_url="http://127.0.0.1")
    headers = {name: value for name, value in (sent.get("headers") or {}).items() if name.lower() != "authorization"}
    if token is not None:
        headers["Authorization"] = f"Token {token}"
    body = {"json": sent["json"]} if sent.get("json") is not None else {}
    if isinstance(sent.get("data"), bytes | str):
        body = {"content": sent["data"]}
    try:
        request = client.build_request(
            sent["method"], sent["url"], params=sent.get("params"), headers=headers, cookies=sent.get("cookies"), **body
        )
    except (ValueError, TypeError, httpx.InvalidURL):
        # Nothing that a client could put on the wire.
        return None
    return await client.send(request)
