"""HTTP to an OpenID provider: where it may go, how much it may say, how long it may take.

Owns: the client that `oidc_provider` speaks through.

Threat: a provider's discovery document, or whoever answers in its place, names an
address inside our network (a cloud's metadata service, a database's port), redirects
there, answers without end, or not at all.
Guarantee: https, or http on loopback for a provider that is there itself. A host other
than the issuer's own must resolve to public addresses only, and the connection goes
to an address that was looked at, not to one that is resolved again. No redirect is
followed, no proxy or `.netrc` of the environment counts, an answer is at most 256 KiB
and an exchange ten seconds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

import httpx

from runcode.core import names
from runcode.core.errors import RunCodeError

ANSWER_MAX: Final = 256 * 1024
EXCHANGE_S: Final = 10.0
_TIMEOUT = httpx.Timeout(5.0)
# RFC 6052: a network that translates hands it on to the IPv4 address within.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(host: str, port: int) -> list[str]:
    """Every address of a name, as the system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class GuardedTransport(httpx.AsyncBaseTransport):
    """Used by one provider. `issuer` is the operator's word: its own host may stand anywhere."""

    def __init__(
        self, issuer: str, *, resolver: Resolve = resolve, inner: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._issuer_host = urlsplit(issuer).hostname or ""
        self._resolve = resolver
        self._inner = inner or httpx.AsyncHTTPTransport(verify=ssl.create_default_context())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, host = request.url, request.url.host
        require_provider_url(str(url), issuer_host=self._issuer_host)
        address = await self._find_address(host, url.port or (443 if url.scheme == "https" else 80))
        pinned = httpx.Request(
            request.method,
            url.copy_with(host=address),
            # Host names the provider still, and the certificate is held against that name.
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": host},
        )
        answer = await self._inner.handle_async_request(pinned)
        if answer.headers.get("content-encoding", "identity") != "identity":
            await answer.aclose()
            raise unusable("it is compressed, and nobody asked for that")
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=_Bounded(answer.stream))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _find_address(self, host: str, port: int) -> str:
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise unreachable() from error
        if not addresses or (host != self._issuer_host and not all(_is_public(address) for address in addresses)):
            raise unusable("it leads into a private network")
        return addresses[0]


def make_client(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=transport,
        timeout=_TIMEOUT,
        follow_redirects=False,
        trust_env=False,
        headers={"Accept-Encoding": "identity", "Accept": "application/json"},
    )


def require_provider_url(raw_url: object, *, issuer_host: str) -> str:
    """An address that a provider's document names. Raises `unavailable`."""
    try:
        parts = urlsplit(raw_url) if isinstance(raw_url, str) and raw_url.isascii() and raw_url.isprintable() else None
        host = (parts.hostname or "") if parts is not None else ""
        if parts is None or not host or parts.username is not None or parts.fragment or parts.port == 0:
            raise ValueError
        local = parts.scheme == "http" and names.is_loopback_host(host) and names.is_loopback_host(issuer_host)
        if parts.scheme != "https" and not local:
            raise ValueError
    except ValueError as error:
        raise unusable("an address in it is not one that may be called") from error
    assert isinstance(raw_url, str)
    return raw_url


class _Bounded(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._inner:
            size += len(chunk)
            if size > ANSWER_MAX:
                raise unusable("it is too large")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


def _is_public(raw_address: str) -> bool:
    address = ipaddress.ip_address(raw_address.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[-4:])
        if inner is not None and not _is_public(str(inner)):
            return False
    return address.is_global and not address.is_multicast


def unusable(why: str) -> RunCodeError:
    return RunCodeError(
        "unavailable",
        f"the sign-in provider's answer cannot be used: {why}",
        resolution="sign in another way, or tell your operator",
    )


def unreachable() -> RunCodeError:
    return RunCodeError(
        "unavailable",
        "the sign-in provider does not answer",
        resolution="try again in a moment, or sign in another way",
    )
