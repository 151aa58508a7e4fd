"""`runcode history [WS]`: what happened on a workspace, newest first, as the control plane keeps it."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.client import workspaces
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.api import Api
    from runcode.core.activity import Activity

LIMIT_MAX = 10_000
_PAGE = 200
# Pages that hold nothing of a rare kind; a hostile server must not keep us asking for ever.
_PAGES_MAX = 200
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_WHAT_MAX = 100


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("history", "What happened on a workspace, newest first.", json=True)
    parser.add_argument("workspace", metavar="WS", nargs="?", help="the attached one by default")
    parser.add_argument("--workspace", metavar="WS", dest="workspace_option", help="the same, as an option")
    parser.add_argument("--mine", action="store_true", help="what you did, on all workspaces")
    parser.add_argument("--limit", type=_limit, default=50, metavar="N", help="at most N records (default: 50)")
    parser.add_argument("--session", type=_number, metavar="ID", help="of one session only")
    parser.add_argument("--since", type=_age, metavar="AGE", help="not older than that: 30m, 2h, 7d")
    parser.add_argument("--kind", choices=("connection", "command", "forward", "refused"), help="of one kind only")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    named = options.workspace or options.workspace_option
    if options.mine and named:
        raise RunCodeError("usage", "--mine is on all workspaces", resolution="leave the workspace out")
    options.workspace = named
    settings = context.settings(options)
    api = context.api(settings)
    workspace_id = None if options.mine else workspaces.resolve_id(settings, named, lambda: api)
    records = _load(api, workspace_id, options)
    if options.json:
        context.output.json([_as_json(record) for record in records])
        return 0
    if not records:
        context.output.line("nothing is known to have happened")
    for record in records:
        context.output.line(_as_line(record, with_workspace=options.mine))
    return 0


def _load(api: Api, workspace_id: int | None, options: argparse.Namespace) -> list[Activity]:
    found: list[Activity] = []
    before: int | None = None
    for _ in range(_PAGES_MAX):
        records, older = api.list_activity(
            workspace_id,
            before=before,
            limit=min(_PAGE, options.limit - len(found)),
            session_id=options.session,
            kind=options.kind,
            since_s=options.since,
        )
        found += records
        if len(found) >= options.limit or older is None or (before is not None and older >= before):
            break
        before = older
    return found[: options.limit]


def _as_json(record: Activity) -> dict[str, object]:
    return {
        "id": record.id,
        "kind": record.kind,
        "email": record.email,
        "by": record.by,
        "client": record.client,
        "token_name": record.token_name,
        "session_id": record.session_id,
        "source": record.source,
        "workspace_id": record.workspace_id,
        "workspace": record.workspace,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "duration_ms": record.duration_ms,
        "command": record.command,
        "masked": record.masked,
        "form": record.form,
        "target": record.target,
        "outcome": record.outcome,
        "reason": record.reason,
        "exit_status": record.exit_status,
        "exit_signal": record.exit_signal,
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "count": record.count,
    }


def _as_line(record: Activity, *, with_workspace: bool) -> str:
    started = (record.started_at or record.ended_at or "").replace("T", " ").removesuffix("Z")
    who = " ".join(printable(word, limit=40) for word in (record.email, record.client) if word)
    where = f"{printable(record.workspace, limit=40)}  " if with_workspace and record.workspace else ""
    return f"{started}  {_lasted(record):>7}  {where}{who}  {_what(record)}  {_result(record)}".rstrip()


def _what(record: Activity) -> str:
    # One line, whatever the command is; `--json` has it as it was.
    if record.kind == "command":
        return printable(" ".join((record.command or record.form or "command").split()), limit=_WHAT_MAX)
    if record.kind == "connection":
        return f"connected from {printable(record.source or 'somewhere', limit=64)}"
    if record.kind == "forward":
        return f"forward to {printable(record.target or 'somewhere', limit=64)}"
    if record.kind == "dropped":
        return f"{record.count or 'some'} records were lost"
    if record.kind == "refused":
        times = "" if (record.count or 1) == 1 else f" {record.count} times"
        return f"refused{times} from {printable(record.source or 'several addresses', limit=64)}"
    return record.kind.replace("_", " ")


def _result(record: Activity) -> str:
    if record.kind == "refused":
        return printable(record.reason or "", limit=80)
    if record.kind not in ("command", "connection", "forward"):
        return f"by {printable(record.by, limit=40)}" if record.by and record.by != record.email else ""
    if record.ended_at is None:
        return "(still open)"
    if record.exit_status is not None:
        return f"exit {record.exit_status}"
    if record.exit_signal:
        return f"signal {printable(record.exit_signal, limit=32)}"
    return printable(record.reason or record.outcome or "", limit=80)


def _lasted(record: Activity) -> str:
    if record.duration_ms is None or record.kind not in ("command", "connection", "forward"):
        return ""
    seconds = record.duration_ms / 1000
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02}m"


def _number(text: str) -> int:
    import argparse

    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 18 and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _limit(text: str) -> int:
    import argparse

    found = _number(text)
    if found > LIMIT_MAX:
        raise argparse.ArgumentTypeError(f"at most {LIMIT_MAX}")
    return found


def _age(text: str) -> int:
    import argparse

    unit = _UNITS.get(text[-1:])
    number = text[:-1]
    if unit is None or not (number.isascii() and number.isdigit() and 0 < len(number) <= 6 and int(number) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no age: say 30m, 2h or 7d")
    return int(number) * unit
