"""The machine boundary in the real clients: attached, an agent's work lands on the box, and nothing of it here.

Every command of a story tells on which machine it ran: the box has a file `where` that
says so, and the laptop's project another one. What ran on the laptop is the kernel's own
list of programs (`run.executions`), not the client's word.
"""

from __future__ import annotations

import json
import shutil

import pytest

from support.agent_clients import CODE_MODE_MODEL, OTHER, TITLE, AgentLaptop, Run
from support.agent_screens import ClaudeScreen
from support.fake_model import Action, Call, Code, FakeModel, Patch, Say
from support.service import Service

pytest_plugins = ["support.agent_fixtures"]
pytestmark = pytest.mark.agents

LONG = pytest.mark.agents_long
# In default mode `claude -p` refuses what no rule allows.
ALLOWED = ["Bash(runcode exec:*)", "Bash(runcode connect:*)", "Bash(runcode disconnect:*)", "Read", "Write", "Edit"]
LOOK = "cat where; echo made > made.txt; echo $((40 + 2))"
WAYS = ["claude", pytest.param("claude_before", marks=LONG), "codex", pytest.param("codex-code-mode", marks=LONG)]


def say(way: str, line: str) -> Action:
    if way == "codex-code-mode":
        return Code(f"text((await tools.exec_command({{cmd: {json.dumps(line)}}})).output)")
    return Call("exec_command", cmd=line) if way == "codex" else Call("Bash", command=line)


@pytest.fixture
def laptop(agent_laptop: AgentLaptop, agent_service: Service, request: pytest.FixtureRequest) -> AgentLaptop:
    agent_laptop.login(agent_service)
    for title in (TITLE, OTHER):
        agent_laptop.runcode("run", start(agent_laptop, title), "--", f"echo {title} > where; rm -f made.txt")
    (agent_laptop.project / "where").write_text("laptop\n")
    parameters = getattr(request.node, "callspec", None)
    if parameters is not None and str(parameters.params.get("way", "")).startswith("codex"):
        # There `bin/` is not on PATH.
        agent_laptop.runcode_words = str(agent_laptop.install_in_codex() / "bin" / "runcode")
    return agent_laptop


def start(laptop: AgentLaptop, title: str) -> str:
    laptop.runcode("connect", title, "--start", "--wait")
    laptop.runcode("disconnect", "--keep")
    return title


def play(laptop: AgentLaptop, way: str, steps: list[Action], **options: object) -> tuple[FakeModel, Run]:
    with FakeModel(list(steps)) as model:
        if way.startswith("codex"):
            name = CODE_MODE_MODEL if way == "codex-code-mode" else None
            extra = {"model_name": name} if name else {}
            run = laptop.codex(model, "hello", **extra, **options)  # type: ignore[arg-type]
        else:
            run = laptop.claude(model, "hello", **{"allow": ALLOWED, **options}, version=way)  # type: ignore[arg-type]
    assert run.status == 0, run.stderr
    return model, run


def attach(laptop: AgentLaptop, way: str, title: str = TITLE) -> Action:
    return say(way, f"{laptop.runcode_words} connect {title}")


def ran_here(run: Run) -> list[str]:
    """The shell texts that ran on the laptop, without calls of ours."""
    return [line for line in run.shell_lines if not line.startswith("runcode ") and "/bin/runcode" not in line]


def made_here(laptop: AgentLaptop) -> bool:
    return (laptop.project / "made.txt").exists()


def made_there(laptop: AgentLaptop, title: str = TITLE) -> bool:
    return laptop.runcode("run", title, "--", "test -f made.txt", expect=None).returncode == 0


@pytest.mark.parametrize("way", WAYS)
def test_attached_a_shell_command_lands_on_the_box(laptop: AgentLaptop, way: str) -> None:
    model, run = play(laptop, way, [attach(laptop, way), say(way, LOOK)])
    assert f"{TITLE}\n42" in model.results[-1].text
    assert made_there(laptop)
    assert not made_here(laptop)
    assert not any("made.txt" in line for line in ran_here(run))


@pytest.mark.parametrize("way", ["claude", "codex"])
def test_detached_everything_is_as_without_the_plugin(laptop: AgentLaptop, way: str) -> None:
    model, _ = play(laptop, way, [say(way, LOOK)], **({"allow": ["Bash"]} if way == "claude" else {}))
    assert "laptop\n42" in model.results[-1].text
    assert made_here(laptop)
    assert not made_there(laptop)


# ---------------------------------------------------------------- rules of the person's own


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("Bash(git push:*)", "cd /tmp && git push origin main"),
        pytest.param("Bash(rm *)", "env X=1 rm -rf made.txt", marks=LONG),
        pytest.param("Bash(runcode exec:*)", LOOK, marks=LONG),
    ],
)
@pytest.mark.parametrize("version", ["claude", pytest.param("claude_before", marks=LONG)])
def test_a_deny_rule_that_was_there_before_still_binds(laptop: AgentLaptop, rule: str, line: str, version: str) -> None:
    model, run = play(
        laptop, version, [attach(laptop, version), say(version, line)], deny=[rule], allow=["Bash(runcode:*)"]
    )
    assert model.results[-1].is_error, model.results[-1].text
    assert ran_here(run) == []
    assert not made_there(laptop)


@pytest.mark.parametrize("rule", ["Bash(cat:*)", pytest.param("Bash(runcode exec:*)", marks=LONG)])
def test_an_ask_rule_that_was_there_before_still_asks(laptop: AgentLaptop, rule: str) -> None:
    """Nobody can answer `claude -p`, so what is asked about does not run."""
    steps = [attach(laptop, "claude"), say("claude", LOOK)]
    model, run = play(laptop, "claude", steps, ask=[rule], allow=["Bash(runcode:*)"])
    assert model.results[-1].is_error, model.results[-1].text
    assert ran_here(run) == []
    assert not made_there(laptop)


def test_codex_rules_of_the_persons_own_still_bind(agent_laptop: AgentLaptop, agent_service: Service) -> None:
    agent_laptop.login(agent_service)
    agent_laptop.runcode("run", start(agent_laptop, TITLE), "--", "rm -f made.txt")
    agent_laptop.runcode_words = str(agent_laptop.install_in_codex() / "bin" / "runcode")
    rules = agent_laptop.codex_home / "rules"
    rules.mkdir()
    (rules / "default.rules").write_text('prefix_rule(pattern=["touch"], decision="forbidden")\n')
    steps = [attach(agent_laptop, "codex"), say("codex", "true && touch made.txt"), say("codex", "echo fine")]
    model, _ = play(agent_laptop, "codex", steps)
    assert "forbid" in model.results[-2].text
    assert "fine" in model.results[-1].text
    assert not made_there(agent_laptop)
    assert not made_here(agent_laptop)


# ---------------------------------------------------------------- whatever breaks, nothing runs here


def break_cache(laptop: AgentLaptop) -> None:
    for record in (laptop.home / ".cache/runcode/attachments").iterdir():
        record.write_bytes(b"\0 garbage")


def open_cache(laptop: AgentLaptop) -> None:
    (laptop.home / ".cache/runcode/attachments").chmod(0o777)


def delete_launcher(laptop: AgentLaptop) -> None:
    for launcher in laptop.home.rglob("bin/runcode"):
        launcher.unlink()


def spoil_session(laptop: AgentLaptop) -> None:
    for session in (laptop.home / ".cache/runcode").glob("ws-*/session.json"):
        session.write_bytes(b"{")


def sign_out(laptop: AgentLaptop) -> None:
    (laptop.home / ".config/runcode/token").unlink()


def break_program(laptop: AgentLaptop) -> None:
    laptop.program.write_text("#!/bin/sh\nkill -KILL $$\n")


BREAKAGES = {
    "cache-garbled": break_cache,
    "cache-open-to-others": open_cache,
    "launcher-deleted": delete_launcher,
    "session-garbled": spoil_session,
    "signed-out": sign_out,
    "hook-killed": break_program,
}


_SHORT = {("claude", "launcher-deleted"), ("codex", "cache-garbled"), ("codex", "signed-out")}


@pytest.mark.parametrize(
    ("way", "breakage"),
    [
        pytest.param(way, name, marks=[] if (way, name) in _SHORT else LONG)
        for way in ("claude", "claude_before", "codex")
        for name in BREAKAGES
    ],
)
def test_whatever_breaks_nothing_runs_here(laptop: AgentLaptop, way: str, breakage: str) -> None:
    first, run = play(laptop, way, [attach(laptop, way), say(way, "echo once")])
    assert "once" in first.results[-1].text
    BREAKAGES[breakage](laptop)
    # Nothing but the boundary keeps it from running here.
    options = {} if way == "codex" else {"allow": ["Bash"]}
    model, again = play(laptop, way, [say(way, LOOK)], resume=run.session_id, **options)
    assert "laptop" not in model.results[-1].text
    assert not made_here(laptop)
    assert not any("made.txt" in line for line in ran_here(again))


@LONG
def test_with_the_box_down_nothing_runs_here(laptop: AgentLaptop, agent_service: Service) -> None:
    _, run = play(laptop, "claude", [attach(laptop, "claude"), say("claude", "echo once")])
    agent_service.operator("workspace", "stop", OTHER)
    agent_service.operator("workspace", "stop", TITLE)
    try:
        model, again = play(laptop, "claude", [say("claude", LOOK)], resume=run.session_id, allow=["Bash"])
    finally:
        for title in (TITLE, OTHER):
            agent_service.operator("workspace", "start", title)
    assert model.results[-1].is_error
    assert not made_here(laptop)
    assert not any("made.txt" in line for line in ran_here(again))


@LONG
@pytest.mark.parametrize("way", ["claude", "codex"])
def test_with_the_server_down_nothing_runs_here(laptop: AgentLaptop, agent_service: Service, way: str) -> None:
    """No session is left that would do without it, and none can be had."""
    _, run = play(laptop, way, [attach(laptop, way), say(way, "echo once")])
    for session in (laptop.home / ".cache/runcode").glob("ws-?"):
        shutil.rmtree(session)
    agent_service.stop()
    try:
        options = {} if way == "codex" else {"allow": ["Bash"]}
        model, again = play(laptop, way, [say(way, LOOK)], resume=run.session_id, **options)
    finally:
        agent_service.start()
    assert "network" in model.results[-1].text
    assert "42" not in model.results[-1].text
    assert not made_here(laptop)
    assert not any("made.txt" in line for line in ran_here(again))


# ---------------------------------------------------------------- sessions, subagents, file tools


@pytest.mark.parametrize("version", ["claude", pytest.param("claude_before", marks=LONG)])
def test_a_subagent_works_on_the_box_too(laptop: AgentLaptop, version: str) -> None:
    steps = [
        attach(laptop, version),
        Call("Agent", description="look", prompt="MARK: look around", subagent_type="general-purpose"),
    ]
    with FakeModel(steps, others={"MARK": [Call("Bash", command=LOOK)]}) as model:
        run = laptop.claude(model, "hello", allow=[*ALLOWED, "Agent", "Task"], version=version)
    assert run.status == 0, run.stderr
    assert f"{TITLE}\n42" in model.conversation("MARK").results[-1].text
    assert made_there(laptop)
    assert not made_here(laptop)


@LONG
def test_two_sessions_in_one_folder_never_cross(laptop: AgentLaptop) -> None:
    """Each on its own workspace, and a third that is attached to nothing."""
    sessions = {}
    for title in (TITLE, OTHER):
        _, run = play(laptop, "claude", [attach(laptop, "claude", title), say("claude", "true")])
        sessions[title] = run.session_id
    for title, session in sessions.items():
        model, _ = play(laptop, "claude", [say("claude", LOOK)], resume=session)
        assert f"{title}\n42" in model.results[-1].text
    model, _ = play(laptop, "claude", [say("claude", LOOK)], allow=["Bash"])
    assert "laptop\n42" in model.results[-1].text


@pytest.mark.parametrize(
    "step",
    [
        Call("Write", file_path="made.txt", content="x"),
        pytest.param(Call("Read", file_path="where"), marks=LONG),
        pytest.param(Call("Edit", file_path="where", old_string="laptop", new_string="x"), marks=LONG),
        pytest.param(Call("Read", file_path="/home/ubuntu/workspace/where"), marks=LONG),
    ],
    ids=["write", "read", "edit", "read-the-boxs-path"],
)
def test_local_file_tools_are_refused_for_the_work(laptop: AgentLaptop, step: Call) -> None:
    there = Call(step.tool, **{**step.input, "file_path": str(laptop.project / step.input["file_path"])})
    model, _ = play(laptop, "claude", [attach(laptop, "claude"), there])
    assert model.results[-1].is_error
    assert "RunCode: this session works on the workspace" in model.results[-1].text
    assert (laptop.project / "where").read_text() == "laptop\n"
    assert not made_here(laptop)


def test_codex_patches_are_refused_for_the_work(agent_laptop: AgentLaptop, agent_service: Service) -> None:
    agent_laptop.login(agent_service)
    start(agent_laptop, TITLE)
    agent_laptop.runcode("run", TITLE, "--", "true")
    agent_laptop.runcode_words = str(agent_laptop.install_in_codex() / "bin" / "runcode")
    patch = Patch("*** Begin Patch\n*** Add File: made.txt\n+x\n*** End Patch")
    model, _ = play(agent_laptop, "codex", [attach(agent_laptop, "codex"), patch])
    assert "RunCode: this session works on the workspace" in model.results[-1].text
    assert not made_here(agent_laptop)


@LONG
def test_a_file_of_the_laptop_elsewhere_is_read_as_ever(laptop: AgentLaptop) -> None:
    notes = laptop.home / "notes.txt"
    notes.write_text("my own notes\n")
    model, _ = play(laptop, "claude", [attach(laptop, "claude"), Call("Read", file_path=str(notes))], allow=[*ALLOWED])
    assert "my own notes" in model.results[-1].text


@LONG
def test_what_the_person_exempted_runs_here(laptop: AgentLaptop) -> None:
    config = laptop.home / ".config/runcode/local.toml"
    config.write_text('commands = ["cat where"]\n')
    steps = [attach(laptop, "claude"), say("claude", "cat where"), say("claude", "cat where; echo more > made.txt")]
    model, _ = play(laptop, "claude", steps, allow=[*ALLOWED, "Bash(cat:*)"])
    assert model.results[-2].text.strip() == "laptop"
    assert TITLE in model.results[-1].text
    assert not made_here(laptop)


@LONG
def test_the_explicit_way_to_run_something_here_asks(laptop: AgentLaptop) -> None:
    steps = [attach(laptop, "claude"), say("claude", f"runcode local -- '{LOOK}'")]
    model, _ = play(laptop, "claude", steps, allow=["Bash(runcode:*)"])
    assert model.results[-1].is_error
    assert not made_here(laptop)
    model, _ = play(laptop, "claude", steps, allow=["Bash(runcode connect:*)", "Bash(runcode local:*)"])
    assert "laptop\n42" in model.results[-1].text


@LONG
def test_in_doubt_only_what_mends_it_runs(laptop: AgentLaptop) -> None:
    _, run = play(laptop, "claude", [attach(laptop, "claude"), say("claude", "true")])
    break_cache(laptop)
    steps = [say("claude", "runcode local -- cat where"), attach(laptop, "claude"), say("claude", LOOK)]
    rules = ["Bash(runcode:*)", "Bash(runcode local:*)"]
    model, _ = play(laptop, "claude", steps, resume=run.session_id, allow=rules)
    assert "cannot be read" in model.results[-3].text
    assert f"{TITLE}\n42" in model.results[-1].text
    assert not made_here(laptop)


@pytest.mark.parametrize("version", ["claude", pytest.param("claude_before", marks=LONG)])
def test_after_clear_the_attachment_is_still_there(laptop: AgentLaptop, version: str) -> None:
    """`/clear` gives the session another id, and the model forgets what it was told."""
    script = [
        attach(laptop, version),
        Say("I am there"),
        say(version, LOOK),
        Say("I am still there"),
    ]
    with (
        FakeModel(script) as model,
        ClaudeScreen(laptop, model, allow=("Bash",), version=version) as screen,
    ):
        screen.say("go there")
        screen.wait_for(lambda text: "I am there" in text)
        screen.say("/clear")
        screen.wait_for(lambda text: "I am there" not in text)
        screen.say("look around")
        screen.wait_for(lambda text: "I am still there" in text)
    assert f"{TITLE}\n42" in model.results[-1].text
    assert not made_here(laptop)
