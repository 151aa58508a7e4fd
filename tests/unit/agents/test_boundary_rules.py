"""The person's Bash rules of Claude Code, in every form that they are written in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adversarial.corpus.shell_lines import BEHIND, HIDING
from runcode.agents.boundary.rules import find_matching, load_rules
from runcode.core.errors import RunCodeError

# (the rule between its brackets, a command, does it bind)
MATCHES = [
    ("", "ls", True),
    ("*", "ls -l", True),
    (":*", "ls", True),
    ("git push", "git push", True),
    ("git push", "git push origin", False),
    ("git push", "git push 2>&1", True),
    ("git push", " git push ", True),
    ("kill 2", "kill 2 >2>x", True),
    ("kill", "kill 2>x", True),
    ("kill 2", "kill 2 >x", True),
    ("git push", "cd x && git push", True),
    ("git push", "git pushy", False),
    ("git push:*", "git push", True),
    ("git push:*", "git push origin main", True),
    ("git push:*", "git pushy", False),
    ("git push *", "git push", True),
    ("git push *", "git push origin", True),
    ("git push *", "git pushy", False),
    ("git push*", "git pushy", True),
    ("* main", "git push origin main", True),
    ("* main", "git push origin maintenance", False),
    ("git * main", "git push 'origin' main", True),
    ("git * --force", 'git push "$x" --force', True),
    ("git * --force", "git push $x '--force'", True),
    ("rm -rf:*", "rm -rf x", True),
    ("rm -rf:*", "rm  -rf\tx", True),
    ("rm -rf:*", "rm -r x", False),
    ("rm -rf:*", "for x in a; do rm -rf $x; done", True),
    ("rm \\*", "rm *", True),
    ("curl:*", "x=$(curl a)", True),
    ("curl:*", "echo 'curl a'", False),
    ("curl:*", "echo curl", False),
    ("curl:*", "grep -r curl .", False),
    ("curl:*", "git commit -m \"$(cat <<'E'\ncurl x\nE\n)\"", False),
    ("curl:*", "find . -name curl", False),
    ("reboot", "sh -c reboot", True),
    ("reboot", "sh reboot", True),
    ("sh:*", "sh -c x", True),
    ("npm run *", "npm run build -- --x", True),
    ("./deploy.sh:*", "./deploy.sh x", True),
    ("deploy.sh:*", "/opt/deploy.sh x", True),
    ("git commit -m *", "git commit -m 'a\nb'", True),
    ("a.c", "abc", False),
    ("x+(y)", "x+(y)", True),
]


@pytest.mark.parametrize(("rule", "command", "binds"), MATCHES)
def test_a_rule_binds_as_it_is_written(rule: str, command: str, binds: bool) -> None:
    found = find_matching((rule,), command)
    assert (found is not None) is binds
    if binds:
        assert found == (f"Bash({rule})" if rule else "Bash")


@pytest.mark.parametrize("text", [*HIDING, *BEHIND])
@pytest.mark.parametrize("rule", ["git push:*", "git push *", "git push*", "*push*", "*", ""])
def test_a_rule_binds_for_what_is_hidden(text: str, rule: str) -> None:
    assert find_matching(("never", rule), text) is not None


@pytest.mark.parametrize(
    "command",
    [
        "git commit -m \"$(cat <<'EOF'\nmend (x)\nEOF\n)\"",
        "cd src && npm test 2>&1 | tail -5",
        'for f in *.py; do echo "$f"; done',
        "sed -i 's/git push/x/' a",
        "echo 'git push'",
        "timeout 60 make test",
        "find . -name '*.py' -exec grep -l x {} +",
        "source venv/bin/activate && pytest",
    ],
)
def test_a_rule_about_something_else_stays_out_of_the_way(command: str) -> None:
    assert find_matching(("git push:*", "rm -rf:*"), command) is None


@pytest.fixture
def laptop(tmp_path: Path) -> tuple[dict[str, str], Path]:
    project = tmp_path / "project"
    (project / ".claude").mkdir(parents=True)
    (tmp_path / ".claude").mkdir()
    return {"HOME": str(tmp_path)}, project


def test_rules_come_from_the_persons_and_the_projects_files(laptop: tuple[dict[str, str], Path]) -> None:
    environ, project = laptop
    home = Path(environ["HOME"])
    for path, name, rules in (
        (home / ".claude/settings.json", "deny", ["Bash(a:*)", "Read(x)", "Bash", 7, None, " Bash(e) "]),
        (project / ".claude/settings.json", "ask", ["Bash(b)", "BashOutput", "Bash(c"]),
        (project / ".claude/settings.local.json", "allow", ["Bash(d\ne)"]),
    ):
        path.write_text(json.dumps({"permissions": {name: rules}, "other": 1}))
    rules = load_rules(environ, str(project))
    assert (rules.deny, rules.ask, rules.allow) == (("a:*", "", "e"), ("b",), ("d\ne",))
    assert [os.path.relpath(path, home) for path in rules.files] == [
        ".claude/settings.json",
        "project/.claude/settings.json",
    ]


def test_the_folder_that_the_environment_names_is_the_persons(laptop: tuple[dict[str, str], Path]) -> None:
    environ, project = laptop
    other = Path(environ["HOME"]) / "other"
    other.mkdir()
    (other / "settings.json").write_text('{"permissions": {"deny": ["Bash(x)"]}}')
    assert load_rules({**environ, "CLAUDE_CONFIG_DIR": str(other)}, str(project)).deny == ("x",)
    assert load_rules(environ, str(project)).deny == ()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"permissions": []}', '{"permissions": "x"}', "\xff\xfe", "[" * 200_000, '"x"', "{}x"]
)
def test_rules_that_cannot_be_read_cannot_be_kept(laptop: tuple[dict[str, str], Path], content: str) -> None:
    environ, project = laptop
    (project / ".claude/settings.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(RunCodeError) as caught:
        load_rules(environ, str(project))
    assert caught.value.code == "io_error"


@pytest.mark.parametrize("content", ["", " \n", "{}", '{"permissions": {}}', '{"permissions": {"deny": "Bash"}}'])
def test_a_file_without_rules_has_none(laptop: tuple[dict[str, str], Path], content: str) -> None:
    environ, project = laptop
    (project / ".claude/settings.json").write_text(content)
    assert not load_rules(environ, str(project)).bind


def test_a_settings_file_that_is_a_folder_is_unreadable(laptop: tuple[dict[str, str], Path]) -> None:
    environ, project = laptop
    (project / ".claude/settings.json").mkdir()
    with pytest.raises((RunCodeError, OSError)):
        load_rules(environ, str(project))
