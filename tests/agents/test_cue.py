"""The cue under the prompt: what a person sees of an attachment, in a real terminal.

Claude Code 2.1.330 takes it from the plugin's hooks module, without anything in the
person's settings; the older one passes over the module and works as ever.
"""

from __future__ import annotations

import re

import pytest

from support.agent_clients import PLUGIN, TITLE, AgentLaptop
from support.agent_screens import ClaudeScreen
from support.fake_model import Call, FakeModel, Say
from support.service import Service

pytest_plugins = ["support.agent_fixtures"]
CUE = f"working-on:{TITLE} ~"
ALLOW = ("Bash(runcode:*)",)
CONNECT = Call("Bash", command=f"runcode connect {TITLE} --start --wait --json")
# Longer than the module's own pace.
LONG_ENOUGH_S = 13


@pytest.mark.agents
def test_it_shows_while_attached_and_goes_dark_with_the_attachment(
    agent_laptop: AgentLaptop, agent_service: Service
) -> None:
    agent_laptop.login(agent_service)
    script = [CONNECT, Say("I am there"), Call("Bash", command="runcode disconnect"), Say("I am back")]
    with FakeModel(script) as model, ClaudeScreen(agent_laptop, model, allow=ALLOW) as screen:
        assert "working-on" not in screen.text
        screen.say("go there")
        screen.wait_for(lambda text: "I am there" in text and CUE in text)
        screen.say("come back")
        screen.wait_for(lambda text: "I am back" in text and "working-on" not in text)


@pytest.mark.agents
@pytest.mark.agents_long
def test_another_session_sees_nothing_of_it(agent_laptop: AgentLaptop, agent_service: Service) -> None:
    agent_laptop.login(agent_service)
    with (
        FakeModel([CONNECT, Say("I am there")]) as model,
        FakeModel([Say("I am here")]) as other_model,
        ClaudeScreen(agent_laptop, other_model, allow=ALLOW) as other,
        ClaudeScreen(agent_laptop, model, allow=ALLOW) as screen,
    ):
        screen.say("go there")
        screen.wait_for(lambda text: CUE in text)
        other.say("stay here")
        other.wait_for(lambda text: "I am here" in text)
        assert not [text for text in other.watch(LONG_ENOUGH_S) if "working-on" in text]
        assert CUE in screen.text


@pytest.mark.agents
@pytest.mark.agents_long
def test_it_gives_way_to_the_status_line_and_is_not_there_twice(
    agent_laptop: AgentLaptop, agent_service: Service
) -> None:
    agent_laptop.login(agent_service)
    line = {"type": "command", "command": f"exec {agent_laptop.plugin}/bin/runcode statusline"}
    with (
        FakeModel([CONNECT, Say("I am there")]) as model,
        ClaudeScreen(agent_laptop, model, allow=ALLOW, settings={"statusLine": line}) as screen,
    ):
        screen.say("go there")
        screen.wait_for(lambda text: CUE.replace(" ~", " · ~") in text)
        assert all(text.count("working-on") <= 1 for text in screen.watch(LONG_ENOUGH_S))


@pytest.mark.agents
@pytest.mark.agents_long
def test_the_older_one_passes_over_it(agent_laptop: AgentLaptop, agent_service: Service) -> None:
    agent_laptop.login(agent_service)
    script = [CONNECT, Say("I am there")]
    with (
        FakeModel(script) as model,
        ClaudeScreen(agent_laptop, model, allow=ALLOW, version="claude_before") as screen,
    ):
        screen.say("go there")
        screen.wait_for(lambda text: "I am there" in text)
        assert not [text for text in screen.watch(LONG_ENOUGH_S) if "working-on" in text or "register.ts" in text]
    assert [result.is_error for result in model.results] == [False]


_SAID = ["exit 3", "echo 'working-on:evil \\033[31m ~3m'", "sleep 60"]


@pytest.mark.agents
@pytest.mark.parametrize(
    "said", ["echo anything at all", *[pytest.param(one, marks=pytest.mark.agents_long) for one in _SAID]]
)
def test_it_shows_nothing_but_the_lines_own_form(agent_laptop: AgentLaptop, said: str) -> None:
    agent_laptop.program.write_text(f'#!/bin/sh\n[ "$1" = statusline ] || exit 0\n{said}\n')
    with FakeModel([Say("I am here")]) as model, ClaudeScreen(agent_laptop, model) as screen:
        screen.say("hello")
        screen.wait_for(lambda text: "I am here" in text)
        for text in screen.watch(4):
            assert "working-on" not in text
            assert "anything at all" not in text


def test_the_module_asks_for_as_little_as_it_can() -> None:
    """What a person who reviews the plugin should find: one program of ours, a line under the prompt, and a clock."""
    text = (PLUGIN / "hooks" / "register.ts").read_text()
    code = re.sub(r"//.*", "", text)
    calls = set(re.findall(r"\$\.([a-z]+\.[A-Za-z]+)", code))
    assert calls == {"settings.read", "process.hookEnv", "process.run", "plugin.root", "ui.status", "clock.every"}
    assert re.findall(r"\bon\('([a-z.]+)'", code) == ["session.start", "turn.complete"]
