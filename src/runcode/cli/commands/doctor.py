"""`runcode doctor`: what may be wrong here, and what to type. Exit 1 when something fails."""

from __future__ import annotations

from runcode.cli.arguments import new_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context


# In a room above this one: named here, imported by nobody below.
_FURTHER = "runcode.agents.boundary.checks"


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("doctor", "Look for what may be wrong on this machine, and say what to type.", json=True)
    parser.add_argument("--web-base", metavar="URL", help="the console's address")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    from importlib import import_module

    from runcode.client import doctor

    subject = doctor.Subject(
        environ=context.environ,
        api_base=options.api_base,
        web_base=options.web_base,
        token_file=options.token_file,
        token_option=options.token,
        stdin=context.stdin,
    )
    checks = []
    for check in doctor.examine(subject, import_module(_FURTHER).list_checks):
        checks.append(check)
        if not options.json:
            context.output.line(f"{check.status:<5} {check.name:<16} {check.detail}")
            # A slow network check must not look like a hang.
            context.output.flush()
    healthy = all(check.status != doctor.FAIL for check in checks)
    if options.json:
        rows = [{"name": check.name, "status": check.status, "detail": check.detail} for check in checks]
        context.output.json({"ok": healthy, "checks": rows})
    return 0 if healthy else 1
