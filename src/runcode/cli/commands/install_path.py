"""`runcode install-path`: a link in ~/.local/bin, so that shells find `runcode`."""

from __future__ import annotations

from runcode.cli.arguments import bare_parser
from runcode.client import path_link, platforms, program

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.client.settings import Settings


def parse(words: list[str]) -> argparse.Namespace:
    parser = bare_parser("install-path", "Put a link to runcode into ~/.local/bin.")
    parser.add_argument("--remove", action="store_true", help="take our link away again")
    parser.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    settings = context.settings(options)
    if platforms.current().is_windows:
        folder = program.find_own_program(settings.environ).rpartition("\\")[0]
        if options.json:
            on_path = folder in settings.environ.get("PATH", "").split(";")
            context.output.json({"path": folder, "changed": False, "on_path": on_path})
            return 0
        context.output.line("Windows keeps PATH in your account's settings; in PowerShell, once:")
        context.output.line(
            f"    [Environment]::SetEnvironmentVariable('Path', "
            f"[Environment]::GetEnvironmentVariable('Path', 'User') + ';{folder}', 'User')"
        )
        return 0
    path = path_link.link_path(settings)
    if options.remove:
        changed = path_link.remove_link(settings)
        told = f"removed {path}" if changed else f"there is no {path}"
    else:
        changed = path_link.install_link(settings, program.ensure_lasting_program(settings))
        told = f"{'linked' if changed else 'nothing to change:'} {path}"
    if options.json:
        context.output.json({"path": path, "changed": changed, "on_path": path_link.is_on_path(settings)})
        return 0
    context.output.line(told)
    if not options.remove and not path_link.is_on_path(settings):
        context.output.notice(f"its folder is not on your PATH yet: {_how_to_add(settings)}")
    return 0


def _how_to_add(settings: Settings) -> str:
    shell = settings.environ.get("SHELL", "").rpartition("/")[2]
    if shell == "fish":
        return "type `fish_add_path ~/.local/bin`"
    file = {"zsh": "~/.zshrc", "bash": "~/.bashrc"}.get(shell, "~/.profile")
    return f'add the line `export PATH="$HOME/.local/bin:$PATH"` to {file}'
