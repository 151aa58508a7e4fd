"""Parsers for the commands: argparse, with our error boundary and our common options."""

from __future__ import annotations

import argparse
import re

from runcode.core.errors import RunCodeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_VALUE_OPTIONS = ("--api-base", "--token-file", "--token", "--workspace", "--timeout", "--agent-session")


class Parser(argparse.ArgumentParser):
    """Raises `usage` where argparse would write and exit; `--help` still prints and exits 0."""

    _asked_for_itself = False

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        if Parser._asked_for_itself:
            raise _Found(self)
        return super().parse_known_args(*args, **options)

    def error(self, message: str) -> NoReturn:
        # argparse quotes an unexpected word; a token may have been pasted in the wrong place.
        raise RunCodeError("usage", message, resolution=f"see `{self.prog} --help`")


class _Found(Exception):
    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def describe_parser(parse: Callable[[list[str]], object]) -> list[argparse.Action]:
    """The arguments of a command, from the parser that its own `parse` makes."""
    Parser._asked_for_itself = True
    try:
        parse([])
    except _Found as found:
        return found.parser._actions
    finally:
        Parser._asked_for_itself = False
    raise AssertionError("the command has no parser")


def bare_parser(command: str, description: str) -> Parser:
    """A parser without the common options. Its fixed width spares argparse a look at the terminal (5 ms)."""
    return Parser(
        prog=f"runcode {command}",
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=100),
    )


def new_parser(command: str, description: str, *, workspace: bool = False, json: bool = False) -> Parser:
    """A parser with `--api-base` and `--token-file`, and `--workspace` and `--json` where they make sense."""
    parser = bare_parser(command, description)
    parser.add_argument("--api-base", metavar="URL", help="the control plane's address")
    parser.add_argument("--token-file", metavar="F", help="read the API token from this file (`-`: stdin)")
    parser.add_argument("--token", help=argparse.SUPPRESS)
    if workspace:
        parser.add_argument("--workspace", metavar="WS", help="this workspace instead of the attached one")
    if json:
        parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser


def seconds(text: str) -> float:
    """An option's positive number of seconds."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,3})?", text) or float(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return float(text)


def whole_seconds(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number of seconds")
    return int(text)


def split_command(words: list[str], *, names: int = 0) -> tuple[list[str], list[str]]:
    """`[OPTION…] [NAME…] [--] CMD…` → (options and `names` names, the command's words, untouched).

    Everything after the first `--` is the command, further `--` included; without
    one it starts at the first word that is neither an option nor a name.
    """
    left = names
    at = 0
    while at < len(words):
        word = words[at]
        if word == "--":
            return words[:at], words[at + 1 :]
        if word.startswith("-") and word != "-":
            at += 2 if word in _VALUE_OPTIONS else 1
        elif left:
            left -= 1
            at += 1
        else:
            return words[:at], words[at:]
    return words, []


def require_command(words: list[str], prog: str) -> list[str]:
    if not words:
        raise RunCodeError("usage", "no command was given", resolution=f"type `{prog} -- CMD…`")
    return words
