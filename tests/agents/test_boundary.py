"""The machine boundary in the real clients: attached, an agent's work lands on the box, and nothing of it here.

Every command of a story tells on which machine it ran: the box has a file `where` that
says so, and the laptop's project another one. What ran on the laptop is the kernel's own
list of programs (`run.executions`), not the client's word.
"""

from __future__ import annotations

import json

import pytest

from support.agent_clients import CODE_MODE_MODEL, OTHER, TITLE, AgentLaptop, Run
from support.fake_model import Action, Call, Code, FakeModel
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
