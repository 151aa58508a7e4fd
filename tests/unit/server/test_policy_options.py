"""A policy as the operator types it."""

from __future__ import annotations

import argparse

import pytest

from runcode.controlplane.services.inputs import UNSET
from runcode.core.channel_policy import FORWARDINGS
from runcode.server.workspace_options import add_policy_options, read_policy


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], UNSET),
        (["--forwarding", "off"], dict.fromkeys(FORWARDINGS, False)),
        (["--forwarding", "direct,x11"], {name: name in ("direct", "x11") for name in FORWARDINGS}),
        (["--destinations", "loopback", "--max-sessions", "3"], {"destinations": "loopback", "sessions": 3}),
        (["--max-sessions", "unlimited", "--max-opens", "60"], {"sessions": None, "opens_per_minute": 60}),
    ],
)
def test_what_the_operator_types_is_what_changes(words: list[str], wanted: object) -> None:
    parser = argparse.ArgumentParser()
    add_policy_options(parser)
    assert read_policy(parser.parse_args(words)) == wanted


@pytest.mark.parametrize("words", [["--forwarding", "all"], ["--forwarding", ""], ["--max-opens", "-1"]])
def test_what_is_misspelt_changes_nothing(words: list[str]) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_policy_options(parser)
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parser.parse_args(words)
