"""A real OpenID provider (npm's oidc-provider) as a process of its own, and a browser's way through it.

`make oidc-provider` fetches it into `.cache`; a machine without npm lists these tests as NOT RUN.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from joserfc.jwk import ECKey, RSAKey

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / ".cache" / "oidc-provider" / "node_modules"
CLIENT_ID, CLIENT_SECRET = "runcode-of-the-tests", "a secret of the tests / with + signs"
# What the browser's address bar shows; tests connect to whichever port the server really has.
HOST = "127.0.0.1:18080"
CALLBACK = f"http://{HOST}/sign-in/oidc/callback"


@dataclass
class RunningProvider:
    port: int
    process: subprocess.Popen[bytes]

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def set_person(self, subject: str, email: str, *, verified: object = True) -> None:
        """Who signs in next."""
        body = json.dumps({"sub": subject, "email": email, "email_verified": verified})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("PUT", "/control", body)
            assert connection.getresponse().status == 200
        finally:
            connection.close()

    def walk(self, url: str) -> str:
        """A browser's way from the authorization request to the address that it is sent back to."""
        cookies: dict[str, str] = {}
        for _ in range(10):
            parts = urlsplit(url)
            if parts.port != self.port:
                return url
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())} if cookies else {}
                connection.request("GET", f"{parts.path}?{parts.query}", headers=sent)
                answer = connection.getresponse()
                text = answer.read().decode()
                assert answer.status in (302, 303), text[:2000]
                for line in answer.headers.get_all("Set-Cookie") or ():
                    name, _, value = line.partition(";")[0].partition("=")
                    cookies[name] = value
                location = answer.headers["Location"]
                url = location if "://" in location else f"{self.issuer}{location}"
            finally:
                connection.close()
        raise AssertionError("the provider leads in circles")


def make_key(kid: str, algorithm: str = "RS256") -> dict[str, Any]:
    key = ECKey.generate_key("P-256") if algorithm == "ES256" else RSAKey.generate_key(2048)
    return {**key.as_dict(private=True), "kid": kid, "alg": algorithm, "use": "sig"}


@contextlib.contextmanager
def running_provider(**settings: Any) -> Iterator[RunningProvider]:
    """`keys`, `port`, `alg`, `auth_method`, `conform`, `refuse`: see oidc_provider.mjs."""
    if not (MODULES / "oidc-provider").is_dir():
        pytest.skip("the provider is not installed: make oidc-provider")
    given = {
        "modules": str(MODULES),
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "redirect_uris": [CALLBACK],
        "keys": [make_key("first")],
        **settings,
    }
    process = subprocess.Popen(
        ["node", str(Path(__file__).with_name("oidc_provider.mjs")), json.dumps(given)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the provider did not start: run the same command by hand to see why"
        yield RunningProvider(json.loads(line)["port"], process)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
