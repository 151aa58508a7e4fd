"""What the operator says about workspaces at `up`: limits for each person, idle time, who makes teams.

Owns: these options, and how durations are typed. Loads nothing that the plain
distribution does not have. What they amount to is `workspace_policy`'s.
"""

from __future__ import annotations

import argparse
import re

from runcode.controlplane.services.inputs import IDLE_MAX_S, IDLE_MIN_S, LIMIT_MAX
from runcode.core.values import Value

# As an option of a verb: whatever `up` says counts again.
DEFAULT = "default"
_DURATION = re.compile(r"([1-9][0-9]{0,7})(s|m|h|d)", re.ASCII)
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class WorkspaceOptions(Value):
    """Of `up`; None: no limit, and workspaces run on."""

    workspaces_per_user: int | None = None
    running_per_user: int | None = None
    idle_stop_after_s: int | None = None
    teams_by_anyone: bool = True
    idle_look_every_s: int = 30


def add_up_options(up: argparse.ArgumentParser) -> None:
    up.add_argument(
        "--workspaces-per-user", type=parse_count, metavar="N", help="how many a person may own (default: no limit)"
    )
    up.add_argument(
        "--running-per-user", type=parse_count, metavar="N", help="how many of them may run at once (default: no limit)"
    )
    up.add_argument(
        "--idle-stop-after",
        type=parse_duration,
        metavar="TIME",
        help="stop workspaces that nobody uses for so long, such as 30m or 12h (default: they run on)",
    )
    up.add_argument(
        "--teams-by",
        choices=("anyone", "admins"),
        default="anyone",
        help="who may make a team (default: %(default)s)",
    )
    # For tests, which have less patience.
    up.add_argument("--idle-look-every-s", type=parse_count, default=30, help=argparse.SUPPRESS)


def read_up_options(options: argparse.Namespace) -> WorkspaceOptions:
    return WorkspaceOptions(
        workspaces_per_user=options.workspaces_per_user,
        running_per_user=options.running_per_user,
        idle_stop_after_s=options.idle_stop_after or None,
        teams_by_anyone=options.teams_by == "anyone",
        idle_look_every_s=max(1, options.idle_look_every_s),
    )


def parse_duration(text: str) -> int:
    """`90s`, `30m`, `12h`, `2d` in seconds; `never` is 0."""
    if text == "never":
        return 0
    found = _DURATION.fullmatch(text)
    seconds = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not IDLE_MIN_S <= seconds <= IDLE_MAX_S:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 1m to 30d (such as 30m, 12h), nor `never`")
    return seconds


def parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:8]) <= LIMIT_MAX and len(text) <= 8):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {LIMIT_MAX}")
    return int(text)


def parse_idle(text: str) -> int | str:
    """As `parse_duration`, and DEFAULT."""
    return DEFAULT if text == DEFAULT else parse_duration(text)


def parse_limit(text: str) -> int | str:
    """As `parse_count`, and DEFAULT."""
    return DEFAULT if text == DEFAULT else parse_count(text)
