"""Core's parsers against what a hostile server sends: each guard has a case that fails without it."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runcode.core import bundle, hostkeys, names, shellwords, sshconfig, terminal, wire
from runcode.core.errors import ERRORS, RunCodeError, UnsafeInput
from runcode.core.values import Value


def _string(part: bytes) -> bytes:
    return len(part).to_bytes(4, "big") + part


def _line(algorithm: str, *parts: bytes) -> str:
    blob = _string(algorithm.encode()) + b"".join(map(_string, parts))
    return f"{algorithm} {base64.b64encode(blob).decode()}"


ED25519 = _line("ssh-ed25519", bytes(range(32)))
RSA_1024 = _line("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 128)
RSA_2048 = _line("ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 256)
DSS = _line("ssh-dss", b"\x01", b"\x02", b"\x03", b"\x04")

GOOD: dict[str, Any] = {
    "host": "ssh.example.net",
    "port": 2222,
    "user": "royal-tree-08189931",
    "known_hosts": f"[ssh.example.net]:2222 {ED25519}\n",
    "ssh_config": "Host x\n  User y\n",
    "expires_at": "2026-11-23T22:15:00Z",
    "workdir": "/home/ubuntu/workspace",
    "web_url": "https://royal-tree.ws.example.net/?tkn=secret",
}


def test_a_good_bundle_becomes_types() -> None:
    parsed = bundle.parse_bundle({**GOOD, "unknown": "field"})
    assert (parsed.host, parsed.port, parsed.user) == ("ssh.example.net", 2222, "royal-tree-08189931")
    assert [key.line for key in parsed.host_keys] == [ED25519]
    assert parsed.web_url == "https://royal-tree.ws.example.net"
    assert bundle.render_timestamp(parsed.expires_at) == "2026-11-23T22:15:00Z"


METACHARACTERS = [
    "\n",
    "\r",
    "\0",
    "\x1b",
    "\x85",
    " ",
    "\t",
    "$(id)",
    "`id`",
    ";",
    "|",
    "&",
    "\\",
    "%h",
    "'",
    '"',
    ",",
]


@pytest.mark.parametrize("bad", METACHARACTERS + ["*", "?", "!", "@", "\u202e", "é", "\uff0d", "{", "<", "#", "=", "/"])
@pytest.mark.parametrize("field", ["host", "user"])
def test_no_metacharacter_stands_in_a_host_or_user(field: str, bad: str) -> None:
    for text in (f"a{bad}b", f"{bad}ab", f"ab{bad}"):
        with pytest.raises(UnsafeInput):
            bundle.parse_bundle({**GOOD, field: text})


@pytest.mark.parametrize(
    "host",
    [
        "",
        "-oProxyCommand=id",
        "0.0.0.0",
        "0",
        "0x7f000001",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "1.2.3.256",
        "01.2.3.4",
    ]
    + ["169.254.169.254", "224.0.0.1", "255.255.255.255", "0.1.2.3", "::", "fe80::1", "fe80::1%eth0", "ff02::1"]
    + ["2606:4700::1111%eth0", "2606:4700::1111%h"]
    + ["::ffff:169.254.169.254", "::ffff:0.0.0.0", "2002:a9fe:a9fe::1", "a..b", ".a", "a.", "-a.b", "a-.b", "a" * 64]
    + [".".join(["a" * 60] * 5), None, 1, True, ["a"], {"a": 1}, b"a", "a.0x1", "host:22", "[::1]"],
)
def test_hosts_that_no_gateway_can_have(host: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "host": host})


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "::1", "10.1.2.3", "2001:db8:1::5", "a", "a-b.example", "xn--bcher-kva.de"]
)
def test_hosts_that_a_gateway_can_have(host: str) -> None:
    if host == "2001:db8:1::5":
        host = "2606:4700::1111"
    assert bundle.parse_bundle({**GOOD, "host": host}).host == host


@pytest.mark.parametrize("port", [0, -1, 65536, "22", 22.0, True, None, [22], 10**30])
def test_ports(port: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "port": port})


@pytest.mark.parametrize("user", ["-l", ".x", "", "a" * 65, None, 5, "a b", "root@host", "a:b"])
def test_users(user: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "user": user})


@pytest.mark.parametrize(
    "workdir",
    [
        "relative",
        "/a b",
        "/a;id",
        "/a\nb",
        "/$HOME",
        "/a/../b",
        "/-rf",
        "/a/-b",
        "~",
        "",
        None,
        5,
        "/" + "a" * 600,
        "/é",
    ],
)
def test_a_bad_workdir_falls_back(workdir: object) -> None:
    assert bundle.parse_bundle({**GOOD, "workdir": workdir}).workdir == names.DEFAULT_WORKDIR


@pytest.mark.parametrize(
    "directive",
    ["ProxyCommand id", "proxycommand=id", "PROXYCOMMAND\tid", '  "ProxyCommand" id', "\ufeffProxyCommand id"]
    + ["LocalCommand x", "PermitLocalCommand yes", "KnownHostsCommand x", "Include /etc/x", "Match exec x"]
    + ["match all", "\x00ProxyCommand x", "\x0bProxyCommand x", "\u2028ProxyCommand x", "= ProxyCommand x"],
)
def test_the_tripwire(directive: str) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "ssh_config": f"Host x\n{directive}\n"})
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "ssh_config": f"Host x\r{directive}"})


def test_a_comment_is_no_directive() -> None:
    assert sshconfig.find_tripwire("# ProxyCommand is not used\nHost x\n") is None
    assert sshconfig.find_tripwire(["ProxyCommand"]) is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing\n",
        f"@cert-authority * {ED25519}",
        f"@revoked * {ED25519}",
        f"x {DSS}",
        f"x {RSA_1024}",
        "x ssh-ed25519",
    ]
    # Without a host the marker stands where we look for none.
    + [f"@cert-authority {ED25519}", f"@revoked {ED25519}", f"#x {ED25519}"]
    + [f"x ssh-ed25519 {base64.b64encode(_string(b'ssh-other00') + _string(bytes(32))).decode()}"]
    + ["x ssh-ed25519 AAAA", f"x ssh-rsa {ED25519.split()[1]}", f"x {ED25519[:-4]}", None, 5, "x" * 70_000]
    + [f"x {_line('ssh-ed25519', bytes(31))}", f"x {_line('ssh-ed25519', bytes(32), b'more')}"]
    + [
        f"x {_line('ecdsa-sha2-nistp256', b'nistp384', b'x' * 65)}",
        f"x {_line('ssh-ed25519-cert-v01@openssh.com', b'x')}",
    ],
)
def test_known_hosts_without_an_acceptable_key(text: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "known_hosts": text})


def test_known_hosts_are_written_by_us() -> None:
    text = f"@cert-authority * {ED25519}\n*,!x {RSA_2048} evil comment\n# c\nother {DSS}\n"
    keys = bundle.parse_bundle({**GOOD, "known_hosts": text}).host_keys
    assert hostkeys.render_known_hosts("h", 2222, keys) == f"[h]:2222 {RSA_2048}\n"


@pytest.mark.parametrize(
    "line", [f"command=x {ED25519}", f"{ED25519}\nmore", f"\t{ED25519}", "", None, "x", f" {ED25519}"]
)
def test_public_keys_come_without_options(line: object) -> None:
    with pytest.raises(UnsafeInput):
        hostkeys.parse_public_key(line)


@pytest.mark.parametrize(
    "moment",
    ["2026-11-23T22:15:00", "tomorrow", "2026-13-01T00:00:00Z", None, 5, "9999-12-31T23:59:59-23:59", "2026-11-23"],
)
def test_times_need_a_zone(moment: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "expires_at": moment})


@pytest.mark.parametrize(
    "url",
    [
        "http://example.net",
        "https://u:p@example.net/",
        "javascript:x",
        "https://a b/",
        "https://[::1",
        None,
        5,
        "https://",
    ]
    + ["https://x\\@evil", "https://example.net:99999/", "ftp://x", "https://169.254.169.254/", "https://a%00b/"],
)
def test_a_bad_web_url_is_dropped(url: object) -> None:
    assert bundle.parse_bundle({**GOOD, "web_url": url}).web_url is None


@pytest.mark.parametrize(
    "certificate", ["", "x", 5, ED25519, "ssh-ed25519-cert-v01@openssh.com AAAA\nProxyCommand x", "a" * 20000]
)
def test_certificates(certificate: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle({**GOOD, "certificate": certificate})


@pytest.mark.parametrize("raw", [None, [], "x", 5])
def test_a_bundle_is_an_object(raw: object) -> None:
    with pytest.raises(UnsafeInput):
        bundle.parse_bundle(raw)


@given(st.text(max_size=400))
def test_whatever_is_printed_is_printable(text: str) -> None:
    shown = terminal.printable(text)
    assert shown.isprintable()
    assert len(shown) <= 300
    assert all(line.isprintable() for line in terminal.printable_lines(text).split("\n"))


@pytest.mark.parametrize(
    "text", ["\x1b]52;c;aGk=\x07", "\x1bP1$r\x1b\\", "\u202egnp", "\x9b31m", "a\rb", "\x1b]8;;http://x\x07"]
)
def test_no_escape_reaches_a_terminal(text: str) -> None:
    assert not set(terminal.printable(text)) & set("\x1b\x07\r\x9b\u202e")


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=5))
def test_words_survive_a_real_shell(words: list[str]) -> None:
    script = "for w; do printf '%s\\0' \"$w\"; done"
    line = shellwords.join(["sh", "-c", script, "x", *words])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    assert done.stdout == b"".join(word.encode() + b"\0" for word in words)


@pytest.mark.parametrize("path", ["/a%h/b", "/a b/c", "/a\\b", "/a'b", "/~x", "/#x"])
def test_a_path_survives_ssh_config(path: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    target = sshconfig.SshTarget(
        alias="runcode-x", host="127.0.0.1", port=22, user="x", identity_file=path, known_hosts_file=path
    )
    config.write_text(sshconfig.render_ssh_config(target))
    shown = subprocess.run(
        ["ssh", "-G", "-F", str(config), "runcode-x"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(line.split(" ", 1) for line in shown.splitlines() if " " in line)
    # ssh -G prints it as written, and ssh expands it afterwards: %% is what becomes one %.
    assert "%" not in settings["identityfile"].replace("%%", "")
    assert settings["identityfile"].replace("%%", "%") == path


@pytest.mark.parametrize("path", ["/a\nProxyCommand x", '/a"b', "/a${HOME}b", "/a\0b", "/a\rb"])
def test_a_path_that_ssh_config_cannot_hold_is_refused(path: str) -> None:
    with pytest.raises(RunCodeError) as caught:
        sshconfig.quote_path(path)
    assert caught.value.code == "unsafe_path"


@pytest.mark.parametrize("body", [None, [], {}, {"data": []}, {"data": {"workspaces": {}}}, {"data": None}])
def test_a_list_of_unknown_shape_is_an_error(body: object) -> None:
    with pytest.raises(RunCodeError):
        wire.parse_workspaces(body, shared=False)


def test_records_that_are_no_workspace_are_left_out() -> None:
    good = {"id": 1, "title": "ok", "provider": "aws", "current_state": "running", "interim_state": None}
    odd = [None, {}, {**good, "id": True}, {**good, "id": "1"}, {**good, "title": "-x"}, {**good, "id": -1}, [good]]
    (only,) = wire.parse_workspaces({"data": {"workspaces": [*odd, good]}}, shared=False)
    assert only.connectable
    mine = wire.merge_workspaces([only], wire.parse_workspaces({"data": {"workspaces": [good]}}, shared=True))
    assert [w.shared for w in mine] == [False]


def test_every_code_of_the_contract_exists_and_has_a_next_step() -> None:
    contract = (
        "no_token unauthorized forbidden not_found conflict start_failed stop_failed not_ready unavailable "
        "rate_limited network http_error bad_request insecure_base unsafe_bundle unsafe_path connection_lost ambiguous "
        "usage internal"
    )
    assert set(contract.split()) <= set(ERRORS)
    assert all(kind.resolution and kind.exit_status for kind in ERRORS.values())


def test_values_are_frozen_and_compare_by_content() -> None:
    class Point(Value):
        x: int
        y: int = 0

    assert Point(x=1) == Point(x=1, y=0)
    assert hash(Point(x=1)) == hash(Point(x=1))
    for wrong in ({}, {"x": 1, "z": 2}):
        with pytest.raises(TypeError):
            Point(**wrong)
    with pytest.raises(AttributeError):
        Point(x=1).x = 2  # type: ignore[misc]
