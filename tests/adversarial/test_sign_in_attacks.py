"""Signed-in browsers, sign-in links and own tokens: as they are meant, and what pages, ports and thieves might try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import argon2
import pytest
from sqlalchemy import select

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import Caller
from runcode.controlplane.routes.browser_io import parse_next
from runcode.controlplane.services import web_sessions
from runcode.controlplane.services.tokens import TokenBounds, draw_form_number
from runcode.controlplane.services.web_sessions import Visitor
from runcode.controlplane.states import SCOPES
from runcode.controlplane.store.models import EventRow, UserRow
from runcode.core.errors import RunCodeError
from support.browser_login import Browser, Page
from support.controlplane_fakes import HttpServer, ManualClock, make_client_key, open_plane, serve, set_endpoint

ANN, PASSWORD = "ann@example.org", "correct horse battery"
EVE, EVES_PASSWORD = "eve@example.org", "staple of the eves"
ORIGIN = "https://runcode.example"


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


async def signed_in(server: HttpServer, email: str = ANN, password: str = PASSWORD, **options: Any) -> Browser:
    browser = Browser(server.port, **options)
    page = await in_thread(browser.get, "/sign-in")
    done = await in_thread(browser.submit, page, email=email, password=password)
    assert (done.status, done.location) == (303, "/"), done.text
    return browser


async def is_signed_in(browser: Browser) -> bool:
    page: Page = await in_thread(browser.get, "/account")
    assert page.status == 200 or page.location == "/sign-in?next=%2Faccount"
    return page.status == 200


async def caller_of(plane: ControlPlane, email: str = ANN) -> Caller:
    """A signed-in browser's, without HTTP."""
    link = await plane.sign_in_links.create_link(email)
    visitor = Visitor(source="127.0.0.1")
    made = await plane.sign_in_links.use(link.path.partition("=")[2], visitor)
    found = await plane.web_sessions.find_signed_in(made.secret, visitor)
    assert found is not None
    return found.caller


async def refused(code: str, awaitable: Any) -> RunCodeError:
    with pytest.raises(RunCodeError) as caught:
        await awaitable
    assert caught.value.code == code
    return caught.value


# ------------------------------------------------------------------ where a sign-in leads


_ELSEWHERE = (
    ["https://evil.example", "//evil.example", "/\\evil.example", "/%5cevil.example/..", "\\\\evil.example"]
    + ["/account//evil.example", "javascript:alert(1)", "/account\r\nX: y", "/account#x", "account", " /account"]
    + ["/../evil", "/account/../../x", "/sign-out", "/sign-in", "/api/rc/me", "/@evil.example", "/evil"]
    + ["/" + "a" * 3000]
    + ["/account?x=\\", "/account?next=<script>", "/account\x00", "https:/evil.example", "/.evil.example", ""]
)  # fmt: skip


@pytest.mark.parametrize("next_path", _ELSEWHERE)
async def test_a_sign_in_leads_nowhere_else(server: HttpServer, next_path: str) -> None:
    assert parse_next(next_path) == "/"
    browser = Browser(server.port)
    page = await in_thread(browser.get, f"/sign-in?next={quote(next_path)}")
    assert page.form.fields["next"] == "/"
    done = await in_thread(browser.submit, page, email=ANN, password=PASSWORD, next=next_path)
    assert (done.status, done.location) == (303, "/")


async def test_a_sign_in_leads_back_to_the_page_that_was_wanted(server: HttpServer) -> None:
    browser = Browser(server.port)
    wanted = "/auth/cli-login/?port=45677&state=a%2Bb"
    assert parse_next(wanted) == wanted
    led = await in_thread(browser.get, "/account?x=1")
    assert led.location == "/sign-in?next=%2Faccount%3Fx%3D1"
    page = await in_thread(browser.get, led.location)
    done = await in_thread(browser.submit, page, email=ANN, password=PASSWORD)
    assert done.location == "/account?x=1"
    # Signed in already: on at once.
    assert (await in_thread(browser.get, led.location)).location == "/account?x=1"


async def test_a_form_of_nobody_leads_to_the_sign_in_and_does_nothing(server: HttpServer) -> None:
    browser = Browser(server.port)
    done = await in_thread(browser.post, "/sign-out", {"everywhere": "yes"})
    assert (done.status, done.location) == (303, "/sign-in")
    done = await in_thread(browser.post, "/sign-out", {}, {"HX-Request": "true"})
    assert (done.status, done.headers["hx-redirect"]) == (401, "/sign-in")


# ------------------------------------------------------------------ other pages


_FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "another port of this host": {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-site"},
    "a sandboxed frame": {"Origin": "null"},
    "an old browser elsewhere": {"Origin": "", "Sec-Fetch-Site": "cross-site"},
}


@pytest.mark.parametrize("headers", _FOREIGN.values(), ids=_FOREIGN)
async def test_no_other_page_signs_in_out_or_changes_anything(
    plane: ControlPlane, server: HttpServer, headers: dict[str, str]
) -> None:
    browser = await signed_in(server)
    page = await in_thread(browser.get, "/account")
    proof = page.form.fields["proof"]
    link = (await plane.sign_in_links.create_link(EVE)).path
    shown = await in_thread(Browser(server.port).get, link)
    for path, fields in (
        ("/sign-out", {"proof": proof, "everywhere": "yes", "tokens": "yes"}),
        ("/account/password", {"proof": proof, "current": PASSWORD, "new": "x" * 12, "again": "x" * 12}),
        ("/account/sessions/end", {"proof": proof, "id": "1"}),
        ("/sign-in", {"proof": proof, "email": EVE, "password": EVES_PASSWORD}),
        ("/sign-in/link", shown.form.fields),
        ("/auth/device", {"proof": proof, "user_code": "BCDF-GHJK"}),
    ):
        done = await in_thread(browser.post, path, fields, headers)
        assert done.status == 403, path
    assert await is_signed_in(browser)
    await plane.users.check_password(ANN, PASSWORD)


@pytest.mark.parametrize("proof", ["", "0" * 64, "é" * 64, "eves", "of a sign-in page"])
async def test_a_form_without_this_browsers_proof_does_nothing(server: HttpServer, proof: str) -> None:
    """Login CSRF too: Eve's own page of a sign-in signs nobody else's browser in."""
    ann, eve = await signed_in(server), await signed_in(server, EVE, EVES_PASSWORD)
    if proof == "eves":
        proof = (await in_thread(eve.get, "/account")).form.fields["proof"]
    if proof == "of a sign-in page":
        proof = (await in_thread(Browser(server.port).get, "/sign-in")).form.fields["proof"]
    for path, fields in (
        ("/sign-out", {"everywhere": "yes"}),
        ("/account/password", {"current": PASSWORD, "new": "x" * 12, "again": "x" * 12}),
        ("/account/sessions/end", {"id": "1"}),
        ("/sign-in", {"email": EVE, "password": EVES_PASSWORD}),
    ):
        assert (await in_thread(ann.post, path, {**fields, "proof": proof})).status == 403, path
    assert await is_signed_in(ann)
    fresh = Browser(server.port)
    done = await in_thread(fresh.post, "/sign-in", {"email": EVE, "password": EVES_PASSWORD, "proof": proof})
    assert (done.status, "runcode_session" in fresh.cookies) == (403, False)


async def test_every_page_forbids_frames_scripts_and_caches(plane: ControlPlane, server: HttpServer) -> None:
    browser = await signed_in(server)
    link = (await plane.sign_in_links.create_link(ANN)).path
    pages = [await in_thread(Browser(server.port).get, "/sign-in")]
    for path in (
        "/account",
        "/auth/device",
        "/auth/device?user_code=BCDF-GHJK",
        link,
        "/sign-in/link",
    ):
        pages.append(await in_thread(browser.get, path))
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'self'; ")
        assert "frame-ancestors 'none'; base-uri 'none'; " in policy
        assert "unsafe" not in policy
        # The account's page is the console's; where people sign in or consent, no script runs at all.
        assert "script" not in policy or page is pages[1]
        assert (page.headers["x-frame-options"], page.headers["cache-control"]) == ("DENY", "no-store")


@pytest.mark.parametrize(
    "path", ["/sign-in", "/account", "/sign-in/link?link=x", "/auth/device", "/sign-in/oidc/callback"]
)
async def test_a_rebound_name_gets_no_page(server: HttpServer, path: str) -> None:
    page = await in_thread(Browser(server.port, host="evil.example").get, path)
    assert (page.status, page.location, "<form" in page.text) == (400, "", False)


async def test_no_cookie_opens_the_api(server: HttpServer) -> None:
    browser = await signed_in(server)
    for path in ("/api/rc/me", "/api/rc/workspaces"):
        assert (await in_thread(browser.get, path)).status == 401


async def test_over_https_only_the_cookie_that_nobody_else_can_set_counts(tmp_path: Path, clock: ManualClock) -> None:
    """Cookie tossing: another name of the domain sets a cookie for all of it, but none with `__Host-`."""
    async with open_plane(tmp_path, clock, public_url=ORIGIN) as plane, serve(plane) as server:
        await plane.users.create_user(ANN, PASSWORD)
        browser = Browser(server.port, host="runcode.example")
        page = await in_thread(browser.get, "/sign-in")
        fields = {**page.form.fields, "email": ANN, "password": PASSWORD}
        done = await in_thread(browser.post, "/sign-in", fields, {"Origin": ORIGIN})
        assert done.status == 303
        assert await is_signed_in(browser)
        tossed = Browser(server.port, host="runcode.example")
        tossed.cookies = {"runcode_session": browser.cookies["__Host-runcode_session"]}
        assert not await is_signed_in(tossed)
        # There a sign-in of yesterday consents at once; a page of then does not.
        query = {"port": "45677", "state": "s"}
        asked = await in_thread(browser.open_login, **query)
        clock.advance(hours=12)
        answered = await in_thread(
            browser.post, asked.form.action, {**asked.form.fields, "answer": "authorize"}, {"Origin": ORIGIN}
        )
        assert (answered.status, answered.location) == (403, "")
        assert "Let this client act as you?" in (await in_thread(browser.open_login, **query)).text


# ------------------------------------------------------------------ how a session ends


async def test_sessions_end_idle_old_and_by_sign_out(server: HttpServer, clock: ManualClock) -> None:
    policy = web_sessions.PLAIN_HTTP
    browser = await signed_in(server)
    clock.advance(seconds=policy.idle.total_seconds() + 1)
    assert not await is_signed_in(browser)
    browser = await signed_in(server)
    for _ in range(8):
        clock.advance(seconds=policy.idle.total_seconds() * 0.8)
        used = await is_signed_in(browser)
        await asyncio.sleep(0.05)
    assert not used, "in use all the time, it ends all the same"
    browser = await signed_in(server)
    kept = browser.cookies["runcode_session"]
    page = await in_thread(browser.get, "/account")
    done = await in_thread(browser.post, "/sign-out", {"proof": page.form.fields["proof"]})
    assert (done.location, "runcode_session" in browser.cookies) == ("/sign-in", False)
    browser.cookies["runcode_session"] = kept
    assert not await is_signed_in(browser), "a copy of the cookie is worth nothing either"


async def test_signing_out_everywhere_ends_every_browser_and_on_demand_every_token(
    plane: ControlPlane, server: HttpServer
) -> None:
    one, two, eve = await signed_in(server), await signed_in(server), await signed_in(server, EVE, EVES_PASSWORD)
    token = (await plane.tokens.create_token(ANN, "laptop")).plaintext
    eves = (await plane.tokens.create_token(EVE, "laptop")).plaintext
    page = await in_thread(one.get, "/account")
    await in_thread(one.post, "/sign-out", {"proof": page.form.fields["proof"], "everywhere": "yes"})
    assert [await is_signed_in(browser) for browser in (one, two, eve)] == [False, False, True]
    assert (await server.call("GET", "/api/rc/me", token=token)).status == 200
    one = await signed_in(server)
    page = await in_thread(one.get, "/account")
    await in_thread(one.post, "/sign-out", {"proof": page.form.fields["proof"], "tokens": "yes"})
    assert (await server.call("GET", "/api/rc/me", token=token)).status == 401
    assert (await server.call("GET", "/api/rc/me", token=eves)).status == 200


async def test_one_ends_ones_own_sessions_and_nobody_elses(plane: ControlPlane, server: HttpServer) -> None:
    ann, eve = await signed_in(server), await signed_in(server, EVE, EVES_PASSWORD)
    caller = await caller_of(plane)
    anns = [session.id for session in await plane.web_sessions.list_sessions(caller)]
    page = await in_thread(eve.get, "/account")
    for number in (*anns, 9999):
        done = await in_thread(eve.post, "/account/sessions/end", {**page.form.fields, "id": str(number)})
        assert (done.status, "no such signed-in browser" in done.text) == (404, True)
    assert await is_signed_in(ann)
    # Not as an admin either, but by the verb that is meant for it.
    await refused(
        "not_found", plane.web_sessions.end_session(caller, (await caller_of(plane, EVE)).web_session_id or 0)
    )
    await refused("forbidden", plane.web_sessions.end_all_of(ANN, caller=await caller_of(plane, EVE)))
    assert await plane.web_sessions.end_all_of(EVE, caller=caller) >= 2
    assert not await is_signed_in(eve)


async def test_a_new_password_signs_the_other_browsers_out(plane: ControlPlane, server: HttpServer) -> None:
    here, there = await signed_in(server), await signed_in(server)
    page = await in_thread(here.get, "/account")
    proof = page.form.fields["proof"]
    new = "a wholly new password"
    for fields, status in (
        ({"current": "wrong", "new": new, "again": new}, 401),
        ({"current": PASSWORD, "new": new, "again": "another"}, 400),
        ({"current": PASSWORD, "new": "short", "again": "short"}, 400),
    ):
        done = await in_thread(here.post, "/account/password", {"proof": proof, **fields})
        assert done.status == status
        assert new not in done.text
    assert await is_signed_in(there)
    done = await in_thread(
        here.post, "/account/password", {"proof": proof, "current": PASSWORD, "new": new, "again": new}
    )
    assert done.status == 303
    assert [await is_signed_in(here), await is_signed_in(there)] == [True, False]
    await refused("unauthorized", plane.users.check_password(ANN, PASSWORD))
    await plane.users.set_password(ANN, PASSWORD)
    assert not await is_signed_in(here), "the operator's new password ends them all"


async def test_whoever_sits_at_a_signed_in_browser_guesses_the_password_slowly(server: HttpServer) -> None:
    browser = await signed_in(server)
    proof = (await in_thread(browser.get, "/account")).form.fields["proof"]
    fields = {"proof": proof, "new": "x" * 12, "again": "x" * 12}
    statuses = [
        (await in_thread(browser.post, "/account/password", {**fields, "current": f"guess number {n}"})).status
        for n in range(12)
    ]
    assert statuses == [401] * 8 + [429] * 4


async def test_a_disabled_person_is_out_and_stays_out(plane: ControlPlane, server: HttpServer) -> None:
    browser = await signed_in(server)
    link = (await plane.sign_in_links.create_link(ANN)).path
    await plane.users.disable_user(ANN)
    assert not await is_signed_in(browser)
    await plane.users.enable_user(ANN)
    assert not await is_signed_in(browser)
    assert (await in_thread(browser.get, link)).status == 403
    await refused("bad_request", _disabled_link(plane))


async def _disabled_link(plane: ControlPlane) -> Any:
    await plane.users.disable_user(EVE)
    return await plane.sign_in_links.create_link(EVE)


async def test_neither_cookies_nor_links_stand_in_the_database(
    plane: ControlPlane, server: HttpServer, tmp_path: Path
) -> None:
    browser = await signed_in(server)
    link = (await plane.sign_in_links.create_link(ANN)).path.partition("=")[2]
    device = await server.call("POST", "/api/rc/auth/device", body={})
    texts = [browser.cookies["runcode_session"], link, device.json["device_code"], device.json["user_code"]]
    texts.append(device.json["user_code"].replace("-", ""))
    for file in tmp_path.glob("runcode.db*"):
        raw = file.read_bytes()
        for text in texts:
            assert text.encode() not in raw


async def test_a_hash_with_dated_parameters_is_renewed_by_a_sign_in(plane: ControlPlane, server: HttpServer) -> None:
    async def load_hash() -> str:
        async with plane.store.read() as session:
            return await session.scalar(select(UserRow.password_hash).where(UserRow.email == ANN)) or ""

    before = await load_hash()
    plane.users._hasher = argon2.PasswordHasher(time_cost=2, memory_cost=128, parallelism=1)
    await refused("unauthorized", plane.sign_ins.sign_in(ANN, "wrong", Visitor("127.0.0.1")))
    assert await load_hash() == before
    await signed_in(server)
    after = await load_hash()
    assert after != before
    assert "m=128,t=2" in after
    await signed_in(server)
    assert await load_hash() == after


async def test_tries_are_noted_alike_for_accounts_that_there_are_and_are_not(plane: ControlPlane) -> None:
    for email in (ANN, "nobody@example.org", "\x1b[31m"):
        await refused("unauthorized", plane.sign_ins.sign_in(email, "wrong", Visitor("192.0.2.7")))
    await plane.sign_ins.sign_in(ANN, PASSWORD, Visitor("192.0.2.7", browser="Fire\x1bfox" + "x" * 500))
    async with plane.store.read() as session:
        rows = (await session.scalars(select(EventRow).where(EventRow.kind.like("sign%")).order_by(EventRow.id))).all()
    assert [(row.kind, row.detail["by"]) for row in rows] == [
        ("sign_in_refused", ANN),
        ("sign_in_refused", "nobody@example.org"),
        ("sign_in_refused", "?"),
        ("signed_in", ANN),
    ]
    assert all(row.detail["source"] == "192.0.2.7" for row in rows)
    assert "\x1b" not in str(rows[-1].detail["browser"])
    assert len(str(rows[-1].detail["browser"])) <= web_sessions.BROWSER_MAX


# ------------------------------------------------------------------ links


async def test_opening_a_link_uses_nothing_up_and_its_button_works_once(
    plane: ControlPlane, server: HttpServer
) -> None:
    """Mail programs and chats open links before their people do."""
    link = (await plane.sign_in_links.create_link(ANN)).path
    looker = Browser(server.port)
    for method in ("GET", "HEAD", "GET"):
        await in_thread(looker.send, method, link)
    assert "runcode_session" not in looker.cookies
    # Neither does a button without its page's cookie, nor a form of another page.
    fields = (await in_thread(Browser(server.port).get, link)).form.fields
    assert (await in_thread(Browser(server.port).post, "/sign-in/link", fields)).status == 403
    ann, second = Browser(server.port), Browser(server.port)
    pages = [await in_thread(ann.get, link), await in_thread(second.get, link)]
    assert ANN in pages[0].text
    done = await in_thread(ann.submit, pages[0])
    assert (done.status, done.location) == (303, "/account")
    assert await is_signed_in(ann)
    assert (await in_thread(second.submit, pages[1])).status == 403
    assert (await in_thread(second.get, link)).status == 403


async def test_fifty_at_once_with_one_link_sign_one_browser_in(plane: ControlPlane) -> None:
    secret = (await plane.sign_in_links.create_link(ANN)).path.partition("=")[2]
    tries = [plane.sign_in_links.use(secret, Visitor("127.0.0.1")) for _ in range(50)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1


async def test_links_end_in_time_by_a_newer_one_and_are_refused_alike(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    old = (await plane.sign_in_links.create_link(ANN)).path
    late = (await plane.sign_in_links.create_link(ANN)).path
    browser = Browser(server.port)
    page = await in_thread(browser.get, late)
    clock.advance(minutes=15, seconds=1)
    texts = {(await in_thread(browser.submit, page)).text}
    for path in (old, late, "/sign-in/link", "/sign-in/link?link=", "/sign-in/link?link=rcl_" + "a" * 43):
        shown = await in_thread(browser.get, path)
        assert shown.status == 403
        texts.add(shown.text)
    clock.advance(hours=-2)
    texts.add((await in_thread(browser.get, late)).text)
    assert len(texts) == 1
    two = f"{late}&link=x"
    assert (await in_thread(browser.get, two)).status == 403


# ------------------------------------------------------------------ tokens


async def test_a_token_manages_no_token(plane: ControlPlane) -> None:
    made = await plane.tokens.create_token(ANN, "laptop")
    other = await plane.tokens.create_token(ANN, "other")
    caller = await plane.tokens.authenticate(made.plaintext)
    await refused("forbidden", plane.tokens.create_own(caller, "more"))
    await refused("forbidden", plane.tokens.list_own(caller))
    await refused("forbidden", plane.tokens.revoke_own_tokens(caller))
    await refused("not_found", plane.tokens.revoke_token(other.record.id, caller=caller))
    await refused("forbidden", plane.web_sessions.list_sessions(caller))
    await refused("forbidden", plane.web_sessions.end_all(caller))
    await refused("forbidden", plane.sign_ins.change_password(caller, PASSWORD, "x" * 12))
    await refused("forbidden", plane.web_sessions.end_all_of(EVE, caller=caller))
    await plane.tokens.revoke_token(made.record.id, caller=caller)
    await refused("unauthorized", plane.tokens.authenticate(made.plaintext))


async def test_on_plain_http_an_old_sign_in_makes_no_token(
    plane: ControlPlane, clock: ManualClock, tmp_path: Path
) -> None:
    caller = await caller_of(plane)
    clock.advance(minutes=9)
    await plane.tokens.create_own(caller, "in time")
    clock.advance(minutes=2)
    await refused("forbidden", plane.tokens.create_own(caller, "late"))
    async with open_plane(tmp_path / "tls", clock, public_url=ORIGIN) as behind_tls:
        await behind_tls.users.create_user(ANN, PASSWORD)
        caller = await caller_of(behind_tls)
        clock.advance(hours=3)
        await behind_tls.tokens.create_own(caller, "late")


async def test_a_person_manages_their_own_and_an_admin_ends_anybodys(plane: ControlPlane) -> None:
    ann, eve = await caller_of(plane), await caller_of(plane, EVE)
    anns = await plane.tokens.create_own(ann, "ci", TokenBounds(scopes=("read",)))
    eves = await plane.tokens.create_own(eve, "laptop")
    assert [token.name for token in await plane.tokens.list_own(eve)] == ["laptop"]
    absent = await refused("not_found", plane.tokens.revoke_token(9999, caller=eve))
    hidden = await refused("not_found", plane.tokens.revoke_token(anns.record.id, caller=eve))
    assert absent.message.replace("9999", "N") == hidden.message.replace(str(anns.record.id), "N")
    await plane.tokens.revoke_token(eves.record.id, caller=ann)
    await refused("unauthorized", plane.tokens.authenticate(eves.plaintext))
    await plane.tokens.authenticate(anns.plaintext)


async def test_a_form_that_is_sent_twice_makes_one_token(plane: ControlPlane) -> None:
    """A reload of the page that shows a token sends its form again; another person's form of that number is theirs."""
    ann, eve = await caller_of(plane), await caller_of(plane, EVE)
    number = draw_form_number()
    made = await plane.tokens.create_own(ann, "ci", form_number=number)
    again = await refused("conflict", plane.tokens.create_own(ann, "ci", form_number=number))
    assert made.plaintext not in again.message + again.resolution
    await plane.tokens.revoke_token(made.record.id, caller=ann)
    # What was revoked does not come back by it.
    await refused("conflict", plane.tokens.create_own(ann, "ci", form_number=number))
    eves = await plane.tokens.create_own(eve, "ci", form_number=number)
    elsewhere = await plane.tokens.create_own(await caller_of(plane), "ci", form_number=number)
    assert len({made.plaintext, eves.plaintext, elsewhere.plaintext}) == 3
    for plaintext in (eves.plaintext, elsewhere.plaintext):
        await plane.tokens.authenticate(plaintext)
    for forged in (number[:-1], number + "A", "\u00e9" * 24, " " * 24):
        await refused("bad_request", plane.tokens.create_own(ann, "ci", form_number=forged))


async def test_a_token_names_only_workspaces_that_its_person_may_use(plane: ControlPlane) -> None:
    anns = await plane.workspaces.create_workspace("anns", ANN, runtime="local")
    eves = await plane.workspaces.create_workspace("eves", EVE, runtime="local")
    eve = await caller_of(plane, EVE)
    for named in ((anns.id,), (eves.id, anns.id), (9999,)):
        await refused("not_found", plane.tokens.create_own(eve, "x", TokenBounds(workspace_ids=named)))
    await refused("bad_request", plane.tokens.create_own(eve, "x", TokenBounds(workspace_ids=())))
    assert await plane.tokens.list_own(eve) == []
    await plane.tokens.create_own(eve, "x", TokenBounds(workspace_ids=(eves.id,)))


async def test_a_bounded_token_does_no_more_over_http(plane: ControlPlane, server: HttpServer) -> None:
    set_endpoint(plane)
    mine = await plane.workspaces.create_workspace("mine", ANN, runtime="local")
    other = await plane.workspaces.create_workspace("other", ANN, runtime="local")
    mint = {"public_key": make_client_key(), "ttl": 60, "client": "cli"}
    calls: list[tuple[str, str, object]] = [
        ("GET", "/api/rc/workspace/start?workspace_id={}", None),
        ("POST", "/api/rc/workspace/{}/ssh-session", mint),
        ("GET", "/api/rc/workspace/stop?workspace_id={}", None),
    ]

    async def statuses(bounds: TokenBounds, workspace_id: int) -> list[int]:
        token = (await plane.tokens.create_token(ANN, "bounded", bounds=bounds)).plaintext
        return [
            (await server.call(method, path.format(workspace_id), token=token, body=body)).status
            for method, path, body in calls
        ]

    assert await statuses(TokenBounds(scopes=("read",)), mine.id) == [403, 403, 403]
    # 409: it may, and the workspace is not running.
    assert await statuses(TokenBounds(scopes=("read", "connect")), mine.id) in ([200, 409, 403], [403, 409, 403])
    assert await statuses(TokenBounds(workspace_ids=(mine.id,)), other.id) == [404, 404, 404]
    listed = (await plane.tokens.create_token(ANN, "b", bounds=TokenBounds(workspace_ids=(mine.id,)))).plaintext
    shown = await server.call("GET", "/api/rc/workspaces?category=active", token=listed)
    assert [row["title"] for row in shown.json["data"]["workspaces"]] == ["mine"]


async def test_a_consent_gives_what_was_ticked_and_no_more(plane: ControlPlane, server: HttpServer) -> None:
    browser = await signed_in(server)
    for number, (ticked, days, scopes) in enumerate(
        ((["connect"], "7", ("read", "connect")), ([], "", ("read",)), (["manage", "connect"], "", SCOPES))
    ):
        page = await in_thread(browser.open_login, port="45677", state=f"s-{number}")
        assert page.form.ticked == {"scope": ["connect", "manage"]}
        done = await in_thread(browser.submit, page, answer="authorize", scope=ticked, expires_days=days)
        caller = await plane.tokens.authenticate(done.answer["token"])
        assert caller.scopes == frozenset(scopes)
        assert (caller.token_expires_at is not None) == bool(days)
    for fields in ({"scope": ["admin"]}, {"expires_days": "0"}, {"expires_days": "x"}, {"expires_days": "-1"}):
        page = await in_thread(browser.open_login, port="45677", state="s")
        done = await in_thread(browser.submit, page, answer="authorize", **fields)
        assert (done.status, done.location) == (400, "")
