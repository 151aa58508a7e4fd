"""Properties of what the client itself parses: bases, tokens, dates, a status line's input, kept sessions."""

# Each property is "a value, or an error of ours that looks like this": both sides of one `try`.
# ruff: noqa: PT017
from __future__ import annotations

import json
import re

from hypothesis import example, given
from hypothesis import strategies as st

from runcode.cli import statusline_text
from runcode.client import loopback, sessions
from runcode.client.settings import parse_base, parse_token
from runcode.core import names
from runcode.core.errors import RunCodeError
from support.hostile_text import JSON, PLAIN, TEXT, fast, is_plain_name


@fast
@given(
    st.one_of(
        TEXT,
        TEXT.map("https://".__add__),
        TEXT.map("http://127.0.0.1".__add__),
        st.builds(lambda a, b: f"https://{a}.example:{b}", PLAIN, st.integers(-1, 99999)),
    )
)
@example("https://-x")
@example("https://0x7f000001")
@example("https://[fe80::1]")
def test_a_base_is_an_origin_or_refused(raw: str) -> None:
    try:
        base = parse_base(raw)
    except RunCodeError as error:
        assert error.code in ("usage", "insecure_base")
        return
    scheme, _, rest = base.partition("://")
    host = rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition(":")[0]
    assert names.parse_host(host).lower() == host.lower()
    assert scheme == "https" or (scheme == "http" and names.is_loopback_host(host))
    assert re.fullmatch(r"https?://[A-Za-z0-9.:\[\]-]+", base)
    assert parse_base(base) == base


@fast
@given(TEXT)
def test_a_token_is_one_plain_word_or_refused(raw: str) -> None:
    try:
        token = parse_token(raw)
    except RunCodeError as error:
        assert error.code == "no_token"
        assert not raw.strip() or len(raw) < 3 or raw not in error.message
        return
    assert re.fullmatch(r"[!-~]{1,4096}", token)


@fast
@given(
    st.one_of(
        st.none(),
        TEXT,
        st.text("0123456789 :,+-GMTMonJanapm", max_size=40),
        st.datetimes().map(lambda moment: moment.strftime("%a, %d %b %Y %H:%M:%S GMT")),
    )
)
def test_a_date_of_a_reply_is_a_number_of_seconds(raw: str | None) -> None:
    assert isinstance(sessions.find_clock_skew(raw, 1_795_000_000), int)


@fast
@given(
    st.one_of(
        st.binary(max_size=60),
        JSON.map(lambda value: json.dumps(value).encode()),
        TEXT.map(lambda text: b'{"a": "' + text.encode("utf-8", "replace")),
    )
)
def test_a_status_lines_input_is_read_or_refused(raw: bytes) -> None:
    try:
        session, folder = statusline_text.parse_input(raw)
    except (ValueError, AttributeError):
        return  # its callers take any exception for "nothing to show"
    assert session is None or isinstance(session, str)
    assert folder is None or (folder.startswith("/") and "\0" not in folder)


@fast
@given(TEXT, st.one_of(st.none(), TEXT, TEXT.map("https://".__add__)), st.integers(-100, 10**6))
def test_a_status_line_is_one_printable_line(title: str, web_url: str | None, remaining_s: int) -> None:
    if not names.is_title(title):
        title = "box"
    line = statusline_text.render(title, web_url, remaining_s, plain=True)
    assert (line == "") == (remaining_s <= 0)
    assert line.rstrip("\n").isprintable()
    assert line.count("\n") <= 1


@fast
@given(
    st.one_of(
        st.binary(max_size=80),
        TEXT.map(lambda text: f"GET /callback?{text} HTTP/1.1\r\nHost: 127.0.0.1:1".encode("utf-8", "replace")),
    )
)
def test_a_browsers_answer_needs_the_state(head: bytes) -> None:
    found = loopback.parse_answer(head, port=1, state="the-right-state")
    assert isinstance(found, loopback.Refusal)
    assert 400 <= found.status < 500


@fast
@given(st.dictionaries(st.sampled_from(list(sessions.Session._fields)), JSON), st.binary(max_size=40))
def test_a_kept_session_is_types_or_none(changes: dict[str, object], raw: bytes) -> None:
    good: dict[str, object] = {
        "version": 1,
        "workspace_id": 1,
        "user": "box",
        "host": "h.example",
        "port": 22,
        "workdir": "/w",
        "web_url": None,
        "api_base": "https://x",
        "expires_at": 5,
        "minted_at": 4,
        "generation": "0" * 16,
        "control_path": "/tmp/x",
    }
    assert sessions._parse(raw, "/f") is None
    found = sessions._parse(json.dumps({**good, **changes}).encode(), "/f")
    if found is not None:
        assert is_plain_name(found.host)
        assert is_plain_name(found.user)
        assert found.control_path.startswith("/")
        assert abs(found.expires_at) < 2**41
