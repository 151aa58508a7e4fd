"""`make docs`: write the reference pages that follow from the code.

Owns: docs/cli.md and docs/server-cli.md (every command's own help), and the table
of codes inside docs/json-and-exit-codes.md. A test compares them with what the
code says, so they cannot drift. Prose stands around the generated parts, by hand.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from runcode.cli.main import COMMANDS
from runcode.core.errors import ERRORS

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/nonexistent", "COLUMNS": "100"}
_NOTICE = "<!-- Written by `make docs` from the parsers: change those, not this file. -->\n"
_TABLE = re.compile(r"(<!-- codes: begin -->\n).*?(<!-- codes: end -->)", re.DOTALL)


def help_of(program: str, *words: str) -> str:
    ran = subprocess.run([str(BIN / program), *words], env=_ENVIRONMENT, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in ran.stdout.strip().splitlines())


def render_client_page() -> str:
    parts = [
        "# The commands of `runcode`\n",
        _NOTICE,
        "What each one promises in JSON and exit status: [json-and-exit-codes.md](json-and-exit-codes.md).\n",
        f"```text\n{help_of('runcode', 'help')}\n```\n",
    ]
    for name in COMMANDS:
        parts.append(f"## {name}\n\n```text\n{help_of('runcode', 'help', name)}\n```\n")
    return "\n".join(parts)


def find_verbs(usage: str) -> list[str]:
    """The names that argparse lists below a metavar, four blanks deep; none for a leaf."""
    return re.findall(r"^ {4}([a-z][a-z-]*)(?: {2,}.*)?$", usage, re.MULTILINE) if " ...\n" in usage else []


def render_server_page() -> str:
    parts = ["# The operator's `runcode-server`\n", _NOTICE]

    def add(words: tuple[str, ...]) -> None:
        text = help_of("runcode-server", *words, "--help")
        title = " ".join(words) or "runcode-server"
        parts.append(f"{'##' if words else ''}{'#' * max(0, len(words) - 1)} {title}\n".lstrip() if words else "")
        parts.append(f"```text\n{text}\n```\n")
        for verb in find_verbs(text):
            add((*words, verb))

    add(())
    return "\n".join(part for part in parts if part)


def render_codes_table() -> str:
    lines = ["| code | exit | HTTP | retry | what to do next |", "| --- | --- | --- | --- | --- |"]
    for code, kind in sorted(ERRORS.items()):
        retry = "yes" if kind.retryable else "no"
        lines.append(f"| `{code}` | {kind.exit_status} | {kind.http_status} | {retry} | {kind.resolution} |")
    return "\n".join(lines) + "\n"


def render_codes_page(page: str) -> str:
    """The page with a fresh table. Raises ValueError when its marks are gone."""
    if not _TABLE.search(page):
        raise ValueError("docs/json-and-exit-codes.md has lost the marks around its table")
    return _TABLE.sub(lambda match: match[1] + render_codes_table() + match[2], page)


def render_all() -> dict[Path, str]:
    codes = ROOT / "docs" / "json-and-exit-codes.md"
    return {
        ROOT / "docs" / "cli.md": render_client_page(),
        ROOT / "docs" / "server-cli.md": render_server_page(),
        codes: render_codes_page(codes.read_text(encoding="utf-8")),
    }


def main() -> int:
    for path, text in render_all().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
