"""Hostile replies, as they come over the wire: whole HTTP answers, odd bodies, error texts, redirects."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from adversarial.corpus.bundles import GOOD
from adversarial.corpus.payloads import TERMINAL

# Larger than any reply that the client reads.
_MUCH = 5 * 1024 * 1024
_GOOD_TEXT = json.dumps({"error": False, "bundle": GOOD})
_BOMB = b'{"bundle": "' + b"A" * (16 * 1024 * 1024) + b'"}'


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """A whole HTTP answer with a true length."""
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"))
    return head.encode("latin-1") + b"\r\n" + body


def _twice(first: str, second: str) -> bytes:
    """The good reply with one field of the bundle given twice."""
    return answer(_GOOD_TEXT.replace('"host": "ssh.example.net"', f"{first}, {second}").encode())


# What the mint is answered with → the code. `network`: no answer that could be read at all.
MINT: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "network"),
    "empty body": (answer(b""), "http_error"),
    "text": (answer(b"hello"), "http_error"),
    "html": (answer(b"<html><script>alert(1)</script>"), "http_error"),
    "null": (answer(b"null"), "http_error"),
    "number": (answer(b"5"), "http_error"),
    "string": (answer(b'"bundle"'), "http_error"),
    "list": (answer(b"[]"), "http_error"),
    "no bundle": (answer(b'{"error": false}'), "unsafe_bundle"),
    "bundle is a text": (answer(b'{"error": false, "bundle": "x"}'), "unsafe_bundle"),
    "bundle is a list": (answer(b'{"error": false, "bundle": []}'), "unsafe_bundle"),
    "refused with 200": (answer(b'{"error": true, "message": "no"}'), "http_error"),
    "refused without words": (answer(b'{"error": 1, "message": {"a": 1}}'), "http_error"),
    "cut in the middle": (answer(_GOOD_TEXT.encode()[:100]), "http_error"),
    "two documents": (answer(b"{}{}"), "http_error"),
    "trailing comma": (answer(b'{"bundle": {},}'), "http_error"),
    "single quotes": (answer(b"{'bundle': {}}"), "http_error"),
    "latin-1": (answer(b'{"bundle": "\xe9"}'), "http_error"),
    "nul bytes": (answer(b"\0" * 1000), "http_error"),
    "100,000 deep": (answer(b"[" * 100_000), "http_error"),
    "deep objects": (answer(b'{"a":' * 50_000), "http_error"),
    "a number of 100,000 digits": (answer(b'{"bundle": ' + b"9" * 100_000 + b"}"), "http_error"),
    "port is infinite": (answer(_GOOD_TEXT.replace("2222,", "1e999,", 1).encode()), "unsafe_bundle"),
    "port is not a number": (answer(_GOOD_TEXT.replace("2222,", "NaN,", 1).encode()), "unsafe_bundle"),
    "host twice, the hostile one last": (
        _twice('"host": "ssh.example.net"', '"host": "-oProxyCommand=id"'),
        "http_error",
    ),
    "host twice, the hostile one first": (_twice('"host": "evil.example"', '"host": "ssh.example.net"'), "http_error"),
    "bundle twice": (
        answer(_GOOD_TEXT.replace('"bundle"', '"bundle": {"ssh_config": "ProxyCommand id"}, "bundle"').encode()),
        "http_error",
    ),
    "a field twice in capitals of one escape": (
        _twice('"\\u0068ost": "evil"', '"host": "ssh.example.net"'),
        "http_error",
    ),
    "5 MiB": (answer(_GOOD_TEXT.encode() + b" " * _MUCH), "http_error"),
    "gzip that nobody asked for": (
        answer(gzip.compress(_GOOD_TEXT.encode()), "Content-Encoding: gzip"),
        "http_error",
    ),
    "gzip bomb": (answer(gzip.compress(_BOMB), "Content-Encoding: gzip"), "http_error"),
    "gzip bomb twice": (answer(gzip.compress(gzip.compress(_BOMB)), "Content-Encoding: gzip, gzip"), "http_error"),
    "deflate bomb": (answer(zlib.compress(_BOMB), "Content-Encoding: deflate"), "http_error"),
    "gzip without a word of it": (answer(gzip.compress(_GOOD_TEXT.encode())), "http_error"),
    "encoding in capitals, twice": (
        answer(gzip.compress(b"{}"), "Content-Encoding: identity", "CONTENT-ENCODING: GZIP"),
        "http_error",
    ),
    "no such protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", "network"),
    "http/0.9": (_GOOD_TEXT.encode(), "network"),
    "status is a word": (b"HTTP/1.1 yes OK\r\n\r\n", "network"),
    "status 999999": (b"HTTP/1.1 999999 OK\r\n\r\n", "network"),
    "escape in the reason": (answer(b"{}", status="404 \x1b]52;c;x\x07"), "not_found"),
    "a header of 100 KiB": (answer(b"{}", f"X: {'a' * 102400}"), "network"),
    "1,000 headers": (answer(b"{}", *[f"X-{n}: a" for n in range(1000)]), "network"),
    "header without end": (b"HTTP/1.1 200 OK\r\nX: " + b"a" * _MUCH, "network"),
    "100 continue without end": (b"HTTP/1.1 100 Continue\r\n\r\n" * 20000, "network"),
    "longer than it is": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "network"),
    "negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{", "http_error"),
    "cut whole document": (b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + _GOOD_TEXT.encode(), "network"),
    "length is a word": (b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{", "http_error"),
    "length of 2**70": (b"HTTP/1.1 200 OK\r\nContent-Length: 1180591620717411303424\r\n\r\n{", "network"),
    "chunks of nonsense": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}", "network"),
    "negative chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}", "network"),
    "a chunk of 2**62": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4000000000000000\r\n{}", "network"),
    "chunks that add up": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 6,
        "http_error",
    ),
    "cut chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n{}", "network"),
    "partial content": (answer(b'{"bundle', status="206 Partial Content"), "http_error"),
    "created, without a body": (answer(b"", status="204 No Content"), "http_error"),
}

# What a server sends again and again, a piece at a time, after a first piece: the call ends in `network` all the same.
DRIPS: dict[str, tuple[bytes, bytes]] = {
    "100 continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status line": (b"", b"H"),
    "one header line": (b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "header lines": (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
    "body of a known length": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "body without a length": (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk's extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n"),
    "silence": (b"", b""),
}

# Every status that has a code, each with a text that a terminal would act on.
STATUSES = {400: "bad_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 429: "rate_limited"}
STATUSES |= {409: "conflict", 503: "unavailable", 500: "http_error", 418: "http_error"}


def _messages() -> dict[str, tuple[bytes, str]]:
    found = {}
    for number, (name, text) in enumerate(TERMINAL.items()):
        status, code = list(STATUSES.items())[number % len(STATUSES)]
        field = ("message", "detail", "error")[number % 3]
        found[f"{field}: {name}"] = (answer(json.dumps({field: text}).encode(), status=f"{status} X"), code)
    return found


_ODD_MESSAGES: dict[str, Any] = {
    "message is a list": {"message": ["\x1b[2J"]},
    "message is an object": {"message": {"\x1b": 1}},
    "message is a number": {"error": True, "message": 5},
    "message is blank": {"message": "   "},
    "body is a list": ["\x1b[2J"],
    "body is a text": "\x1b[2J",
}
MESSAGES: dict[str, tuple[bytes, str]] = {
    **_messages(),
    **{name: (answer(json.dumps(body).encode(), status="404 X"), "not_found") for name, body in _ODD_MESSAGES.items()},
    "body is raw escapes": (answer(b"\x1b]52;c;x\x07\x9b2J", status="500 X"), "http_error"),
}

# Where a list is asked for. `{decoy}` is another server's port on this machine, `{own}` the asked one's.
REDIRECTS: dict[str, tuple[str | None, str]] = {
    "another port": ("http://127.0.0.1:{decoy}/api/rc/workspaces", "insecure_base"),
    "another name of this machine": ("http://localhost:{own}/api/rc/workspaces", "insecure_base"),
    "without a scheme": ("//127.0.0.1:{decoy}/x", "insecure_base"),
    "without a scheme, three": ("///127.0.0.1:{decoy}/x", "insecure_base"),
    "backslashes": ("/\\127.0.0.1:{decoy}/x", "insecure_base"),
    "backslashes only": ("\\\\127.0.0.1:{decoy}\\x", "insecure_base"),
    "own address as user": ("http://127.0.0.1:{own}@127.0.0.1:{decoy}/", "insecure_base"),
    "own address as password": ("http://x:127.0.0.1:{own}@127.0.0.1:{decoy}/", "insecure_base"),
    "own address as prefix of a port": ("http://127.0.0.1:{own}0/x", "insecure_base"),
    "own address as prefix of a name": ("http://127.0.0.1:{own}.evil.example/", "insecure_base"),
    "https on the same port": ("https://127.0.0.1:{own}/x", "insecure_base"),
    "capital scheme": ("HTTP://127.0.0.1:{decoy}/x", "insecure_base"),
    "script": ("javascript:alert(1)", "insecure_base"),
    "file": ("file:///etc/passwd", "insecure_base"),
    "relative": ("workspaces", "insecure_base"),
    "climbing": ("../../x", "insecure_base"),
    "query only": ("?x=1", "insecure_base"),
    "empty": ("", "insecure_base"),
    "none": (None, "insecure_base"),
    "blank": ("/a b", "insecure_base"),
    "tab": ("/a\tb", "insecure_base"),
    "escape": ("/\x1b]52;c;x\x07", "insecure_base"),
    "beyond ascii": ("/\xe9", "insecure_base"),
    "tab before the slashes": ("/\t/127.0.0.1:{decoy}/", "insecure_base"),
    "circle": ("/api/rc/circle", "http_error"),
    "64 kilobytes": ("/" + "a" * 60000, "http_error"),
}

# Bases that a repository's environment or an argument names; the saved token never goes there.
BASES: dict[str, str] = {
    "http://evil.example": "insecure_base",
    "http://10.0.0.1": "insecure_base",
    "http://169.254.169.254": "usage",
    "http://0.0.0.0": "usage",
    "http://0x7f000001": "usage",
    "http://2130706433": "usage",
    "http://127.1": "usage",
    "http://localhost.evil.example": "insecure_base",
    "http://127.0.0.1.evil.example": "insecure_base",
    "https://user:pw@evil.example": "usage",
    "https://evil.example/path": "usage",
    "https://evil.example?x": "usage",
    "https://evil.example#x": "usage",
    "https://a b": "usage",
    "https://a\nHost: b": "usage",
    "https://a\x1b]52;c;x\x07": "usage",
    "https://\u202eevil": "usage",
    "https://\u0430pple.example": "usage",
    "https://": "usage",
    "https://:443": "usage",
    "https://x:0": "usage",
    "https://x:99999": "usage",
    "https://x:-1": "usage",
    "https://[::1": "usage",
    "https://[fe80::1%25eth0]": "usage",
    "https://-x": "usage",
    "ftp://x": "usage",
    "javascript:alert(1)": "usage",
    "file:///etc/passwd": "usage",
    "evil.example": "usage",
    "//evil.example": "usage",
    "https:\\\\evil.example": "usage",
    "https://" + "a" * 65536: "usage",
}
