"""The slash family: what each client makes of it, and that it says nothing that the commands do not know."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from runcode.cli.arguments import describe_parser
from runcode.cli.main import COMMANDS, load_command
from runcode.core.errors import ERRORS
from support.agent_clients import PLUGIN, AgentLaptop
from support.fake_model import Call, FakeModel

pytest_plugins = ["support.agent_fixtures"]
SKILLS = {path.parent.name: path.read_text() for path in sorted((PLUGIN / "skills").glob("*/SKILL.md"))}
# Words that a shell, a template or a YAML reader would each take for something else.
ARGUMENTS = {
    "ssh": "run the tests on my workspace: 'all' of them",
    "login": "--api-base https://control.example.net",
    "list": "all",
    "connect": "royal-tree-01 pytest -q \"a b\" && echo 'it''s' $HOME",
    "context": "royal-tree-01",
    "forward": "8000",
    "config-ssh": "--remove",
    "stop": "royal-tree-01",
    "disconnect": "--keep",
    "statusline": "--remove",
    "doctor": "quickly",
}
# One that stands for all in every run, the rest in the whole one.
EACH = [pytest.param(name, marks=() if name == "connect" else pytest.mark.agents_long) for name in ARGUMENTS]


def read_body(skill: str) -> str:
    return SKILLS[skill].partition("\n---\n")[2].strip()


def first_line(skill: str) -> str:
    return next(line for line in read_body(skill).splitlines() if line)


# ---------------------------------------------------------------- in the clients


@pytest.mark.agents
@pytest.mark.parametrize("version", ["claude", pytest.param("claude_before", marks=pytest.mark.agents_long)])
@pytest.mark.parametrize("skill", EACH)
def test_arguments_arrive_in_claude_code(agent_laptop: AgentLaptop, skill: str, version: str) -> None:
    with FakeModel() as model:
        agent_laptop.claude(model, f"/runcode:{skill} {ARGUMENTS[skill]}", version=version)
    said = model.conversation().first_user_text
    assert read_body(skill) in said
    assert f"ARGUMENTS: {ARGUMENTS[skill]}" in said


@pytest.mark.agents
@pytest.mark.parametrize("skill", EACH)
def test_arguments_arrive_in_codex(agent_laptop: AgentLaptop, skill: str) -> None:
    installed = agent_laptop.install_in_codex()
    with FakeModel() as model:
        agent_laptop.codex(model, f"$runcode:{skill} {ARGUMENTS[skill]}")
    said = model.conversation().first_user_text
    assert f"$runcode:{skill} {ARGUMENTS[skill]}" in said
    assert f"<name>runcode:{skill}</name>" in said
    # The path is how a skill finds `bin/`, which is not on PATH here.
    assert f"<path>{installed}/skills/{skill}/SKILL.md</path>" in said
    assert read_body(skill) in said


@pytest.mark.agents
def test_codex_lists_every_skill(agent_laptop: AgentLaptop) -> None:
    """`stop` too: its line tells a model, which could type the command anyway, whose word it takes."""
    agent_laptop.install_in_codex()
    shown = json.loads(agent_laptop.ask_client("codex", "debug", "prompt-input", "hello").stdout)
    listed = dict(re.findall(r"- runcode:([a-z-]+): (.*?) \(file: ", json.dumps(shown)))
    assert set(listed) == set(SKILLS)
    assert "only when the person asks for exactly that" in listed["stop"]


@pytest.mark.agents
def test_claude_code_offers_every_skill_but_the_persons_own(agent_laptop: AgentLaptop) -> None:
    script = [Call("Skill", skill="runcode:stop"), Call("Skill", skill="runcode:list")]
    with FakeModel(script) as model:
        agent_laptop.claude(model, "hello", allow=["Skill"])
    seen = model.conversation()
    offered = set(re.findall(r"- runcode:([a-z-]+): ", seen.text))
    assert offered == set(SKILLS) - {"stop"}
    assert seen.results[0].is_error
    assert read_body("stop") not in seen.text
    assert not seen.results[1].is_error
    assert read_body("list") in seen.text


# ---------------------------------------------------------------- what they say


def test_the_family_is_complete() -> None:
    assert set(SKILLS) == set(ARGUMENTS)


@pytest.mark.parametrize("skill", SKILLS)
def test_front_matter_is_quoted(skill: str) -> None:
    """Claude Code 2.1.197 breaks on a bare `[workspace]`, and reads a bare `name: stop` as it likes."""
    head = SKILLS[skill].split("\n---\n")[0].removeprefix("---\n")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert json.loads(fields["name"]) == skill
    assert len(json.loads(fields["description"])) <= 120
    assert set(fields) <= {"name", "description", "argument-hint", "allowed-tools", "disable-model-invocation"}
    for name, value in fields.items():
        assert value == "true" if name == "disable-model-invocation" else value.startswith('"'), name
    assert ("disable-model-invocation" in fields) == (skill == "stop")
    # Only what reads: anything else is asked for, as the person's rules have it.
    allowed = {"list": "Bash(runcode list:*)", "context": "Bash(runcode context:*)", "doctor": "Bash(runcode doctor:*)"}
    assert json.loads(fields.get("allowed-tools", '""')) == allowed.get(skill, "")


@pytest.mark.parametrize("skill", SKILLS)
def test_no_skill_runs_anything_by_being_read(skill: str) -> None:
    """Claude Code executes !`…` in a skill, and puts arguments raw into `$ARGUMENTS` and `$1`: neither is used."""
    assert not re.search(r"!`|!\n?```|\$ARGUMENTS|\$\d|\$\{", SKILLS[skill])


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_knows_only_commands_options_and_codes_that_exist(skill: str) -> None:
    text = " ".join(SKILLS[skill].split())
    for command, rest in re.findall(r"`runcode ([a-z-]+)([^`]*)`", text):
        assert command in COMMANDS, command
        known = {option for action in describe_parser(load_command(command).parse) for option in action.option_strings}
        for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", rest.partition(" -- ")[0]):
            assert option in known, (command, option)
    for code in re.findall(r"`([a-z]+_[a-z_]+)`", text):
        assert code in {*ERRORS, "expires_at"}, code
    for name in re.findall(r"/runcode:([a-z-]+)", text):
        assert name in SKILLS, name


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_branches_on_codes_and_finds_its_program(skill: str) -> None:
    assert "`../../bin/runcode`" in SKILLS[skill]
    assert (PLUGIN / "skills" / skill / ".." / ".." / "bin").resolve() == (PLUGIN / "bin").resolve()
    assert skill == "doctor" or any(f"`{code}`" in SKILLS[skill] for code in ERRORS)
    limit = 60 if skill == "ssh" else 24
    assert len(SKILLS[skill].splitlines()) <= limit


def test_stop_is_the_persons_alone_wherever_it_is_named() -> None:
    assert "Only on the person's explicit request" in SKILLS["stop"]
    # No other skill tells to run it.
    for skill in set(SKILLS) - {"stop"}:
        assert not re.search(r"(?<!never )`runcode stop", SKILLS[skill]), skill


def test_the_umbrella_has_its_section_and_its_one_offer() -> None:
    assert "\n## Working on the workspace\n" in SKILLS["ssh"]
    assert "statusline_installed" in SKILLS["ssh"]
    assert Path(PLUGIN / "README.md").read_text().count("/runcode:") >= len(SKILLS)
