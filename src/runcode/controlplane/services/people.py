"""What an admin of this server does about people, by the API or the console.

Owns: who may; the rules themselves are `Users`'. An admin cannot shut themselves
out, so that there is always one left who was not asked.
"""

from __future__ import annotations

import secrets

from runcode.controlplane.records import Caller, UserRecord
from runcode.controlplane.services import access
from runcode.controlplane.services.users import Users
from runcode.controlplane.states import SCOPE_MANAGE, SCOPE_READ
from runcode.core.errors import RunCodeError


class People:
    def __init__(self, users: Users) -> None:
        self._users = users

    async def list_people(self, caller: Caller) -> list[UserRecord]:
        access.require_admin(caller, SCOPE_READ)
        return await self._users.list_users()

    async def create_person(self, email: str, *, admin: bool, caller: Caller) -> tuple[UserRecord, str]:
        """(the user, a password that is shown this once). Raises `conflict` for an address in use."""
        access.require_admin(caller, SCOPE_MANAGE)
        password = secrets.token_urlsafe(18)
        return await self._users.create_user(email, password, admin=admin, caller=caller), password

    async def set_disabled(self, email: str, disabled: bool, *, caller: Caller) -> UserRecord:
        """Idempotent. Disabling ends sessions and cuts live connections at once."""
        access.require_admin(caller, SCOPE_MANAGE)
        if not disabled:
            return await self._users.enable_user(email, caller=caller)
        if email.strip().lower() == caller.email:
            raise RunCodeError(
                "bad_request", "you cannot disable your own account", resolution="ask another admin, or the operator"
            )
        return await self._users.disable_user(email, caller=caller)
