"""The status line's input and look. Pure, and without imports: the hot path uses it.

Threat: the input quotes paths and names of strangers, and the host came from a
server. Nothing of the input is printed, and of the host only if it is one.
"""

INPUT_MAX = 1024 * 1024
_YELLOW_BELOW_S, _RED_BELOW_S = 5 * 60, 2 * 60
_GREEN, _YELLOW, _RED, _PLAIN = "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
_HOST = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-:[]"


def parse_input(raw_input: bytes) -> tuple[str | None, str | None]:
    """(Claude Code's session id, its current folder), each None when the input does not say. Raises ValueError."""
    text = raw_input.decode().strip()
    if not text.startswith("{"):
        return None, None
    try:
        from _json import make_scanner

        said = make_scanner(_Decoder)(text, 0)[0]  # type: ignore[arg-type]
    except ImportError:
        import json

        said = json.loads(text)
    except (StopIteration, RecursionError, SystemError) as error:
        # SystemError: CPython 3.11's scanner, where `json.decoder` with its exception is not loaded.
        raise ValueError from error
    places = said.get("workspace")
    session_id = said.get("session_id")
    folder = (places.get("current_dir") if type(places) is dict else None) or said.get("cwd")
    return (
        session_id if type(session_id) is str and session_id else None,
        folder if type(folder) is str and folder.startswith("/") and "\0" not in folder else None,
    )


class _Decoder:
    """What the C scanner asks of a JSONDecoder."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def render(title: str, web_url: str | None, remaining_s: int, *, plain: bool) -> str:
    """The line, or nothing when the session is over. Its host is printable whatever the session file says."""
    if remaining_s <= 0:
        return ""
    host = (web_url or "").partition("://")[2].partition("/")[0]
    if not host.endswith("]") and host.rpartition(":")[2].isdigit():
        host = host.rpartition(":")[0]
    if not host or host.strip(_HOST):
        host = title
    left = f"~{remaining_s // 60}m" if remaining_s >= 60 else "<1m"
    if plain:
        return f"working-on:{host} {left}\n"
    colour = _RED if remaining_s < _RED_BELOW_S else _YELLOW if remaining_s < _YELLOW_BELOW_S else _GREEN
    return f"{colour}⬡ working-on:{host} · {left}{_PLAIN}\n"
