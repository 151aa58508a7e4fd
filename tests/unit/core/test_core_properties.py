"""Properties of every parser that reads what a stranger wrote: a value of the promised form, or an error of ours.

No other exception may come out, whatever goes in; where there is a real program that knows better, it is the oracle.
"""

# Each property is "a value, or an error of ours that looks like this": both sides of one `try`.
# ruff: noqa: PT017
from __future__ import annotations

import base64
import datetime
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runcode.core import (
    bundle,
    hostkeys,
    names,
    sshblock,
    sshconfig,
    terminal,
    wire,
)
from runcode.core.errors import RunCodeError, UnsafeInput
from support.hostile_text import ANYTHING, JSON, TEXT, fast, is_plain_name, slow

# ---------------------------------------------------------------- names


@fast
@given(ANYTHING)
def test_a_title_is_a_plain_name_or_refused(raw: object) -> None:
    try:
        title = names.parse_title(raw)
    except UnsafeInput:
        assert not names.is_title(raw)
        return
    assert title == raw
    assert is_plain_name(title)
    assert not {"/", "@", ":"} & set(title)
    assert 0 < len(title) <= 64


@fast
@given(st.one_of(ANYTHING, st.ip_addresses().map(str), st.from_regex(r"[a-z0-9.-]{1,80}", fullmatch=True)))
@example("::ffff:169.254.0.1")
@example("127.1")
def test_a_host_is_a_plain_name_or_refused(raw: object) -> None:
    try:
        host = names.parse_host(raw)
    except UnsafeInput:
        return
    assert is_plain_name(host)
    assert not {"/", "@"} & set(host)
    # What came out is accepted again, as itself.
    assert names.parse_host(host) == host
    if re.fullmatch(r"[0-9.xXa-fA-F]+", host) and ":" not in host and host.replace(".", "").isdigit():
        # getaddrinfo reads such a name as a number: it must be the plain form of one.
        assert re.fullmatch(r"(\d{1,3}\.){3}\d{1,3}", host)


@fast
@given(st.one_of(ANYTHING, st.integers(-5, 70000)))
def test_a_port_is_a_json_integer_or_refused(raw: object) -> None:
    try:
        port = names.parse_port(raw)
    except UnsafeInput:
        assert type(raw) is not int or not 1 <= raw <= 65535
        return
    assert type(raw) is int
    assert 1 <= port <= 65535


@fast
@given(st.one_of(ANYTHING, TEXT.map(lambda text: "/" + text)))
def test_a_workdir_is_plain_and_absolute_whatever_came(raw: object) -> None:
    workdir = names.parse_workdir(raw)
    assert workdir.startswith("/")
    assert is_plain_name(workdir)
    parts = workdir.split("/")
    assert ".." not in parts
    assert not any(part.startswith("-") for part in parts)


# ---------------------------------------------------------------- bundle


@fast
@given(
    st.dictionaries(
        st.sampled_from(
            ["host", "port", "user", "known_hosts", "ssh_config", "expires_at", "workdir", "web_url", "certificate"]
        ),
        ANYTHING,
    ),
    JSON,
)
def test_a_bundle_is_types_or_refused(changes: dict[str, Any], other: object) -> None:
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)
    good = {
        "host": "gateway.example.net",
        "port": 22,
        "user": "box",
        "known_hosts": f"x ssh-ed25519 {base64.b64encode(blob).decode()}",
        "expires_at": "2026-11-23T22:15:00Z",
    }
    for raw in ({**good, **changes}, changes, other):
        try:
            parsed = bundle.parse_bundle(raw)
        except UnsafeInput:
            continue
        assert isinstance(raw, dict)
        assert is_plain_name(parsed.host)
        assert is_plain_name(parsed.user)
        assert parsed.host_keys
        assert parsed.expires_at.tzinfo == datetime.timezone.utc
        assert parsed.web_url is None or parsed.web_url.isprintable()
        assert parsed.certificate is None or re.fullmatch(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+", parsed.certificate)


@fast
@given(st.one_of(TEXT, st.datetimes(timezones=st.timezones()).map(lambda moment: moment.isoformat())))
def test_a_time_is_aware_or_refused(raw: str) -> None:
    try:
        moment = bundle.parse_timestamp(raw)
    except UnsafeInput:
        return
    # strftime writes a year before 1000 with fewer digits.
    if moment.year >= 1000:
        assert bundle.parse_timestamp(bundle.render_timestamp(moment)) == moment.replace(microsecond=0)


@fast
@given(st.one_of(ANYTHING, TEXT.map("https://".__add__), TEXT.map("https://example.net".__add__)))
def test_a_web_url_is_a_bare_origin_or_none(raw: object) -> None:
    reduced = bundle.reduce_web_url(raw)
    if reduced is not None:
        assert re.fullmatch(r"https?://([A-Za-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", reduced), reduced
        assert reduced.startswith("https://") or names.is_loopback_host(reduced[7:].rsplit(":", 1)[0].strip("[]"))
        assert bundle.reduce_web_url(reduced) == reduced


# ---------------------------------------------------------------- host keys

KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp521",
    "ssh-dss",
    "sk-ssh-ed25519@openssh.com",
)
PARTS = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.just(bytes(32)),
        st.just(b"nistp256"),
        st.just(b"\x04" + bytes(64)),
        st.just(b"\x01\0\x01"),
        st.just(b"\0" + b"\xff" * 256),
    ),
    max_size=4,
)


def key_text(kind: str, parts: list[bytes], tail: bytes) -> str:
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (kind.encode(), *parts))
    return f"{kind} {base64.b64encode(blob + tail).decode()}"


@slow
@given(st.sampled_from(KINDS), PARTS, st.sampled_from([b"", b"", b"\0", b"more"]))
@example("ssh-ed25519", [bytes(32)], b"")
@example("ssh-rsa", [b"\x01\0\x01", b"\0" + b"\xff" * 256], b"")
def test_a_key_that_we_take_is_one_that_ssh_keygen_reads(kind: str, parts: list[bytes], tail: bytes) -> None:
    text = key_text(kind, parts, tail)
    try:
        key = hostkeys.parse_public_key(text + " comment")
    except UnsafeInput:
        return
    assert key.line == text
    if kind.startswith("ecdsa"):
        return  # whether a point is on its curve is for ssh to say, which refuses it then
    shown = subprocess.run(["ssh-keygen", "-l", "-f", "-"], input=text, capture_output=True, text=True, check=True)
    assert shown.stdout.split()[1] == key.fingerprint


@fast
@given(
    st.one_of(
        ANYTHING,
        st.lists(st.one_of(TEXT, st.builds(key_text, st.sampled_from(KINDS), PARTS, st.just(b"")))).map("\n".join),
    )
)
def test_known_hosts_come_out_as_ours_or_not_at_all(raw: object) -> None:
    try:
        keys = hostkeys.parse_known_hosts(raw)
    except UnsafeInput:
        return
    text = hostkeys.render_known_hosts("host.example", 2222, keys)
    for line in text.splitlines():
        assert re.fullmatch(r"\[host\.example\]:2222 [a-z0-9-]+ [A-Za-z0-9+/]+=*", line), line
    assert len(set(keys)) == len(keys)
    assert hostkeys.parse_known_hosts(text) == keys


# ---------------------------------------------------------------- ssh config

# What ssh splits a keyword from its argument by, what it strips, and what it does not.
GLUE = st.sampled_from(
    ["", " ", "\t", "=", " = ", '"', '""', "\r", "\x0c", "\x0b", "\ufeff", "\xa0", "#", "\\", "\0", "x", ";"]
)
KEYWORD = st.sampled_from(
    [
        "ProxyCommand",
        "LocalCommand",
        "KnownHostsCommand",
        "PermitLocalCommand",
        "ProxyJump",
        "PKCS11Provider",
        "SecurityKeyProvider",
        "XAuthLocation",
        "Include",
        "Match",
        "Host",
        "User",
        "SmartcardDevice",
    ]
)
ARGUMENT = st.sampled_from(["yes", "canary", "/tmp/canary", "all", "*", "canary.example", "", '"canary x"'])
CASE = st.sampled_from([str, str.lower, str.upper, str.swapcase])


def _line(before: str, quote: str, keyword: str, case: Any, glue: str, argument: str) -> str:
    return f"{before}{quote}{case(keyword)}{quote}{glue}{argument}"


LINE = st.builds(_line, GLUE, st.sampled_from(["", "", '"']), KEYWORD, CASE, GLUE, ARGUMENT)
WATCHED = (
    "proxycommand",
    "localcommand",
    "permitlocalcommand",
    "knownhostscommand",
    "proxyjump",
    "pkcs11provider",
    "securitykeyprovider",
    "xauthlocation",
)


def ssh_sees(text: str, folder: Path) -> dict[str, str] | None:
    """What `ssh -G` makes of it; None for a text that it refuses."""
    (folder / "config").write_bytes(text.encode("utf-8", "surrogatepass"))
    done = subprocess.run(
        ["ssh", "-G", "-F", str(folder / "config"), "some.host"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if done.returncode != 0:
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition(" ") for line in lines) if name in WATCHED}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(LINE, TEXT), min_size=1, max_size=3), st.sampled_from(["\n", "\r\n", "\n\n", "\r"]))
@example(['"ProxyCommand"=canary'], "\n")
@example(["=proxycommand canary"], "\n")
@example(["Host *", '""ProxyCommand canary'], "\n")
def test_whatever_ssh_would_run_trips_the_wire(lines: list[str], line_end: str) -> None:
    text = line_end.join(lines)
    with tempfile.TemporaryDirectory(prefix="rc-tripwire-") as name:
        folder = Path(name)
        seen = ssh_sees(text, folder)
        if seen is not None and seen != ssh_sees("", folder):
            assert sshconfig.find_tripwire(text) is not None, (text, seen)


@slow
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
@example("a%hb")
@example("a\\b")
def test_a_path_is_what_ssh_reads_or_refused(name: str) -> None:
    path = "/" + name
    target = {"alias": "runcode-x", "host": "127.0.0.1", "port": 22, "user": "x", "known_hosts_file": "/k"}
    try:
        text = sshconfig.render_ssh_config(sshconfig.SshTarget(identity_file=path, **target))
    except RunCodeError as error:
        assert error.code == "unsafe_path"
        return
    with tempfile.TemporaryDirectory(prefix="rc-path-") as folder:
        config = Path(folder) / "config"
        config.write_text(text, encoding="utf-8")
        shown = subprocess.run(["ssh", "-G", "-F", config, "runcode-x"], capture_output=True, check=True).stdout
    said = dict(line.partition(" ")[::2] for line in shown.decode().split("\n"))
    assert said["identityfile"].replace("%%", "%") == path
    assert said["user"] == "x"
    assert "proxycommand" not in said


@fast
@given(st.binary(max_size=300), TEXT)
def test_a_block_goes_in_and_out_of_any_file(content: bytes, display_name: str) -> None:
    if sshblock.START_MARKER.encode() in content:
        return
    entry = sshblock.HostEntry(
        title="box", display_name=display_name, proxy_command="p", identity_files=("k",), known_hosts_file="h"
    )
    whole = sshblock.insert_block(content, sshblock.render_block([entry]))
    assert sshblock.remove_blocks(whole) == content
    keywords = {
        line.split()[0] for line in whole[: len(whole) - len(content)].decode().splitlines() if line[0] not in "#"
    }
    assert not {"Match", "Include", "LocalCommand"} & keywords


# ---------------------------------------------------------------- wire, terminal


@slow
@given(
    JSON,
    st.lists(
        st.dictionaries(
            st.sampled_from(["id", "title", "custom_title", "provider", "current_state", "interim_state"]), ANYTHING
        )
    ),
)
def test_a_list_is_records_or_refused(other: object, records: list[dict[str, object]]) -> None:
    for raw in (other, {"data": other}, {"data": {"workspaces": other}}, {"data": {"workspaces": [*records, other]}}):
        try:
            found = wire.parse_workspaces(raw, shared=False)
        except RunCodeError as error:
            assert error.code == "http_error"
            continue
        for one in found:
            assert one.id > 0
            assert is_plain_name(one.title)
            assert one.state.isprintable()
            assert len(one.custom_title) <= 500
        assert len({one.id for one in wire.merge_workspaces(found, found)}) == len(wire.merge_workspaces(found, found))


@fast
@given(st.integers(0, 999), ANYTHING, st.sampled_from(["message", "detail", "error"]), TEXT)
def test_a_failure_has_a_code_and_printable_words(status: int, body: object, field: str, words: str) -> None:
    for raw in (body, {field: words}, {field: body}):
        error = wire.error_from_response(status, raw)
        assert error.message.isprintable()
        assert 0 < len(error.message) <= 300
        assert wire.render_error(error)["code"] == error.code


@fast
@given(TEXT, st.integers(2, 50), st.integers(1, 5))
def test_lines_are_bounded_and_printable(text: str, limit: int, most: int) -> None:
    shown = terminal.printable_lines(text, limit=limit, lines=most)
    lines = shown.split("\n")
    assert len(lines) <= most + 1
    assert all(line.isprintable() for line in lines)
    assert all(len(line) <= limit for line in lines[:most])
