"""The address that people sign in at: an origin that a browser sends as its Host, or refused."""

from __future__ import annotations

import pytest

from runcode.core.errors import RunCodeError
from runcode.server.listeners import parse_public_url


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://runcode.example", "https://runcode.example"),
        ("https://runcode.example/", "https://runcode.example"),
        ("HTTPS://RunCode.Example:443", "https://runcode.example"),
        ("https://runcode.example:8443", "https://runcode.example:8443"),
        ("https://[2001:db8::1]:8443", "https://[2001:db8::1]:8443"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://localhost:80", "http://localhost"),
    ],
)
def test_an_origin_is_taken_as_browsers_write_it(given: str, origin: str) -> None:
    assert parse_public_url(given) == origin


@pytest.mark.parametrize(
    "given",
    [
        "",
        "runcode.example",
        "http://runcode.example",
        "ftp://runcode.example",
        "https://",
        "https://a b",
        "https://x:0x50",
    ]
    + ["https://u@runcode.example", "https://u:p@runcode.example", "https://runcode.example/app", "https://x/?a=b"]
    + ["https://x/#f", "https://x:99999", "https://0x7f000001", "https://-x.example", "javascript:alert(1)"],
)
def test_anything_else_is_refused_with_the_form_to_write(given: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        parse_public_url(given)
    assert caught.value.code == "usage"
    assert "--public-url https://HOST" in caught.value.resolution
