"""What Hypothesis draws hostile input from, and what a plain name is: for the properties of every parser."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# What stands in hostile input more often than chance would have it.
SPICES = (
    "\n",
    "\r",
    "\0",
    "\x1b",
    "\x85",
    "\u2028",
    "\u202e",
    "%",
    "${",
    "`",
    "$(",
    "-",
    "/",
    "..",
    ".",
    ":",
    "@",
    '"',
    "'",
    "\\",
)
SPICE = st.sampled_from(SPICES)
# Text that is markup, a template or an address wherever somebody forgot what it is.
MARKUP = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' autofocus onfocus=alert(1) x='",
    "</pre></dd></td><iframe src=//evil.example></iframe>",
    "<style>*{display:none}</style><base href=//evil.example>",
    "{{ 7*7 }}{% raw %}${7*7}",
    "javascript:alert(1)",
    "<a hx-get=//evil.example hx-trigger=load data-hx-on:load=alert(1)>",
)
PLAIN = st.text("abcXYZ019.-_/", max_size=12)
TEXT = st.lists(st.one_of(SPICE, PLAIN, st.text(max_size=6)), max_size=6).map("".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)
ANYTHING = st.one_of(TEXT, JSON)
NONCE = "0123456789abcdef" * 2
METACHARACTERS = set(" \t\n\r\0\x0b\x0c\"'`$;|&<>(){}[]*?!#~%\\,")
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
fast = settings(max_examples=100, deadline=None)


def is_plain_name(text: str) -> bool:
    return text.isascii() and text.isprintable() and not METACHARACTERS & set(text) and not text.startswith("-")
