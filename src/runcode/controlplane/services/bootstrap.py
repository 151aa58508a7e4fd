"""The first start of a server: one admin and one token, or nothing.

Owns: the rule for what a fresh database gets. Called by the composition root.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select

from runcode.controlplane.records import ORIGIN_OPERATOR, NewToken, UserRecord
from runcode.controlplane.services import inputs
from runcode.controlplane.services.tokens import Tokens
from runcode.controlplane.services.users import Users, as_record
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import UserRow


@dataclass(frozen=True)
class InitialAccess:
    user: UserRecord
    token: NewToken


async def initialise(
    store: Store, users: Users, tokens: Tokens, *, admin_email: str, token_name: str = "first start"
) -> InitialAccess | None:
    """The first admin and a token, in one transaction; None when there is any user already."""
    email = inputs.parse_email(admin_email)
    name = inputs.parse_label(token_name, what="token name")
    async with store.read() as session:
        if await session.scalar(select(func.count(UserRow.id))):
            return None
    async with store.write() as session:
        if await session.scalar(select(func.count(UserRow.id))):
            return None
        row = await users.insert_user(session, email, None, admin=True)
        token = await tokens.insert_token(session, row, name, origin=ORIGIN_OPERATOR)
        return InitialAccess(user=as_record(row), token=token)
