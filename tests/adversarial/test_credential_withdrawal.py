"""What was let in by somebody who is out since: consents that wait for their client, tokens in the making, guesses.

A thief who sat at a signed-in browser for a minute must have nothing left once its person has cleaned up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.services import sign_in_pace
from runcode.controlplane.services.consents import Consent, make_ticket
from runcode.controlplane.services.login_requests import parse_login_request
from runcode.controlplane.services.sign_ins import SignIns
from runcode.controlplane.services.web_sessions import Visitor
from runcode.core.errors import RunCodeError
from support.browser_login import Browser, Page, make_challenge
from support.controlplane_fakes import (
    Answer,
    HttpServer,
    ManualClock,
    make_client_key,
    mark_running,
    open_plane,
    serve,
    set_endpoint,
)

ANN, PASSWORD = "ann@example.org", "correct horse battery"
EVE, EVES_PASSWORD = "eve@example.org", "staple of the eves"
ALL = Consent(scopes=("read", "connect", "manage"), expires_at=None)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        await opened.users.create_user(ANN, PASSWORD, admin=True)
        await opened.users.create_user(EVE, EVES_PASSWORD)
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def in_thread(call: Callable[..., Any], *words: Any, **options: Any) -> Any:
    return await asyncio.to_thread(call, *words, **options)


async def signed_in(server: HttpServer) -> Browser:
    browser = Browser(server.port)
    page = await in_thread(browser.get, "/sign-in")
    assert (await in_thread(browser.submit, page, email=ANN, password=PASSWORD)).status == 303
    return browser


async def caller_of(plane: ControlPlane, email: str = ANN) -> Caller:
    """A signed-in browser's, without HTTP."""
    link = await plane.sign_in_links.create_link(email)
    visitor = Visitor(source="127.0.0.1")
    made = await plane.sign_in_links.use(link.path.partition("=")[2], visitor)
    found = await plane.web_sessions.find_signed_in(made.secret, visitor)
    assert found is not None
    return found.caller


async def live_tokens(plane: ControlPlane) -> list[str]:
    return [token.name for token in await plane.tokens.list_tokens() if token.revoked_at is None]


async def consent_to_device(server: HttpServer, browser: Browser) -> str:
    """A device that this browser has authorized, and that has not come for its token: its device code."""
    begun = (await server.call("POST", "/api/rc/auth/device", body={"client": "codex"})).json
    page = await in_thread(browser.get, "/auth/device")
    page = await in_thread(browser.submit, page, user_code=begun["user_code"])
    assert (await in_thread(browser.submit, page, answer="authorize")).status == 200
    return str(begun["device_code"])


async def consent_to_client(browser: Browser) -> tuple[str, str]:
    """A code that this browser has given, and its verifier."""
    verifier, challenge = make_challenge()
    page: Page = await in_thread(browser.open_login, port="45677", state="s", **challenge)
    led = await in_thread(browser.submit, page, answer="authorize")
    return led.location.partition("code=")[2].partition("&")[0], verifier


async def fetch(server: HttpServer, device_code: str, code: str, verifier: str) -> list[int]:
    answers: list[Answer] = [
        await server.call("POST", "/api/rc/auth/device-token", body={"device_code": device_code}),
        await server.call("POST", "/api/rc/auth/cli-token", body={"code": code, "code_verifier": verifier}),
    ]
    return [answer.status for answer in answers]


async def end_the_other_browser(plane: ControlPlane, server: HttpServer, own: Browser) -> None:
    page = await in_thread(own.get, "/account")
    [other] = [one.id for one in await plane.web_sessions.list_sessions(await caller_of(plane)) if one.id == 1]
    fields = {"proof": page.form.fields["proof"], "id": str(other)}
    assert (await in_thread(own.post, "/account/sessions/end", fields)).status == 303


def sign_out(**fields: str) -> Callable[[ControlPlane, HttpServer, Browser], Awaitable[None]]:
    async def act(_plane: ControlPlane, _server: HttpServer, own: Browser) -> None:
        page = await in_thread(own.get, "/account")
        done = await in_thread(own.post, "/sign-out", {"proof": page.form.fields["proof"], **fields})
        assert done.status == 303

    return act


async def by_the_operator(plane: ControlPlane, _server: HttpServer, _own: Browser) -> None:
    await plane.web_sessions.end_all_of(ANN)


CLEANUPS = {
    "everywhere": sign_out(everywhere="yes"),
    "with all tokens": sign_out(tokens="yes"),
    "that browser": end_the_other_browser,
    "the operator": by_the_operator,
}


@pytest.mark.parametrize("how", CLEANUPS)
async def test_what_a_thief_consented_to_does_not_outlive_the_cleanup(
    plane: ControlPlane, server: HttpServer, how: str
) -> None:
    thief = await signed_in(server)
    device_code = await consent_to_device(server, thief)
    code, verifier = await consent_to_client(thief)
    own = await signed_in(server)
    await CLEANUPS[how](plane, server, own)
    assert await fetch(server, device_code, code, verifier) == [400, 400]
    assert await live_tokens(plane) == []


async def test_signing_out_the_usual_way_leaves_the_client_its_token(plane: ControlPlane, server: HttpServer) -> None:
    """A person who consents and signs out at once: the machine that waits is theirs."""
    browser = await signed_in(server)
    device_code = await consent_to_device(server, browser)
    code, verifier = await consent_to_client(browser)
    await sign_out()(plane, server, browser)
    assert await fetch(server, device_code, code, verifier) == [200, 200]


async def disable(plane: ControlPlane) -> object:
    return await plane.users.disable_user(ANN)


async def sign_out_everywhere(plane: ControlPlane) -> object:
    return await plane.web_sessions.end_all_of(ANN)


async def change_password(plane: ControlPlane) -> object:
    return await plane.users.set_password(ANN, "a wholly new password")


@pytest.mark.parametrize("withdraw", [disable, sign_out_everywhere, change_password])
async def test_a_browser_that_was_signed_out_meanwhile_makes_no_credential(
    plane: ControlPlane, server: HttpServer, clock: ManualClock, withdraw: Callable[[ControlPlane], Awaitable[object]]
) -> None:
    """Its cookie was looked at before, and its transaction waited for the one that signs it out."""
    caller, ticket = await caller_of(plane), make_ticket(clock.now())
    begun = (await server.call("POST", "/api/rc/auth/device", body={})).json
    _, challenge = make_challenge()
    known = parse_login_request([("port", "45677"), ("state", "s"), *challenge.items()])
    older = parse_login_request([("port", "45677"), ("state", "s")])
    await withdraw(plane)
    for attempt in (
        plane.tokens.create_own(caller, "kept"),
        plane.browser_logins.authorize(caller, known, ticket, ALL),
        plane.browser_logins.authorize(caller, older, ticket, ALL),
        plane.device_logins.decide(caller, begun["user_code"], ALL),
    ):
        with pytest.raises(RunCodeError) as refused:
            await attempt
        assert refused.value.code == "forbidden"
    if withdraw is disable:
        await plane.users.enable_user(ANN)
    assert await live_tokens(plane) == []
    waiting = await server.call("POST", "/api/rc/auth/device-token", body={"device_code": begun["device_code"]})
    assert waiting.json["error"] == "authorization_pending"


async def test_blanks_behind_an_address_give_no_more_guesses(plane: ControlPlane) -> None:
    """From many addresses, as a guesser has them: each try names the account in another way."""
    tries = sign_in_pace.FOR_ONE_ACCOUNT.burst + 5
    parts = plane.users, plane.web_sessions, plane.proofs, plane.refusals
    sign_ins = SignIns(plane.store, plane.clock, *parts, monotonic=lambda: 1000.0)
    codes = []
    for number in range(tries):
        blanks = "".join(" \t"[number >> bit & 1] for bit in range(8)) + " " * 300
        # Cut at 254 characters, so that what strips it would never see the end.
        spelt = f"{ANN}{blanks}x"
        visitor = Visitor(source=f"2001:db8:{number:x}::1")
        with pytest.raises(RunCodeError) as refused:
            await sign_ins.sign_in(spelt, "a wrong password", visitor)
        codes.append(refused.value.code)
    assert codes == ["unauthorized"] * sign_in_pace.FOR_ONE_ACCOUNT.burst + ["rate_limited"] * 5


async def test_whose_token_ended_learns_nothing_of_the_workspace(plane: ControlPlane, server: HttpServer) -> None:
    """Who held it is remembered for a minute, and must not be shown how things are now."""
    set_endpoint(plane)
    await plane.workspaces.create_workspace("box", ANN, runtime="fake")
    await mark_running(plane, "box")
    await plane.workspaces.share("box", EVE)
    token = await plane.tokens.create_token(EVE, "laptop")

    async def mint(workspace_id: int) -> int:
        path = f"/api/rc/workspace/{workspace_id}/ssh-session"
        body = {"public_key": make_client_key()}
        return (await server.call("POST", path, token=token.plaintext, body=body)).status

    assert (await mint(1), await mint(2)) == (200, 404)
    await plane.tokens.revoke_token(token.record.id)
    assert plane.tokens.recall(token.plaintext) is not None
    assert (await mint(1), await mint(2)) == (401, 401)
    await plane.workspaces.request_stop("box")
    assert (await mint(1), await mint(2)) == (401, 401)


async def test_a_token_makes_no_admin_who_would_outlive_it(plane: ControlPlane, server: HttpServer) -> None:
    """An admin's token may add people; an account that signs in as an admin would be more than the token is."""
    token = (await plane.tokens.create_token(ANN, "provisioning")).plaintext
    heir = {"email": "heir@example.org", "is_admin": True}
    refused = await server.call("POST", "/api/rc/admin/users", token=token, body=heir)
    assert (refused.status, refused.json["code"]) == (403, "forbidden")
    made = await server.call("POST", "/api/rc/admin/users", token=token, body={"email": "heir@example.org"})
    assert (made.status, made.json["data"]["user"]["is_admin"]) == (200, False)
    # A person at the console may.
    browser = await signed_in(server)
    page = await in_thread(browser.get, "/admin")
    fields = {"proof": page.form.fields["proof"], "email": "zoe@example.org", "admin": "yes"}
    assert (await in_thread(browser.post, "/admin/people", fields)).status == 200
    assert [user.email for user in await plane.users.list_users() if user.is_admin] == [ANN, "zoe@example.org"]
