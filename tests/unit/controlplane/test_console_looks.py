"""What all pages stand on: templates that escape by construction, static files named by content, words for times."""

from __future__ import annotations

import datetime
import hashlib
import re
from pathlib import Path

import jinja2
import pytest

from runcode.controlplane.console import activity_words, looks, static_files, wording
from runcode.controlplane.routes import login_pages
from runcode.controlplane.services import audit
from runcode.core.errors import RunCodeError
from runcode.runtimes.base import SizeLimits
from support.hostile_text import MARKUP, SPICES

CONSOLE = Path(looks.__file__).parent
TEMPLATES = sorted((CONSOLE / "templates").glob("*.html"))
NOW = datetime.datetime(2026, 11, 23, 22, 0, tzinfo=datetime.timezone.utc)
# htmx.org 2.0.11 as npm has it, byte for byte.
HTMX = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")


def test_htmx_is_what_was_published_and_its_licence_stands_beside_it() -> None:
    vendored = CONSOLE / "static" / "htmx.min.js"
    assert hashlib.sha256(vendored.read_bytes()).hexdigest() == HTMX
    assert "Zero-Clause BSD" in vendored.with_name("htmx.LICENSE.txt").read_text()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_no_template_lets_a_value_past_the_escaping(template: Path) -> None:
    source = template.read_text()
    assert not re.search(r"\|\s*safe|autoescape|Markup|\{%\s*raw|<style|\sstyle=|\son[a-z]+\s*=|javascript:", source)
    # A value without quotes around it would end where a blank stands in it.
    assert not re.search(r"\s[a-z-]+=\{\{", source)
    assert not re.search(r"(?:src|href|action|hx-get|hx-post)=\"(?:https?:)?//", source)
    assert not re.search(r"<script(?! src=)", source)


def test_a_value_comes_out_escaped_and_without_what_hides_or_reorders() -> None:
    for text in (*MARKUP, "".join(SPICES), "good\u202egnp.exe\u200b\x1b[2J"):
        page = login_pages.render_sign_in("/", text, email=text, problem=text, provider=text)
        assert UNSEEN.search(page) is None
        assert not any(raw in page for raw in MARKUP if "<" in raw)
    assert "good\ufffdgnp.exe\ufffd\ufffd[2J" in login_pages.render_link("good\u202egnp.exe\u200b\x1b[2J", "l", "p")


def test_a_name_that_a_template_does_not_know_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        looks.render("said.html", heading="Done")


def test_a_part_has_the_same_digest_until_it_says_something_else() -> None:
    entry = activity_words.Entry(
        at=NOW, says="Ran a command", text="make", who="ann", about="", result="exit 0", bad=False, session_id=None
    )

    def look(now: datetime.datetime) -> tuple[str, str]:
        return looks.render_part(
            "workspace_activity.html",
            timeline=[entry],
            workspace=None,
            only_session=None,
            follows=True,
            address="/workspaces/1?",
            newer="",
            older="",
            now=now,
        )

    part, digest = look(NOW)
    assert f"seen={digest}" in part
    assert look(NOW + datetime.timedelta(seconds=50))[1] == digest
    assert look(NOW + datetime.timedelta(seconds=70))[1] != digest


# ---------------------------------------------------------------- policy


def test_a_page_without_scripts_allows_none_and_none_allows_anything_from_elsewhere() -> None:
    bare, scripted = (looks.content_policy(form_action="'self'", scripts=scripts) for scripts in (False, True))
    assert "script" not in bare
    assert "script-src 'self';" in scripted
    assert "require-trusted-types-for 'script'" in scripted
    for policy in (bare, scripted):
        assert policy.startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"\*|https?:|data:", policy)


def test_htmx_evaluates_nothing_and_asks_nobody_else() -> None:
    base = (CONSOLE / "templates" / "base.html").read_text()
    for setting in ('"allowEval":false', '"includeIndicatorStyles":false', '"selfRequestsOnly":true'):
        assert setting in base
    assert '"allowScriptTags":false' in base


def test_a_failure_outside_of_all_pages_is_a_page_with_its_policy() -> None:
    page, headers = login_pages.render_failure(404, RunCodeError("not_found", "<b>nothing</b>", resolution="go home"))
    assert "&lt;b&gt;nothing&lt;/b&gt;" in page
    assert "There is nothing here" in page
    assert "<script" not in page
    assert headers["Content-Security-Policy"].endswith("form-action 'none'")


# ---------------------------------------------------------------- static files


def test_an_address_names_the_content_and_nothing_else_is_served() -> None:
    address = static_files.find_address("console.css")
    _, _, digest, name = address.split("/")
    found = static_files.find_file(digest, name)
    assert found is not None
    assert hashlib.sha256(found.content).hexdigest().startswith(digest)
    assert found.media_type.startswith("text/css")
    for wrong in (
        ("0" * 16, name),
        (digest, "base.html"),
        (digest, "../looks.py"),
        ("", ""),
        (digest, "console.css\0"),
    ):
        assert static_files.find_file(*wrong) is None
    with pytest.raises(KeyError):
        static_files.find_address("../looks.py")


def test_every_static_file_is_served_and_none_calls_elsewhere() -> None:
    for path in (CONSOLE / "static").iterdir():
        address = static_files.find_address(path.name)
        assert static_files.find_file(*address.split("/")[2:]) is not None
    style = (CONSOLE / "static" / "console.css").read_text()
    assert not re.search(r"@import|url\(|https?:", style)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"),
        (-59, "just now"),
        (-60, "1 min ago"),
        (-3599, "59 min ago"),
        (-7200, "2 h ago"),
        (-3 * 86400, "3 days ago"),
        (-40 * 86400, "2026-10-14"),
        (30, "in under a minute"),
        (1800, "in 30 min"),
        (40 * 86400, "2027-01-02"),
    ],
)
def test_relative_times(seconds: int, said: str) -> None:
    assert wording.render_relative(NOW + datetime.timedelta(seconds=seconds), NOW) == said


def test_sizes_durations_and_limits() -> None:
    assert [wording.render_size(count) for count in (0, 999, 1500, 2_500_000)] == ["0 B", "999 B", "1.5 kB", "2.5 MB"]
    assert [wording.render_lasted(seconds) for seconds in (0.04, 59.94, 61, 3700)] == [
        "0.0 s",
        "59.9 s",
        "1 min 1 s",
        "1 h 1 min",
    ]
    assert wording.describe_size("small", SizeLimits(memory_bytes=1024**3, cpus=1.0)) == "small: 1 GB, 1 CPU"
    assert wording.describe_size("standard", SizeLimits()) == "standard"
    assert wording.describe_idle(0, 1800) == "never"
    assert wording.describe_idle(None, 1800) == "as the server does: after 30 min"
    assert wording.describe_idle(None, None) == "as the server does: never"
    assert wording.describe_idle(5400, None) == "after 90 min"


def test_every_act_at_a_workspace_has_its_words() -> None:
    at_a_workspace = {kind for kind in audit.ACTS if kind.startswith(("workspace_", "session_"))}
    assert at_a_workspace | {audit.SHARED, audit.UNSHARED} <= set(activity_words._ACTS)
