"""`runcode config-ssh`: one host per workspace in the person's own ssh config, in a block of ours."""

from __future__ import annotations

from runcode.cli.arguments import new_parser
from runcode.client import platforms, program, proxying, ssh_user_config
from runcode.core.sshblock import ALIAS_PREFIX, HostEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings
    from runcode.client.ssh_user_config import Change
    from runcode.core.wire import Workspace


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser(
        "config-ssh",
        "Write a host `runcode.<title>` for each of your workspaces into ~/.ssh/config, for ssh, git, scp and editors.",
        json=True,
    )
    parser.add_argument("--remove", action="store_true", help="take these hosts out again")
    parser.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    entries: list[HostEntry] = []
    skipped: list[str] = []
    if not options.remove:
        entries, skipped = _entries(settings, context.api(settings).list_workspaces())
        _warn(settings, context)
    if options.dry_run:
        change = ssh_user_config.plan_change(settings, entries or None)
    else:
        change = ssh_user_config.apply_change(settings, entries or None)
    if options.json:
        context.output.json(
            {
                "path": change.path,
                "changed": change.is_needed and not options.dry_run,
                "would_change": change.is_needed,
                "hosts": [entry.alias for entry in entries],
                "skipped": skipped,
            }
        )
        return 0
    for name in skipped:
        context.output.notice(f"skipped {name}: another workspace has that title; use its id with `runcode connect`")
    if options.dry_run:
        _show_difference(change, context)
    else:
        _tell(change, entries, options.remove, context)
    return 0


def _entries(settings: Settings, listed: list[Workspace]) -> tuple[list[HostEntry], list[str]]:
    """One per SSH-capable workspace, by title; your own before a shared one of the same title."""
    platform = platforms.current()
    command = [program.ensure_lasting_program(settings), "proxy", "--api-base", settings.api_base]
    command += _moved_folders(settings, platform)
    known_hosts = platform.quote_for_ssh_config(proxying.known_hosts_path(settings))
    entries: dict[str, HostEntry] = {}
    skipped: list[str] = []
    for one in listed:
        # ssh folds a host's case before it looks for a match in some versions: equal but for case is equal.
        if one.ssh_capable and one.title.lower() in entries:
            skipped.append(f"{one.title} (id {one.id})")
        elif one.ssh_capable:
            entries[one.title.lower()] = HostEntry(
                title=one.title,
                display_name=one.custom_title,
                proxy_command=" ".join(platform.quote_for_proxy_command(word) for word in [*command, str(one.id)]),
                identity_files=tuple(
                    platform.quote_for_ssh_config(path) for path in proxying.identity_paths(settings, one.id)
                ),
                known_hosts_file=known_hosts,
                null_device=platform.null_device,
            )
    return sorted(entries.values(), key=lambda entry: entry.alias), skipped


def _moved_folders(settings: Settings, platform: platforms.Platform) -> list[str]:
    """Options for the folders that the environment names: an editor started from a desktop has no such variables."""
    plain = {name: value for name, value in settings.environ.items() if not name.startswith("XDG_")}
    words: list[str] = []
    for option, base in (("--config-home", platform.config_base), ("--cache-home", platform.cache_base)):
        if base(settings.environ) != base(plain):
            words += [option, base(settings.environ)]
    return words


def _warn(settings: Settings, context: Context) -> None:
    elsewhere = platforms.current().find_other_ssh_home(settings.environ)
    if elsewhere is not None:
        context.output.notice(f"warning: HOME is not your own home; ssh itself reads {elsewhere}/.ssh/config")
    if settings.saved_base != settings.api_base:
        context.output.notice(
            "warning: no token is saved for this server, so these hosts work only where RUNCODE_TOKEN and "
            "RUNCODE_API_BASE are set (`runcode login` saves one)"
        )


def _show_difference(change: Change, context: Context) -> None:
    import difflib

    before, after = (
        (text or b"").decode("utf-8", "replace").expandtabs(4).splitlines() for text in (change.before, change.after)
    )
    if not change.is_needed:
        context.output.line(f"{change.path} would not change")
    for line in difflib.unified_diff(before, after, change.path, change.path, lineterm=""):
        context.output.line(line)


def _tell(change: Change, entries: list[HostEntry], removed: bool, context: Context) -> None:
    if removed:
        context.output.line(
            f"took the hosts out of {change.path}" if change.is_needed else f"{change.path} holds no host of ours"
        )
        return
    verb = "wrote" if change.is_needed else "nothing to change:"
    context.output.line(f"{verb} {len(entries)} host(s) in {change.path}")
    for entry in entries[:20]:
        context.output.line(f"    ssh {entry.alias}")
    if len(entries) > 20:
        context.output.line(f"    … and {len(entries) - 20} more, each {ALIAS_PREFIX}<title>")
