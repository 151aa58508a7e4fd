"""A page that somebody left open asks for its live parts for ever; that must keep nobody signed in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

from support.browser_login import Browser, Page
from support.controlplane_fakes import ManualClock, open_plane, serve

ANN, PASSWORD = "ann@example.org", "a password of ann's"


async def test_a_page_that_was_left_open_keeps_nobody_signed_in(tmp_path: Path) -> None:
    clock = ManualClock()
    async with open_plane(tmp_path, clock) as plane, serve(plane) as server:
        await plane.users.create_user(ANN, PASSWORD)
        browser = Browser(server.port)

        def get(path: str, **headers: str) -> Page:
            return browser.get(path, **headers)

        form = await asyncio.to_thread(get, "/sign-in?next=/workspaces")
        await asyncio.to_thread(lambda: browser.submit(form, email=ANN, password=PASSWORD))
        assert (await asyncio.to_thread(get, "/workspaces")).status == 200
        idle = plane.web_sessions.policy.idle
        # A person who uses it stays.
        for _ in range(4):
            clock.advance(seconds=idle.total_seconds() / 2)
            assert (await asyncio.to_thread(get, "/workspaces")).status == 200
            await plane.web_sessions.close()
        # A page alone does not.
        for _ in range(4):
            clock.advance(seconds=idle.total_seconds() / 4 - 1)
            page = await asyncio.to_thread(get, "/workspaces?part=list&seen=x", **{"HX-Request": "true"})
            await plane.web_sessions.close()
            assert page.status == 200
        clock.advance(seconds=10)
        page = await asyncio.to_thread(get, "/workspaces?part=list&seen=x", **{"HX-Request": "true"})
        assert page.status == 401
        assert page.headers["hx-redirect"] == "/sign-in"
        gone = await asyncio.to_thread(get, "/workspaces")
        assert (gone.status, urlsplit(gone.location).path) == (303, "/sign-in")


async def test_a_part_is_sent_anew_only_when_it_says_something_else(tmp_path: Path) -> None:
    async with open_plane(tmp_path) as plane, serve(plane) as server:
        await plane.users.create_user(ANN, PASSWORD)
        made = await plane.workspaces.create_workspace("royal-tree", ANN, runtime="fake")
        browser = Browser(server.port)
        form = await asyncio.to_thread(browser.get, "/sign-in")
        await asyncio.to_thread(lambda: browser.submit(form, email=ANN, password=PASSWORD))
        first = await asyncio.to_thread(browser.get, "/workspaces?part=list&seen=")
        seen = first.text.partition("seen=")[2].partition('"')[0]
        same = await asyncio.to_thread(browser.get, f"/workspaces?part=list&seen={seen}")
        assert (same.status, same.text) == (204, "")
        await plane.workspaces.request_start(made.id)
        assert (await asyncio.to_thread(browser.get, f"/workspaces?part=list&seen={seen}")).status == 200
