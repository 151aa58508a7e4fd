"""What a hostile provider, or a thief of its answers, might try with a sign-in through OpenID.

A provider of ours behind httpx's transport, since no honest one says such things; the real one
is in tests/integration/test_oidc_provider.py.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from runcode.controlplane.clock import SystemClock
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services import oidc, oidc_http
from runcode.controlplane.services.oidc_http import GuardedTransport
from runcode.controlplane.services.oidc_provider import OidcProvider
from runcode.controlplane.services.oidc_records import Attempt, OidcPolicy, OidcSettings
from runcode.core.errors import RunCodeError
from support.browser_login import Browser, Page
from support.controlplane_fakes import HttpServer, open_plane, serve

ISSUER = "https://login.example.org"
SETTINGS = OidcSettings(issuer=ISSUER, client_id="our-client", client_secret="a secret", name="Corp")
POLICY = OidcPolicy(domains=frozenset({"corp.example"}))
KEY = RSAKey.generate_key(2048, {"kid": "one"})
OTHER_KEY = RSAKey.generate_key(2048, {"kid": "one"})
EMAIL = "bob@corp.example"


def _part(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def none_token(claims: dict[str, Any]) -> str:
    return f"{_part(json.dumps({'alg': 'none', 'kid': 'one'}).encode())}.{_part(json.dumps(claims).encode())}."


def confused_token(claims: dict[str, Any]) -> str:
    """An HMAC whose secret is the public key's text: libraries that take the algorithm from the token fall for it."""
    head = f"{_part(json.dumps({'alg': 'HS256', 'kid': 'one'}).encode())}.{_part(json.dumps(claims).encode())}"
    return f"{head}.{_part(hmac.digest(KEY.as_pem(False), head.encode(), 'sha256'))}"


@dataclass
class Provider:
    """`claims` change what it signs; `sign` how; `document` and `answers` what it says elsewhere."""

    claims: dict[str, Any] = field(default_factory=dict)
    sign: Callable[[dict[str, Any]], str] | None = None
    document: dict[str, Any] = field(default_factory=dict)
    keys: list[dict[str, Any]] | None = None
    answers: dict[str, Callable[[httpx.Request], httpx.Response]] = field(default_factory=dict)
    asked: list[httpx.Request] = field(default_factory=list)
    nonce: str = ""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        path = request.url.path
        if path in self.answers:
            return self.answers[path](request)
        if path == "/.well-known/openid-configuration":
            return httpx.Response(200, json=self.render_document())
        if path == "/keys":
            return httpx.Response(200, json={"keys": self.keys or [KEY.as_dict(private=False)]})
        assert path == "/token", path
        return httpx.Response(200, json={"access_token": "at", "token_type": "Bearer", "id_token": self.make_token()})

    def render_document(self) -> dict[str, Any]:
        return {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/authorize",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/keys",
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            **self.document,
        }

    def make_token(self) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "0001",
            "aud": SETTINGS.client_id,
            "iat": now,
            "exp": now + 300,
            "nonce": self.nonce,
            "email": EMAIL,
            "email_verified": True,
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.sign is not None:
            return self.sign(claims)
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, KEY)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
async def plane(tmp_path: Path, provider: Provider) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path, SystemClock(), oidc=SETTINGS, oidc_policy=POLICY) as opened:
        assert opened.oidc_sign_ins is not None
        opened.oidc_sign_ins.provider = make_provider(provider)
        yield opened


def make_provider(provider: Provider, resolver: oidc_http.Resolve | None = None) -> OidcProvider:
    async def public(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34"]

    inner = httpx.MockTransport(provider)
    return OidcProvider(
        SETTINGS, SystemClock(), transport=GuardedTransport(ISSUER, resolver=resolver or public, inner=inner)
    )


@pytest.fixture
async def server(plane: ControlPlane) -> AsyncIterator[HttpServer]:
    async with serve(plane) as running:
        yield running


async def begin(server: HttpServer, provider: Provider) -> tuple[Browser, str]:
    """A browser, and the state of its attempt."""
    browser = Browser(server.port)
    page: Page = await asyncio.to_thread(browser.get, "/sign-in/oidc?next=/account")
    assert page.location.startswith(f"{ISSUER}/authorize?"), page.text
    asked = {name: values[0] for name, values in parse_qs(urlsplit(page.location).query).items()}
    assert (asked["response_type"], asked["code_challenge_method"], asked["scope"]) == ("code", "S256", "openid email")
    provider.nonce = asked["nonce"]
    return browser, asked["state"]


async def finish(browser: Browser, query: str) -> Page:
    page: Page = await asyncio.to_thread(browser.get, f"/sign-in/oidc/callback?{query}")
    return page


async def sign_in(server: HttpServer, provider: Provider) -> tuple[Browser, Page]:
    browser, state = await begin(server, provider)
    return browser, await finish(browser, f"code=c&state={state}")


async def test_an_honest_answer_signs_in(plane: ControlPlane, server: HttpServer, provider: Provider) -> None:
    """The others below would prove nothing if this one failed."""
    browser, done = await sign_in(server, provider)
    assert (done.status, done.location) == (303, "/account"), done.text
    assert "runcode_session" in browser.cookies
    [exchange] = [request for request in provider.asked if request.url.path == "/token"]
    fields = dict(parse_qsl(exchange.content.decode()))
    assert fields["redirect_uri"] == f"http://127.0.0.1:{server.port}/sign-in/oidc/callback"
    assert len(fields["code_verifier"]) == 43
    assert "a secret" not in exchange.content.decode()


_now = int(time.time())
_FORGED: dict[str, dict[str, Any]] = {
    "another nonce": {"claims": {"nonce": "x" * 43}},
    "no nonce": {"claims": {"nonce": None}},
    "an empty nonce": {"claims": {"nonce": ""}},
    "another issuer": {"claims": {"iss": "https://evil.example"}},
    "a slash too many": {"claims": {"iss": ISSUER + "/"}},
    "no issuer": {"claims": {"iss": None}},
    "another audience": {"claims": {"aud": "another-client"}},
    "two audiences": {"claims": {"aud": ["our-client", "another-client"]}},
    "two audiences, for the other": {"claims": {"aud": ["our-client", "x"], "azp": "x"}},
    "no audience": {"claims": {"aud": None}},
    "expired": {"claims": {"exp": _now - 3600, "iat": _now - 7200}},
    "no expiry": {"claims": {"exp": None}},
    "an expiry that is text": {"claims": {"exp": "9999999999"}},
    "issued tomorrow": {"claims": {"iat": _now + 86400, "exp": _now + 90000}},
    "not yet valid": {"claims": {"nbf": _now + 3600}},
    "nobody": {"claims": {"sub": None}},
    "an empty subject": {"claims": {"sub": ""}},
    "a subject that is a number": {"claims": {"sub": 1}},
    "a subject with control bytes": {"claims": {"sub": "a\x1b[2J"}},
    "a long subject": {"claims": {"sub": "a" * 256}},
    "another access token's hash": {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}},
    "alg none": {"sign": none_token},
    "signed by a stranger": {"sign": lambda claims: jwt.encode({"alg": "RS256", "kid": "one"}, claims, OTHER_KEY)},
    "signed with the client's secret": {
        "sign": lambda claims: jwt.encode({"alg": "HS256"}, claims, OctKey.import_key("a secret".ljust(32, "x")))
    },
    "signed with the public key as a secret": {"sign": confused_token},
    "a shared secret among its keys": {
        "keys": [{**OctKey.import_key("k" * 32).as_dict(private=True), "kid": "one"}],
        "sign": lambda claims: jwt.encode({"alg": "HS256", "kid": "one"}, claims, OctKey.import_key("k" * 32)),
    },
    "no token": {"sign": lambda claims: ""},
    "a huge token": {"sign": lambda claims: "a." * 40_000},
    "nonsense": {"sign": lambda claims: "a.b.c"},
}  # fmt: skip


@pytest.mark.parametrize("forgery", _FORGED.values(), ids=_FORGED)
async def test_a_forged_answer_signs_nobody_in(
    plane: ControlPlane, server: HttpServer, provider: Provider, forgery: dict[str, Any]
) -> None:
    for name, value in forgery.items():
        setattr(provider, name, value)
    browser, done = await sign_in(server, provider)
    assert done.status in (403, 503), done.text
    assert done.location == ""
    assert "runcode_session" not in browser.cookies
    assert await plane.users.list_users() == []


@pytest.mark.parametrize(
    "email",
    ["bob@corp.example.evil.example", "bob@sub.corp.example", "bob@corp.example\n", "bob", "bob@xcorp.example", 7],
)
async def test_only_the_domain_itself_lets_in(
    plane: ControlPlane, server: HttpServer, provider: Provider, email: object
) -> None:
    provider.claims = {"email": email, "sub": "0002"}
    _, done = await sign_in(server, provider)
    if email == "bob@corp.example\n":
        # One address with a blank around it is that address.
        assert done.status == 303
    else:
        assert done.status == 403
        assert await plane.users.list_users() == []


@pytest.mark.parametrize("verified", [False, None, "true", 1, "yes"])
async def test_an_address_that_nobody_verified_opens_nothing(
    plane: ControlPlane, server: HttpServer, provider: Provider, verified: object
) -> None:
    provider.claims = {"email_verified": verified}
    assert (await sign_in(server, provider))[1].status == 403
    assert await plane.users.list_users() == []


async def test_an_address_opens_no_account_that_was_there_before(
    plane: ControlPlane, server: HttpServer, provider: Provider
) -> None:
    """A verified one of a domain that may come in, and somebody else had that address here first."""
    await plane.users.create_user(EMAIL, "correct horse battery", admin=True)
    browser, done = await sign_in(server, provider)
    assert (done.status, "runcode_session" in browser.cookies) == (403, False)


# ------------------------------------------------------------------ answers that are not this browser's


async def test_an_answer_counts_for_the_browser_that_asked(
    plane: ControlPlane, server: HttpServer, provider: Provider
) -> None:
    """Login CSRF: Eve begins, and has Ann's browser finish."""
    _, eves_state = await begin(server, provider)
    ann, anns_state = await begin(server, provider)
    bare = Browser(server.port)
    for browser, query in (
        (bare, f"code=c&state={eves_state}"),
        (ann, f"code=c&state={eves_state}"),
        (Browser(server.port), "code=c&state="),
        (Browser(server.port), f"state={anns_state}"),
        (Browser(server.port), ""),
    ):
        done = await finish(browser, query)
        assert (done.status, "runcode_session" in browser.cookies) == (403, False)
    assert [request.url.path for request in provider.asked].count("/token") == 0
    for query in (f"code=c&code=d&state={anns_state}", f"code=c&state={anns_state}&state={eves_state}", "error=x"):
        browser, _ = await begin(server, provider)
        assert (await finish(browser, query)).status == 403


async def test_an_attempt_is_for_minutes_and_sealed(
    plane: ControlPlane, server: HttpServer, provider: Provider
) -> None:
    browser, state = await begin(server, provider)
    whole = browser.cookies["runcode_oidc"]
    body, _, proof = whole.partition(".")
    for damaged in ("", body, f"{body}.", f"{body}.{'0' * 64}", f"A{body}.{proof}", f"{whole}0", f".{proof}", "é"):
        other = Browser(server.port)
        other.cookies["runcode_oidc"] = damaged
        assert (await finish(other, f"code=c&state={state}")).status == 403
    # What is sealed for something else is nothing here.
    other.cookies["runcode_oidc"] = plane.proofs.seal("another purpose", {"state": state})
    assert (await finish(other, f"code=c&state={state}")).status == 403
    kept = plane.proofs.find_sealed("oidc attempt", whole)
    assert kept is not None
    for moved_s in (oidc.ATTEMPT_S + 1, -120):
        old = plane.proofs.seal("oidc attempt", {**kept, "at": int(kept["at"]) - moved_s})
        other.cookies["runcode_oidc"] = old
        assert (await finish(other, f"code=c&state={state}")).status == 403
    assert (await finish(browser, f"code=c&state={state}")).status == 303


@pytest.mark.parametrize("issuer", ["https%3A%2F%2Fevil.example", "", ISSUER + "&iss=x"])
async def test_a_mixed_up_issuer_gets_no_code(
    plane: ControlPlane, server: HttpServer, provider: Provider, issuer: str
) -> None:
    """RFC 9207: the code of one provider must not be shown to another."""
    provider.document = {"authorization_response_iss_parameter_supported": True}
    browser, state = await begin(server, provider)
    assert (await finish(browser, f"code=c&state={state}&iss={issuer}")).status == 403
    browser, state = await begin(server, provider)
    assert (await finish(browser, f"code=c&state={state}")).status == 403, "it says that it names itself, and did not"
    assert not any(request.url.path == "/token" for request in provider.asked)
    browser, state = await begin(server, provider)
    assert (await finish(browser, f"code=c&state={state}&iss={ISSUER}")).status == 303


async def test_an_answer_of_userinfo_for_somebody_else_does_not_count(
    plane: ControlPlane, server: HttpServer, provider: Provider
) -> None:
    provider.claims = {"email": None, "email_verified": None}
    provider.document = {"userinfo_endpoint": f"{ISSUER}/userinfo"}
    for subject, status in (("0002", 403), (None, 403), ("0001", 303)):
        told = {"sub": subject, "email": EMAIL, "email_verified": True}
        provider.answers["/userinfo"] = lambda _request, told=told: httpx.Response(200, json=told)  # type: ignore[misc]
        assert (await sign_in(server, provider))[1].status == status


# ------------------------------------------------------------------ where its documents lead


_PRIVATE = [
    "127.0.0.1",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "172.16.0.1",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
]
_PRIVATE += ["::1", "fd00::1", "fe80::1", "::ffff:169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1"]


@pytest.mark.parametrize("address", _PRIVATE)
@pytest.mark.parametrize("name", ["token_endpoint", "jwks_uri", "userinfo_endpoint"])
async def test_no_document_leads_into_a_private_network(name: str, address: str) -> None:
    provider = Provider(document={name: "https://inner.example/x"}, claims={"email": None})

    async def resolver(host: str, _port: int) -> list[str]:
        return ["93.184.216.34", address] if host == "inner.example" else ["93.184.216.34"]

    kept = make_provider(provider, resolver)
    attempt = Attempt(state="s", nonce="n", verifier="v" * 43, redirect_uri="http://127.0.0.1/cb")
    provider.nonce = "n"
    with pytest.raises(RunCodeError) as caught:
        await kept.redeem("c", attempt)
    assert caught.value.code == "unavailable"
    assert "/x" not in [request.url.path for request in provider.asked]


_ADDRESSES: list[object] = [
    "http://login.example.org/token",
    "file:///etc/passwd",
    "https://u:p@login.example.org/t",
    "",
    None,
]
_ADDRESSES += [
    7,
    "https://",
    "//login.example.org/t",
    "gopher://x",
    "https://login.example.org/t#x",
    "http://127.0.0.1/t",
]
_ADDRESSES += ["https://login.example.org:0/t", "https://login.example.org/\n", "https://login.example.org:99999/t"]


@pytest.mark.parametrize("address", _ADDRESSES)
@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
async def test_an_address_that_is_no_plain_https_one_is_not_called(
    plane: ControlPlane, server: HttpServer, provider: Provider, name: str, address: object
) -> None:
    provider.document = {name: address}
    browser = Browser(server.port)
    page = await asyncio.to_thread(browser.get, "/sign-in/oidc")
    if name != "authorization_endpoint":
        asked = {key: values[0] for key, values in parse_qs(urlsplit(page.location).query).items()}
        provider.nonce = asked["nonce"]
        page = await finish(browser, f"code=c&state={asked['state']}")
    assert (page.status, page.location) == (503, "")


async def test_the_connection_goes_to_the_address_that_was_looked_at(provider: Provider) -> None:
    """DNS rebinding between the look and the call: the name is not resolved again."""
    looked: list[str] = []

    async def resolver(host: str, _port: int) -> list[str]:
        looked.append(host)
        return ["93.184.216.34"] if len(looked) == 1 else ["127.0.0.1"]

    kept = make_provider(provider, resolver)
    await kept.require_issuer(ISSUER)
    [request] = provider.asked
    assert (request.url.host, request.headers["host"]) == ("93.184.216.34", "login.example.org")
    assert request.extensions["sni_hostname"] == "login.example.org"
    assert len(looked) == 1


async def test_a_large_answer_is_not_read_to_its_end(provider: Provider) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 64 * 1024
            yield b" " * (64 * 1024)

    provider.answers["/.well-known/openid-configuration"] = lambda _request: httpx.Response(200, content=endless())
    with pytest.raises(RunCodeError):
        await make_provider(provider).require_issuer(ISSUER)
    assert sent <= oidc_http.ANSWER_MAX + 64 * 1024


_BAD_ANSWERS: dict[str, Callable[[httpx.Request], httpx.Response]] = {
    "a redirect": lambda _r: httpx.Response(302, headers={"Location": "http://169.254.169.254/latest"}),
    "too much": lambda _r: httpx.Response(200, content=b" " * (oidc_http.ANSWER_MAX + 1)),
    "compressed": lambda _r: httpx.Response(200, content=b"x", headers={"Content-Encoding": "x-gzip-bomb"}),
    "no JSON": lambda _r: httpx.Response(200, content=b"<html>"),
    "deep JSON": lambda _r: httpx.Response(200, content=b"[" * 100_000),
    "a list": lambda _r: httpx.Response(200, json=[1]),
    "an error": lambda _r: httpx.Response(500, json={"secret": "of theirs"}),
    "another issuer": lambda _r: httpx.Response(200, json={"issuer": "https://evil.example"}),
}


@pytest.mark.parametrize("answer", _BAD_ANSWERS.values(), ids=_BAD_ANSWERS)
@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token"])
async def test_a_bad_answer_is_one_sentence_and_signs_nobody_in(
    plane: ControlPlane,
    server: HttpServer,
    provider: Provider,
    path: str,
    answer: Callable[[httpx.Request], httpx.Response],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(0)
    provider.answers[path] = answer
    browser = Browser(server.port)
    page = await asyncio.to_thread(browser.get, "/sign-in/oidc")
    if page.status == 303:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(page.location).query).items()}
        provider.nonce = asked["nonce"]
        page = await finish(browser, f"code=a-code-of-this-test&state={asked['state']}")
    assert page.status in (403, 503)
    assert "of theirs" not in page.text
    assert "runcode_session" not in browser.cookies
    # uvicorn's own lines are off in `up`.
    said = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("uvicorn"))
    for secret in ("a secret", "a-code-of-this-test"):
        assert secret not in said
    assert "169.254.169.254" not in [request.url.host for request in provider.asked]
