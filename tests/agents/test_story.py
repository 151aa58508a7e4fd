"""A piece of work from beginning to end, in each real client: our own server, a real workspace, a scripted model.

List, connect, context, a test that fails, an edit, the test again, a server reached
through a forward, disconnect. Asserted on three sides: what the model was told, what
the box holds afterwards, and that nothing of the work touched the laptop.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from support.agent_clients import CODE_MODE_MODEL, ROOT, TITLE, AgentLaptop, Run
from support.executions import Execution
from support.fake_model import Action, Call, Code, Conversation, FakeModel, Step
from support.file_watch import watch_files
from support.service import Service

pytest_plugins = ["support.agent_fixtures"]
pytestmark = pytest.mark.agents

_TEST = (
    "import unittest, calc\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(calc.add(40, 2), 42)\n"
)
WRITE = f"cat > calc.py <<'END'\ndef add(a, b):\n    return a - b\nEND\ncat > test_calc.py <<'END'\n{_TEST}END"
# -B: an edit of the same second and size would go unnoticed by a cached module.
CHECK = "python3 -B -m unittest -q 2>&1"
EDIT = "sed -i 's/a - b/a + b/' calc.py"
SERVE = "nohup python3 -m http.server 8123 --bind 127.0.0.1 >/dev/null 2>&1 & until python3 -c '%s'; do sleep 0.1; done"
SERVE %= 'import socket; socket.create_connection(("127.0.0.1", 8123))'
SERVE = f"({SERVE}) 2>/dev/null; echo serving"


SOURCES = f"{ROOT}/src/runcode/"


def quote(line: str) -> str:
    return "'" + line.replace("'", "'\"'\"'") + "'"


def find_json(text: str) -> Any:
    """The JSON document within what a client tells of a command's output."""
    for start in (position for position, char in enumerate(text) if char in "[{"):
        try:
            return json.JSONDecoder().raw_decode(text, start)[0]
        except ValueError:
            continue
    raise AssertionError(f"no JSON in {text!r}")


def make_script(say: Callable[[str], Action], lines: list[str], fetched: list[bytes]) -> list[Step]:
    """The story's steps; each line that the model asks for is put into `lines`."""

    def ask(line: str) -> Action:
        lines.append(line)
        return say(line)

    def connect(seen: Conversation) -> Action:
        (one,) = [row for row in find_json(seen.results[-1].text) if row["title"] == TITLE]
        return ask(f"runcode connect {one['id']} --start --wait --json")

    def disconnect(seen: Conversation) -> Action:
        port = find_json(seen.results[-1].text)["local_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/calc.py", timeout=20) as answer:
            fetched.append(answer.read())
        return ask("runcode disconnect --json")

    middle = ["runcode context --json"]
    middle += [f"runcode exec -- {quote(line)}" for line in (WRITE, CHECK, EDIT, CHECK, SERVE)]
    middle.append("runcode forward 8123 --json")
    return [
        lambda _seen: ask("runcode list --json"),
        connect,
        *[lambda _seen, line=line: ask(line) for line in middle],
        disconnect,
    ]


def is_ours(one: Execution) -> bool:
    """`runcode` itself: its launcher, its interpreter on a file of its own, and the OpenSSH client that it starts."""
    if os.path.basename(one.program).startswith("python3"):
        return one.argv[1:2] == ["-I"] and any(word.startswith(SOURCES) for word in one.argv)
    return os.path.basename(one.program) in {"runcode", "runcode-program", "ssh", "ssh-keygen"}


def check(run: Run, model: FakeModel, lines: list[str], fetched: list[bytes]) -> None:
    assert run.status == 0, run.stderr
    told = [result.text for result in model.results]
    assert len(told) == 10, told
    assert {row["title"]: row["state"] for row in find_json(told[0])}[TITLE] == "stopped"
    connected = find_json(told[1])
    assert (connected["title"], connected["started"]) == (TITLE, True)
    assert find_json(told[2])["os"] == "Linux"
    assert "FAILED (failures=1)" in told[4]
    assert "AssertionError: 38 != 42" in told[4]
    assert "OK" in told[6]
    assert "FAILED" not in told[6]
    assert "serving" in told[7]
    assert fetched == [b"def add(a, b):\n    return a + b\n"]
    assert find_json(told[9])["detached"] is True
    # On the laptop shells ran what the model asked for, in the same order, and it is all `runcode`…
    asked = [line for line in run.shell_lines if " hook " not in line]
    assert asked == lines
    # …and no program of the work was started here, whoever might have started it.
    assert [one.argv for one in run.executions if is_of_the_work(one)] == []


def is_of_the_work(one: Execution) -> bool:
    # Codex itself runs `sed /^$/d` as it looks at the person's shell.
    name = os.path.basename(one.program)
    return (name.startswith(("python", "nohup", "sleep")) and not is_ours(one)) or (name == "sed" and "-i" in one.argv)


def sign_in(laptop: AgentLaptop, service: Service) -> None:
    """As the person, before their agent: signed in, and the workspace powered down."""
    laptop.login(service)
    laptop.runcode("stop", TITLE)
    deadline = time.monotonic() + 60
    while {row["title"]: row["state"] for row in laptop.json("list")}[TITLE] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_box(laptop: AgentLaptop, service: Service) -> None:
    assert laptop.runcode("run", TITLE, "--", "cat", "calc.py").stdout == b"def add(a, b):\n    return a + b\n"
    laptop.runcode("run", TITLE, "--", "rm -rf calc.py test_calc.py __pycache__")


def test_in_claude_code(agent_laptop: AgentLaptop, agent_service: Service) -> None:
    sign_in(agent_laptop, agent_service)
    lines: list[str] = []
    fetched: list[bytes] = []
    script = make_script(lambda line: Call("Bash", command=line), lines, fetched)
    with FakeModel(script) as model, watch_files(agent_laptop.project) as changes:
        run = agent_laptop.claude(model, "/runcode:ssh repair calc on my workspace", allow=["Bash(runcode:*)"])
    check(run, model, lines, fetched)
    assert changes.seen == []
    check_box(agent_laptop, agent_service)


@pytest.mark.parametrize("model_name", ["gpt-5.5", pytest.param(CODE_MODE_MODEL, marks=pytest.mark.agents_long)])
def test_in_codex(agent_laptop: AgentLaptop, agent_service: Service, model_name: str) -> None:
    sign_in(agent_laptop, agent_service)
    launcher = agent_laptop.install_in_codex() / "bin" / "runcode"
    lines: list[str] = []
    fetched: list[bytes] = []

    def say(line: str) -> Action:
        # `bin/` is not on PATH here: the skill tells to call it by its path.
        assert line.startswith("runcode ")
        lines[-1] = line = f"{launcher} {line.removeprefix('runcode ')}"
        if model_name == CODE_MODE_MODEL:
            options = json.dumps({"cmd": line, "yield_time_ms": 60_000})
            return Code(f"text((await tools.exec_command({options})).output)")
        return Call("exec_command", cmd=line, yield_time_ms=60_000)

    script = make_script(say, lines, fetched)
    with FakeModel(script) as model, watch_files(agent_laptop.project) as changes:
        run = agent_laptop.codex(model, "$runcode:ssh repair calc on my workspace", model_name=model_name)
    check(run, model, lines, fetched)
    assert changes.seen == []
    check_box(agent_laptop, agent_service)


def test_the_checks_notice_work_that_is_done_here(agent_laptop: AgentLaptop) -> None:
    """What this module trusts: the same lines, run on the laptop, are seen."""
    (agent_laptop.project / "calc.py").touch()
    with FakeModel([Call("Bash", command=CHECK), Call("Bash", command=EDIT)]) as model:
        run = agent_laptop.claude(model, "hello", allow=["Bash"], plugin=False)
    assert [os.path.basename(one.program) for one in run.executions if is_of_the_work(one)] == ["python3", "sed"]


def test_while_attached_a_command_in_the_background_does_not_run_here(
    agent_laptop: AgentLaptop, agent_service: Service
) -> None:
    """Claude Code's Monitor takes a shell command too, and is not its Bash."""
    agent_laptop.login(agent_service)
    script: list[Step] = [
        Call("Bash", command=f"runcode connect {TITLE} --start --wait --json"),
        Call("ToolSearch", query="select:Monitor", max_results=1),
        Call("Monitor", command="touch here.txt", description="look", timeout_ms=1000),
        # What Monitor starts runs beside the conversation: time for it to show.
        Call("Bash", command="sleep 1"),
    ]
    with FakeModel(script) as model, watch_files(agent_laptop.project) as changes:
        run = agent_laptop.claude(model, "hello", allow=["Bash", "Monitor"])
    assert not model.results[2].is_error
    assert "touch here.txt" not in run.shell_lines
    assert changes.seen == []
    # It ran, and it ran there.
    agent_laptop.runcode("run", TITLE, "--", "rm here.txt")
