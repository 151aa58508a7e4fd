"""What to do about a workspace, given what is wanted and what the runtime sees. Pure.

Owns: the reconciler's one decision, and how long it waits after failures.

The wall clock may jump. A moment further ahead than this module ever sets one was
written before the clock went back: it holds nothing up. A clock that jumps ahead
costs one early attempt.
"""

from __future__ import annotations

import datetime
import enum

from runcode.controlplane.services.lifecycle import Work
from runcode.controlplane.states import DELETED, RUNNING, STOPPED
from runcode.runtimes.base import Observation, ObservedState

_BACKOFF_MAX_S = 60
# A box that ran this long is not in a crash loop.
_STABLE = datetime.timedelta(seconds=60)


class Action(enum.Enum):
    NOTHING = "nothing"
    # Truth moved without us (adoption, a box found stopped): write it down.
    RECORD = "record"
    # It ran as far as we knew, it should, and it does not: say so, then start it again.
    MOURN = "mourn"
    START = "start"
    STOP = "stop"
    DESTROY = "destroy"


def decide(work: Work, observation: Observation, now: datetime.datetime) -> Action:
    held_back = work.retry_at is not None and now < work.retry_at <= now + datetime.timedelta(seconds=_BACKOFF_MAX_S)
    up = observation.state is ObservedState.RUNNING
    if work.desired == DELETED:
        return Action.NOTHING if held_back else Action.DESTROY
    if work.desired == RUNNING:
        if up:
            known = (work.observed, work.endpoint, work.activity, work.reason)
            return Action.NOTHING if known == (RUNNING, observation.endpoint, None, None) else Action.RECORD
        if work.observed == RUNNING:
            return Action.MOURN
        return Action.NOTHING if held_back else Action.START
    if up or work.checkpoints or work.activity is not None:
        return Action.NOTHING if held_back else Action.STOP
    settled = work.observed == STOPPED and not work.failures and work.reason is None
    return Action.NOTHING if settled else Action.RECORD


def count_failures(work: Work, now: datetime.datetime) -> int:
    """Failures in a row, this one included; a box that had run for a minute starts the count anew.

    So does one seen running "in the future": how long it ran is not known then.
    """
    ran = now - work.observed_at
    if work.observed == RUNNING and (ran >= _STABLE or ran < datetime.timedelta(0)):
        return 1
    return work.failures + 1


def back_off(failures: int, now: datetime.datetime) -> datetime.datetime:
    """When to try again: 1, 2, 4, … 60 seconds."""
    return now + datetime.timedelta(seconds=min(_BACKOFF_MAX_S, 2 ** min(failures - 1, 10)))
