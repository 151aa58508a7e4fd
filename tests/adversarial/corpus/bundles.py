"""Hostile bundles: name → what is changed in a good one. `DROP` takes a field out."""

from __future__ import annotations

from typing import Any

from adversarial.corpus import keys
from adversarial.corpus.payloads import CHARACTERS

DROP = "<drop>"
Changes = dict[str, Any]
DEFAULT_WORKDIR = "/home/ubuntu/workspace"
HOST, PORT, USER = "ssh.example.net", 2222, "royal-tree-08189931"
GOOD: Changes = {
    "host": HOST,
    "port": PORT,
    "user": USER,
    "known_hosts": f"[{HOST}]:{PORT} {keys.ED25519}\n",
    "ssh_config": f"Host {USER}\n    HostName {HOST}\n    Port {PORT}\n    User {USER}\n",
    "expires_at": "2099-11-23T22:15:00Z",
    "workdir": "/home/ubuntu/other",
    "web_url": f"https://{USER}.ws.example.net",
}


def _one(field: str, values: dict[str, Any]) -> dict[str, Changes]:
    return {f"{field}: {name}": {field: value} for name, value in values.items()}


_WRONG_TYPES: dict[str, Any] = {
    "missing": DROP,
    "null": None,
    "true": True,
    "number": 7,
    "list": ["x"],
    "object": {"x": "y"},
}
_HOSTS = {
    "empty": "",
    "option": "-oProxyCommand=id",
    "dash": "-",
    "unspecified": "0.0.0.0",
    "zero": "0",
    "hexadecimal": "0x7f000001",
    "decimal": "2130706433",
    "short-quad": "127.1",
    "octal": "0177.0.0.1",
    "too-large-quad": "1.2.3.256",
    "metadata": "169.254.169.254",
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
    "this-network": "0.1.2.3",
    "v6-unspecified": "::",
    "v6-link-local": "fe80::1",
    "v6-scope": "fe80::1%eth0",
    "v6-multicast": "ff02::1",
    "v6-mapped-metadata": "::ffff:169.254.169.254",
    "v6-6to4-metadata": "2002:a9fe:a9fe::1",
    "v6-in-brackets": "[::1]",
    "empty-label": "a..b",
    "leading-dot": ".a",
    "trailing-dot": "a.",
    "label-starts-with-dash": "a.-b",
    "label-ends-with-dash": "a-.b",
    "label-of-64": "a" * 64,
    "name-of-254": ".".join(["a" * 63] * 3 + ["a" * 62]),
    "64-kilobytes": "a" * 65536,
    "numeric-top": "a.0x1",
    "with-port": "host:22",
    "with-user": "root@host",
    "full-width": "\uff45xample.net",
    "ideographic-dot": "a\u3002b",
}
_USERS = {
    "empty": "",
    "option": "-l",
    "option-with-command": "-oProxyCommand=id",
    "dot": ".",
    "two-dots": "..",
    "65-letters": "a" * 65,
    "64-kilobytes": "a" * 65536,
    "two-words": "a b",
    "host-part": "root@host",
    "colon": "a:b",
}
_PORTS: dict[str, Any] = {
    "zero": 0,
    "negative": -22,
    "too-large": 65536,
    "very-large": 10**30,
    "text": "22",
    "float": 22.0,
    "option": "22 -oProxyCommand=id",
}
_TIMES: dict[str, Any] = {
    "without-zone": "2026-11-23T22:15:00",
    "word": "tomorrow",
    "month-13": "2026-13-01T00:00:00Z",
    "beyond-the-calendar": "9999-12-31T23:59:59-23:59",
    "year-0": "0000-01-01T00:00:00Z",
    "date-only": "2026-11-23",
    "epoch-number": 1795471200,
    "arabic-digits": "\u0662\u0660\u0662\u0666-11-23T22:15:00Z",
    "newline-at-its-end": "2026-11-23T22:15:00Z\n",
    "64-kilobytes": "2" * 65536,
}
_CERTIFICATES: dict[str, Any] = {
    "empty": "",
    "word": "x",
    "number": 5,
    "list": [],
    "a-plain-key": keys.ED25519,
    "second-line": "ssh-ed25519-cert-v01@openssh.com AAAA\nProxyCommand id",
    "option-in-front": "cert-authority ssh-ed25519-cert-v01@openssh.com AAAA",
    "comment": "ssh-ed25519-cert-v01@openssh.com AAAA comment",
    "dss": "ssh-dss-cert-v01@openssh.com AAAA",
    "escape": "ssh-ed25519-cert-v01@openssh.com AAAA\x1b]52;c;x\x07",
    "64-kilobytes": "ssh-ed25519-cert-v01@openssh.com " + "A" * 65536,
}
_PLAIN = f"[{HOST}]:{PORT}"
_NO_KEY: dict[str, Any] = {
    "empty": "",
    "comment-only": "# nothing\n",
    "authority": f"@cert-authority * {keys.ED25519}",
    "authority-after-blanks": f"  \t@cert-authority * {keys.ED25519}",
    "authority-in-capitals": f"@CERT-AUTHORITY * {keys.ED25519}",
    "authority-without-a-host": f"@cert-authority {keys.ED25519}",
    "revoked": f"@revoked * {keys.ED25519}",
    "unknown-marker": f"@x * {keys.ED25519}",
    "commented-out": f"#{_PLAIN} {keys.ED25519}",
    "dss": f"{_PLAIN} {keys.DSS}",
    "rsa-1024": f"{_PLAIN} {keys.RSA_1024}",
    "rsa-2047": f"{_PLAIN} {keys.RSA_2047}",
    "rsa-exponent-1": f"{_PLAIN} {keys.RSA_EXPONENT_1}",
    "rsa-negative": f"{_PLAIN} {keys.RSA_NEGATIVE}",
    "rsa-16392": f"{_PLAIN} {keys.RSA_HUGE}",
    "security-key": f"{_PLAIN} {keys.SK_ED25519}",
    "certificate": f"{_PLAIN} {keys.CERTIFICATE_AS_KEY}",
    "renamed": f"{_PLAIN} {keys.RENAMED}",
    "other-name-outside": f"{_PLAIN} ssh-rsa {keys.ED25519.split()[1]}",
    "short": f"{_PLAIN} {keys.SHORT_ED25519}",
    "a-second-string": f"{_PLAIN} {keys.ED25519_AND_MORE}",
    "a-byte-after-its-end": f"{_PLAIN} {keys.ED25519_TAIL}",
    "cut": f"{_PLAIN} {keys.CUT}",
    "lying-length": f"{_PLAIN} {keys.LYING_LENGTH}",
    "wrong-curve": f"{_PLAIN} {keys.WRONG_CURVE}",
    "compressed-point": f"{_PLAIN} {keys.COMPRESSED_POINT}",
    "odd-point": f"{_PLAIN} {keys.ODD_POINT}",
    "unknown-curve": f"{_PLAIN} {keys.UNKNOWN_CURVE}",
    "no-base64": f"{_PLAIN} ssh-ed25519",
    "not-base64": f"{_PLAIN} ssh-ed25519 ????",
    "blank-inside-base64": f"{_PLAIN} {keys.ED25519[:30]} {keys.ED25519[30:]}",
    "64-kilobytes-and-one": f"{_PLAIN} {keys.ED25519}\n" + "#" * 65536,
}

# Refused with `unsafe_bundle`: nothing of it is kept.
REFUSED: dict[str, Changes] = {
    **_one("host", {name: f"a{text}b" for name, text in CHARACTERS.items()}),
    **_one("user", {name: f"a{text}b" for name, text in CHARACTERS.items()}),
    **_one("host", _WRONG_TYPES | _HOSTS),
    **_one("user", _WRONG_TYPES | _USERS),
    **_one("port", {k: v for k, v in _WRONG_TYPES.items() if k != "number"} | _PORTS),
    **_one("expires_at", _WRONG_TYPES | _TIMES),
    **_one("known_hosts", _WRONG_TYPES | _NO_KEY),
    **_one("certificate", _CERTIFICATES),
    **_one("ssh_config", {name: value for name, value in _WRONG_TYPES.items() if name not in ("missing", "null")}),
}

# Neutralised: the session is made, without what was hostile. Name → (changes, what `connect --json` then says).
WORKDIRS = {
    "relative": "work",
    "blank": "/a b",
    "semicolon": "/a;id",
    "newline": "/a\nb",
    "variable": "/$HOME",
    "substitution": "/$(id)",
    "backtick": "/`id`",
    "quote": "/it's",
    "climbing": "/a/../../etc",
    "option": "/-rf",
    "inner-option": "/a/-b",
    "tilde": "~root",
    "empty": "",
    "accent": "/caf\u00e9",
    "rtl": "/a\u202eb",
    "escape": "/\x1b[2J",
    "nul": "/a\0b",
    "percent": "/%h",
    "64-kilobytes": "/" + "a" * 65536,
    "null": None,
    "number": 5,
    "list": ["/a"],
}
WEB_URLS = {
    "plain-http": "http://example.net",
    "credentials": "https://user:pw@example.net/",
    "script": "javascript:alert(1)",
    "file": "file:///etc/passwd",
    "blank-in-host": "https://a b/",
    "open-bracket": "https://[::1",
    "backslash": "https://good\\@evil.example",
    "port-99999": "https://example.net:99999/",
    "ftp": "ftp://example.net",
    "metadata": "https://169.254.169.254/",
    "percent-in-host": "https://a%00b/",
    "escape-in-host": "https://a\x1b]8;;x\x07b/",
    "rtl-in-host": "https://a\u202eb/",
    "homoglyph-host": "https://\u0430pple.example/",
    "newline": "https://example.net\n.evil/",
    "empty": "",
    "number": 5,
    "object": {},
    "64-kilobytes": "https://" + "a" * 65536,
}
REDUCED_WEB_URLS = {
    "token-in-query": ("https://example.net/?tkn=secret", "https://example.net"),
    "token-in-path": ("https://example.net/secret/x", "https://example.net"),
    "token-in-fragment": ("https://example.net#secret", "https://example.net"),
    "escape-in-path": ("https://example.net/\x1b]52;c;x\x07", "https://example.net"),
    "newline-in-path": ("https://example.net/a\nruncode: hello", "https://example.net"),
    "loopback-http": ("http://127.0.0.1:8000/x", "http://127.0.0.1:8000"),
}
NEUTRALISED: dict[str, tuple[Changes, Changes]] = {
    **{f"workdir: {n}": ({"workdir": value}, {"workdir": DEFAULT_WORKDIR}) for n, value in WORKDIRS.items()},
    **{f"web_url: {n}": ({"web_url": value}, {"web_url": None}) for n, value in WEB_URLS.items()},
    **{f"web_url: {n}": ({"web_url": given}, {"web_url": kept}) for n, (given, kept) in REDUCED_WEB_URLS.items()},
    "unknown fields": ({"identity_file": "/etc/passwd", "proxy_command": "id", "__proto__": {}, "": "\x1b"}, {}),
}

# Of these texts exactly these keys are taken, under the host that we write.
KNOWN_HOSTS: dict[str, tuple[str, list[str]]] = {
    "another host": (f"evil.example {keys.ED25519}\n", [keys.ED25519]),
    "wildcard": (f"* {keys.ED25519}\n", [keys.ED25519]),
    "negated": (f"*,!{HOST} {keys.ED25519}\n", [keys.ED25519]),
    "many hosts": (f"a,b,{HOST},github.com {keys.ED25519}\n", [keys.ED25519]),
    "hashed host": (f"|1|AAAA|BBBB {keys.ED25519}\n", [keys.ED25519]),
    "comment with an escape": (f"x {keys.ED25519} \x1b]52;c;x\x07\n", [keys.ED25519]),
    "comment that looks like a line": (f"x {keys.ED25519} * @cert-authority\n", [keys.ED25519]),
    "authority beside a key": (f"@cert-authority * {keys.OTHER_ED25519}\nx {keys.ED25519}\n", [keys.ED25519]),
    "revoked beside a key": (f"@revoked * {keys.OTHER_ED25519}\nx {keys.ED25519}\n", [keys.ED25519]),
    "weak beside strong": (f"x {keys.RSA_1024}\nx {keys.DSS}\nx {keys.RSA_2048}\n", [keys.RSA_2048]),
    "the same twice": (f"x {keys.ED25519}\ny {keys.ED25519}\n", [keys.ED25519]),
    "several kinds": (f"x {keys.ED25519}\nx {keys.ECDSA}\n", [keys.ED25519, keys.ECDSA]),
    "windows line ends": (f"x {keys.ED25519}\r\nx {keys.ECDSA}\r\n", [keys.ED25519, keys.ECDSA]),
    "odd line ends": (f"x {keys.ED25519}\x0bx {keys.ECDSA}\u2028", [keys.ED25519, keys.ECDSA]),
    "directive between": (f"ProxyCommand id\nx {keys.ED25519}\nMatch exec id\n", [keys.ED25519]),
}
