"""A call's arguments against its tool's schema: what a model sent is checked before anything runs.

Guarantee: the message names the place and what is expected, and never quotes what was
sent; a text that no file name or command line can hold is refused here.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

from runcode.agents.mcp.tools import TOOLS, Tool
from runcode.core.errors import RunCodeError

# May hold a NUL: they travel as bytes of a file.
_CONTENTS = ("content", "old", "new")
_VALIDATORS = {tool.name: Draft202012Validator(tool.input_schema) for tool in TOOLS}


def check_arguments(tool: Tool, arguments: dict[str, Any]) -> None:
    """Raises `usage` for the first thing that is wrong."""
    for error in _VALIDATORS[tool.name].iter_errors(arguments):
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(
            "."
        )
        raise _refuse(tool, f"{place or 'the arguments'}: {_expectation(error, tool)}")
    _check_texts(tool, arguments, "")


def _expectation(error: Any, tool: Tool) -> str:
    if error.validator == "additionalProperties":
        return f"there is no such argument; it takes {', '.join(tool.input_schema['properties'])}"
    if error.validator == "required":
        return f"needs {', '.join(error.validator_value)}"
    return f"{error.validator} has to be {error.validator_value}"


def _check_texts(tool: Tool, value: Any, name: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_texts(tool, inner, key)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(tool, inner, name)
    elif isinstance(value, str):
        if "\0" in value and name not in _CONTENTS:
            raise _refuse(tool, f"{name}: a NUL character is not possible there")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _refuse(tool, f"{name}: half a surrogate pair is no text") from error


def _refuse(tool: Tool, message: str) -> RunCodeError:
    return RunCodeError("usage", f"{tool.name}: {message}", resolution="correct the arguments by the tool's schema")
