"""Who may do what: every route of the app, for everybody who could call it, with the status that they get.

The table is the specification. A route without a row fails here, so that nobody adds
one without having thought about who may call it. How to add a row: its method and
path as the app has them, then one status for each of `ACTORS`; what the call sends
stands in `CALLS` where it needs more than nothing. Rows run from top to bottom
against one server, so each call must leave the rest as it found it (or be idempotent).

A status with `!` is an answer 200 whose body says `"error": true`, as WIRE.md has it
for power. 404 where a workspace, team or session must not be known to exist; 403 where
the caller sees it and may not; 401 for whoever proves nothing.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from runcode.controlplane.app import make_app
from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.services.tokens import TokenBounds
from runcode.controlplane.states import SCOPE_CONNECT, SCOPE_READ
from support.browser_login import Browser, Page
from support.controlplane_fakes import (
    Answer,
    FakeRuntime,
    HttpServer,
    ManualClock,
    make_client_key,
    make_reconciler,
    open_plane,
    serve,
    set_endpoint,
    until,
)

ACTORS = (
    "owner",  # of the workspace, and the admin of the team with which it is shared to use
    "manages",  # a share: manage
    "uses",  # a share: use
    "team-uses",  # by a team, as its member
    "team-manages",  # by another team
    "admin",  # of the server, with no share
    "stranger",  # an account, nothing else
    "reads",  # the owner's token, which may only look
    "connects",  # the owner's token, which may only connect
    "elsewhere",  # the owner's token for another workspace
    "expired",  # a token of the owner's
    "revoked",  # a token of the owner's
    "disabled",  # somebody with a share, who was shut out
    "nobody",  # no token at all
)

TABLE = """
                                            ow  ma  us  tu  tm  ad  st  re  co  el  ex  re  di  no
GET    /api/rc/me                           200 200 200 200 200 200 200 200 200 200 401 401 401 401
GET    /api/rc/runtimes                     200 200 200 200 200 200 200 200 200 200 401 401 401 401
GET    /api/rc/workspaces                   200 200 200 200 200 200 200 200 403 200 401 401 401 401
POST   /api/rc/workspaces                   200 200 200 200 200 200 200 403 403 403 401 401 401 401
GET    /api/rc/workspace/{raw_id}           200 200 200 200 200 404 404 200 403 404 401 401 401 401
PATCH  /api/rc/workspace/{raw_id}           200 403 403 403 403 404 404 403 403 404 401 401 401 401
POST   /api/rc/workspace/{raw_id}/ssh-session 200 200 200 200 200 404 404 403 200 404 401 401 401 401
GET    /api/rc/workspace/{raw_id}/sessions  200 200 200 200 200 404 404 200 403 404 401 401 401 401
GET    /api/rc/workspace/{raw_id}/shares    200 200 200 200 200 404 404 200 403 404 401 401 401 401
PUT    /api/rc/workspace/{raw_id}/shares    200 403 403 403 403 404 404 403 403 404 401 401 401 401
DELETE /api/rc/workspace/{raw_id}/shares    200 403 403 403 403 404 404 403 403 404 401 401 401 401
GET    /api/rc/sessions                     200 200 200 200 200 200 200 200 403 200 401 401 401 401
DELETE /api/rc/session/{raw_id}             200 404 404 404 404 200 404 403 200 404 401 401 401 401
GET    /api/rc/teams                        200 200 200 200 200 200 200 200 403 403 401 401 401 401
POST   /api/rc/teams                        200 200 200 200 200 200 200 403 403 403 401 401 401 401
GET    /api/rc/team/{raw_id}                200 404 404 200 404 404 404 200 403 403 401 401 401 401
PATCH  /api/rc/team/{raw_id}                200 404 404 403 404 404 404 403 403 403 401 401 401 401
PUT    /api/rc/team/{raw_id}/members        200 404 404 403 404 404 404 403 403 403 401 401 401 401
DELETE /api/rc/team/{raw_id}/members        200 404 404 403 404 404 404 403 403 403 401 401 401 401
DELETE /api/rc/team/{raw_id}                400 404 404 403 404 404 404 403 403 403 401 401 401 401
GET    /api/rc/admin/users                  403 403 403 403 403 200 403 403 403 403 401 401 401 401
POST   /api/rc/admin/users                  403 403 403 403 403 200 403 403 403 403 401 401 401 401
PATCH  /api/rc/admin/user/{raw_id}          403 403 403 403 403 200 403 403 403 403 401 401 401 401
GET    /api/rc/admin/workspaces             403 403 403 403 403 200 403 403 403 403 401 401 401 401
GET    /api/rc/admin/sessions               403 403 403 403 403 200 403 403 403 403 401 401 401 401
GET    /api/rc/workspace/start              200 200 200 200 200 404 404 403 200 404 401 401 401 401
POST   /api/rc/workspace/start              200 200 200 200 200 404 404 403 200 404 401 401 401 401
GET    /api/rc/workspace/stop               200 200 200! 200! 200 404 404 403 403 404 401 401 401 401
POST   /api/rc/workspace/stop               200 200 200! 200! 200 404 404 403 403 404 401 401 401 401
DELETE /api/rc/workspace/{raw_id}           400 403 403 403 403 404 404 403 403 404 401 401 401 401
GET    /api/rc/activity                     200 200 200 200 200 200 200 200 403 200 401 401 401 401
GET    /api/rc/workspace/{raw_id}/activity  200 200 200 200 200 200 404 200 403 404 401 401 401 401
POST   /api/rc/auth/revoke                  200 200 200 200 200 200 200 200 200 200 401 401 401 401

       a gateway's own credential, and nobody's token (what it opens: test_internal_api_attacks.py)
POST   /internal/gateway/facts              401 401 401 401 401 401 401 401 401 401 401 401 401 401
POST   /internal/gateway/certificate        401 401 401 401 401 401 401 401 401 401 401 401 401 401
GET    /internal/gateway/changes            401 401 401 401 401 401 401 401 401 401 401 401 401 401
POST   /internal/gateway/events             401 401 401 401 401 401 401 401 401 401 401 401 401 401
POST   /internal/gateway/end-missing        401 401 401 401 401 401 401 401 401 401 401 401 401 401

       what needs no account, and looks at no token
GET    /                                    200 200 200 200 200 200 200 200 200 200 200 200 200 200
GET    /healthz                             200 200 200 200 200 200 200 200 200 200 200 200 200 200
GET    /readyz                              200 200 200 200 200 200 200 200 200 200 200 200 200 200
GET    /assets/{digest}/{name}              404 404 404 404 404 404 404 404 404 404 404 404 404 404
POST   /api/rc/auth/device                  400 400 400 400 400 400 400 400 400 400 400 400 400 400
POST   /api/rc/auth/device-token            400 400 400 400 400 400 400 400 400 400 400 400 400 400
GET    /api/docs                            200 200 200 200 200 200 200 200 200 200 200 200 200 200
GET    /api/openapi.json                    200 200 200 200 200 200 200 200 200 200 200 200 200 200
POST   /api/rc/auth/cli-token               400 400 400 400 400 400 400 400 400 400 400 400 400 400
"""

# The pages, for browsers in which somebody has signed in. A token's holder without a cookie is nobody here.
BROWSERS = (
    "owner",
    "manages",
    "uses",
    "team-uses",
    "team-manages",
    "admin",
    "stranger",
    "forged",  # the owner's browser, with a form that lacks the page's proof
    "nobody",  # no cookie; a token header opens no page
)

# `in` is a redirect to the sign-in page, other statuses are the page's own; 303 is done.
PAGES = """
                                            ow  ma  us  tu  tm  ad  st  fo  no
GET    /workspaces                          200 200 200 200 200 200 200 200 in
POST   /workspaces                          303 303 303 303 303 303 303 403 in
GET    /workspaces/{raw_id}                 200 200 200 200 200 404 404 200 in
POST   /workspaces/{raw_id}/settings        303 403 403 403 403 404 404 403 in
POST   /workspaces/{raw_id}/connections     303 403 403 403 403 404 404 403 in
POST   /workspaces/{raw_id}/share           303 403 403 403 403 404 404 403 in
POST   /workspaces/{raw_id}/unshare         303 403 403 403 403 404 404 403 in
POST   /workspaces/{raw_id}/sessions/{raw_session}/revoke 303 404 404 404 404 303 404 403 in
POST   /workspaces/{raw_id}/start           303 303 303 303 303 404 404 403 in
POST   /workspaces/{raw_id}/stop            303 303 409 409 303 404 404 403 in
POST   /workspaces/{raw_id}/delete          400 403 403 403 403 404 404 403 in
GET    /teams                               200 200 200 200 200 200 200 200 in
POST   /teams                               303 303 303 303 303 303 303 403 in
GET    /teams/{raw_id}                      200 404 404 200 404 404 404 200 in
POST   /teams/{raw_id}/members              303 404 404 403 404 404 404 403 in
POST   /teams/{raw_id}/remove               303 404 404 403 404 404 404 403 in
POST   /teams/{raw_id}/rename               303 404 404 403 404 404 404 403 in
POST   /teams/{raw_id}/delete               400 404 404 403 404 404 404 403 in
GET    /auth/cli-tokens                     200 200 200 200 200 200 200 200 in
POST   /auth/cli-tokens                     200 200 200 200 200 200 200 403 in
POST   /auth/cli-tokens/{raw_id}/revoke     303 404 404 404 404 303 404 403 in
GET    /account                             200 200 200 200 200 200 200 200 in
POST   /account/password                    400 400 400 400 400 400 400 403 in
POST   /account/sessions/end                400 400 400 400 400 400 400 403 in
GET    /admin                               404 404 404 404 404 200 404 404 in
GET    /admin/health                        404 404 404 404 404 200 404 404 in
GET    /admin/sessions                      404 404 404 404 404 200 404 404 in
GET    /admin/workspaces                    404 404 404 404 404 200 404 404 in
POST   /admin/people                        404 404 404 404 404 200 404 404 in
POST   /admin/people/{raw_id}/limits        404 404 404 404 404 303 404 404 in
POST   /admin/people/{raw_id}/disable       404 404 404 404 404 303 404 404 in
POST   /admin/people/{raw_id}/enable        404 404 404 404 404 303 404 404 in
POST   /admin/sessions/{raw_session}/revoke 404 404 404 404 404 303 404 404 in
GET    /auth/device                         200 200 200 200 200 200 200 200 200
POST   /auth/device                         404 404 404 404 404 404 404 403 403
POST   /auth/device/answer                  403 403 403 403 403 403 403 403 403
GET    /auth/cli-login/                     400 400 400 400 400 400 400 400 400
POST   /auth/cli-login/answer               400 400 400 400 400 400 400 400 400
GET    /sign-in                             303 303 303 303 303 303 303 303 200
POST   /sign-in                             403 403 403 403 403 403 403 403 403
GET    /sign-in/link                        403 403 403 403 403 403 403 403 403
POST   /sign-in/link                        403 403 403 403 403 403 403 403 403
GET    /sign-in/oidc                        404 404 404 404 404 404 404 404 404
GET    /sign-in/oidc/callback               404 404 404 404 404 404 404 404 404
POST   /sign-out                            in  in  in  in  in  in  in  403 in
"""


@dataclass
class Scene:
    """One workspace that runs, and everybody who stands in some relation to it."""

    plane: ControlPlane
    clock: ManualClock
    workspace: int
    other: int
    team: int
    guest: int
    session: int = 0
    owners_token: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, str | None] = field(default_factory=dict)

    async def token_of(self, actor: str) -> str | None:
        """A fresh one, for calls that may end the token that carries them."""
        owner = "owner@example.org"
        bounds = {
            "reads": TokenBounds(scopes=(SCOPE_READ,)),
            "connects": TokenBounds(scopes=(SCOPE_CONNECT,)),
            "elsewhere": TokenBounds(workspace_ids=(self.other,)),
            "expired": TokenBounds(expires_at=self.clock.now() + datetime.timedelta(minutes=1)),
        }
        if actor == "nobody":
            return None
        if actor == "disabled":
            await self.plane.users.enable_user("disabled@example.org")
        email = owner if actor in bounds or actor == "revoked" else f"{actor}@example.org"
        made = await self.plane.tokens.create_token(email, actor, bounds=bounds.get(actor, TokenBounds()))
        if actor == "expired":
            self.clock.advance(minutes=2)
        elif actor == "revoked":
            await self.plane.tokens.revoke_token(made.record.id)
        elif actor == "disabled":
            await self.plane.users.disable_user("disabled@example.org")
        return made.plaintext

    def next(self, what: str) -> int:
        self.numbers[what] = self.numbers.get(what, 0) + 1
        return self.numbers[what]


# What each call sends: (query, body). `{workspace}` and the others are the scene's numbers.
def call_of(scene: Scene, route: str) -> tuple[str, Any]:
    calls: dict[str, tuple[str, Any]] = {
        "POST /api/rc/workspaces": ("", {}),
        "PATCH /api/rc/workspace/{raw_id}": ("", {"custom_title": "Billing API"}),
        "DELETE /api/rc/workspace/{raw_id}": ("?confirm=another-title", None),
        "PUT /api/rc/workspace/{raw_id}/shares": ("", {"email": "nobody-yet@example.org"}),
        "DELETE /api/rc/workspace/{raw_id}/shares": ("?email=nobody-yet@example.org", None),
        "POST /api/rc/workspace/{raw_id}/ssh-session": ("", {"public_key": make_client_key()}),
        "POST /api/rc/teams": ("", {"name": f"Team {scene.next('team')}"}),
        "PATCH /api/rc/team/{raw_id}": ("", {"name": "Users"}),
        "PUT /api/rc/team/{raw_id}/members": ("", {"email": "nobody-yet@example.org"}),
        "DELETE /api/rc/team/{raw_id}/members": ("?email=nobody-yet@example.org", None),
        "DELETE /api/rc/team/{raw_id}": ("?confirm=another-name", None),
        "POST /api/rc/admin/users": ("", {"email": f"new{scene.next('user')}@example.org"}),
        "PATCH /api/rc/admin/user/{raw_id}": ("", {"workspaces_max": 3}),
        "POST /api/rc/auth/cli-token": ("", {"code": "x", "code_verifier": "y"}),
    }
    power = f"?workspace_id={scene.workspace}"
    return calls.get(route, (power if "/workspace/st" in route else "", None))


def place_of(scene: Scene, path: str) -> str:
    numbers = {
        "workspace": scene.workspace,
        "team": scene.team,
        "session": scene.session,
        "user": scene.guest,
        "people": scene.guest,
        "cli-token": scene.owners_token,
    }
    parts = path.split("/")
    for i, part in enumerate(parts):
        if part in ("{raw_id}", "{raw_session}"):
            room = parts[i - 1]
            parts[i] = str(numbers[room] if room in numbers else numbers[room.removesuffix("s")])
    return "/".join(parts)


def parse_table(table: str, actors: tuple[str, ...] = ACTORS) -> dict[str, dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for line in table.splitlines():
        words = line.split()
        if len(words) < 2 or not words[1].startswith("/"):
            continue
        assert len(words) == 2 + len(actors), line
        route = f"{words[0]} {words[1]}"
        assert route not in rows, line
        rows[route] = dict(zip(actors, words[2:], strict=True))
    return rows


ROWS = parse_table(TABLE)
PAGE_ROWS = parse_table(PAGES, BROWSERS)
PASSWORD = "correct horse battery"  # of everybody here


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = ManualClock()
    async with open_plane(tmp_path, clock) as plane:
        for actor in ("owner", "manages", "uses", "team-uses", "team-manages", "stranger", "disabled", "guest"):
            await plane.users.create_user(f"{actor}@example.org", PASSWORD)
        await plane.users.create_user("admin@example.org", PASSWORD, admin=True)
        box = await plane.workspaces.create_workspace("royal-tree", "owner@example.org", runtime="fake")
        other = await plane.workspaces.create_workspace("other-tree", "owner@example.org", runtime="fake")
        await plane.workspaces.share("royal-tree", "manages@example.org", "manage")
        await plane.workspaces.share("royal-tree", "uses@example.org", "use")
        await plane.workspaces.share("royal-tree", "disabled@example.org", "manage")
        users = await plane.teams.create_team("Users", admin_email="owner@example.org")
        await plane.teams.set_member("Users", "team-uses@example.org")
        await plane.shares.share_with_team("royal-tree", "Users", "use")
        await plane.teams.create_team("Managers", admin_email="team-manages@example.org")
        await plane.shares.share_with_team("royal-tree", "Managers", "manage")
        guest = next(user for user in await plane.users.list_users() if user.email == "guest@example.org")
        set_endpoint(plane)
        reconciler = make_reconciler(plane, FakeRuntime())
        await reconciler.start()
        await plane.workspaces.request_start("royal-tree")

        async def up() -> bool:
            return (await plane.workspaces.load_workspace("royal-tree")).running

        await until(up)
        made = Scene(plane, clock, workspace=box.id, other=other.id, team=users.id, guest=guest.id)
        owner = await plane.tokens.authenticate(await made.token_of("owner"))
        grant = await plane.sessions.register_session(owner, box.id, raw_public_key=make_client_key())
        made.session = grant.session.id
        made.owners_token = (await plane.tokens.create_token("owner@example.org", "old laptop")).record.id
        yield made
        await reconciler.close()


async def test_every_route_has_a_row_and_every_row_a_route(scene: Scene) -> None:
    served = set()
    for found in iter_route_contexts(make_app(scene.plane).routes):
        assert isinstance(found.original_route, APIRoute), f"a route of a kind that this table cannot see: {found.path}"
        served |= {f"{method} {found.path}" for method in found.original_route.methods}
    rows = set(ROWS) | set(PAGE_ROWS)
    assert served - rows == set(), "add rows: who may call them?"
    assert rows - served == set(), "rows of routes that are no more"


async def test_everybody_gets_what_the_table_says(scene: Scene) -> None:
    wrong: list[str] = []
    async with serve(scene.plane) as server:
        for route, row in ROWS.items():
            got = {actor: await ask(server, scene, route, actor) for actor in ACTORS}
            wrong += [
                f"{route}: {actor} got {answer_word(got[actor])} instead of {row[actor]}: {got[actor].raw[:160]!r}"
                for actor in ACTORS
                if answer_word(got[actor]) != row[actor]
            ]
    assert not wrong, "\n" + "\n".join(wrong)


async def ask(server: HttpServer, scene: Scene, route: str, actor: str) -> Answer:
    method, _, path = route.partition(" ")
    query, body = call_of(scene, route)
    if route == "POST /api/rc/auth/revoke" or actor not in scene.tokens:
        scene.tokens[actor] = await scene.token_of(actor)
    token = scene.tokens[actor]
    return await server.call(method, place_of(scene, path) + query, token=token, body=body)


def answer_word(answer: Answer) -> str:
    refused = answer.status == 200 and answer.raw.startswith(b"{") and answer.json.get("error") is True
    return f"{answer.status}!" if refused else str(answer.status)


def fields_of(scene: Scene, route: str) -> dict[str, str]:
    """What each form sends, beside the page's proof."""
    forms = {
        "POST /workspaces/{raw_id}/settings": {"custom_title": "Billing", "size": "standard", "idle": ""},
        "POST /workspaces/{raw_id}/connections": {"without": "x11", "destinations": "network", "sessions": "9"},
        "POST /workspaces/{raw_id}/share": {"email": "nobody-yet@example.org", "role": "use"},
        "POST /workspaces/{raw_id}/unshare": {"email": "nobody-yet@example.org"},
        "POST /workspaces/{raw_id}/delete": {"confirm": "another-title"},
        "POST /teams": {"name": f"Page team {scene.next('team')}"},
        "POST /teams/{raw_id}/members": {"email": "nobody-yet@example.org", "role": "member"},
        "POST /teams/{raw_id}/remove": {"email": "nobody-yet@example.org"},
        "POST /teams/{raw_id}/rename": {"name": "Users"},
        "POST /teams/{raw_id}/delete": {"confirm": "another-name"},
        "POST /auth/cli-tokens": {"name": "laptop", "scope": "read"},
        "POST /account/password": {"current": "wrong", "password": "x"},
        "POST /admin/people": {"email": f"page{scene.next('user')}@example.org"},
        "POST /admin/people/{raw_id}/limits": {"workspaces_max": "3", "running_max": ""},
        "POST /auth/device": {"user_code": "no such code"},
    }
    return forms.get(route, {})


async def sign_in(port: int, actor: str) -> tuple[Browser, str]:
    """A browser with the person's session, and the proof that its pages' forms carry."""
    browser = Browser(port)
    if actor == "nobody":
        return browser, ""
    email = f"{'owner' if actor == 'forged' else actor}@example.org"
    asked = await asyncio.to_thread(browser.get, "/sign-in")
    done = await asyncio.to_thread(lambda: browser.submit(asked, email=email, password=PASSWORD))
    assert done.status == 303, done.text
    page = await asyncio.to_thread(browser.get, "/teams")
    return browser, "forged" if actor == "forged" else page.form.fields["proof"]


def page_word(page: Page, asked: str) -> str:
    return (
        "in"
        if page.status == 303 and page.location.startswith("/sign-in") and asked != "/sign-in"
        else str(page.status)
    )


async def test_every_page_shows_and_does_what_its_table_says(scene: Scene) -> None:
    wrong: list[str] = []
    async with serve(scene.plane) as server:
        browsers = {actor: await sign_in(server.port, actor) for actor in BROWSERS}
        token = await scene.token_of("owner")
        for route, row in PAGE_ROWS.items():
            method, _, path = route.partition(" ")
            place = place_of(scene, path)
            for actor, (browser, proof) in browsers.items():
                headers = {"Authorization": f"Token {token}"} if actor == "nobody" else {}
                if method == "GET":
                    page = await asyncio.to_thread(browser.send, "GET", place, None, headers)
                else:
                    fields = {"proof": proof, **fields_of(scene, route)}
                    page = await asyncio.to_thread(browser.post, place, fields, headers)
                if (got := page_word(page, place)) != row[actor]:
                    wrong.append(f"{route}: {actor} got {got} ({page.location}) instead of {row[actor]}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("what", ["workspace/{}", "workspace/{}/shares", "workspace/{}/sessions", "team/{}"])
async def test_what_must_not_be_seen_looks_like_what_does_not_exist(scene: Scene, what: str) -> None:
    """Byte for byte, but for the number that was asked for."""
    real = scene.team if what.startswith("team") else scene.workspace
    token = await scene.token_of("stranger")
    async with serve(scene.plane) as server:
        hidden = await server.call("GET", "/api/rc/" + what.format(real), token=token)
        absent = await server.call("GET", "/api/rc/" + what.format(987654), token=token)
    assert hidden.status == absent.status == 404
    assert hidden.raw.replace(str(real).encode(), b"N") == absent.raw.replace(b"987654", b"N")


async def test_a_cookie_opens_nothing_in_the_api(scene: Scene) -> None:
    """A browser sends cookies by itself, also for another site's page: only the header counts."""
    token = await scene.token_of("owner")
    async with serve(scene.plane) as server:
        answer = await server.call("GET", "/api/rc/me", headers={"Cookie": f"token={token}; runcode_visit={token}"})
    assert answer.status == 401
