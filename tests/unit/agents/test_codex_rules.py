"""The person's Codex rules: which files count, and what the real Codex says of a command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adversarial.corpus.shell_lines import BEHIND, HIDING
from runcode.agents.boundary.codex_rules import find_forbidding, list_rule_files
from runcode.core.errors import RunCodeError
from support.agent_clients import CLIENTS

_RULES = """
prefix_rule(pattern=["git", "push"], decision="forbidden")
prefix_rule(pattern=["npm", "publish"], decision="prompt")
prefix_rule(pattern=["ls"], decision="allow")
"""
# As a program on PATH that says what `codex execpolicy check` says; what the real one says is tested below.
_STANDIN = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift
case "$1 $2" in "git push") d=forbidden;; "npm publish") d=prompt;; *) d=allow;; esac
echo "{\\"decision\\": \\"$d\\"}"
"""


class Person:
    def __init__(self, home: Path) -> None:
        self.home, self.project = home, home / "project" / "sub"
        self.project.mkdir(parents=True)
        (home / "bin").mkdir()
        self.environ = {"HOME": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def rule(self, place: str = ".codex/rules/a.rules", text: str = _RULES) -> Path:
        path = self.home / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def codex(self, script: str | None = _STANDIN) -> None:
        program = self.home / "bin" / "codex"
        if script is None:
            program.symlink_to(CLIENTS / "now/node_modules/.bin/codex")
            return
        program.write_text(script)
        program.chmod(0o755)

    def forbids(self, command: str) -> str | None:
        return find_forbidding(command, self.environ, str(self.project))


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path / "home")


def test_every_place_of_rules_counts(person: Person) -> None:
    places = [".codex/rules/a.rules", ".codex/rules/b.rules", "project/.codex/rules/c.rules"]
    places.append("project/sub/.codex/rules/d.rules")
    wanted = {str(person.rule(place)) for place in places}
    person.rule(".codex/rules/no.txt")
    assert wanted <= set(list_rule_files(person.environ, str(person.project)))
    assert not any(path.endswith(".txt") for path in list_rule_files(person.environ, str(person.project)))
    elsewhere = {**person.environ, "CODEX_HOME": str(person.home / "project")}
    person.rule("project/rules/e.rules")
    assert str(person.home / "project/rules/e.rules") in list_rule_files(elsewhere, str(person.project))


def test_without_a_binding_rule_nobody_is_asked(person: Person) -> None:
    person.codex("#!/bin/sh\nexit 1\n")
    assert person.forbids("git push") is None
    person.rule(text='prefix_rule(pattern=["ls"], decision="allow")')
    assert person.forbids("git push") is None


@pytest.mark.parametrize("text", [*HIDING, *BEHIND])
def test_a_rule_binds_for_what_is_hidden(person: Person, text: str) -> None:
    person.rule()
    person.codex()
    assert person.forbids(text) is not None


def test_what_a_rule_says_reaches_the_model(person: Person) -> None:
    person.rule()
    person.codex()
    assert "forbid `git push origin`" in (person.forbids("git push origin main") or "")
    assert "want to be asked about `npm publish`" in (person.forbids("cd x && npm publish") or "")
    assert person.forbids("git status && npm test 2>&1 | tail -3") is None


@pytest.mark.parametrize(
    "script",
    [None, "exit 1", "exit 0", "echo", "echo '[]'", "echo '{'", "echo allow", "kill -9 $$", "echo '{}' && exit 3"],
)
def test_where_codex_does_not_answer_nothing_runs(person: Person, script: str | None) -> None:
    person.rule()
    if script is not None:
        person.codex(f"#!/bin/sh\n{script}\n")
    else:
        person.environ["PATH"] = str(person.home / "bin")
    with pytest.raises(RunCodeError) as caught:
        person.forbids("ls")
    assert caught.value.code == "io_error"


@pytest.mark.parametrize("answer", ['{"decision": 7}', '{"decision": null}', '{"decision": ["allow"]}'])
def test_an_answer_of_another_form_forbids(person: Person, answer: str) -> None:
    person.rule()
    person.codex(f"#!/bin/sh\necho '{answer}'\n")
    assert person.forbids("ls") is not None


def test_very_many_commands_are_not_asked_about(person: Person) -> None:
    person.rule()
    person.codex()
    assert person.forbids("; ".join(f"a{number}" for number in range(60))) is not None


@pytest.mark.agents
@pytest.mark.parametrize(
    ("command", "forbidden"),
    [
        ("git push", True),
        ("cd x && git push origin", True),
        ("/usr/bin/git push", True),
        ("sh -c 'git push'", True),
        ("eval git push", True),
        ("env X=1 git push", True),
        ("npm publish", True),
        ("git status", False),
        ("ls -l", False),
        ("rm -rf x", False),
    ],
)
def test_the_real_codex_is_asked(person: Person, command: str, forbidden: bool) -> None:
    person.rule()
    person.codex(None)
    assert (person.forbids(command) is not None) is forbidden


@pytest.mark.agents
def test_a_file_that_the_real_codex_cannot_read_lets_nothing_run(person: Person) -> None:
    person.rule(text='prefix_rule(pattern=["git"], decision="forbidden"')
    person.codex(None)
    with pytest.raises(RunCodeError):
        person.forbids("ls")
