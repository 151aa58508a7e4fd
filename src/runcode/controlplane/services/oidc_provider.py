"""One OpenID provider, as its documents and its signed answers say: discovery, keys, code for claims.

Owns: what is believed of it, and for how long. Called by `oidc`, never inside a
transaction. Authlib and joserfc know the protocol; what they are asked to check stands here.

Threat: an ID token that is unsigned, signed by a key or an algorithm of somebody
else's choice, for another client, another sign-in, of another issuer, or old; a
document of another issuer; keys that have changed.
Guarantee: the document's issuer is the operator's, to the letter. An ID token counts
only with a signature by a key of the provider's own, by an asymmetric algorithm, with
issuer, audience, expiry, nonce and (where it is there) `at_hash` as they must be. A key
that is not known is looked for again, at most every half minute.

Source: OpenID Connect Core 1.0 §3.1.3.7, Discovery 1.0 §4, RFC 7636, RFC 9207.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote_plus, urlsplit

import httpx
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from runcode.controlplane.clock import Clock
from runcode.controlplane.services import inputs
from runcode.controlplane.services.identities import parse_subject
from runcode.controlplane.services.oidc_http import (
    EXCHANGE_S,
    GuardedTransport,
    make_client,
    require_provider_url,
    unreachable,
    unusable,
)
from runcode.controlplane.services.oidc_records import Attempt, Claims, OidcSettings
from runcode.core.errors import RunCodeError

# Never `none`, never a shared secret: whoever knows the client secret could sign.
ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA", "RS384", "PS384", "ES384", "RS512", "PS512", "ES512")
LEEWAY_S: Final = 60
_DOCUMENT_KEPT_S: Final = 3600.0
_KEYS_AGAIN_S: Final = 30.0
_TOKEN_MAX: Final = 32 * 1024
_KEYS_MAX: Final = 64


class OidcProvider:
    def __init__(
        self,
        settings: OidcSettings,
        clock: Clock,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._monotonic = monotonic
        self._transport = transport or GuardedTransport(settings.issuer)
        self._issuer_host = urlsplit(settings.issuer).hostname or ""
        self._document: tuple[float, dict[str, Any]] | None = None
        self._keys: tuple[float, KeySet] | None = None
        self._turn = asyncio.Lock()

    async def authorization_url(self, attempt: Attempt) -> str:
        """Where the browser goes. Raises `unavailable`."""
        document = await self._load_document()
        endpoint = self._endpoint(document, "authorization_endpoint")
        return str(
            prepare_grant_uri(
                endpoint,
                self.settings.client_id,
                "code",
                attempt.redirect_uri,
                "openid email",
                attempt.state,
                nonce=attempt.nonce,
                code_challenge=create_s256_code_challenge(attempt.verifier),
                code_challenge_method="S256",
            )
        )

    async def require_issuer(self, raw_issuer: str | None) -> None:
        """RFC 9207: the answer says whose it is. Raises `forbidden` for another's (a mix-up)."""
        document = await self._load_document()
        if raw_issuer is None and document.get("authorization_response_iss_parameter_supported") is not True:
            return
        if raw_issuer != self.settings.issuer:
            raise _refuse("it is of another provider")

    async def redeem(self, code: str, attempt: Attempt) -> Claims:
        """Code for claims. Raises `forbidden` for whatever does not hold, `unavailable` for a provider that fails."""
        document = await self._load_document()
        answer = await self._exchange_code(document, code, attempt)
        claims = await self._verify(document, answer, attempt)
        subject = parse_subject(claims.get("sub"))
        if "email" not in claims and "userinfo_endpoint" in document:
            claims = {**claims, **await self._load_userinfo(document, answer, subject)}
        return Claims(self.settings.issuer, subject, _find_verified_email(claims))

    async def close(self) -> None:
        await self._transport.aclose()

    # ---------------------------------------------------------------- the signed answer

    async def _verify(self, document: dict[str, Any], answer: dict[str, Any], attempt: Attempt) -> dict[str, Any]:
        raw_token = answer.get("id_token")
        if not isinstance(raw_token, str) or len(raw_token) > _TOKEN_MAX:
            raise _refuse("it names nobody")
        offered = document.get("id_token_signing_alg_values_supported")
        algorithms = [name for name in ALGORITHMS if isinstance(offered, list) and name in offered] or ["RS256"]
        try:
            token = jwt.decode(raw_token, await self._load_keys(document), algorithms=algorithms)
        except (JoseError, ValueError):
            # A key that is not known yet: the provider may have changed them since.
            try:
                token = jwt.decode(raw_token, await self._load_keys(document, again=True), algorithms=algorithms)
            except (JoseError, ValueError) as error:
                raise _refuse("its signature does not hold") from error
        settings = self.settings
        claims = CodeIDToken(
            token.claims,
            token.header,
            options={
                "iss": {"essential": True, "value": settings.issuer},
                "aud": {"essential": True, "value": settings.client_id},
            },
            params={
                "client_id": settings.client_id,
                "nonce": attempt.nonce,
                "access_token": answer.get("access_token"),
            },
        )
        try:
            claims.validate(now=int(self._clock.now().timestamp()), leeway=LEEWAY_S)
            audience = claims["aud"]
            if isinstance(audience, list) and len(audience) > 1 and claims.get("azp") != settings.client_id:
                raise ValueError("several audiences")
            # Authlib compares neither in constant time, nor when ours is empty.
            if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), attempt.nonce.encode()):
                raise ValueError("another nonce")
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise _refuse("it is not for this sign-in, or too old") from error
        return dict(claims)

    async def _load_userinfo(self, document: dict[str, Any], answer: dict[str, Any], subject: str) -> dict[str, Any]:
        endpoint = self._endpoint(document, "userinfo_endpoint")
        access_token = answer.get("access_token")
        if not isinstance(access_token, str) or not access_token.isascii() or not access_token.isprintable():
            return {}
        found = await self._get_json(endpoint, {"Authorization": f"Bearer {access_token}"})
        # OpenID Connect Core §5.3.2: else one person's answer counts for another.
        if found.get("sub") != subject:
            raise _refuse("it speaks of somebody else")
        return {name: found[name] for name in ("email", "email_verified") if name in found}

    # ---------------------------------------------------------------- its documents

    async def _load_document(self) -> dict[str, Any]:
        async with self._turn:
            now = self._monotonic()
            if self._document is None or now - self._document[0] > _DOCUMENT_KEPT_S:
                issuer = self.settings.issuer
                found = await self._get_json(f"{issuer.rstrip('/')}/.well-known/openid-configuration")
                if found.get("issuer") != issuer:
                    raise unusable("it is another issuer's document")
                self._document = (now, found)
            return self._document[1]

    async def _load_keys(self, document: dict[str, Any], *, again: bool = False) -> KeySet:
        async with self._turn:
            now = self._monotonic()
            kept = self._keys
            kept_s = _KEYS_AGAIN_S if again else _DOCUMENT_KEPT_S
            if kept is None or now - kept[0] > kept_s:
                found = await self._get_json(self._endpoint(document, "jwks_uri"))
                raw_keys = found.get("keys")
                if not isinstance(raw_keys, list) or not 0 < len(raw_keys) <= _KEYS_MAX:
                    raise unusable("it has no keys")
                # A shared secret among public keys would let everybody sign.
                public = [key for key in raw_keys if isinstance(key, dict) and key.get("kty") in ("RSA", "EC", "OKP")]
                try:
                    kept = self._keys = (now, KeySet.import_key_set({"keys": public}))
                except (JoseError, ValueError, TypeError, KeyError) as error:
                    raise unusable("its keys cannot be read") from error
            return kept[1]

    def _endpoint(self, document: dict[str, Any], name: str) -> str:
        return require_provider_url(document.get(name), issuer_host=self._issuer_host)

    async def _exchange_code(self, document: dict[str, Any], code: str, attempt: Attempt) -> dict[str, Any]:
        settings = self.settings
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": attempt.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        headers = {}
        offered = document.get("token_endpoint_auth_methods_supported")
        methods = offered if isinstance(offered, list) else ["client_secret_basic"]
        if "client_secret_basic" in methods or "client_secret_post" not in methods:
            # RFC 6749 §2.3.1: each half encoded like a form's field first, which Authlib leaves out.
            pair = f"{quote_plus(settings.client_id)}:{quote_plus(settings.client_secret)}"
            headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        else:
            fields |= {"client_id": settings.client_id, "client_secret": settings.client_secret}
        status, value = await self._ask("POST", self._endpoint(document, "token_endpoint"), headers, fields)
        if status in (400, 401, 403):
            raise _refuse("it takes this code back from nobody")
        if status != 200 or value is None:
            raise unusable("it is not what a provider says")
        return value

    async def _get_json(self, url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        status, value = await self._ask("GET", url, headers or {})
        if status != 200 or value is None:
            raise unusable("it is not a document of an OpenID provider")
        return value

    async def _ask(
        self, method: str, url: str, headers: dict[str, str], fields: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any] | None]:
        """(status, the JSON object that came). An exception's text may hold a code or a secret: none goes on."""
        try:
            async with asyncio.timeout(EXCHANGE_S), self._client() as client:
                answer = await client.request(method, url, headers=headers, data=fields)
        except (TimeoutError, httpx.HTTPError, OSError) as error:
            raise unreachable() from error
        try:
            value = json.loads(answer.content)
        except (ValueError, RecursionError):
            value = None
        return answer.status_code, value if isinstance(value, dict) else None

    def _client(self) -> httpx.AsyncClient:
        return make_client(_Kept(self._transport))


class _Kept(httpx.AsyncBaseTransport):
    """A client closes its transport; the provider's lives on for the next one."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await self._inner.handle_async_request(request)


def _find_verified_email(claims: dict[str, Any]) -> str | None:
    email = claims.get("email")
    if claims.get("email_verified") is not True or not isinstance(email, str):
        return None
    try:
        return inputs.parse_email(email)
    except RunCodeError:
        return None


def _refuse(why: str) -> RunCodeError:
    return RunCodeError(
        "forbidden",
        f"the sign-in provider's answer does not count: {why}",
        resolution="start again at the sign-in page",
    )
