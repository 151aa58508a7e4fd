"""The server's log: one line a record on stderr, for people or for programs.

Owns: formats and levels. JSON lines have `timestamp`, `level`, `logger`, `event`,
and, of a request, the facts that `controlplane/edge.py` allows, as keys of their own.
"""

from __future__ import annotations

import logging
import sys
from typing import IO, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

TEXT: Final = "text"
JSON: Final = "json"
FORMATS: Final = (TEXT, JSON)
_TEXT_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


_OPERATOR: Final = logging.getLogger("runcode.operator")


def say(text: str) -> None:
    """One line for the operator, whatever the level: as `runcode-server: …`, or as a JSON line among the others."""
    if _OPERATOR.isEnabledFor(logging.INFO):
        _OPERATOR.info("%s", text)
    else:
        print(f"runcode-server: {text}", file=sys.stderr, flush=True)


def set_up_logging(*, log_format: str = TEXT, verbose: bool = False, stream: IO[str] | None = None) -> None:
    """Text tells of requests only when `verbose`; JSON always does, since a program reads it."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_make_json_formatter() if log_format == JSON else _TextFormatter(_TEXT_FORMAT))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("runcode").setLevel(logging.INFO if verbose or log_format == JSON else logging.WARNING)
    # Its lines are not records among others for a person who reads along.
    _OPERATOR.setLevel(logging.INFO if log_format == JSON else logging.CRITICAL)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        facts = getattr(record, "request", None)
        return line if facts is None else line + "".join(f" {name}={value}" for name, value in facts.items())


def _make_json_formatter() -> structlog.stdlib.ProcessorFormatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _add_request,
            structlog.processors.format_exc_info,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.EventRenamer("event"),
            # ASCII: no character of a name or title can end a line or turn a terminal.
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ],
    )


def _add_request(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    facts = getattr(event.get("_record"), "request", None)
    if facts is not None:
        event.update(facts)
    return event
