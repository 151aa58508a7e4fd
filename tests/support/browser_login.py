"""A browser as the login page sees one, over plain HTTP: cookies, forms as they stand there, redirects not followed."""

from __future__ import annotations

import base64
import hashlib
import http.client
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import parse_qs, urlencode, urlsplit

LOGIN = "/auth/cli-login/"


@dataclass(frozen=True)
class Page:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def location(self) -> str:
        return self.headers.get("location", "")

    @property
    def answer(self) -> dict[str, str]:
        """The fields that a redirect hands to the client's listener."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.location).query).items()}

    @property
    def form(self) -> Form:
        parser = _FormParser()
        parser.feed(self.text)
        assert parser.form is not None, self.text
        return parser.form

    @property
    def has_password_field(self) -> bool:
        return 'type="password"' in self.text


@dataclass
class Form:
    """`fields` are the hidden ones; `ticked` the boxes that stand ticked, by name."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)
    ticked: dict[str, list[str]] = field(default_factory=dict)


class _FormParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.form: Form | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.form = Form(given["action"])
        elif tag == "input" and self.form is not None and given.get("type") == "hidden":
            self.form.fields[given["name"]] = given["value"]
        elif tag == "input" and self.form is not None and "checked" in given and "disabled" not in given:
            self.form.ticked.setdefault(given["name"], []).append(given["value"])


class Browser:
    """Sends `Origin` and `Sec-Fetch-Site` with forms as browsers do; `host` is what stands in its address bar."""

    def __init__(self, port: int, *, host: str | None = None, source: str = "127.0.0.1") -> None:
        self.port = port
        self.host = host or f"127.0.0.1:{port}"
        self.source = source
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []

    def get(self, path: str, **headers: str) -> Page:
        return self.send("GET", path, headers=headers)

    def post(
        self, path: str, fields: Mapping[str, str | list[str]] | bytes, headers: dict[str, str] | None = None
    ) -> Page:
        body = fields if isinstance(fields, bytes) else urlencode(fields, doseq=True).encode()
        usual = {
            "Origin": f"http://{self.host}",
            "Sec-Fetch-Site": "same-origin",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        return self.send("POST", path, body, {**usual, **(headers or {})})

    def submit(self, page: Page, **fields: str | list[str]) -> Page:
        """The form as it stands, boxes ticked as shown, but for `fields`."""
        return self.post(page.form.action, {**page.form.fields, **page.form.ticked, **fields})

    def open_login(self, **query: str) -> Page:
        return self.get(f"{LOGIN}?{urlencode(query)}")

    def sign_in(self, email: str, password: str, **query: str) -> Page:
        """Up to the consent page, which a browser that is signed in sees at once."""
        asked = self.open_login(**query)
        if asked.status == 200 and not asked.has_password_field:
            return asked
        done = self.submit(asked, email=email, password=password)
        return self.get(done.location) if done.status == 303 else done

    def send(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Page:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30, source_address=(self.source, 0))
        sent = {"Host": self.host, **(headers or {})}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        try:
            connection.request(method, path, body, {name: value for name, value in sent.items() if value})
            response = connection.getresponse()
            for name, value in response.getheaders():
                if name.lower() == "set-cookie":
                    self.set_cookies.append(value)
                    pair = value.partition(";")[0]
                    key, _, text = pair.partition("=")
                    self.cookies[key] = text.strip('"')
                    if not self.cookies[key]:
                        del self.cookies[key]
            found = {name.lower(): value for name, value in response.getheaders()}
            return Page(response.status, found, response.read().decode())
        finally:
            connection.close()


def make_challenge() -> tuple[str, dict[str, str]]:
    """A verifier, and the query that carries its challenge."""
    verifier = secrets.token_urlsafe(32)
    digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    return verifier, {"code_challenge": digest, "code_challenge_method": "S256"}
