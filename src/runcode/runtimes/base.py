"""The port between the control plane and whatever runs workspaces.

Owns: the contract. Called by the control plane's reconciler only, never inside a
database transaction. A runtime never decides who may use a workspace, and never
touches the store.

The contract, by state (an implementation is checked by `tests/contract`):

    create    storage exists afterwards; existing storage is left as it is
    start     yields a Checkpoint after each step that leaves something behind;
              when it ends, the box answers on the endpoint that `inspect` reports
    stop      no process of the box is left afterwards; storage stays
    destroy   nothing of the workspace is left afterwards, storage included
    inspect   the truth about the box now, not what was asked for

Each is idempotent, and each may be called after a crash at any point of any
other. Failures are RunCodeError with a message that a person can act on.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

STANDARD_SIZE: Final = "standard"


@dataclass(frozen=True)
class SizeLimits:
    """The most that one box may take as a whole. None: as much as the runtime lets one box have; `cpus` may be a part.

    A runtime never gives more than it lets one box have anyway.
    """

    memory_bytes: int | None = None
    processes: int | None = None
    cpus: float | None = None


UNLIMITED: Final = SizeLimits()
# Where the operator names none. `standard` is always there.
DEFAULT_SIZES: Final[Mapping[str, SizeLimits]] = {
    "small": SizeLimits(memory_bytes=1024**3, processes=512, cpus=1.0),
    "medium": SizeLimits(memory_bytes=4 * 1024**3, processes=2048, cpus=2.0),
    STANDARD_SIZE: UNLIMITED,
}


@dataclass(frozen=True)
class WorkspaceSpec:
    """All that a runtime may know of a workspace. It never learns of users, tokens or sessions.

    `workspace_id` is immutable and never reused. `principal` is the one name that
    the box's sshd accepts in a certificate. `workspace_ca` is the public key
    (`algorithm base64`) of the CA whose user certificates it trusts. `host_key`
    is the private host key of its sshd, in OpenSSH's PEM form; the control plane
    pins the public half. `limits` are those of its size, for a box that starts with
    this spec; one that runs keeps what it has.
    """

    workspace_id: int
    title: str
    principal: str
    workspace_ca: str
    host_key: str = field(repr=False)
    limits: SizeLimits = UNLIMITED


@dataclass(frozen=True)
class UnixEndpoint:
    """sshd answers on a unix socket of this machine, made by the host, never by the box."""

    socket_path: str


@dataclass(frozen=True)
class TcpEndpoint:
    """sshd answers on a TCP address."""

    host: str
    port: int


Endpoint = UnixEndpoint | TcpEndpoint


class ObservedState(enum.Enum):
    """What `inspect` can find."""

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"


@dataclass(frozen=True)
class Observation:
    """`endpoint` is set exactly when the state is RUNNING; `reason` is for a person."""

    state: ObservedState
    endpoint: Endpoint | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A step of `start` that left something behind. `record` is JSON-able and kept for a later clean-up."""

    step: str
    record: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What a box of this runtime offers; shown to people, never used to decide access."""

    sudo: bool
    outbound_network: bool
    limits: bool
    # Its boxes live on the server's own machine: no server elsewhere can start, stop or see them.
    bound_to_machine: bool = True


class Runtime(Protocol):
    """See the module docstring for the contract of each method."""

    name: str
    capabilities: Capabilities

    def find_obstacle(self) -> str | None:
        """One line that names why this machine cannot run it, and the fix; None when it can."""
        ...

    async def create(self, spec: WorkspaceSpec) -> None: ...

    def start(self, spec: WorkspaceSpec) -> AsyncIterator[Checkpoint]: ...

    async def stop(self, workspace_id: int) -> None: ...

    async def destroy(self, workspace_id: int) -> None: ...

    async def inspect(self, workspace_id: int) -> Observation: ...

    async def close(self) -> None:
        """Release what this process holds (tasks, descriptors). Boxes go on running."""
        ...


@runtime_checkable
class OutboundNetworkSwitch(Protocol):
    """A runtime whose boxes' way to the internet the operator may close."""

    def allow_outbound_network(self, allowed: bool) -> None:
        """For boxes that start from now on; called before the first start. One that runs keeps what it has."""
        ...


@runtime_checkable
class ActivityProbe(Protocol):
    """A runtime that can tell whether something works in a box while nobody is connected to it."""

    async def find_job(self, workspace_id: int) -> str | None:
        """What has worked there since the last look, in a word for a person; None when nothing did.

        A process that only waits is no job: shells, editors' servers, `sleep`. The word is
        the box's own and not to be trusted. The first look at a box finds what works at
        that moment. Raises RunCodeError when it cannot be known.
        """
        ...
