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
from typing import TYPE_CHECKING, NoReturn

from runcode import __version__
from runcode.core.errors import RunCodeError
from runcode.core.terminal import printable, printable_lines
from runcode.server.workspace_options import (
    add_policy_options,
    add_up_options,
    parse_idle,
    parse_limit,
    read_up_options,
)

if TYPE_CHECKING:
    from runcode.server.front import FrontOptions

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
    from runcode.server.database_choice import find_named_database
    from runcode.server.identity_options import read_oidc_options
    from runcode.server.listeners import parse_address
    from runcode.server.logs import set_up_logging
    from runcode.server.up import UpOptions, run_up

    set_up_logging(log_format=options.log_format, verbose=options.verbose)
    oidc, oidc_policy = read_oidc_options(options)
    ssh = None if options.ssh in ("off", "remote") else parse_address(options.ssh, "--ssh")
    remote_host_key = _find_remote_host_key(options)
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
            front=_front_options(options),
            log_format=options.log_format,
            ssh=ssh,
            ssh_public=public,
            remote_host_key=remote_host_key,
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
            oidc=oidc,
            oidc_policy=oidc_policy,
            workspaces=read_up_options(options),
            database=find_named_database(options.database, options.database_file),
            keys=None if options.keys is None else Path(options.keys).absolute(),
            client_ca=None if options.client_ca == "off" else options.client_ca,
            trusted_client_cas=None if options.trusted_client_cas is None else Path(options.trusted_client_cas),
        )
    )


def _find_remote_host_key(options: argparse.Namespace) -> str | None:
    """With `--ssh remote`: the host key that bundles name."""
    from runcode.core.hostkeys import parse_public_key

    if options.ssh != "remote":
        if options.ssh_host_key is not None:
            raise RunCodeError(
                "usage", "--ssh-host-key goes with --ssh remote", resolution="see `runcode-server up --help`"
            )
        return None
    if options.ssh_public is None or options.ssh_host_key is None:
        raise RunCodeError(
            "usage",
            "--ssh remote needs the gateways' address and host key",
            resolution="add --ssh-public HOST:PORT and --ssh-host-key FILE.pub",
        )
    try:
        text = Path(options.ssh_host_key).read_text(encoding="utf-8")[:16384]
    except (OSError, UnicodeDecodeError) as error:
        raise RunCodeError(
            "io_error", f"{options.ssh_host_key} cannot be read", resolution="name a .pub file"
        ) from error
    return parse_public_key(" ".join(text.split()[:2])).line


def _run_gateway(options: argparse.Namespace) -> int:
    from runcode.server.gateway_process import GatewayOptions, parse_control_plane, run_worker
    from runcode.server.gateway_supervisor import run_gateway
    from runcode.server.listeners import parse_address
    from runcode.server.logs import set_up_logging

    set_up_logging(log_format=options.log_format, verbose=options.verbose)
    credential_file = Path(options.credential_file).absolute()
    asked = GatewayOptions(
        control_plane=parse_control_plane(options.control_plane),
        credential_file=credential_file,
        ssh=parse_address(options.ssh, "--ssh"),
        host_key=Path(options.host_key).absolute(),
        spool=credential_file.parent / "spool" if options.spool is None else Path(options.spool).absolute(),
        workers=options.workers,
        balancers=tuple(options.proxy_protocol_from),
        ca_file=None if options.ca_file is None else Path(options.ca_file).absolute(),
        ready_file=None if options.ready_file is None else Path(options.ready_file).absolute(),
        drain_s=options.drain_s,
        verbose=options.verbose,
        log_format=options.log_format,
    )
    return run_gateway(asked) if options.worker is None else run_worker(asked, options.worker)


def _front_options(options: argparse.Namespace) -> FrontOptions:
    from runcode.controlplane.rate_limits import LimitPolicy, parse_rate
    from runcode.server.front import FrontOptions
    from runcode.server.listeners import parse_address, parse_public_url
    from runcode.server.web import ConnectionLimits

    def find_path(named: str | None) -> Path | None:
        return None if named is None else Path(named).absolute()

    return FrontOptions(
        http=parse_address(options.http, "--http"),
        public_url=None if options.public_url is None else parse_public_url(options.public_url),
        tls_certificate=find_path(options.tls_cert),
        tls_key=find_path(options.tls_key),
        trusted_proxies=tuple(options.trusted_proxy),
        allowed_hosts=tuple(options.allowed_host),
        metrics=None if options.metrics is None else parse_address(options.metrics, "--metrics"),
        metrics_token_file=find_path(options.metrics_token_file),
        rates=LimitPolicy(
            token=parse_rate(options.rate_token, "--rate-token"),
            address=parse_rate(options.rate_address, "--rate-address"),
            strangers=parse_rate(options.rate_strangers, "--rate-strangers"),
        ),
        connections=ConnectionLimits(in_all=options.max_connections, per_address=max(16, options.max_connections // 4)),
        drain_s=options.drain_s,
    )


def _run_verb(options: argparse.Namespace) -> int:
    from runcode.controlplane.plane import ControlPlane, ControlPlaneSettings
    from runcode.server import verbs
    from runcode.server.data_folder import DataFolder
    from runcode.server.workspace_policy import make_policy

    _set_up_logging(verbose=False)
    folder = DataFolder(_data_dir(options))
    folder.require_initialised()
    verb: verbs.Verb = getattr(verbs, options.verb)

    async def act() -> verbs.Answer:
        settings = ControlPlaneSettings(
            database=folder.load_location(), keys_folder=folder.keys, workspaces=make_policy(folder.path)
        )
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


def _run_restore(options: argparse.Namespace) -> int:
    from runcode.server.backup_verbs import restore
    from runcode.server.data_folder import DataFolder
    from runcode.server.database_choice import find_named_database

    _set_up_logging(verbose=False)
    url = find_named_database(options.database, options.database_file)
    answer = restore(Path(options.file).absolute(), DataFolder(_data_dir(options)), url)
    print(json.dumps(answer.value, indent=1) if options.json else answer.text)
    return 0


def _run_upgrade(options: argparse.Namespace) -> int:
    from runcode.server.data_folder import DataFolder
    from runcode.server.database_verbs import upgrade

    _set_up_logging(verbose=False)
    folder = DataFolder(_data_dir(options))
    folder.require_initialised()
    answer = upgrade(folder)
    print(json.dumps(answer.value, indent=1) if options.json else answer.text)
    return 0


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
    link = _add_verb(user, "sign-in-link", "create_sign_in_link", "a link that signs a user's browser in, once")
    link.add_argument("email", metavar="EMAIL")
    link.add_argument(
        "--web-base", metavar="URL", help="the server's address (default: where the last `up` was reached)"
    )
    sign_out = _add_verb(user, "sign-out", "sign_user_out", "end a user's signed-in browsers, everywhere")
    sign_out.add_argument("email", metavar="EMAIL")
    sign_out.add_argument("--tokens", action="store_true", help="revoke their API tokens, too")
    invite = _add_verb(user, "invite", "invite_user", "let a verified e-mail address in through the OpenID provider")
    invite.add_argument("email", metavar="EMAIL")
    invite.add_argument("--issuer", required=True, metavar="URL", help="the provider, as in `up --oidc-issuer`")
    identity = _add_verb(user, "link", "link_identity", "say who a user is at the OpenID provider")
    identity.add_argument("email", metavar="EMAIL")
    identity.add_argument("--issuer", required=True, metavar="URL", help="the provider, as in `up --oidc-issuer`")
    identity.add_argument("--subject", required=True, metavar="SUB", help="the user's `sub` there")
    unlink = _add_verb(user, "unlink", "unlink_identities", "forget who a user is at OpenID providers")
    unlink.add_argument("email", metavar="EMAIL")
    _add_verb(user, "list", "list_users", "list them")
    _add_verb(user, "disable", "disable_user", "shut a user out, at once").add_argument("email", metavar="EMAIL")
    _add_verb(user, "enable", "enable_user", "let a disabled user in again").add_argument("email", metavar="EMAIL")

    quota = _add_verb(user, "quota", "set_quota", "how many workspaces a user may have; without options: show it")
    quota.add_argument("email", metavar="EMAIL")
    for option, about in (("--workspaces", "may own"), ("--running", "may have running at once")):
        quota.add_argument(
            option, type=parse_limit, metavar="N", help=f"{about}: a number, or default (what `up` says)"
        )

    token = _add_noun(nouns, "token", "API tokens, one for each machine of a person")
    create = _add_verb(token, "create", "create_token", "make one; prints it once, alone")
    add_policy_options(create)
    create.add_argument("name", metavar="NAME", help="what it is for, such as laptop")
    create.add_argument("--user", metavar="EMAIL", help="whose (default: the first admin)")
    create.add_argument("--expires-days", type=_positive, metavar="N", help="end it after N days (default: never)")
    create.add_argument("--expires-in", metavar="TIME", help="end it after so long, such as 45m, 12h or 30d")
    create.add_argument(
        "--scope",
        action="append",
        choices=("read", "connect", "manage"),
        help="what it may do at most; may be given again (default: all)",
    )
    create.add_argument(
        "--workspace",
        action="append",
        metavar="WS",
        help="title or id of a workspace that it is for; may be given again (default: all that the person may use)",
    )
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

    backup = _add_verb(nouns, "backup", "make_backup", "the database and the keys into one private file, at any time")
    backup.add_argument("file", metavar="FILE", help="a new file; nothing is overwritten")
    restore = _add_verb(nouns, "restore", "restore", "a new data folder and database from a backup")
    restore.add_argument("file", metavar="FILE", help="what `backup` made, on SQLite or Postgres")
    _add_database(restore)
    restore.set_defaults(run=_run_restore)

    database = _add_noun(nouns, "database", "the database itself")
    _add_verb(database, "status", "show_database", "which, how large, who uses it, what is in it")
    _add_verb(database, "check", "check_database", "read all of it, and say what is not whole")
    upgrade = _add_verb(database, "upgrade", "upgrade", "bring its schema to this version's, without serving")
    upgrade.set_defaults(run=_run_upgrade)
    _add_verb(database, "vacuum", "vacuum_database", "give freed space back; writers wait meanwhile (SQLite)")

    _add_verb(nouns, "leases", "list_leases", "what servers are working on right now")

    workspace = _add_noun(nouns, "workspace", "the boxes")
    create = _add_verb(workspace, "create", "create_workspace", "make one (stopped)")
    create.add_argument(
        "title", nargs="?", metavar="TITLE", help="its stable name: A-Z a-z 0-9 . _ - (default: one is made up)"
    )
    create.add_argument("--runtime", default="local", help="what runs it (default: local)")
    create.add_argument("--owner", metavar="EMAIL", help="whose (default: the first admin)")
    create.add_argument("--custom-title", default="", metavar="TEXT", help="a free name for people")
    create.add_argument("--size", metavar="SIZE", help="how much its box may take (default: standard)")
    create.add_argument(
        "--idle",
        type=parse_idle,
        metavar="TIME",
        help="stop it after so long without use: 30m, 12h, never, or default (what `up` says)",
    )
    _add_verb(workspace, "list", "list_workspaces", "list all")
    for verb, action, about in (
        ("start", "start_workspace", "boot it"),
        ("stop", "stop_workspace", "power it down; its storage stays"),
        ("delete", "delete_workspace", "destroy it, storage included"),
    ):
        power = _add_verb(workspace, verb, action, about)
        power.add_argument("workspace", metavar="WS", help="title or id")
        power.add_argument("--no-wait", action="store_true", help="return before it is done")
    show = _add_verb(workspace, "show", "show_workspace", "what is known of one: lease, checkpoints, failures, place")
    show.add_argument("workspace", metavar="WS", help="title or id")
    retry = _add_verb(workspace, "retry", "retry_workspace", "forget failures and back-off: try again now")
    retry.add_argument("workspace", metavar="WS", help="title or id")
    retry.add_argument(
        "--elsewhere",
        action="store_true",
        help="the machine it lives on is gone for good: let another server start it, without its storage",
    )
    change = _add_verb(workspace, "set", "change_workspace", "change its size, idle time or name for people")
    change.add_argument("workspace", metavar="WS", help="title or id")
    change.add_argument("--custom-title", metavar="TEXT", help="a free name for people")
    change.add_argument("--size", metavar="SIZE", help="from its next start on")
    change.add_argument("--idle", type=parse_idle, metavar="TIME", help="30m, 12h, never, or default (what `up` says)")
    add_policy_options(change)
    share = _add_verb(workspace, "share", "share_workspace", "let somebody else in, or a team")
    unshare = _add_verb(workspace, "unshare", "unshare_workspace", "shut them out again, at once")
    for sharing in (share, unshare):
        sharing.add_argument("workspace", metavar="WS", help="title or id")
        sharing.add_argument("email", nargs="?", metavar="EMAIL")
        sharing.add_argument("--team", metavar="TEAM", help="a team instead: name or id")
    share.add_argument("--role", choices=("use", "manage"), default="use", help="manage: may also stop it")
    _add_verb(workspace, "sizes", "list_sizes", "the sizes that this server offers")

    gateway = _add_noun(nouns, "gateway", "SSH gateways that run as processes of their own")
    create = _add_verb(gateway, "create", "create_gateway", "a credential for one; prints it once, alone")
    create.add_argument("name", metavar="NAME", help="what its events are listed under, such as edge-1")
    _add_verb(gateway, "list", "list_gateways", "list them (never the credentials)")
    revoke = _add_verb(gateway, "revoke", "revoke_gateway", "let a gateway ask nothing any more")
    revoke.add_argument("name", metavar="NAME")
    _add_gateway_run(gateway)

    authority = _add_noun(nouns, "ca", "the authorities that sign certificates")
    _add_verb(authority, "list", "list_authorities", "list them, with what each is good for")
    about = "sign clients' certificates with another key from now on; what older ones signed counts until it expires"
    _add_verb(authority, "rotate", "rotate_authority", about)
    about = "let nobody in by an older client CA any more, and cut whoever came in by it, at once"
    retire = _add_verb(authority, "retire", "retire_authority", about)
    retire.add_argument("fingerprint", metavar="SHA256:…", help="as `ca list` prints it")

    team = _add_noun(nouns, "team", "people with whom a workspace is shared by one word")
    create = _add_verb(team, "create", "create_team", "make one")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--admin", metavar="EMAIL", help="its first admin (default: the first admin of the server)")
    _add_verb(team, "list", "list_teams", "list all")
    members = _add_verb(team, "members", "list_members", "who is in it")
    add = _add_verb(team, "add", "add_member", "take somebody in, or change the role")
    remove = _add_verb(team, "remove", "remove_member", "take somebody out, at once")
    rename = _add_verb(team, "rename", "rename_team", "give it another name")
    delete = _add_verb(team, "delete", "delete_team", "delete it with its shares; who came in by it is cut")
    for about_one in (members, add, remove, rename, delete):
        about_one.add_argument("team", metavar="TEAM", help="name or id")
    for about_somebody in (add, remove):
        about_somebody.add_argument("email", metavar="EMAIL")
    add.add_argument("--role", choices=("member", "admin"), default="member", help="admin: may change the team")
    rename.add_argument("name", metavar="NAME")
    return parser


def _add_up(nouns: argparse._SubParsersAction[_Parser]) -> None:
    up = nouns.add_parser("up", help="serve everything, in the foreground, until SIGTERM or Ctrl-C")
    _add_data_dir(up)
    up.add_argument(
        "--http", default="127.0.0.1:8080", metavar="HOST:PORT", help="control plane (default: %(default)s)"
    )
    up.add_argument(
        "--ssh",
        default="127.0.0.1:8022",
        metavar="HOST:PORT",
        help="SSH gateway; `off`, or `remote`: see `gateway run` (%(default)s)",
    )
    up.add_argument("--ssh-public", metavar="HOST:PORT", help="the gateway's address as clients reach it")
    up.add_argument("--ssh-host-key", metavar="FILE.pub", help="with --ssh remote: the gateways' public host key")
    up.add_argument("--public-url", metavar="URL", help="the control plane's https address as clients reach it")
    up.add_argument("--ready-file", metavar="FILE", help="written (0600) once everything really answers")
    _add_database(up)
    up.add_argument(
        "--keys", metavar="DIR", help="at the first start on a database that has an installation: the keys of that one"
    )
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
    certificates = up.add_argument_group("certificates for clients that can use them")
    certificates.add_argument(
        "--client-ca",
        default="off",
        metavar="off|disk|file:PATH|agent:SOCKET",
        help="what signs them: the data folder's own key, a file's, or an ssh agent's (default: %(default)s)",
    )
    certificates.add_argument(
        "--trusted-client-cas", metavar="FILE", help="public keys, one a line, whose certificates still count"
    )
    up.add_argument("--mask-file", metavar="FILE", help="more patterns of secrets in commands, one a line")
    _add_front(up)
    up.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="lines for people, or JSON objects with one for each request (default: %(default)s)",
    )
    oidc = up.add_argument_group("sign-in through an OpenID provider")
    oidc.add_argument("--oidc-issuer", metavar="URL", help="the provider, as its own documents name it")
    oidc.add_argument("--oidc-client-id", metavar="ID", help="this server as the provider knows it")
    oidc.add_argument("--oidc-client-secret-file", metavar="FILE", help="holds the secret that goes with it")
    oidc.add_argument("--oidc-name", metavar="NAME", help="what people read on the button (default: the issuer's host)")
    oidc.add_argument(
        "--oidc-domain",
        action="append",
        default=[],
        metavar="DOMAIN",
        help="make an account for whoever has a verified e-mail address there (default: invited people only)",
    )
    add_up_options(up)
    up.add_argument("--verbose", action="store_true", help="say more in the log")
    # For tests of full disks, and for operators of tiny ones.
    up.add_argument("--keep-ended-sessions-s", type=_positive, help=argparse.SUPPRESS)
    up.add_argument("--min-free-bytes", type=int, help=argparse.SUPPRESS)
    up.set_defaults(run=_run_up)


def _add_gateway_run(gateway: argparse._SubParsersAction[_Parser]) -> None:
    about = "serve SSH for a control plane that is elsewhere, in the foreground, until SIGTERM or Ctrl-C"
    run = gateway.add_parser("run", help=about, description=about)
    run.add_argument("--control-plane", required=True, metavar="URL", help="its https address (http on loopback only)")
    run.add_argument("--credential-file", required=True, metavar="FILE", help="what `gateway create` printed (0600)")
    run.add_argument("--ssh", default="127.0.0.1:8022", metavar="HOST:PORT", help="listen there (default: %(default)s)")
    run.add_argument("--host-key", required=True, metavar="FILE", help="the gateways' private host key, Ed25519 (0600)")
    run.add_argument("--workers", type=_workers, default=1, metavar="N", help="processes that share the port (1 to 64)")
    run.add_argument(
        "--proxy-protocol-from",
        action="append",
        default=[],
        metavar="NET",
        help="a TCP balancer, which must send a PROXY header of version 2 (address or network; repeatable)",
    )
    run.add_argument("--spool", metavar="DIR", help="events on their way (default: `spool` beside the credential file)")
    run.add_argument("--ca-file", metavar="FILE", help="who vouches for the control plane's certificate (PEM)")
    run.add_argument("--ready-file", metavar="FILE", help="written (0600) once every worker serves")
    run.add_argument(
        "--drain-s", type=_seconds, default=30.0, metavar="S", help="what open connections get at the end (%(default)g)"
    )
    run.add_argument("--log-format", choices=("text", "json"), default="text", help="as of `up` (default: %(default)s)")
    run.add_argument("--verbose", action="store_true", help="say more in the log")
    run.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    run.set_defaults(run=_run_gateway)


def _add_front(up: argparse.ArgumentParser) -> None:
    """What stands between callers and the control plane (`server/front.py`)."""
    up.add_argument("--tls-cert", metavar="FILE", help="serve https with this certificate chain (PEM)")
    up.add_argument("--tls-key", metavar="FILE", help="and this key (PEM, 0600); both are read anew when they change")
    up.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="NET",
        help="believe X-Forwarded-For and -Proto of this address or network (repeatable)",
    )
    up.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME", help="answer under this name too (repeatable)"
    )
    up.add_argument("--metrics", metavar="HOST:PORT", help="serve /metrics, /healthz and /readyz there")
    up.add_argument(
        "--metrics-token-file", metavar="FILE", help="/metrics asks for this bearer token (0600), and is on --http too"
    )
    for name, default, whose in (
        # calls a second : calls at once
        ("token", "50:200", "one API token"),
        ("address", "200:1000", "one address"),
        ("strangers", "5:60", "one address that proves nobody"),
    ):
        up.add_argument(
            f"--rate-{name}",
            default=default,
            metavar="RATE",
            help=f"calls a second:at once of {whose} (%(default)s), or off",
        )
    up.add_argument("--max-connections", type=_positive, default=2000, metavar="N", help="HTTP, in all (%(default)s)")
    up.add_argument(
        "--drain-s",
        type=_seconds,
        default=0.0,
        metavar="S",
        help="after SIGTERM, serve on for so long while /readyz says 503 (%(default)g)",
    )


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


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database", metavar="URL", help="a Postgres server's, without a password; the data folder remembers it"
    )
    parser.add_argument(
        "--database-file", metavar="FILE", help="a file with that URL, password and all (or RUNCODE_DATABASE_URL)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return seconds


def _workers(text: str) -> int:
    number = _positive(text)
    if number > 64:
        raise argparse.ArgumentTypeError("at most 64 workers share a port")
    return number


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
