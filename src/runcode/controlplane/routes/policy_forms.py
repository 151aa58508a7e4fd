"""What connections may do, as a form's fields. Read by the pages of workspaces and of tokens; drawn by `parts.html`.

A box that is ticked takes something away, so that a form without these fields takes nothing.
"""

from __future__ import annotations

from runcode.controlplane.routes.browser_io import find_field, find_fields
from runcode.controlplane.services.inputs import parse_channel_policy
from runcode.core.channel_policy import EVERYTHING, FORWARDINGS, NETWORK, ChannelPolicy
from runcode.core.errors import RunCodeError

_DIGITS_MAX = 9


def read_policy(form: list[tuple[str, str]]) -> ChannelPolicy:
    """Raises `bad_request`."""
    without = find_fields(form, "without")
    if not set(without) <= set(FORWARDINGS):
        raise RunCodeError("bad_request", "there is no such forwarding", resolution="use the boxes of the page")
    raw_policy: dict[str, object] = {name: name not in without for name in FORWARDINGS}
    raw_policy["destinations"] = find_field(form, "destinations") or NETWORK
    for name in ("sessions", "opens_per_minute"):
        text = find_field(form, name).strip()
        # What is no number is refused as one.
        digits = text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX
        raw_policy[name] = None if not text else int(text) if digits else text
    return parse_channel_policy(raw_policy, EVERYTHING)
