"""Signing in through a real OpenID provider that is not ours: as it is meant, and what changes there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.oidc_provider import OidcProvider
from runcode.controlplane.services.oidc_records import OidcPolicy, OidcSettings
from support.browser import running_browser
from support.browser_login import Browser, Page
from support.controlplane_fakes import HttpServer, open_plane, serve
from support.oidc_provider import CLIENT_ID, CLIENT_SECRET, HOST, RunningProvider, make_key, running_provider
from support.service import running_service

ANN = "ann@example.org"
POLICY = OidcPolicy(domains=frozenset({"corp.example"}))


@pytest.fixture(scope="module")
def provider() -> Iterator[RunningProvider]:
    with running_provider() as running:
        yield running


@contextlib.asynccontextmanager
async def plane_for(provider: RunningProvider, folder: Path, **settings: Any) -> AsyncIterator[ControlPlane]:
    registered = OidcSettings(issuer=provider.issuer, client_id=CLIENT_ID, client_secret=CLIENT_SECRET, name="Corp")
    async with open_plane(folder, oidc=registered, oidc_policy=POLICY, **settings) as opened:
        yield opened


@pytest.fixture
async def plane(provider: RunningProvider, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with plane_for(provider, tmp_path) as opened:
        yield opened


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


def begin(browser: Browser, next_path: str = "/account") -> str:
    page = browser.get(f"/sign-in/oidc?next={next_path}")
    assert page.status == 303, page.text
    return page.location


def sign_in(provider: RunningProvider, browser: Browser) -> Page:
    """Up to what the callback answers."""
    back = provider.walk(begin(browser))
    assert back.startswith(f"http://{HOST}/sign-in/oidc/callback?"), back
    return browser.get(back.removeprefix(f"http://{HOST}"))


async def walk(provider: RunningProvider, port: int) -> tuple[Browser, Page]:
    browser = Browser(port, host=HOST)
    return browser, await asyncio.to_thread(sign_in, provider, browser)


async def test_a_person_of_the_domain_gets_an_account_and_comes_back_to_it(
    provider: RunningProvider, plane: ControlPlane, server: HttpServer
) -> None:
    shown = await asyncio.to_thread(Browser(server.port, host=HOST).get, "/sign-in")
    assert "Corp" in shown.text
    provider.set_person("0001", "Bob@Corp.example")
    browser, done = await walk(provider, server.port)
    assert (done.status, done.location) == (303, "/account"), done.text
    assert "bob@corp.example" in (await asyncio.to_thread(browser.get, "/account")).text
    assert [user.email for user in await plane.users.list_users()] == ["bob@corp.example"]
    # Another address there later: the subject is who he is, and what he is called here stays.
    provider.set_person("0001", "robert@corp.example")
    browser, done = await walk(provider, server.port)
    assert "bob@corp.example" in (await asyncio.to_thread(browser.get, "/account")).text
    assert len(await plane.users.list_users()) == 1


async def test_an_address_opens_nobodys_account(
    provider: RunningProvider, plane: ControlPlane, server: HttpServer
) -> None:
    """Also a verified one of a domain that may come in: the account was there before, and nobody linked it."""
    await plane.users.create_user("carol@corp.example", "correct horse battery", admin=True)
    provider.set_person("0002", "carol@corp.example")
    browser, done = await walk(provider, server.port)
    assert (done.status, "runcode_session" in browser.cookies) == (403, False)
    await plane.identities.link("carol@corp.example", provider.issuer, "0002")
    browser, done = await walk(provider, server.port)
    assert done.status == 303
    await plane.users.disable_user("carol@corp.example")
    browser, done = await walk(provider, server.port)
    assert done.status == 403


@pytest.mark.parametrize("verified", [False, "true", 1, None])
async def test_an_address_that_nobody_verified_opens_nothing(
    provider: RunningProvider, plane: ControlPlane, server: HttpServer, verified: object
) -> None:
    await plane.identities.invite(ANN, provider.issuer)
    for email in (ANN, "dave@corp.example"):
        provider.set_person("0003", email, verified=verified)
        _, done = await walk(provider, server.port)
        assert done.status == 403
    assert [user.email for user in await plane.users.list_users()] == [ANN]


async def test_an_invitation_is_claimed_once_and_by_its_address(
    provider: RunningProvider, plane: ControlPlane, server: HttpServer
) -> None:
    await plane.identities.invite(ANN, provider.issuer)
    for subject, email, status in (
        ("x1", "eve@example.org", 403),
        ("x1", "ann@example.org.evil.example", 403),
        ("0004", ANN, 303),
        ("x2", ANN, 403),
        ("0004", "another@example.org", 303),
    ):
        provider.set_person(subject, email)
        _, done = await walk(provider, server.port)
        assert done.status == status, (subject, email)
    await plane.identities.unlink(ANN)
    _, done = await walk(provider, server.port)
    assert done.status == 403


async def test_a_code_works_once(provider: RunningProvider, plane: ControlPlane, server: HttpServer) -> None:
    provider.set_person("0001", "bob@corp.example")
    browser = Browser(server.port, host=HOST)
    back = (await asyncio.to_thread(provider.walk, await asyncio.to_thread(begin, browser))).removeprefix(
        f"http://{HOST}"
    )
    kept = browser.cookies["runcode_oidc"]
    assert (await asyncio.to_thread(browser.get, back)).status == 303
    assert "runcode_oidc" not in browser.cookies
    # Whoever has the address alone, and whoever has the cookie as well.
    thief = Browser(server.port, host=HOST)
    assert (await asyncio.to_thread(thief.get, back)).status == 403
    thief.cookies["runcode_oidc"] = kept
    assert (await asyncio.to_thread(thief.get, back)).status == 403
    assert "runcode_session" not in thief.cookies


async def test_any_replica_takes_the_answer_that_another_asked_for(
    provider: RunningProvider, plane: ControlPlane, tmp_path: Path
) -> None:
    provider.set_person("0001", "bob@corp.example")
    async with plane_for(provider, tmp_path) as second, serve(plane) as one, serve(second) as other:
        browser = Browser(one.port, host=HOST)
        back = await asyncio.to_thread(provider.walk, await asyncio.to_thread(begin, browser))
        browser.port = other.port
        assert (await asyncio.to_thread(browser.get, back.removeprefix(f"http://{HOST}"))).status == 303
        browser.port = one.port
        assert (await asyncio.to_thread(browser.get, "/account")).status == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"alg": "ES256", "keys": [make_key("rsa"), make_key("ec", "ES256")]},
        {"auth_method": "client_secret_post"},
        {"conform": False},
    ],
    ids=["ES256", "secret in the body", "address at userinfo only"],
)
async def test_what_providers_differ_in(tmp_path: Path, settings: dict[str, Any]) -> None:
    with running_provider(**settings) as other:
        other.set_person("0001", "bob@corp.example")
        async with plane_for(other, tmp_path) as plane, serve(plane) as server:
            _, done = await walk(other, server.port)
            assert done.status == 303, done.text


async def test_keys_that_the_provider_changed_are_found(tmp_path: Path) -> None:
    now = [1000.0]
    with running_provider() as before:
        port = before.port
        async with plane_for(before, tmp_path) as plane, serve(plane) as server:
            assert plane.oidc_sign_ins is not None
            kept = plane.oidc_sign_ins.provider
            assert isinstance(kept, OidcProvider)
            kept._monotonic = lambda: now[0]
            before.set_person("0001", "bob@corp.example")
            assert (await walk(before, server.port))[1].status == 303
            with contextlib.ExitStack() as stack:
                _end(before)
                after = stack.enter_context(running_provider(port=port, keys=[make_key("second")]))
                after.set_person("0001", "bob@corp.example")
                now[0] += 5
                assert (await walk(after, server.port))[1].status == 403, "not asked for again within half a minute"
                now[0] += 40
                assert (await walk(after, server.port))[1].status == 303


async def test_a_provider_that_is_down_is_said_and_passwords_still_work(tmp_path: Path) -> None:
    with running_provider() as gone:
        pass
    async with plane_for(gone, tmp_path) as plane, serve(plane) as server:
        await plane.users.create_user(ANN, "correct horse battery")
        browser = Browser(server.port, host=HOST)
        page = await asyncio.to_thread(browser.get, "/sign-in/oidc")
        assert page.status == 503
        assert "provider does not answer" in page.text
        form = await asyncio.to_thread(browser.get, "/sign-in")
        done = await asyncio.to_thread(browser.submit, form, email=ANN, password="correct horse battery")
        assert done.status == 303


async def test_a_person_who_says_no_there_is_told_so(tmp_path: Path) -> None:
    with running_provider(refuse=True) as refusing:
        async with plane_for(refusing, tmp_path) as plane, serve(plane) as server:
            browser, done = await walk(refusing, server.port)
            assert (done.status, "runcode_session" in browser.cookies) == (403, False)


def test_the_button_of_a_real_browser_leads_there_and_back(provider: RunningProvider, tmp_path: Path) -> None:
    """Its policies and cookies, too: a form's or a page's that were too strict would end the way at a redirect."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(CLIENT_SECRET)
    options = ("--oidc-issuer", provider.issuer, "--oidc-client-id", CLIENT_ID, "--oidc-name", "Corp")
    options += ("--oidc-client-secret-file", str(secret), "--oidc-domain", "corp.example")
    provider.set_person("0007", "grace@corp.example")
    with running_service(tmp_path / "service", options=options) as service:
        # The address that the provider knows, wherever the server really listens.
        mapped = f"--host-resolver-rules=MAP {HOST} {service.facts['web_base'].removeprefix('http://')}"
        with running_browser([mapped]) as chromium, chromium.window(f"http://{HOST}") as window:
            window.open("/teams")
            window.page.get_by_role("link", name="Sign in with Corp").click()
            window.page.wait_for_url(f"http://{HOST}/teams")
            assert "grace@corp.example" in window.text
            there = [fault for fault in window.faults if fault.startswith(f"request: {provider.issuer}/")]
            assert there
            # Everything else would be a fault.
            window.faults = [fault for fault in window.faults if fault not in there]


def _end(provider: RunningProvider) -> None:
    provider.process.kill()
    provider.process.wait()
