"""Sign-ins that were refused, noted one by one while there are few, and counted when there are many.

Owns: how many refusals become records. Called by `sign_ins` and `oidc`.

Threat: a guesser from many addresses whose refusals fill the disk, or push what
others did out of the records that retention keeps.
Guarantee: past the allowance a refusal is counted only, and the next one that is
noted says how many those were (`unnoted`). Which account was meant makes no
difference, so that time tells nothing about it. A restart forgets the count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select

from runcode.controlplane.clock import Clock
from runcode.controlplane.services import audit
from runcode.controlplane.services.sign_in_pace import Allowance, Pace
from runcode.controlplane.store.engine import Store
from runcode.controlplane.store.models import UserRow

NOTED: Final = Allowance(burst=200, every_s=60)


class Refusals:
    def __init__(self, store: Store, clock: Clock, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._pace = Pace(monotonic)
        self._unnoted = 0

    async def note(self, detail: audit.Detail, *, account: str | None = None) -> None:
        """Write one down, with the person whose e-mail address was tried if there is one, or count it."""
        if self._pace.take_from([(("refusals", ""), NOTED)]) > 0:
            self._unnoted += 1
            return
        unnoted, self._unnoted = self._unnoted, 0
        if unnoted:
            detail = {**detail, "unnoted": unnoted}
        try:
            async with self._store.write() as session:
                user_id = None
                if account is not None:
                    user_id = await session.scalar(select(UserRow.id).where(UserRow.email == account))
                await audit.note(session, audit.SIGN_IN_REFUSED, self._clock.now(), user_id=user_id, detail=detail)
        except BaseException:
            self._unnoted += unnoted + 1
            raise
