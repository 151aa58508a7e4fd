"""Which paths a file tool may touch here while attached: on a real file system, with real links."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runcode.agents.boundary.decisions import DENY, PASS, Attached, decide_file_tool
from runcode.agents.boundary.exemptions import NOTHING, Exemptions
from runcode.agents.boundary.places import PATH_ARGUMENTS, find_places, list_paths
from runcode.agents.boundary.requests import Request

WORKDIR = "/home/ubuntu/workspace"
ATTACHED = Attached(workspace_id=7, title="box-7", workdir=WORKDIR, scope="session")


class Laptop:
    """A home with a project in it, a folder beside it, and links between the two."""

    def __init__(self, home: Path) -> None:
        self.home, self.project = home, home / "project"
        for folder in (
            "project/sub",
            "project/.git",
            "notes",
            ".claude/plugins",
            ".codex",
            ".config/runcode",
            "plug/bin",
        ):
            (home / folder).mkdir(parents=True)
        for file in ("project/a", "project/sub/b", "notes/n", ".claude/CLAUDE.md", ".config/runcode/local.toml"):
            (home / file).write_text("x")
        (home / "into").symlink_to(self.project)
        (self.project / "out").symlink_to(home / "notes")
        (home / "notes" / "back").symlink_to("../project/a")
        (home / "notes" / "loop").symlink_to("loop")
        (home / "notes" / "dangling").symlink_to("../nowhere/at/all")
        self.environ = {"HOME": str(home), "CLAUDE_PROJECT_DIR": str(self.project)}
        self.exemptions = NOTHING

    def decide(self, tool: str, cwd: Path | None = None, client: str = "claude", **tool_input: Any) -> str:
        request = Request(
            client=client,
            event="pre-tool-use",
            session_id="s",
            cwd=str(cwd or self.project),
            tool=tool,
            tool_input=tool_input,
            source="",
        )
        guarded = (str(self.home / ".config/runcode"), str(self.home / ".cache/runcode"))
        places = find_places(request, self.environ, WORKDIR, self.exemptions, guarded=guarded)
        return decide_file_tool(request, ATTACHED, places, list_paths(request)).kind

    def on(self, tool: str, path: str, cwd: Path | None = None) -> str:
        return self.decide(tool, cwd, **{PATH_ARGUMENTS[tool]: path.format(home=self.home, project=self.project)})


@pytest.fixture
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laptop:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return Laptop(tmp_path / "home")


OF_THE_WORK = [
    "{project}/a",
    "{project}",
    "{project}/",
    "{project}/new",
    "{project}/sub/../a",
    "{project}/./a",
    "//{project}//a",
    "{project}/a ",
    "{project}/A",
    "{home}/notes/../project/a",
    "{home}/into/a",
    "{home}/into",
    "{home}/into/new/deep",
    "{home}/notes/back",
    "{home}/project/sub/../../project/a",
    "/proc/self/root{project}/a",
    "/proc/self/cwd/../../../../../../../..{project}/a",
    "a",
    "sub/b",
    "./a",
    "new",
    "../project/a",
    " {project}/a",
    "file://{project}/a",
    "$HOME/project/a",
    "~/project/a",
    "~/into/a",
    "~nobody-of-that-name/x",
    "out/n",
    "{project}/out/n",
    WORKDIR + "/a",
    WORKDIR,
    "/home/ubuntu/workspace/../workspace/a",
    "/not/here/at/all",
    "{home}/notes/dangling",
    "{home}/notes/loop",
    "{home}/notes/n ",
    "{home}/notes/missing/x",
]
OF_THE_LAPTOP = ["{home}/notes/n", "~/notes/n", "../notes/n", "{project}/../notes/n", "{home}/notes/./n", "/etc/passwd"]


@pytest.mark.parametrize("tool", sorted(PATH_ARGUMENTS))
@pytest.mark.parametrize("path", OF_THE_WORK)
def test_a_path_of_the_work_is_refused_however_it_is_spelled(laptop: Laptop, tool: str, path: str) -> None:
    if path == "{home}/notes/n " and tool in ("Write", "NotebookEdit"):
        return  # a new file of the laptop's own
    assert laptop.on(tool, path) == DENY


@pytest.mark.parametrize("tool", sorted(PATH_ARGUMENTS))
@pytest.mark.parametrize("path", OF_THE_LAPTOP)
def test_a_file_of_the_laptop_is_let_through(laptop: Laptop, tool: str, path: str) -> None:
    assert laptop.on(tool, path) == PASS


@pytest.mark.parametrize("tool", sorted(PATH_ARGUMENTS))
@pytest.mark.parametrize("value", [None, "", 7, ["a"], {"a": 1}, "a\0b", True])
def test_a_path_that_cannot_be_told_is_refused(laptop: Laptop, tool: str, value: object) -> None:
    assert laptop.decide(tool, **{PATH_ARGUMENTS[tool]: value}) == DENY


def test_a_new_file_beside_the_project_is_the_laptops(laptop: Laptop) -> None:
    assert laptop.on("Write", "{home}/notes/new") == PASS
    assert laptop.on("Edit", "{home}/notes/new") == DENY
    assert laptop.on("Write", "{home}/nowhere/new") == DENY


@pytest.mark.parametrize(
    ("path", "pattern", "kind"),
    [
        (None, "**/*.py", DENY),
        ("{project}", "*", DENY),
        ("{home}", "**/*.py", DENY),
        ("/", "**", DENY),
        ("{home}/notes", "*", PASS),
        ("{home}/notes", "**/x", PASS),
        ("{home}/notes", "{{a,b}}/*", PASS),
        ("{home}/notes", "../project/*", DENY),
        ("{home}/notes", "../*/a", DENY),
        ("{home}/notes", "*/../../project/a", DENY),
        ("{home}/notes", "{project}/*", DENY),
        ("{home}/notes", "{home}/proj*/a", DENY),
        ("{home}/notes", "/*/*", DENY),
        ("{home}/notes", "~/project/*", DENY),
        ("{home}/notes", "{{{project},x}}/*", DENY),
        ("{home}/notes", "{{x,{project}}}/*", DENY),
        ("{home}/notes", "\\{project}/*", DENY),
        ("{home}/notes", "back", PASS),
        (None, "{home}/notes/*", DENY),
        ("{home}/into", "*", DENY),
        ("", "*", DENY),
    ],
)
def test_a_pattern_does_not_lead_into_the_work(laptop: Laptop, path: str | None, pattern: str, kind: str) -> None:
    names = {"home": laptop.home, "project": laptop.project}
    given = {} if path is None else {"path": path.format(**names)}
    assert laptop.decide("Glob", pattern=pattern.format(**names), **given) == kind


@pytest.mark.parametrize(
    ("path", "kind"), [(None, DENY), ("{home}", DENY), ("/", DENY), ("{home}/notes", PASS), ("..", DENY)]
)
def test_a_search_from_above_comes_through_the_work(laptop: Laptop, path: str | None, kind: str) -> None:
    given = {} if path is None else {"path": path.format(home=laptop.home)}
    assert laptop.decide("Grep", pattern="x", **given) == kind


def patch(*headers: str, ends: str = "\n") -> str:
    return ends.join(["*** Begin Patch", *headers, "@@", "-x", "+y", "*** End Patch"])


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        (("*** Update File: a",), DENY),
        (("*** Add File: new",), DENY),
        (("*** Delete File: sub/b",), DENY),
        (("*** Update File: {home}/notes/n",), PASS),
        (("*** Add File: {home}/notes/new",), PASS),
        (("*** Update File: {home}/notes/n", "*** Move to: {project}/a"), DENY),
        (("*** Update File: {home}/notes/n", "*** Update File: a"), DENY),
        (("*** Update File: {home}/notes/n", "  *** Update File: a"), DENY),
        (("*** Update File: {home}/notes/n", "\t*** Move to: a"), DENY),
        (("*** Update File: {home}/notes/n", "\u00a0*** Add File: a"), DENY),
        (("*** Update File:  {home}/into/a ",), DENY),
        (("*** Update File: {home}/notes/back",), DENY),
        ((), DENY),
        (("no header at all",), DENY),
        (("*** update file: a",), DENY),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("argument", ["command", "input", "patch"])
def test_a_patch_touches_nothing_of_the_work(
    laptop: Laptop, headers: tuple[str, ...], kind: str, ends: str, argument: str
) -> None:
    names = {"home": laptop.home, "project": laptop.project}
    text = patch(*(header.format(**names) for header in headers), ends=ends)
    assert laptop.decide("apply_patch", client="codex", **{argument: text}) == kind


@pytest.mark.parametrize("value", [7, None, [patch("*** Update File: x")], {"a": "b"}, ""])
def test_a_patch_that_cannot_be_read_is_refused(laptop: Laptop, value: object) -> None:
    assert laptop.decide("apply_patch", client="codex", input=value) == DENY


@pytest.mark.parametrize("path", ["{home}/notes/n", "{project}/sub/b", "/etc/passwd"])
def test_what_the_person_exempted_is_let_through(laptop: Laptop, path: str) -> None:
    laptop.exemptions = Exemptions(
        commands=(), paths=(os.path.realpath(path.format(home=laptop.home, project=laptop.project)),)
    )
    assert laptop.on("Read", path) == PASS
    assert laptop.on("Read", "{project}/a") == DENY


def test_a_link_does_not_widen_an_exemption(laptop: Laptop) -> None:
    laptop.exemptions = Exemptions(commands=(), paths=(str(laptop.home / "notes"),))
    assert laptop.on("Read", "{home}/notes/n") == PASS
    assert laptop.on("Write", "{home}/notes/back") == DENY
    assert laptop.on("Read", "{home}/notesx") == DENY


@pytest.mark.parametrize("tool", sorted(PATH_ARGUMENTS))
@pytest.mark.parametrize(
    "path",
    [
        "{home}/.config/runcode/local.toml",
        "{home}/.config/runcode/new",
        "{home}/.config/runcode",
        "~/.config/runcode/token",
        "{home}/notes/../.config/runcode/local.toml",
        "{home}/.cache/runcode/attachments/x",
    ],
)
def test_nothing_opens_our_own_folders(laptop: Laptop, tool: str, path: str) -> None:
    """Else the model writes its own exemption, or takes the attachment away."""
    laptop.exemptions = Exemptions(commands=(), paths=(str(laptop.home), "/"))
    assert laptop.on(tool, path) == DENY


@pytest.mark.parametrize(
    ("tool", "path", "kind"),
    [
        ("Read", "{home}/.claude/settings.json", PASS),
        ("Write", "{home}/.claude/settings.json", DENY),
        ("Edit", "{home}/.claude/settings.local.json", DENY),
        ("Write", "{home}/.claude/plugins/x/hooks.json", DENY),
        ("Write", "{home}/.claude/CLAUDE.md", PASS),
        ("Write", "{home}/.claude/plans/a.md", PASS),
        ("Write", "{home}/.codex/config.toml", DENY),
        ("Write", "{home}/.codex/rules/a.rules", DENY),
        ("Read", "{home}/plug/bin/runcode", PASS),
        ("Write", "{home}/plug/bin/runcode", DENY),
    ],
)
def test_the_clients_own_files_are_read_and_its_settings_not_changed(
    laptop: Laptop, tool: str, path: str, kind: str
) -> None:
    laptop.environ["CLAUDE_PLUGIN_ROOT"] = str(laptop.home / "plug")
    assert laptop.on(tool, path) == kind


def test_a_plugin_under_development_is_work(laptop: Laptop) -> None:
    laptop.environ["CLAUDE_PLUGIN_ROOT"] = str(laptop.project / "sub")
    assert laptop.on("Read", "{project}/sub/b") == DENY


def test_the_whole_repository_is_the_work(laptop: Laptop) -> None:
    """Codex names no project folder: the session may have begun in a folder of it."""
    below = laptop.project / "sub"
    laptop.environ.pop("CLAUDE_PROJECT_DIR")
    assert laptop.on("Read", "{project}/a", cwd=below) == DENY
    assert laptop.on("Read", "../a", cwd=below) == DENY
    assert laptop.on("Read", "{home}/notes/n", cwd=below) == PASS


def test_a_home_that_is_a_repository_is_not_all_work(laptop: Laptop) -> None:
    (laptop.home / ".git").mkdir()
    (laptop.project / ".git").rmdir()
    assert laptop.on("Read", "{home}/notes/n") == PASS


@pytest.mark.parametrize(
    "environ", [{}, {"HOME": ""}, {"HOME": "relative"}, {"CLAUDE_CONFIG_DIR": "x", "CODEX_HOME": "y"}]
)
def test_without_a_home_the_project_is_still_the_work(laptop: Laptop, environ: dict[str, str]) -> None:
    laptop.environ = environ
    assert laptop.on("Read", "{project}/a") == DENY
    assert laptop.on("Read", "/etc/passwd") == PASS


@pytest.mark.root_only
def test_a_folder_that_is_mounted_twice_is_one(laptop: Laptop) -> None:
    """As on a file system where case does not count: another name, and no link to resolve."""
    assert shutil.which("unshare"), "unshare is missing: apt-get install util-linux"
    twice = laptop.home / "twice"
    twice.mkdir()
    script = (
        "import sys; from runcode.agents.boundary.places import _is_same_below;"
        f"print(_is_same_below({str(twice / 'sub/b')!r}, ({str(laptop.project)!r},)))"
    )
    command = 'mount --bind "$1" "$2" && exec "$3" -c "$4"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command, "sh", str(laptop.project), str(twice), sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
