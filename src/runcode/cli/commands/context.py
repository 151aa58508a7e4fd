"""`runcode context [WS]`: what the workspace is, so that an agent need not ask ten times."""

from __future__ import annotations

from runcode.cli.arguments import new_parser

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from runcode.cli.context import Context
    from runcode.core.remote_context import BoxContext


def parse(words: list[str]) -> argparse.Namespace:
    parser = new_parser("context", "Show what the workspace is, in one round trip.", workspace=True, json=True)
    parser.add_argument("name", metavar="WS", nargs="?", help="an id, a title or a custom title; else the attached one")
    return parser.parse_args(words)


def run(options: argparse.Namespace, context: Context) -> int:
    from runcode.client import box_contexts

    remote = context.remote(context.settings(options), options.name)
    box = box_contexts.load_context(remote)
    if options.json:
        context.output.json(
            {
                "cwd": box.cwd,
                "os": box.os,
                "arch": box.arch,
                "kernel": box.kernel,
                "distro": box.distro,
                "disk": None
                if box.disk_total is None
                else {"total_bytes": box.disk_total, "free_bytes": box.disk_free},
                "git": None
                if box.git is None
                else {
                    "branch": box.git.branch,
                    "dirty": box.git.dirty,
                    "remote": box.git.remote,
                    "head": box.git.head,
                },
                "markers": list(box.markers),
                "tools": dict(box.tools),
                "workspace_id": remote.session.workspace_id,
                "workdir": remote.session.workdir,
            }
        )
    else:
        for line in _render(box):
            context.output.line(line)
    return 0


def _render(box: BoxContext) -> list[str]:
    lines = [f"folder   {_one_line(box.cwd)}", f"system   {box.distro or box.os} ({box.os} {box.kernel}, {box.arch})"]
    if box.disk_total is not None and box.disk_free is not None:
        lines.append(f"disk     {box.disk_free / 1e9:.1f} of {box.disk_total / 1e9:.1f} GB free")
    if box.git is not None:
        state = "changed" if box.git.dirty else "clean"
        lines.append(f"git      {box.git.branch or 'no branch'} at {(box.git.head or 'no commit')[:12]}, {state}")
        if box.git.remote is not None:
            lines.append(f"remote   {_one_line(box.git.remote)}")
    lines.append(f"project  {' '.join(box.markers) or 'nothing that we know'}")
    lines.append(f"tools    {' '.join(name for name, _ in box.tools)}")
    return [_one_line(line) for line in lines]


def _one_line(untrusted_text: str) -> str:
    """`Output.line` keeps newlines, and a value with one could fake a line of ours."""
    return untrusted_text.replace("\n", "�").replace("\r", "�")
