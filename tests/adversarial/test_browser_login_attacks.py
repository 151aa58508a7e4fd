"""The browser login: as it is meant, and then what a page, a port, a guesser or a thief might try with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.console.static_files import find_address
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.routes import browser_io
from runcode.controlplane.services import browser_logins, consents, sign_in_pace, sign_ins, web_sessions
from runcode.controlplane.services.sign_in_pace import SignInPace
from runcode.controlplane.services.sign_ins import SignIns
from support.browser_login import LOGIN, Browser, Page, make_challenge
from support.controlplane_fakes import HttpServer, ManualClock, Monotonic, open_plane, serve

ANN, PASSWORD = "ann@example.org", "correct horse battery"
EVE, EVES_PASSWORD = "eve@example.org", "staple of the eves"
PORT = "45677"


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
        opened.sign_ins = SignIns(
            opened.store,
            opened.clock,
            opened.users,
            opened.web_sessions,
            opened.proofs,
            opened.refusals,
            monotonic=monotonic,
        )
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def in_thread(call: Callable[..., Any], *words: Any, **options: Any) -> Any:
    return await asyncio.to_thread(call, *words, **options)


async def consent_page(browser: Browser, **query: str) -> Page:
    page: Page = await in_thread(browser.sign_in, ANN, PASSWORD, **{"port": PORT, "state": "s-1", **query})
    assert page.status == 200, page.text
    assert not page.has_password_field
    return page


async def authorized(browser: Browser, **query: str) -> dict[str, str]:
    page = await consent_page(browser, **query)
    done: Page = await in_thread(browser.submit, page, answer="authorize")
    assert done.status == 303
    return done.answer


async def redeem(server: HttpServer, code: object, verifier: object) -> Any:
    return await server.call("POST", "/api/rc/auth/cli-token", body={"code": code, "code_verifier": verifier})


async def live_tokens(plane: ControlPlane) -> list[str]:
    return [token.name for token in await plane.tokens.list_tokens() if token.revoked_at is None]


# ------------------------------------------------------------------ as it is meant


async def test_a_code_becomes_a_token_for_the_client_that_asked(plane: ControlPlane, server: HttpServer) -> None:
    browser = Browser(server.port)
    verifier, challenge = make_challenge()
    page = await consent_page(browser, client="claude-code", machine="anns-laptop", **challenge)
    for shown in (ANN, "claude-code", "anns-laptop", f"127.0.0.1:{PORT}", "open SSH connections"):
        assert shown in page.text
    done = await in_thread(browser.submit, page, answer="authorize")
    assert (done.status, done.location.partition("?")[0]) == (303, f"http://127.0.0.1:{PORT}/callback")
    assert set(done.answer) == {"state", "code", "email"}
    assert (done.answer["state"], done.answer["email"]) == ("s-1", ANN)
    assert await live_tokens(plane) == [], "no token exists before its client has come for it"
    answer = await redeem(server, done.answer["code"], verifier)
    assert answer.status == 200
    assert answer.json["email"] == ANN
    me = await server.call("GET", "/api/rc/me", token=answer.json["token"])
    assert me.json["email"] == ANN
    assert await live_tokens(plane) == ["browser login: claude-code on anns-laptop"]


async def test_a_client_without_a_challenge_gets_its_token_in_the_address(
    plane: ControlPlane, server: HttpServer
) -> None:
    page = await consent_page(browser := Browser(server.port))
    assert "history" in page.text, "the person is told what the older way costs"
    answer = (await in_thread(browser.submit, page, answer="authorize")).answer
    assert set(answer) == {"state", "token", "email"}
    assert (await server.call("GET", "/api/rc/me", token=answer["token"])).json["email"] == ANN


async def test_a_refusal_is_told_to_the_client_and_makes_nothing(plane: ControlPlane, server: HttpServer) -> None:
    browser = Browser(server.port)
    page = await consent_page(browser)
    done = await in_thread(browser.submit, page, answer="deny")
    assert done.location == f"http://127.0.0.1:{PORT}/callback?state=s-1&error=access_denied"
    assert await live_tokens(plane) == []
    assert (await in_thread(browser.submit, page, answer="authorize")).status == 403
    assert await live_tokens(plane) == []


async def test_a_state_of_any_released_client_comes_back_as_it_was(server: HttpServer) -> None:
    state = "aZ0._~+/=:-"
    assert (await authorized(Browser(server.port), state=state))["state"] == state


# ------------------------------------------------------------------ where an answer may go


@pytest.mark.parametrize(
    "port",
    ["", "0", "22", "80", "443", "1023", "65536", "99999", "080", "8080@evil.example", "80@evil.example", "8080/x"]
    + ["8080#", "8080?", "8080\\@evil", "8080.evil.example", "-8080", "+8080", "8e3", "0x1f90", "８０８０", "8080 "]
    + ["8080\r\nX: y", "8080%40evil", "[::1]:8080", "8080:8080", "8080\x00"],
)  # fmt: skip
async def test_a_port_that_is_no_plain_port_leads_nowhere(server: HttpServer, port: str) -> None:
    browser = Browser(server.port)
    page: Page = await in_thread(browser.open_login, port=port, state="s")
    assert page.status == 400
    assert not page.location
    assert "evil" not in page.text
    assert "<form" not in page.text


_TRICKS = {
    "two ports": "port=45677&port=80&state=s",
    "two states": "port=45677&state=s&state=t",
    "no state": "port=45677",
    "empty state": "port=45677&state=",
    "markup": "port=45677&state=%22%3E%3Cscript%3Ealert(1)%3C/script%3E",
    "header": "port=45677&state=a%0d%0aSet-Cookie:%20x=y",
    "huge state": "port=45677&state=" + "a" * 513,
    "unicode state": "port=45677&state=%E2%80%AE",
    "fragment": "port=45677&state=a%23b",
    "another field": "port=45677&state=a%26token%3Dx",
    "plain challenge": "port=45677&state=s&code_challenge=" + "A" * 43 + "&code_challenge_method=plain",
    "challenge without method": "port=45677&state=s&code_challenge=" + "A" * 43,
    "method without challenge": "port=45677&state=s&code_challenge_method=S256",
    "empty challenge": "port=45677&state=s&code_challenge=&code_challenge_method=S256",
    "short challenge": "port=45677&state=s&code_challenge=AAAA&code_challenge_method=S256",
    "two challenges": "port=45677&state=s&code_challenge_method=S256" + f"&code_challenge={'A' * 43}" * 2,
}  # fmt: skip


@pytest.mark.parametrize("query", _TRICKS.values(), ids=_TRICKS)
async def test_a_damaged_request_is_a_page_and_nothing_of_it_is_shown(server: HttpServer, query: str) -> None:
    page = await in_thread(Browser(server.port).get, f"{LOGIN}?{query}")
    assert page.status == 400
    assert not page.location
    assert "script" not in page.text
    assert "<form" not in page.text
    assert "set-cookie" not in page.headers


async def test_a_form_cannot_name_another_listener_than_the_page_it_came_from(
    plane: ControlPlane, server: HttpServer
) -> None:
    browser = Browser(server.port)
    page = await consent_page(browser)
    for change in ({"port": "45678"}, {"state": "other"}, {"port": "80@evil.example"}, {"code_challenge": "A" * 43}):
        done = await in_thread(browser.submit, page, answer="authorize", **change)
        assert done.status in (400, 403)
        assert not done.location
    assert await live_tokens(plane) == []


async def test_a_clients_own_words_are_plain_names_or_left_out(server: HttpServer) -> None:
    hostile = ['"><b>', "<script>", "x" * 41, "a\nb", "‮evil", "a&b", "../x", ""]
    for words in hostile:
        page = await consent_page(Browser(server.port, source="127.0.0.9"), client=words, machine=words)
        assert page.text.count("it does not say") == 2
        assert "<script" not in page.text
        assert "<b>" not in page.text


async def test_an_email_that_is_markup_is_shown_as_text(server: HttpServer) -> None:
    browser = Browser(server.port)
    page = await in_thread(browser.open_login, port=PORT, state="s")
    shown = await in_thread(browser.submit, page, email='"><script>x</script>', password="nothing at all")
    assert shown.status == 401
    assert "<script" not in shown.text
    assert "&lt;script&gt;" in shown.text


# ------------------------------------------------------------------ other pages


async def test_every_page_forbids_frames_scripts_caches_and_referrers(server: HttpServer) -> None:
    browser = Browser(server.port)
    pages = [
        await in_thread(browser.open_login, port=PORT, state="s"),
        await in_thread(browser.open_login, port="80", state="s"),
        await consent_page(browser),
        await in_thread(Browser(server.port).get, "/"),
    ]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert policy.startswith(
            "default-src 'none'; style-src 'self'; img-src 'self'; frame-ancestors 'none'; base-uri"
        )
        assert "script" not in policy
        assert "unsafe" not in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        assert page.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<script|<style|style=|\son\w+=|javascript:|https?://(?!127|THIS)", page.text)
    # A browser holds form-action against the redirect too, so the consent page names one more place: its listener.
    assert pages[2].headers["content-security-policy"].endswith(f"form-action 'self' http://127.0.0.1:{PORT}")
    style = await in_thread(browser.get, find_address("console.css"))
    assert style.status == 200
    assert style.headers["content-type"].startswith("text/css")
    assert not re.search(r"@import|url\(|http", style.text)


_FOREIGN: dict[str, dict[str, str]] = {
    "another site": {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    "another port of this host": {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-site"},
    "a sandboxed frame": {"Origin": "null"},
    "an old browser elsewhere": {"Origin": "", "Sec-Fetch-Site": "cross-site"},
    "the https twin": {"Origin": "https://{host}"},
}


@pytest.mark.parametrize("headers", _FOREIGN.values(), ids=_FOREIGN)
async def test_a_form_of_another_page_does_nothing(
    plane: ControlPlane, server: HttpServer, headers: dict[str, str]
) -> None:
    """Even with the cookie and a proof in hand: the browser says where the form stood."""
    browser = Browser(server.port)
    sent = {name: value.format(host=browser.host) for name, value in headers.items()}
    signing = await in_thread(browser.open_login, port=PORT, state="s-1")
    fields = {**signing.form.fields, "email": ANN, "password": PASSWORD}
    assert (await in_thread(browser.post, signing.form.action, fields, sent)).status == 403
    page = await consent_page(browser)
    done = await in_thread(browser.post, page.form.action, {**page.form.fields, "answer": "authorize"}, sent)
    assert done.status == 403
    assert not done.location
    assert await live_tokens(plane) == []


async def test_a_form_without_its_proof_or_with_anothers_does_nothing(plane: ControlPlane, server: HttpServer) -> None:
    ann, eve = Browser(server.port), Browser(server.port)
    page = await consent_page(ann)
    eves = await in_thread(eve.sign_in, EVE, EVES_PASSWORD, port=PORT, state="s-1")
    signing = await in_thread(Browser(server.port).open_login, port=PORT, state="s-1")
    for proof in ("", "0" * 64, eves.form.fields["proof"], signing.form.fields["proof"], "é" * 64):
        done = await in_thread(ann.submit, page, answer="authorize", proof=proof)
        assert done.status == 403
    # A proof of another page of hers, with the very same cookie, is none for consenting.
    account = await in_thread(ann.get, "/account")
    assert (await in_thread(ann.submit, page, answer="authorize", proof=account.form.fields["proof"])).status == 403
    # Nor does hers count for a browser that has it and no cookie.
    done = await in_thread(Browser(server.port).submit, page, answer="authorize")
    assert (done.status, done.location) == (403, "")
    assert await live_tokens(plane) == []


async def test_a_planted_cookie_is_not_signed_in_by_the_person_who_types_the_password(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    """Session fixation: Eve puts her cookie into Ann's browser, Ann signs in, Eve uses her copy."""
    eve, ann = Browser(server.port), Browser(server.port)
    await in_thread(eve.open_login, port=PORT, state="s-1")
    ann.cookies.update(eve.cookies)
    await consent_page(ann)
    assert "runcode_visit" not in ann.cookies
    assert (await in_thread(eve.open_login, port=PORT, state="s-1")).has_password_field
    # The same with a session of Eve's own: she is asked who she is in time, and the planted one is at its end.
    await in_thread(eve.sign_in, EVE, EVES_PASSWORD, port=PORT, state="s-1")
    planted, victim = eve.cookies["runcode_session"], Browser(server.port)
    victim.cookies["runcode_session"] = planted
    clock.advance(minutes=11)
    assert ANN in (await in_thread(victim.sign_in, ANN, PASSWORD, port=PORT, state="s-1")).text
    assert victim.cookies["runcode_session"] != planted
    assert (await in_thread(eve.get, "/account")).location.startswith("/sign-in")


async def test_a_stolen_cookie_is_worth_nothing_to_another_user_of_the_machine(
    plane: ControlPlane, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cookies know no ports: a hostile page on another port of 127.0.0.1 reads ours, if Ann visits it.

    The kernel says whose process asks; tests/integration/test_sign_in.py does it with real users.
    """
    owner = ["uid 1000"]
    monkeypatch.setattr(browser_io, "find_owner", lambda _peer, _own: owner[0])
    ann, eve = Browser(server.port), Browser(server.port)
    _, challenge = make_challenge()
    page = await consent_page(ann, **challenge)
    eve.cookies.update(ann.cookies)
    for owner[0] in ("uid 1001", ""):
        _, eves_challenge = make_challenge()
        for query in ({"port": PORT, "state": "s-1", **challenge}, {"port": "50000", "state": "s", **eves_challenge}):
            assert (await in_thread(eve.open_login, **query)).has_password_field
            done = await in_thread(eve.post, page.form.action, {**page.form.fields, "answer": "authorize"})
            assert (done.status, done.location) == (403, "")
        assert (await in_thread(eve.get, "/account")).location == "/sign-in?next=%2Faccount"
    assert await live_tokens(plane) == []
    owner[0] = "uid 1000"
    assert (await in_thread(ann.submit, page, answer="authorize")).status == 303


async def test_on_plain_http_an_old_sign_in_consents_to_nothing(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    """Whatever got at the cookie later, where the kernel cannot tell whose process it is, signs no client in."""
    ann = Browser(server.port)
    page = await consent_page(ann)
    device = await in_thread(ann.get, "/auth/device")
    clock.advance(seconds=web_sessions.PLAIN_HTTP.fresh.total_seconds() + 1)
    assert (await in_thread(ann.get, "/account")).status == 200, "still signed in"
    assert (await in_thread(ann.open_login, port=PORT, state="other")).has_password_field
    assert (await in_thread(ann.get, "/auth/device")).has_password_field
    for shown, fields in ((page, {"answer": "authorize"}), (device, {"user_code": "BCDF-GHJK"})):
        done = await in_thread(ann.submit, shown, **fields)
        assert (done.status, done.location) == (403, "")
    # Another password proves the person anew, and leads back to the question.
    back = await in_thread(ann.sign_in, ANN, PASSWORD, port=PORT, state="s-2")
    assert "Let this client act as you?" in back.text


async def test_a_form_of_one_request_answers_no_other(plane: ControlPlane, server: HttpServer) -> None:
    ann = Browser(server.port)
    _, challenge = make_challenge()
    page = await consent_page(ann, **challenge)
    _, eves = make_challenge()
    for change in ({"port": "50000"}, {"state": "other"}, eves, {"client": "other"}, {"ticket": "1.x"}):
        done = await in_thread(ann.submit, page, answer="authorize", **change)
        assert (done.status, done.location) == (403, "")
    assert await live_tokens(plane) == []


async def test_cookies_are_out_of_reach_of_scripts_and_other_sites(tmp_path: Path, server: HttpServer) -> None:
    browser = Browser(server.port)
    await consent_page(browser)
    assert len(browser.set_cookies) >= 2
    for cookie in browser.set_cookies:
        assert "httponly" in cookie.lower()
        # The session's goes along when a link leads here, and no link does anything.
        expected = "lax" if cookie.startswith("runcode_session") else "strict"
        assert f"samesite={expected}" in cookie.lower()
        assert "domain" not in cookie.lower()
    async with open_plane(tmp_path / "tls", public_url="https://runcode.example") as behind_tls:
        await behind_tls.users.create_user(ANN, PASSWORD)
        async with serve(behind_tls) as running:
            person = Browser(running.port, host="runcode.example")
            page = await in_thread(person.open_login, port=PORT, state="s")
            fields = {**page.form.fields, "email": ANN, "password": PASSWORD}
            origin = {"Origin": "https://runcode.example"}
            assert (await in_thread(person.post, page.form.action, fields, origin)).status == 303
            assert len(person.set_cookies) == 4
            for cookie in person.set_cookies:
                assert cookie.startswith("__Host-runcode_")
                assert "secure" in cookie.lower()
                assert "path=/;" in cookie.lower()


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.evil.example"]
)
async def test_a_name_that_was_rebound_to_this_server_gets_no_form(server: HttpServer, host: str) -> None:
    page = await in_thread(Browser(server.port, host=host).open_login, port=PORT, state="s")
    assert (page.status, "<form" in page.text, "evil" in page.text) == (400, False, False)


async def test_with_a_public_address_no_other_name_is_served(tmp_path: Path) -> None:
    async with open_plane(tmp_path, public_url="https://runcode.example") as opened, serve(opened) as running:
        for host, status in (("runcode.example", 200), ("127.0.0.1", 400), ("evil.example", 400)):
            page = await in_thread(Browser(running.port, host=host).open_login, port=PORT, state="s")
            assert page.status == status


async def test_a_body_that_is_not_this_form_is_refused(server: HttpServer) -> None:
    browser = Browser(server.port)
    page = await consent_page(browser)
    fields = "&".join(f"{name}={value}" for name, value in page.form.fields.items())
    bodies: list[tuple[bytes, dict[str, str]]] = [
        (b"", {}),
        (b"\xff\xfe", {}),
        (b"a" * 70_000, {}),
        (f"{fields}&answer=authorize&answer=deny".encode(), {}),
        (f"{fields}&answer=maybe".encode(), {}),
        (fields.encode(), {}),
        ((fields + "&x=1" * 20 + "&answer=authorize").encode(), {}),
        (f"{fields}&answer=authorize".encode(), {"Content-Type": "text/plain"}),
        (b'{"answer": "authorize"}', {"Content-Type": "application/json"}),
    ]
    for body, headers in bodies:
        done = await in_thread(browser.post, page.form.action, body, headers)
        assert done.status in (400, 413), body[:80]
        assert not done.location


# ------------------------------------------------------------------ codes


async def test_a_code_works_once_and_used_again_takes_its_token_back(plane: ControlPlane, server: HttpServer) -> None:
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    token = (await redeem(server, code, verifier)).json["token"]
    again = await redeem(server, code, verifier)
    assert (again.status, again.json["code"]) == (400, "bad_request")
    assert "token" not in again.json
    assert (await server.call("GET", "/api/rc/me", token=token)).status == 401


async def test_fifty_at_once_with_one_code_leave_no_live_token(plane: ControlPlane, server: HttpServer) -> None:
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    answers = await asyncio.gather(*(redeem(server, code, verifier) for _ in range(50)))
    assert sum(answer.status == 200 for answer in answers) <= 1
    assert await live_tokens(plane) == []


async def test_a_stolen_code_is_worth_nothing_and_is_burnt(plane: ControlPlane, server: HttpServer) -> None:
    """Whatever read the redirect (another user's listener on that port, a history) has the code and no verifier."""
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    wrong, _ = make_challenge()
    assert (await redeem(server, code, wrong)).status == 400
    assert (await redeem(server, code, verifier)).status == 400, "one guess, and it is gone"
    assert await live_tokens(plane) == []


async def test_a_thief_with_only_the_used_code_cannot_end_its_token(plane: ControlPlane, server: HttpServer) -> None:
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    token = (await redeem(server, code, verifier)).json["token"]
    wrong, _ = make_challenge()
    assert (await redeem(server, code, wrong)).status == 400
    assert (await server.call("GET", "/api/rc/me", token=token)).status == 200


async def test_codes_and_questions_end_in_time(plane: ControlPlane, server: HttpServer, clock: ManualClock) -> None:
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    clock.advance(seconds=browser_logins.CODE_LIVES.total_seconds() + 0.001)
    assert (await redeem(server, code, verifier)).status == 400
    browser = Browser(server.port)
    page = await consent_page(browser)
    clock.advance(seconds=consents.SHOWN_FOR.total_seconds() + 0.001)
    assert (await in_thread(browser.submit, page, answer="authorize")).status == 403
    assert (await in_thread(browser.open_login, port=PORT, state="s-1")).has_password_field
    assert await live_tokens(plane) == []


async def test_a_clock_that_is_set_back_lengthens_no_code(
    plane: ControlPlane, server: HttpServer, clock: ManualClock
) -> None:
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    clock.advance(hours=-1)
    assert (await redeem(server, code, verifier)).status == 400
    assert await live_tokens(plane) == []


@pytest.mark.parametrize("code", [None, 7, "", "rcc_", "x" * 5000, ["rcc_" + "a" * 43], {"code": 1}, "rcc_" + "a" * 43])
async def test_codes_that_never_were_look_like_used_ones(server: HttpServer, code: object) -> None:
    verifier, _ = make_challenge()
    for given in (verifier, None, 7, "", "short", "é" * 50):
        answer = await redeem(server, code, given)
        assert (answer.status, answer.json["code"]) == (400, "bad_request")
        assert answer.json["message"] == "the sign-in code is unknown, used, or too old"


_ENDINGS: dict[str, Callable[[ControlPlane], Any]] = {
    "disabled": lambda plane: plane.users.disable_user(ANN),
    "another password": lambda plane: plane.users.set_password(ANN, "a wholly new password"),
}


@pytest.mark.parametrize("end", _ENDINGS.values(), ids=_ENDINGS)
async def test_a_person_who_was_shut_out_in_between_gets_nothing(
    plane: ControlPlane, server: HttpServer, end: Callable[[ControlPlane], Any]
) -> None:
    """Also when they are let in again: a sign-in from before is no sign-in."""
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    with_code, plain = Browser(server.port), Browser(server.port)
    pages = [await consent_page(with_code, **challenge), await consent_page(plain)]
    await end(plane)
    await plane.users.enable_user(ANN)
    assert (await redeem(server, code, verifier)).status == 400
    for browser, page in zip((with_code, plain), pages, strict=True):
        query = {name: value for name, value in page.form.fields.items() if name not in ("proof", "ticket")}
        assert (await in_thread(browser.open_login, **query)).has_password_field
        assert (await in_thread(browser.submit, page, answer="authorize")).status == 403
    assert await live_tokens(plane) == []


# ------------------------------------------------------------------ guessing


async def test_guessing_is_slowed_and_says_the_same_for_everybody(
    plane: ControlPlane, server: HttpServer, monotonic: Monotonic
) -> None:
    seen: dict[str, list[tuple[int, str]]] = {}
    for number, email in enumerate((ANN, "nobody@example.org", "disabled@example.org")):
        if email.startswith("disabled"):
            await plane.users.create_user(email, PASSWORD)
            await plane.users.disable_user(email)
        browser = Browser(server.port, source=f"127.0.1.{number + 1}")
        page = await in_thread(browser.open_login, port=PORT, state="s")
        for _ in range(sign_in_pace.FROM_ONE_ADDRESS.burst + 2):
            shown = await in_thread(browser.submit, page, email=email, password="a wrong password")
            text = re.findall(r'role="alert">([^<]*)', shown.text)[0]
            seen.setdefault(email, []).append((shown.status, text))
    assert len({tuple(answers) for answers in seen.values()}) == 1, "who exists, or is disabled, cannot be told"
    statuses = [status for status, _ in seen[ANN]]
    assert statuses == [401] * sign_in_pace.FROM_ONE_ADDRESS.burst + [429, 429]
    # The right password from that address waits too, and then works.
    browser = Browser(server.port, source="127.0.1.1")
    page = await in_thread(browser.open_login, port=PORT, state="s")
    assert (await in_thread(browser.submit, page, email=ANN, password=PASSWORD)).status == 429
    monotonic.now += sign_in_pace.FROM_ONE_ADDRESS.every_s
    assert (await in_thread(browser.submit, page, email=ANN, password=PASSWORD)).status == 303


async def test_guessing_on_purpose_does_not_lock_the_owner_out(
    plane: ControlPlane, server: HttpServer, monotonic: Monotonic
) -> None:
    known = Browser(server.port, source="127.0.2.1")
    await consent_page(known)
    status = 0
    for number in range(sign_in_pace.FOR_ONE_ACCOUNT.burst + 5):
        guesser = Browser(server.port, source=f"127.0.3.{number + 1}")
        page = await in_thread(guesser.open_login, port=PORT, state="s")
        status = (await in_thread(guesser.submit, page, email=ANN, password="a wrong password")).status
    assert status == 429, "many addresses are slowed for the account"
    # Ann's own browser is known, whatever address it has today; a stranger's claim to be one is not believed.
    forger = Browser(server.port, source="127.0.4.1")
    own = known.cookies["runcode_device"]
    for forged in ("x", own[:-1] + ("1" if own.endswith("0") else "0"), "a" * 22 + "." + "0" * 64):
        forger.cookies = {"runcode_device": forged}
        page = await in_thread(forger.open_login, port=PORT, state="s")
        assert (await in_thread(forger.submit, page, email=ANN, password=PASSWORD)).status == 429
    moved = Browser(server.port, source="127.0.5.1")
    moved.cookies = {"runcode_device": known.cookies["runcode_device"]}
    page = await in_thread(moved.open_login, port=PORT, state="s")
    assert (await in_thread(moved.submit, page, email=ANN, password=PASSWORD)).status == 303
    # Her cookie makes no browser known for anybody else's account.
    assert plane.sign_ins.find_device(known.cookies["runcode_device"], ANN) is not None
    assert plane.sign_ins.find_device(known.cookies["runcode_device"], EVE) is None


def test_the_pace_forgets_no_guesser_who_goes_on_and_keeps_a_bounded_memory() -> None:
    monotonic = Monotonic()
    pace = SignInPace(monotonic)
    for number in range(40_000):
        pace.take(account=f"{number}@example.org", source=f"2001:db8:{number:x}::1", known_browser=None)
    assert len(pace._whole_at) <= sign_in_pace._KEPT_MAX
    # A /64 is one source, however many addresses somebody takes from it.
    waits = [pace.take(account=f"x{n}", source=f"2001:db8:ffff:1::{n:x}", known_browser=None) for n in range(1, 12)]
    allowed = sign_in_pace.FROM_ONE_ADDRESS.burst
    assert waits[:allowed] == [0.0] * allowed
    assert all(wait > 0 for wait in waits[allowed:])


async def test_ones_own_account_wins_no_tries_at_anothers(
    plane: ControlPlane, server: HttpServer, monotonic: Monotonic
) -> None:
    """Eve signs in to her own account between guesses at Ann's, by a browser that is known there or not."""
    for number in range(2):
        eve = Browser(server.port, source=f"127.0.6.{number + 1}")
        known = {}
        if number:
            await in_thread(eve.sign_in, EVE, EVES_PASSWORD, port=PORT, state="s")
            known = {"runcode_device": eve.cookies["runcode_device"]}
        guesses = 0
        for _ in range(40):
            eve.cookies = {}
            page = await in_thread(eve.open_login, port=PORT, state="s")
            tried = await in_thread(eve.submit, page, email=ANN, password="a wrong password")
            guesses += tried.status == 401
            eve.cookies = dict(known)
            page = await in_thread(eve.open_login, port=PORT, state="s")
            await in_thread(eve.submit, page, email=EVE, password=EVES_PASSWORD)
        assert guesses <= sign_in_pace.FROM_ONE_ADDRESS.burst


async def test_one_person_neither_fills_the_memory_nor_pushes_others_out(
    plane: ControlPlane, server: HttpServer
) -> None:
    ann, eve = Browser(server.port), Browser(server.port, source="127.0.7.1")
    page = await consent_page(ann)
    for number in range(web_sessions.KEPT_PER_PERSON + 5):
        eve.cookies.pop("runcode_session", None)
        last = await in_thread(eve.sign_in, EVE, EVES_PASSWORD, port=PORT, state=f"s-{number}")
        assert EVE in last.text
    kept = (await in_thread(eve.get, "/account")).text.count('data-name="Last seen"')
    assert kept == web_sessions.KEPT_PER_PERSON
    assert (await in_thread(ann.submit, page, answer="authorize")).status == 303


async def test_many_passwords_at_once_take_two_checks_and_a_bounded_queue(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    release = asyncio.Event()

    async def check(email: str, password: str) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        raise AssertionError("not reached by those who are refused")

    monkeypatch.setattr(plane.users, "check_password", check)
    tries = [asyncio.create_task(plane.sign_ins._check_in_turn(ANN, "x")) for _ in range(60)]
    await asyncio.sleep(0.05)
    refused = [task for task in tries if task.done()]
    assert most == sign_ins.CHECKS_AT_ONCE
    assert len(refused) == 60 - sign_ins.CHECKS_WAITING_MAX
    assert all(getattr(task.exception(), "code", "") == "rate_limited" for task in refused)
    release.set()
    await asyncio.gather(*tries, return_exceptions=True)


async def test_neither_codes_nor_passwords_reach_the_log(
    plane: ControlPlane, server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    verifier, challenge = make_challenge()
    code = (await authorized(Browser(server.port), **challenge))["code"]
    token = (await redeem(server, code, verifier)).json["token"]
    for secret in (code, verifier, token, PASSWORD):
        assert secret not in caplog.text
