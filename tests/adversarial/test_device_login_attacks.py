"""Device login (RFC 8628): as it is meant, and what a guesser, a phisher, a thief or a flood might try with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services import device_logins
from runcode.controlplane.services.device_logins import DeviceLogins
from support.browser_login import Browser, Page
from support.controlplane_fakes import Answer, HttpServer, ManualClock, Monotonic, open_plane, serve

ANN, PASSWORD = "ann@example.org", "correct horse battery"
EVE, EVES_PASSWORD = "eve@example.org", "staple of the eves"


@pytest.fixture
def monotonic() -> Monotonic:
    return Monotonic()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def plane(tmp_path: Path, clock: ManualClock, monotonic: Monotonic) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, clock) as opened:
        await opened.users.create_user(ANN, PASSWORD)
        await opened.users.create_user(EVE, EVES_PASSWORD)
        opened.device_logins = DeviceLogins(
            opened.store, opened.clock, opened.tokens, opened.proofs, monotonic=monotonic
        )
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def in_thread(call: Callable[..., Any], *words: Any, **options: Any) -> Any:
    return await asyncio.to_thread(call, *words, **options)


async def start(server: HttpServer, **body: object) -> dict[str, Any]:
    answer = await server.call("POST", "/api/rc/auth/device", body={"client": "codex", "machine": "ci-7", **body})
    assert answer.status == 200, answer.raw
    found: dict[str, Any] = answer.json
    return found


async def poll(server: HttpServer, device_code: object) -> Answer:
    return await server.call("POST", "/api/rc/auth/device-token", body={"device_code": device_code})


async def signed_in(server: HttpServer, email: str = ANN, password: str = PASSWORD) -> Browser:
    browser = Browser(server.port)
    page = await in_thread(browser.get, "/auth/device")
    assert page.has_password_field
    done = await in_thread(browser.submit, page, email=email, password=password)
    assert done.location == "/auth/device"
    return browser


async def consent_page(browser: Browser, user_code: str) -> Page:
    page = await in_thread(browser.get, "/auth/device")
    shown: Page = await in_thread(browser.submit, page, user_code=user_code)
    return shown


async def live_tokens(plane: ControlPlane) -> list[str]:
    return [token.name for token in await plane.tokens.list_tokens() if token.revoked_at is None]


# ------------------------------------------------------------------ as it is meant


async def test_a_code_that_a_person_typed_signs_the_device_in(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    begun = await start(server)
    assert (begun["error"], begun["expires_in"], begun["interval"]) == (False, 600, 5)
    address = f"http://127.0.0.1:{server.port}/auth/device"
    assert begun["verification_uri"] == address
    assert begun["verification_uri_complete"] == f"{address}?user_code={begun['user_code']}"
    waiting = await poll(server, begun["device_code"])
    assert (waiting.status, waiting.json["error"]) == (400, "authorization_pending")
    # Both kinds of client find what they read.
    assert {"message", "code", "resolution", "error_description"} <= set(waiting.json)
    browser = await signed_in(server)
    page = await consent_page(browser, begun["user_code"].lower().replace("-", " "))
    for shown in (ANN, "codex", "ci-7", "127.0.0.1", begun["user_code"], "Authorize only if you started this yourself"):
        assert shown in page.text
    assert "You can close this page" in (await in_thread(browser.submit, page, answer="authorize")).text
    assert await live_tokens(plane) == [], "no token exists before its device has come for it"
    clock.advance(seconds=5)
    answer = await poll(server, begun["device_code"])
    assert (answer.status, answer.json["email"]) == (200, ANN)
    assert (await server.call("GET", "/api/rc/me", token=answer.json["token"])).json["email"] == ANN
    [made] = await plane.tokens.list_tokens()
    assert (made.name, made.origin) == ("device login: codex on ci-7", "device")


async def test_a_no_is_told_to_the_device(plane: ControlPlane, server: HttpServer) -> None:
    begun = await start(server)
    browser = await signed_in(server)
    page = await consent_page(browser, begun["user_code"])
    await in_thread(browser.submit, page, answer="deny")
    assert (await poll(server, begun["device_code"])).json["error"] == "access_denied"
    # One page, one answer.
    assert (await in_thread(browser.submit, page, answer="authorize")).status == 404
    assert (await poll(server, begun["device_code"])).json["error"] == "access_denied"
    assert await live_tokens(plane) == []


async def test_polling_too_fast_is_slowed(server: HttpServer, clock: ManualClock) -> None:
    begun = await start(server)
    assert (await poll(server, begun["device_code"])).json["error"] == "authorization_pending"
    for interval_s in (10, 15):
        hurried = (await poll(server, begun["device_code"])).json
        assert (hurried["error"], hurried["interval"]) == ("slow_down", interval_s)
    clock.advance(seconds=5)
    assert (await poll(server, begun["device_code"])).json["error"] == "slow_down"
    clock.advance(seconds=20)
    assert (await poll(server, begun["device_code"])).json["error"] == "authorization_pending"


async def test_codes_end_in_time_and_a_clock_that_is_set_back_lengthens_none(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    for move_s in (600, -3600):
        begun = await start(server)
        browser = await signed_in(server)
        page = await consent_page(browser, begun["user_code"])
        assert page.status == 200
        clock.advance(seconds=move_s)
        assert (await in_thread(browser.submit, page, answer="authorize")).status in (403, 404)
        browser = await signed_in(server)
        assert (await consent_page(browser, begun["user_code"])).status == 404
        assert (await poll(server, begun["device_code"])).json["error"] == "expired_token"
    assert await live_tokens(plane) == []


# ------------------------------------------------------------------ guessing and phishing


async def test_guessing_codes_is_slowed_for_each_person_and_address(server: HttpServer, monotonic: Monotonic) -> None:
    begun = await start(server)
    ann, eve = await signed_in(server), await signed_in(server, EVE, EVES_PASSWORD)
    burst = device_logins.GUESSES_OF_ONE_PERSON.burst
    statuses = [(await consent_page(eve, "BCDF-GHJK")).status for _ in range(burst + 3)]
    assert statuses == [404] * burst + [429] * 3
    assert (await consent_page(eve, begun["user_code"])).status == 429
    # Ann is at the same address (their office's), and goes on.
    assert (await consent_page(ann, begun["user_code"])).status == 200
    monotonic.now += device_logins.GUESSES_OF_ONE_PERSON.every_s
    assert (await consent_page(eve, begun["user_code"])).status == 200


@pytest.mark.parametrize(
    "raw_code", ["", "BCDF", "AEIO-UAEI", "BCDF-GHJK" * 5, "<script>", "12345678", "ＢＣＤＦ-ＧＨＪＫ"]
)
async def test_what_is_no_code_is_told_like_a_wrong_one(server: HttpServer, raw_code: str) -> None:
    browser = await signed_in(server)
    shown, wrong = await consent_page(browser, raw_code), await consent_page(browser, "BCDF-GHJK")
    assert (shown.status, shown.text) == (404, wrong.text)
    assert "<script" not in shown.text


async def test_an_address_with_a_code_in_it_reveals_and_grants_nothing(plane: ControlPlane, server: HttpServer) -> None:
    """Eve sends Ann the link of her own machine: one click, or none (a preview), must not do."""
    begun = await start(server, machine="eves-laptop")
    browser = await signed_in(server)
    path = f"/auth/device?user_code={begun['user_code']}"
    for _ in range(30):
        page = await in_thread(browser.get, path)
        assert (page.status, begun["user_code"] in page.text, "eves-laptop" in page.text) == (200, True, False)
    assert "Somebody sent you here with a code?" in page.text
    assert (await poll(server, begun["device_code"])).json["error"] == "authorization_pending"
    hostile = await in_thread(browser.get, "/auth/device?user_code=%22%3E%3Cscript%3E&user_code=x")
    assert "<script" not in hostile.text


async def test_an_answer_is_for_the_machine_that_was_shown(plane: ControlPlane, server: HttpServer) -> None:
    shown, other = await start(server), await start(server, machine="eves-laptop")
    ann, eve = await signed_in(server), await signed_in(server, EVE, EVES_PASSWORD)
    page = await consent_page(ann, shown["user_code"])
    eves = await consent_page(eve, shown["user_code"])
    for change in (
        {"user_code": other["user_code"]},
        {"proof": eves.form.fields["proof"], "ticket": eves.form.fields["ticket"]},
        {"proof": (await in_thread(ann.get, "/account")).form.fields["proof"]},
        {"proof": ""},
        {"ticket": "1.x"},
    ):
        assert (await in_thread(ann.submit, page, answer="authorize", **change)).status == 403
    foreign = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    done = await in_thread(ann.post, page.form.action, {**page.form.fields, "answer": "authorize"}, foreign)
    assert done.status == 403
    for begun in (shown, other):
        assert (await poll(server, begun["device_code"])).json["error"] == "authorization_pending"


async def test_a_device_gets_no_more_than_it_asked_for_and_was_ticked(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    for asked, ticked, given in (
        (["read"], ["connect", "manage"], {"read"}),
        (["connect"], ["connect", "manage"], {"read", "connect"}),
        (None, ["connect"], {"read", "connect"}),
    ):
        begun = await start(server, scopes=asked)
        browser = await signed_in(server)
        page = await consent_page(browser, begun["user_code"])
        await in_thread(browser.submit, page, answer="authorize", scope=ticked)
        token = (await poll(server, begun["device_code"])).json["token"]
        assert (await plane.tokens.authenticate(token)).scopes == given
    for scopes in (["admin"], [], "everything", [1], [["read"]], {"read": 1}):
        refused = await server.call("POST", "/api/rc/auth/device", body={"scopes": scopes})
        assert (refused.status, refused.json["code"]) == (400, "bad_request")


async def test_a_devices_own_words_are_plain_names_or_left_out(server: HttpServer) -> None:
    browser = await signed_in(server)
    for number, words in enumerate(('"><b>', "a\nb", "x" * 41, 7, None, ["x"])):
        begun = await start(server, client=words, machine=words)
        if number:
            browser = await signed_in(server)
        page = await consent_page(browser, begun["user_code"])
        assert page.text.count("it does not say") == 2
        assert "<b>" not in page.text


# ------------------------------------------------------------------ stolen and used twice


async def test_a_device_code_works_once_and_used_again_takes_its_token_back(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    begun = await start(server)
    browser = await signed_in(server)
    await in_thread(browser.submit, await consent_page(browser, begun["user_code"]), answer="authorize")
    token = (await poll(server, begun["device_code"])).json["token"]
    assert (await consent_page(browser, begun["user_code"])).status == 404
    clock.advance(hours=1)
    assert (await poll(server, begun["device_code"])).json["error"] == "expired_token"
    assert (await server.call("GET", "/api/rc/me", token=token)).status == 401


async def test_fifty_polls_at_once_leave_no_live_token(plane: ControlPlane, server: HttpServer) -> None:
    begun = await start(server)
    browser = await signed_in(server)
    await in_thread(browser.submit, await consent_page(browser, begun["user_code"]), answer="authorize")
    answers = await asyncio.gather(*(poll(server, begun["device_code"]) for _ in range(50)))
    assert sum(answer.status == 200 for answer in answers) == 1
    assert await live_tokens(plane) == []


@pytest.mark.parametrize("device_code", [None, 7, "", "rcd_", "x" * 5000, ["rcd_" + "a" * 43], "rcd_" + "a" * 43])
async def test_codes_that_never_were_look_like_old_ones(server: HttpServer, device_code: object) -> None:
    answer = await poll(server, device_code)
    assert (answer.status, answer.json["error"]) == (400, "expired_token")


@pytest.mark.parametrize("end", ["disabled", "another password"])
async def test_a_person_who_was_shut_out_in_between_signs_nothing_in(
    plane: ControlPlane, server: HttpServer, end: str
) -> None:
    begun, later = await start(server), await start(server)
    browser = await signed_in(server)
    await in_thread(browser.submit, await consent_page(browser, begun["user_code"]), answer="authorize")
    page = await consent_page(browser, later["user_code"])
    if end == "disabled":
        await plane.users.disable_user(ANN)
        await plane.users.enable_user(ANN)
    else:
        await plane.users.set_password(ANN, "a wholly new password")
    assert (await poll(server, begun["device_code"])).json["error"] == "access_denied"
    assert (await in_thread(browser.submit, page, answer="authorize")).status == 403
    assert (await poll(server, later["device_code"])).json["error"] == "authorization_pending"
    assert await live_tokens(plane) == []


# ------------------------------------------------------------------ floods


async def test_what_nobody_asked_for_is_bounded(
    plane: ControlPlane, server: HttpServer, monotonic: Monotonic, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask() -> int:
        return (await server.call("POST", "/api/rc/auth/device", body={})).status

    burst = device_logins.STARTS_FROM_ONE_ADDRESS.burst
    assert [await ask() for _ in range(burst + 2)] == [200] * burst + [429] * 2
    monkeypatch.setattr(device_logins, "WAITING_MAX", burst)
    monotonic.now += 3600
    assert await ask() == 429, "whoever asks: so many wait in all, and no more"


async def test_an_address_under_a_rebound_name_is_not_handed_out(server: HttpServer) -> None:
    answer = await server.call("POST", "/api/rc/auth/device", body={}, headers={"Host": "evil.example"})
    assert (answer.status, "evil" in str(answer.json)) == (400, False)
