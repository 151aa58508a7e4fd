"""What becomes of a tool call while attached: sent to the box as one word, refused, or one plain call of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from adversarial.corpus.shell_lines import BEHIND, HIDING, PURE, SLIPPING
from runcode.agents.boundary.answers import render_decision
from runcode.agents.boundary.decisions import ASK, DENY, PASS, REWRITE, Attached, Decision, decide_shell
from runcode.agents.boundary.exemptions import NOTHING, Exemptions
from runcode.agents.boundary.places import find_places
from runcode.agents.boundary.requests import Request
from runcode.agents.boundary.rules import NO_RULES, Rules
from runcode.cli.commands import exec as exec_command
from runcode.cli.commands import local as local_command
from runcode.cli.commands import run as run_command
from runcode.core.shell_text import find_lone_command
from support.shell_oracle import Oracle

ATTACHED = Attached(workspace_id=7, title="box-7", workdir="/home/ubuntu/workspace", scope="session")
GIT_DENIED = Rules(deny=("git push:*",), ask=(), allow=(), files=())
GIT_ASKED = Rules(deny=(), ask=("git push:*",), allow=(), files=())


def call(command: object, client: str = "claude", cwd: str = "/nowhere") -> Request:
    return Request(
        client=client,
        event="pre-tool-use",
        session_id="s",
        cwd=cwd,
        tool="Bash",
        tool_input={"command": command, "description": "d"},
        source="",
    )


def decide(command: object, rules: Rules = NO_RULES, exemptions: Exemptions = NOTHING, **options: Any) -> Decision:
    return decide_shell(
        call(command),
        ATTACHED,
        exemptions,
        agent_session=options.pop("agent_session", "claude:s"),
        program="runcode",
        own_programs=frozenset({"runcode", "/opt/plugin/bin/runcode"}),
        load_rules=lambda: rules,
        **options,
    )


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    return Oracle(tmp_path_factory.mktemp("oracle"), ("runcode",))


@pytest.mark.parametrize("text", [*SLIPPING, *HIDING, *BEHIND])
def test_no_text_slips_past(oracle: Oracle, text: str) -> None:
    """Refused, or one word for the box. That word is whole, as bash, zsh and dash say."""
    decision = decide(text)
    assert decision.kind in (DENY, REWRITE)
    if decision.kind == REWRITE and len(text) < 10_000:
        words = ("runcode", "exec", "--agent-session", "claude:s", "--", text)
        assert find_lone_command(decision.command) == list(words)
        for shell in ("bash", "zsh", "dash"):
            assert oracle.run(shell, decision.command) == [words]
            assert not oracle.made


def test_the_table_has_both_ends() -> None:
    kinds = [decide(text).kind for text in SLIPPING]
    assert kinds.count(REWRITE) >= 40
    assert kinds.count(DENY) >= 60


@pytest.mark.parametrize("text", [text for text, words in PURE if words[0] == "runcode"])
def test_a_plain_call_of_ours_goes_on(text: str) -> None:
    assert decide(text).kind == PASS


@pytest.mark.parametrize("command", [None, 7, ["ls"], {"a": "b"}, "", "  \n", "ls\0", True])
def test_what_is_no_command_is_refused(command: object) -> None:
    assert decide(command).kind == DENY


@pytest.mark.parametrize("scope", ["session", "folder"])
@pytest.mark.parametrize("key", ["claude:s", "codex:x; touch y #", "claude:a'b", "codex:$(touch x)", "codex:a\nb"])
def test_a_session_key_of_the_environment_is_no_shell_text(oracle: Oracle, key: str, scope: str) -> None:
    attached = Attached(workspace_id=7, title="box-7", workdir="/w", scope=scope)
    decision = decide_shell(
        call("ls"),
        attached,
        NOTHING,
        agent_session=key,
        program="runcode",
        own_programs=frozenset({"runcode"}),
        load_rules=lambda: NO_RULES,
    )
    pinned = ("--workspace", "7") if scope == "folder" else ()
    for shell in ("bash", "zsh", "dash"):
        assert oracle.run(shell, decision.command) == [("runcode", "exec", "--agent-session", key, *pinned, "--", "ls")]
        assert not oracle.made


@pytest.mark.parametrize("text", [*HIDING, *BEHIND])
@pytest.mark.parametrize("rules", [GIT_DENIED, GIT_ASKED], ids=["deny", "ask"])
def test_a_rule_binds_for_what_is_hidden(text: str, rules: Rules) -> None:
    decision = decide(text, rules)
    assert decision.kind == DENY or (decision.kind == ASK and rules is GIT_ASKED)


INNER = [
    "runcode exec -- git push",
    "runcode exec -- 'git push'",
    "runcode exec git push",
    "runcode exec --home -- git push",
    "runcode exec --timeout 5 -- git push",
    "runcode exec --timeout=5 git push",
    "runcode exec --workspace 7 git push",
    "runcode exec --agent-session codex:x -- git push",
    "runcode exec -- sh -c 'cd x; git push'",
    "runcode exec -- 'true; git push'",
    "runcode exec -- \"true && 'git' push\"",
    "runcode exec -- env X=1 git push",
    "runcode run box -- git push",
    "runcode run --home box git push",
    "runcode run box --home -- 'git push'",
    "runcode local -- git push",
    "runcode local git push",
    "/opt/plugin/bin/runcode exec -- git push",
    "r'un'code exec -- git push",
    "runcode 'exec' -- git push 2>&1",
]


@pytest.mark.parametrize("text", INNER)
def test_a_rule_binds_for_what_a_call_of_ours_would_run(text: str) -> None:
    assert decide(text, GIT_DENIED).kind == DENY
    assert decide(text, GIT_ASKED).kind == ASK
    assert decide(text, forbids=lambda command: f"no {command}" if "push" in command else None).kind == DENY


@pytest.mark.parametrize("text", [text for text in INNER if text != "runcode local git push"])
def test_the_inner_command_is_the_one_that_the_command_line_reads(text: str) -> None:
    """Were options counted differently here and there, a rule would be held against other words."""
    from runcode.agents.boundary.decisions import _find_inner
    from runcode.core.shellwords import join

    words = find_lone_command(text) or []
    parse = {"exec": exec_command.parse, "run": run_command.parse, "local": local_command.parse}[words[1]]
    command = parse(words[2:]).command
    assert _find_inner(words) == (command[0] if len(command) == 1 else join(command))


@pytest.mark.parametrize(
    ("allow", "text", "kind"),
    [
        ((), "runcode local -- ls", ASK),
        (("runcode local:*",), "runcode local -- ls", PASS),
        (("runcode local -- ls:*",), "runcode local -- ls -l", PASS),
        (("runcode local -- ls:*",), "runcode local -- rm -rf x", ASK),
        (("runcode local -- ls",), "runcode local -- ls -l", ASK),
        (("", "runcode:*", "*"), "runcode local -- ls", ASK),
        (("runcode localhost:*",), "runcode local -- ls", ASK),
    ],
)
def test_what_runs_here_is_asked_for(allow: tuple[str, ...], text: str, kind: str) -> None:
    rules = Rules(deny=(), ask=(), allow=allow, files=())
    assert decide(text, rules).kind == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("open x", PASS),
        ("open 'a b' 2>&1", PASS),
        ("git status --short", PASS),
        ("git push", REWRITE),
        ("git statusx", REWRITE),
        ("opener", REWRITE),
        ("open x; rm y", REWRITE),
        ("open $(rm y)", REWRITE),
        ("open x > y", REWRITE),
        ("open x &", REWRITE),
        ("open *", REWRITE),
        ("X=1 open x", REWRITE),
        ("open x\nrm y", REWRITE),
        ("open x; runcode list", DENY),
    ],
)
def test_only_a_plain_command_is_exempt(text: str, kind: str) -> None:
    assert decide(text, exemptions=Exemptions(commands=(("open",), ("git", "status")), paths=())).kind == kind


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("runcode get a --out {own}/local.toml", DENY),
        ("runcode get a --out={own}/local.toml", DENY),
        ("runcode get -r a --out {home}/.config", DENY),
        ("runcode get -r a --out {home}", DENY),
        ("runcode get a --out link/local.toml", DENY),
        ("runcode get a --out ../.config/runcode/new", DENY),
        ("runcode get a --out a.png", PASS),
        ("runcode get {own}/local.toml", PASS),
        ("runcode put {own}/x y", PASS),
    ],
)
def test_no_file_of_the_box_replaces_what_we_go_by(tmp_path: Path, text: str, kind: str) -> None:
    own, project = tmp_path / ".config" / "runcode", tmp_path / "project"
    own.mkdir(parents=True)
    project.mkdir()
    (project / "link").symlink_to(own)
    command = text.format(own=own, home=tmp_path)
    request = call(command, cwd=str(project))
    places = find_places(request, {"HOME": str(tmp_path)}, "/w", NOTHING, guarded=(str(own),))
    decision = decide_shell(
        request,
        ATTACHED,
        NOTHING,
        agent_session="claude:s",
        program="runcode",
        own_programs=frozenset({"runcode"}),
        load_rules=lambda: NO_RULES,
        places=places,
    )
    assert decision.kind == kind


@pytest.mark.parametrize("client", ["claude", "codex"])
@pytest.mark.parametrize("kind", [PASS, REWRITE, ASK, DENY])
def test_an_answer_never_lets_the_original_run(client: str, kind: str) -> None:
    """Claude Code gets no `allow`, since that would pass over the person's rules; Codex takes nothing else."""
    import json

    decision = Decision(kind=kind, reason="r", command="new" if kind in (REWRITE, ASK) else "")
    rendered = render_decision(call("old", client), decision)
    fields = json.loads(rendered)["hookSpecificOutput"] if rendered else {}
    given = fields.get("permissionDecision")
    changed = fields.get("updatedInput")
    if kind == PASS:
        assert (given, changed) == (None, None)
    elif kind == DENY or (kind == ASK and client == "codex"):
        assert (given, changed) == ("deny", None)
    else:
        assert given == ({"claude": None, "codex": "allow"}[client] if kind == REWRITE else "ask")
        assert changed == {"command": "new", "description": "d"}


def test_the_rules_are_not_read_for_what_needs_none() -> None:
    def explode() -> Rules:
        raise AssertionError(os.getcwd())

    exempt = Exemptions(commands=(("open",),), paths=())
    decision = decide_shell(
        call("open x"),
        ATTACHED,
        exempt,
        agent_session="claude:s",
        program="runcode",
        own_programs=frozenset({"runcode"}),
        load_rules=explode,
    )
    assert decision.kind == PASS
