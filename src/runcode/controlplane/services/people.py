"""What an admin of this server does about people, by the API or the console.

Owns: who may; the rules themselves are `Users`'. An admin cannot shut themselves
out, so that there is always one left who was not asked.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from runcode.controlplane.records import Caller, UserRecord
from runcode.controlplane.services import access
from runcode.controlplane.services.quotas import Quotas
from runcode.controlplane.services.users import Users
from runcode.controlplane.services.web_sessions import require_browser
from runcode.controlplane.states import SCOPE_MANAGE, SCOPE_READ
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import UserRow
from runcode.core.errors import RunCodeError


class People:
    def __init__(self, store: Store, users: Users, quotas: Quotas) -> None:
        self._store = store
        self._users = users
        self._quotas = quotas

    async def list_people(self, caller: Caller) -> list[UserRecord]:
        access.require_admin(caller, SCOPE_READ)
        return await self._users.list_users()

    async def create_person(self, email: str, *, admin: bool, caller: Caller) -> tuple[UserRecord, str]:
        """(the user, a password that is shown this once). Raises `conflict` for an address in use.

        `admin` is a signed-in person's to give: a token with an end would make itself an heir without one.
        """
        access.require_admin(caller, SCOPE_MANAGE)
        if admin:
            require_browser(caller)
        password = secrets.token_urlsafe(18)
        return await self._users.create_user(email, password, admin=admin, caller=caller), password

    async def change_person(
        self, user_id: int, *, disabled: bool | None, limits: Mapping[str, object], caller: Caller
    ) -> UserRecord:
        """Disable or enable (None: neither), and set the `limits` that are given (see `Quotas.set_quota`).

        Disabling ends sessions and cuts live connections at once. Raises `not_found`, or `bad_request` before
        anything is changed.
        """
        access.require_admin(caller, SCOPE_MANAGE)
        if disabled and user_id == caller.user_id:
            raise RunCodeError(
                "bad_request", "you cannot disable your own account", resolution="ask another admin, or the operator"
            )
        async with self._store.read() as session:
            row = await session.get(UserRow, user_id)
        if row is None:
            raise RunCodeError("not_found", f"there is no user {user_id}", resolution="see the list of users")
        # First what may be refused.
        user = await self._quotas.set_quota(row.email, **limits, caller=caller)
        if disabled is not None:
            change = self._users.disable_user if disabled else self._users.enable_user
            user = await change(row.email, caller=caller)
        return user
