"""The words for a workspace's power state, and what a person is shown of them.

Owns: desired states (what was asked for), observed states (what the runtime
found), activities (what the reconciler is doing now), and the pure rule that
turns them into the wire's `current_state` and `interim_state`.
"""

from __future__ import annotations

from typing import Final

from runcode.core import wire

RUNNING: Final = wire.RUNNING
STOPPED: Final = wire.STOPPED
STARTING: Final = wire.STARTING
STOPPING: Final = wire.STOPPING
DELETED: Final = "deleted"
DELETING: Final = "deleting"
FAILED: Final = "failed"
# The runtime could not be asked, so nothing is claimed.
UNKNOWN: Final = "unknown"

DESIRED_STATES: Final = (RUNNING, STOPPED, DELETED)
OBSERVED_STATES: Final = (RUNNING, STOPPED, UNKNOWN)
ACTIVITIES: Final = (STARTING, STOPPING, DELETING)

# Why a workspace is to be stopped: somebody asked, the operator did, or nobody had used it for its idle time.
STOPPED_BY_PERSON: Final = "person"
STOPPED_BY_OPERATOR: Final = "operator"
STOPPED_IDLE: Final = "idle"
STOP_CAUSES: Final = (STOPPED_BY_PERSON, STOPPED_BY_OPERATOR, STOPPED_IDLE)

ROLE_USE: Final = "use"
ROLE_MANAGE: Final = "manage"
ROLE_OWNER: Final = "owner"
SHARE_ROLES: Final = (ROLE_USE, ROLE_MANAGE)
# Who may change a team: its members and its name.
TEAM_MEMBER: Final = "member"
TEAM_ADMIN: Final = "admin"
TEAM_ROLES: Final = (TEAM_MEMBER, TEAM_ADMIN)

# What an API token may do at all; what its person may do binds as well.
SCOPE_READ: Final = "read"
SCOPE_CONNECT: Final = "connect"
SCOPE_MANAGE: Final = "manage"
SCOPES: Final = (SCOPE_READ, SCOPE_CONNECT, SCOPE_MANAGE)


def show_state(*, desired: str, observed: str, activity: str | None, failures: int) -> tuple[str, str | None]:
    """(`current_state`, `interim_state`) as WIRE.md names them.

    A start that failed reads `failed` between two attempts and `starting` during
    one; a stop or delete that failed goes on being tried, so it stays `stopping`
    or `deleting`, with its reason beside it.
    """
    if desired == DELETED:
        return observed, DELETING
    if desired == RUNNING:
        if observed == RUNNING and activity is None:
            return RUNNING, None
        if activity == STOPPING:
            return observed, STOPPING
        if failures and activity is None:
            return FAILED, None
        return observed, STARTING
    if observed == RUNNING or activity is not None:
        return observed, STOPPING
    return observed, None
