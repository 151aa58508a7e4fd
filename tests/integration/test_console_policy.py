"""What connections may do, shown and set on a workspace's page and where a token is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runcode.controlplane.plane import ControlPlane
from runcode.core.channel_policy import EVERYTHING, ChannelPolicy
from support.browser_login import Browser, Page
from support.controlplane_fakes import open_plane, serve

OWNER, PASSWORD = "ann@example.org", "a long enough one"


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with open_plane(tmp_path) as opened:
        await opened.users.create_user(OWNER)
        await opened.users.set_password(OWNER, PASSWORD)
        await opened.workspaces.create_workspace("box", OWNER, runtime="fake")
        yield opened


async def sign_in(port: int) -> tuple[Browser, str]:
    browser = Browser(port)
    asked = await asyncio.to_thread(browser.get, "/sign-in")
    await asyncio.to_thread(lambda: browser.submit(asked, email=OWNER, password=PASSWORD))
    page = await asyncio.to_thread(browser.get, "/teams")
    return browser, page.form.fields["proof"]


async def send(browser: Browser, path: str, **fields: str | list[str]) -> Page:
    return await asyncio.to_thread(browser.post, path, fields)


async def test_a_workspaces_page_shows_it_and_its_owner_sets_it(plane: ControlPlane) -> None:
    box = await plane.workspaces.load_workspace("box")
    place = f"/workspaces/{box.id}"
    async with serve(plane) as server:
        browser, proof = await sign_in(server.port)
        assert "<dd>everything</dd>" in (await asyncio.to_thread(browser.get, place)).text
        fields: dict[str, str | list[str]] = {"without": ["remote", "x11"], "destinations": "loopback", "sessions": "4"}
        done = await send(browser, place + "/connections", proof=proof, **fields)
        assert done.status == 303
        shown = (await asyncio.to_thread(browser.get, place)).text
        assert "ports of the box itself only; 4 sessions at once" in shown
        assert 'value="x11" checked' in shown
        assert 'value="agent" checked' not in shown
        found = await plane.workspaces.load_workspace("box")
        assert found.policy == ChannelPolicy(remote=False, x11=False, destinations="loopback", sessions=4)
        # A form without any of it is everything again.
        assert (await send(browser, place + "/connections", proof=proof)).status == 303
        assert (await plane.workspaces.load_workspace("box")).policy == EVERYTHING


@pytest.mark.parametrize(
    "fields",
    [
        {"without": "everything"},
        {"destinations": "169.254.169.254"},
        {"sessions": "0"},
        {"sessions": "four"},
        {"sessions": "-1"},
        {"sessions": "9" * 5000},
        {"opens_per_minute": "1e3"},
    ],
)
async def test_what_is_no_policy_is_refused_and_changes_nothing(plane: ControlPlane, fields: dict[str, str]) -> None:
    box = await plane.workspaces.load_workspace("box")
    async with serve(plane) as server:
        browser, proof = await sign_in(server.port)
        for path, more in (
            (f"/workspaces/{box.id}/connections", {}),
            ("/auth/cli-tokens", {"name": "a", "scope": "read"}),
        ):
            assert (await send(browser, path, proof=proof, **more, **fields)).status == 400, path
    assert (await plane.workspaces.load_workspace("box")).policy == EVERYTHING
    assert await plane.tokens.list_tokens() == []


async def test_a_token_is_made_with_it_and_the_list_tells(plane: ControlPlane) -> None:
    async with serve(plane) as server:
        browser, proof = await sign_in(server.port)
        fields: dict[str, str | list[str]] = {"name": "ci", "scope": "connect", "without": ["agent", "direct"]}
        made = await send(browser, "/auth/cli-tokens", proof=proof, **fields)
        assert made.status == 200
        assert "connections: open ports in it (-R), forward unix sockets, bring a display (-X)" in made.text
        plain = await send(browser, "/auth/cli-tokens", proof=proof, name="laptop", scope="connect")
        assert plain.text.count("connections: ") == 1
    policies = {token.name: token.policy for token in await plane.tokens.list_tokens()}
    assert policies == {"ci": ChannelPolicy(agent=False, direct=False), "laptop": EVERYTHING}
