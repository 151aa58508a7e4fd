"""The operator's command, `runcode-server`: parse, run, and the one error boundary.

Owns: options, help, exit statuses and what is printed. Results go to stdout,
everything else to stderr; with `--json` a failure is an object on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from runcode import __version__
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable, printable_lines

_log = logging.getLogger(__name__)
_DATA_DIR_VARIABLE = "RUNCODE_DATA_DIR"


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints become `usage` errors of ours: one line, and JSON where asked for."""

    def error(self, message: str) -> NoReturn:
        raise RunCodeError("usage", message, resolution=f"see `{self.prog} --help`")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    wants_json = "--json" in words
    try:
        options = make_parser().parse_args(words)
        return int(options.run(options))
    except RunCodeError as error:
        return _fail(error, wants_json)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "runcode").partition(".")[0] != "runcode":
            return _fail(_missing_package(error.name), wants_json)
        reference = secrets.token_hex(4)
        _log.exception("unexpected failure %s", reference)
        return _fail(
            RunCodeError("internal", f"unexpected failure, reference {reference} in the log above"), wants_json
        )


def _missing_package(name: str | None) -> RunCodeError:
    """The plain distribution is the client, which needs no package at all."""
    return RunCodeError(
        "missing_program",
        f"the service's Python packages are not installed here ({name})",
        resolution="install them: `pip install 'runcode[server]'`, or in a clone `pip install '.[server]'`",
    )


def _fail(error: RunCodeError, wants_json: bool) -> int:
    message = printable(error.message, limit=600)
    if wants_json:
        print(json.dumps({"error": error.code, "message": message, "resolution": error.resolution}))
    else:
        print(f"runcode-server: {error.code}: {message} ({error.resolution})", file=sys.stderr)
    return error.kind.exit_status


# ---------------------------------------------------------------- running


def _run_up(options: argparse.Namespace) -> int:
    from runcode.server.listeners import parse_address, parse_public_url
    from runcode.server.up import UpOptions, run_up

    _set_up_logging(options.verbose)
    ssh = None if options.ssh == "off" else parse_address(options.ssh, "--ssh")
    public = None if options.ssh_public is None else parse_address(options.ssh_public, "--ssh-public")
    if ssh is not None and public is None and ssh.host in ("0.0.0.0", "::"):  # noqa: S104
        raise RunCodeError(
            "usage",
            f"--ssh {options.ssh} listens everywhere, but clients need one address to connect to",
            resolution="name it with --ssh-public HOST:PORT",
        )
    return run_up(
        UpOptions(
            data_dir=_data_dir(options),
            http=parse_address(options.http, "--http"),
            ssh=ssh,
            ssh_public=public,
            public_url=None if options.public_url is None else parse_public_url(options.public_url),
            ready_file=None if options.ready_file is None else Path(options.ready_file).absolute(),
            admin_email=options.admin_email,
            keep_workspaces=options.keep_workspaces,
            box_network=options.box_network == "on",
            min_free_bytes=options.min_free_bytes,
            keep_events=options.keep_events,
            keep_ended_sessions_s=options.keep_ended_sessions_s,
            audit_checkpoints=None if options.audit_checkpoints is None else Path(options.audit_checkpoints).absolute(),
            audit_log=options.audit_log,
            mask_file=None if options.mask_file is None else Path(options.mask_file),
        )
    )


def _run_verb(options: argparse.Namespace) -> int:
    from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
    from runcode.server import verbs
    from runcode.server.data_folder import DataFolder

    _set_up_logging(verbose=False)
    folder = DataFolder(_data_dir(options))
    folder.require_initialised()
    verb: verbs.Verb = getattr(verbs, options.verb)

    async def act() -> verbs.Answer:
        settings = ControlPlaneSettings(database=folder.database, keys_folder=folder.keys)
        # A server of the version before may be running on this very database.
        plane = await ControlPlane.open(settings, upgrade=False)
        try:
            return await verb(plane, folder, options)
        finally:
            await plane.close()

    answer = asyncio.run(act())
    if answer.text or (options.json and answer.value is not None):
        print(json.dumps(answer.value, indent=1) if options.json else answer.text)
    return answer.exit_status


def _run_doctor(options: argparse.Namespace) -> int:
    from runcode.server import doctor

    named = options.data_dir or os.environ.get(_DATA_DIR_VARIABLE)
    checks = doctor.run_checks(Path(named) if named else None)
    report = doctor.render_json(checks)
    print(json.dumps(report, indent=1) if options.json else printable_lines(doctor.render_text(checks)))
    return 0 if report["ok"] else 1


def _data_dir(options: argparse.Namespace) -> Path:
    named = options.data_dir or os.environ.get(_DATA_DIR_VARIABLE)
    if not named:
        raise RunCodeError(
            "usage", "which data folder?", resolution=f"name it with --data-dir DIR, or set {_DATA_DIR_VARIABLE}"
        )
    return Path(named)


def _set_up_logging(verbose: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )


# ---------------------------------------------------------------- options


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="runcode-server", description="Host RunCode: control plane, SSH gateway and workspaces.")
    parser.add_argument("--version", action="version", version=f"runcode-server {__version__}")
    nouns = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_up(nouns)
    doctor = nouns.add_parser("doctor", help="what this machine can give to a server and its boxes")
    _add_data_dir(doctor)
    doctor.add_argument("--json", action="store_true", help="answer with JSON")
    doctor.set_defaults(run=_run_doctor)

    user = _add_noun(nouns, "user", "people who may sign in")
    create = _add_verb(user, "create", "create_user", "make a user; prints a password once")
    create.add_argument("email", metavar="EMAIL")
    create.add_argument("--admin", action="store_true", help="may administer this server")
    create.add_argument("--password-stdin", action="store_true", help="read the password from stdin")
    password = _add_verb(user, "password", "set_password", "give a user another password; prints it once")
    password.add_argument("email", metavar="EMAIL")
    password.add_argument("--password-stdin", action="store_true", help="read the password from stdin")
    _add_verb(user, "list", "list_users", "list them")
    _add_verb(user, "disable", "disable_user", "shut a user out, at once").add_argument("email", metavar="EMAIL")
    _add_verb(user, "enable", "enable_user", "let a disabled user in again").add_argument("email", metavar="EMAIL")

    token = _add_noun(nouns, "token", "API tokens, one for each machine of a person")
    create = _add_verb(token, "create", "create_token", "make one; prints it once, alone")
    create.add_argument("name", metavar="NAME", help="what it is for, such as laptop")
    create.add_argument("--user", metavar="EMAIL", help="whose (default: the first admin)")
    create.add_argument("--expires-days", type=_positive, metavar="N", help="end it after N days (default: never)")
    listing = _add_verb(token, "list", "list_tokens", "list them (never the tokens themselves)")
    listing.add_argument("--user", metavar="EMAIL", help="one person's only")
    revoke = _add_verb(token, "revoke", "revoke_token", "end one, and what it had opened, at once")
    revoke.add_argument("id", type=_positive, metavar="ID")

    session = _add_noun(nouns, "session", "the rights to connect that clients were given, each for a short while")
    listing = _add_verb(session, "list", "list_sessions", "list those that may connect now")
    listing.add_argument("--workspace", metavar="WS", help="one workspace's only: title or id")
    listing.add_argument("--user", metavar="EMAIL", help="one person's only")
    listing.add_argument("--all", action="store_true", help="also those that have ended and are not forgotten yet")
    revoke = _add_verb(session, "revoke", "revoke_sessions", "end them, and cut what they had opened, at once")
    revoke.add_argument("ids", type=_positive, nargs="+", metavar="ID")

    activity = _add_verb(nouns, "activity", "list_activity", "what was done through the gateway, newest first")
    activity.add_argument("workspace", nargs="?", metavar="WS", help="one workspace's only: title or id")
    activity.add_argument("--limit", type=_positive, default=50, metavar="N", help="at most N lines (default: 50)")

    audit = _add_noun(nouns, "audit", "the record of everything that was done, and whether it is whole")
    verify = _add_verb(
        audit, "verify", "verify_audit", "read all of it, and tell what was changed since it was written"
    )
    verify.add_argument("--checkpoints", metavar="FILE", help="the signed checkpoints (DIR/audit/checkpoints.jsonl)")
    verify.add_argument("--public-key", metavar="FILE", help="the audit key's public half (DIR/keys/audit_ed25519.pub)")
    export = _add_verb(audit, "export", "export_audit", "all records as JSON lines, oldest first")
    export.add_argument("--after", type=_number, default=0, metavar="N", help="only those after record N (default: 0)")

    workspace = _add_noun(nouns, "workspace", "the boxes")
    create = _add_verb(workspace, "create", "create_workspace", "make one (stopped)")
    create.add_argument("title", metavar="TITLE", help="its stable name: A-Z a-z 0-9 . _ -")
    create.add_argument("--runtime", default="local", help="what runs it (default: local)")
    create.add_argument("--owner", metavar="EMAIL", help="whose (default: the first admin)")
    create.add_argument("--custom-title", default="", metavar="TEXT", help="a free name for people")
    _add_verb(workspace, "list", "list_workspaces", "list all")
    for verb, action, about in (
        ("start", "start_workspace", "boot it"),
        ("stop", "stop_workspace", "power it down; its storage stays"),
        ("delete", "delete_workspace", "destroy it, storage included"),
    ):
        power = _add_verb(workspace, verb, action, about)
        power.add_argument("workspace", metavar="WS", help="title or id")
        power.add_argument("--no-wait", action="store_true", help="return before it is done")
    share = _add_verb(workspace, "share", "share_workspace", "let somebody else in")
    share.add_argument("workspace", metavar="WS", help="title or id")
    share.add_argument("email", metavar="EMAIL")
    share.add_argument("--role", choices=("use", "manage"), default="use", help="manage: may also stop it")
    unshare = _add_verb(workspace, "unshare", "unshare_workspace", "shut them out again, at once")
    unshare.add_argument("workspace", metavar="WS", help="title or id")
    unshare.add_argument("email", metavar="EMAIL")
    return parser


def _add_up(nouns: argparse._SubParsersAction[_Parser]) -> None:
    up = nouns.add_parser("up", help="serve everything, in the foreground, until SIGTERM or Ctrl-C")
    _add_data_dir(up)
    up.add_argument(
        "--http", default="127.0.0.1:8080", metavar="HOST:PORT", help="control plane (default: %(default)s)"
    )
    up.add_argument("--ssh", default="127.0.0.1:8022", metavar="HOST:PORT", help="SSH gateway, or `off` (%(default)s)")
    up.add_argument("--ssh-public", metavar="HOST:PORT", help="the gateway's address as clients reach it")
    up.add_argument("--public-url", metavar="URL", help="the control plane's https address, behind a proxy with TLS")
    up.add_argument("--ready-file", metavar="FILE", help="written (0600) once everything really answers")
    up.add_argument("--admin-email", default="admin@localhost", metavar="EMAIL", help="at the first start only")
    up.add_argument("--keep-workspaces", action="store_true", help="leave the boxes running when this server stops")
    up.add_argument(
        "--box-network",
        choices=("on", "off"),
        default="on",
        help="may boxes that start from now on reach the internet (default: %(default)s)",
    )
    up.add_argument(
        "--keep-events", type=_positive, metavar="N", help="how many events `activity` can look back on (100000)"
    )
    up.add_argument(
        "--audit-checkpoints",
        metavar="FILE",
        help="where the audit's signed checkpoints go: best another disk (DIR/audit/checkpoints.jsonl)",
    )
    up.add_argument("--audit-log", action="store_true", help="write each checkpoint of the audit to the log as well")
    up.add_argument("--mask-file", metavar="FILE", help="more patterns of secrets in commands, one a line")
    up.add_argument("--verbose", action="store_true", help="say more in the log")
    # For tests of full disks, and for operators of tiny ones.
    up.add_argument("--keep-ended-sessions-s", type=_positive, help=argparse.SUPPRESS)
    up.add_argument("--min-free-bytes", type=int, help=argparse.SUPPRESS)
    up.set_defaults(run=_run_up)


def _add_noun(nouns: argparse._SubParsersAction[_Parser], name: str, about: str) -> argparse._SubParsersAction[_Parser]:
    noun = nouns.add_parser(name, help=about, description=about)
    return noun.add_subparsers(title="verbs", metavar="VERB", required=True)


def _add_verb(
    verbs: argparse._SubParsersAction[_Parser], name: str, function: str, about: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=about, description=about)
    _add_data_dir(verb)
    verb.add_argument("--json", action="store_true", help="answer with JSON")
    verb.set_defaults(run=_run_verb, verb=function)
    return verb


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help=f"the server's data folder (or {_DATA_DIR_VARIABLE})")


def _number(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
