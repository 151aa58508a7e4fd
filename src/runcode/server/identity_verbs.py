"""The operator's verbs for people: users, how they come in, and their API tokens.

Owns: what each verb answers. The rules are the control plane's services'; nothing
here decides. A secret is printed once, where it is made.
"""

from __future__ import annotations

import datetime
import re
import secrets
import sys
from argparse import Namespace
from typing import Final

from runcode.controlplane.plane import ControlPlane
from runcode.controlplane.records import TokenRecord, UserRecord
from runcode.controlplane.services.inputs import UNSET, parse_channel_policy
from runcode.controlplane.services.tokens import TokenBounds, parse_scopes
from runcode.controlplane.states import SCOPES
from runcode.core.channel_policy import EVERYTHING
from runcode.core.errors import RunCodeError
from runcode.server.data_folder import DataFolder
from runcode.server.listeners import parse_public_url
from runcode.server.rendering import Answer, render_table, render_time
from runcode.server.workspace_options import read_policy

_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}

# Where a server that was told nothing serves.
_DEFAULT_BASE: Final = "http://127.0.0.1:8080"

# ---------------------------------------------------------------- users


async def create_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    password = _choose_password(options)
    user = await plane.users.create_user(options.email, password, admin=options.admin)
    return _tell_password(user, f"created {user.email}" + (" (admin)" if user.is_admin else ""), password, options)


async def set_password(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    password = _choose_password(options)
    user = await plane.users.set_password(options.email, password)
    return _tell_password(user, f"{user.email} has another password", password, options)


def _choose_password(options: Namespace) -> str:
    return sys.stdin.readline().rstrip("\n") if options.password_stdin else secrets.token_urlsafe(18)


def _tell_password(user: UserRecord, text: str, password: str, options: Namespace) -> Answer:
    value = _user(user)
    if not options.password_stdin:
        value["password"] = password
        text += f"\npassword: {password}   (shown this once)"
    return Answer(value=value, text=text)


async def list_users(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    users = await plane.users.list_users()
    rows = [
        (user.email, "admin" if user.is_admin else "", "disabled" if user.disabled_at else "active") for user in users
    ]
    return Answer(value=[_user(user) for user in users], text=render_table(("E-MAIL", "ROLE", "STATE"), rows))


async def disable_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.users.disable_user(options.email)
    return Answer(value=_user(user), text=f"disabled {user.email}; their live connections are cut")


async def enable_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.users.enable_user(options.email)
    return Answer(value=_user(user), text=f"enabled {user.email}")


async def create_sign_in_link(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    base = _parse_base(options.web_base or folder.find_web_base() or _DEFAULT_BASE)
    link = await plane.sign_in_links.create_link(options.email)
    url = f"{base}{link.path}"
    value = {"email": link.user.email, "link": url, "expires_at": render_time(link.expires_at)}
    # The text is the link alone, on a line that can be copied.
    return Answer(value=value, text=url)


def _parse_base(text: str) -> str:
    try:
        return parse_public_url(text)
    except RunCodeError as error:
        raise RunCodeError(
            "usage",
            f"{text!r} is not an address that people may sign in at",
            resolution="name the server's with --web-base: https://HOST, or http on loopback",
        ) from error


async def sign_user_out(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    ended = await plane.web_sessions.end_all_of(options.email)
    revoked = await plane.tokens.revoke_all_of(options.email) if options.tokens else 0
    value = {"email": options.email, "browsers": ended, "tokens": revoked}
    text = f"signed {options.email} out of {ended} browsers" + (f"; revoked {revoked} tokens" if options.tokens else "")
    return Answer(value=value, text=text)


async def invite_user(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.identities.invite(options.email, options.issuer)
    text = f"whoever {options.issuer} says has {user.email} may come in as {user.email}, once"
    return Answer(value=_user(user), text=text)


async def link_identity(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.identities.link(options.email, options.issuer, options.subject)
    return Answer(value=_user(user), text=f"{user.email} is {options.subject} at {options.issuer}")


async def unlink_identities(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    user = await plane.identities.unlink(options.email)
    text = f"{user.email} comes in through no provider any more (sign their browsers out: `user sign-out`)"
    return Answer(value=_user(user), text=text)


# ---------------------------------------------------------------- tokens


async def create_token(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    email = options.user or await first_admin(plane)
    bounds = TokenBounds(
        scopes=SCOPES if options.scope is None else parse_scopes(options.scope),
        workspace_ids=await _find_workspaces(plane, options.workspace),
        expires_at=_find_expiry(options, plane.clock.now()),
        policy=parse_channel_policy({} if (said := read_policy(options)) is UNSET else said, EVERYTHING),
    )
    made = await plane.tokens.create_token(email, options.name, bounds=bounds)
    # The text is the token alone, so that it can be piped into `runcode login --paste`.
    return Answer(value={**_token(made.record), "token": made.plaintext}, text=made.plaintext)


async def _find_workspaces(plane: ControlPlane, named: list[str] | None) -> tuple[int, ...] | None:
    """Whether the person may use them is looked at whenever the token is used."""
    if named is None:
        return None
    return tuple(dict.fromkeys([(await plane.workspaces.load_workspace(one)).id for one in named]))


def _find_expiry(options: Namespace, now: datetime.datetime) -> datetime.datetime | None:
    if options.expires_in is None:
        return None if options.expires_days is None else now + datetime.timedelta(days=options.expires_days)
    found = _DURATION.fullmatch(options.expires_in)
    if found is None or options.expires_days is not None:
        raise RunCodeError(
            "usage",
            f"--expires-in {options.expires_in!r} is not a time",
            resolution="write it like 45m, 12h or 30d, and without --expires-days",
        )
    return now + datetime.timedelta(**{_UNITS[found[2]]: int(found[1])})


async def list_tokens(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    tokens = await plane.tokens.list_tokens(options.user)
    rows = [
        (
            str(token.id),
            token.user_email,
            token.name,
            _token_state(token, plane.clock.now()),
            render_time(token.last_used_at),
        )
        for token in tokens
    ]
    return Answer(
        value=[_token(token) for token in tokens], text=render_table(("ID", "USER", "NAME", "STATE", "LAST USED"), rows)
    )


async def revoke_token(plane: ControlPlane, folder: DataFolder, options: Namespace) -> Answer:
    token = await plane.tokens.revoke_token(options.id)
    return Answer(value=_token(token), text=f"revoked token {token.id}; what it had opened is cut")


async def first_admin(plane: ControlPlane) -> str:
    for user in await plane.users.list_users():
        if user.is_admin and user.disabled_at is None:
            return user.email
    raise RunCodeError(
        "not_found", "there is no active admin to act for", resolution="name a user, or `user create EMAIL --admin`"
    )


# ---------------------------------------------------------------- rendering


def _user(user: UserRecord) -> dict[str, object]:
    return {
        "id": user.id,
        "email": user.email,
        "admin": user.is_admin,
        "created_at": render_time(user.created_at),
        "disabled_at": render_time(user.disabled_at) or None,
    }


def _token(token: TokenRecord) -> dict[str, object]:
    return {
        "id": token.id,
        "email": token.user_email,
        "name": token.name,
        "created_at": render_time(token.created_at),
        "last_used_at": render_time(token.last_used_at) or None,
        "expires_at": render_time(token.expires_at) or None,
        "revoked_at": render_time(token.revoked_at) or None,
        "scopes": list(token.scopes),
        "workspace_ids": None if token.workspace_ids is None else list(token.workspace_ids),
        "origin": token.origin,
    }


def _token_state(token: TokenRecord, now: datetime.datetime) -> str:
    if token.revoked_at is not None:
        return "revoked"
    return "expired" if token.expires_at is not None and token.expires_at <= now else "active"
