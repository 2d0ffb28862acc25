"""What the server remembers between two phases: one frozen type per phase.

Nothing here is secret from the server. The one mutable part is ``RunningSum``:
masked vectors are added as they arrive, so memory does not grow with clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocols.errors import MisuseError
from protocols.ring import RingVector
from protocols.secagg.directory import Directory
from protocols.secagg.messages import (
    Advertise,
    Confirm,
    Offer,
    ShareKeys,
    Unmask,
)
from protocols.secagg.params import Phase, SessionParams

__all__ = [
    "CollectingConfirmations",
    "CollectingInputs",
    "CollectingKeys",
    "CollectingReveals",
    "CollectingShares",
    "Encapsulations",
    "InputRecord",
    "RunningSum",
    "ServerState",
    "SumResult",
    "Suspicion",
    "require_state",
]


@dataclass(frozen=True)
class Suspicion:
    """At least one of ``clients`` deviated; which of them cannot be shown."""

    rule: str
    clients: tuple[str, ...]


@dataclass(frozen=True)
class SumResult:
    """The end of a session.

    ``survivors`` are those whose inputs are in ``total``. ``dropouts`` maps a
    client to the first phase whose message did not arrive; a client that left
    after its masked input is in both.
    """

    total: RingVector
    survivors: tuple[str, ...]
    dropouts: Mapping[str, Phase]
    blamed: tuple[Suspicion, ...]


@dataclass
class RunningSum:
    """The sum of the masked vectors so far, and how many they are."""

    total: RingVector
    added: int = 0

    def add(self, vector: RingVector) -> None:
        """Add one masked vector in place."""
        self.total.add_in_place(vector)
        self.added += 1


@dataclass(frozen=True)
class Encapsulations:
    """What one client offered in a hybrid suite, and its vault."""

    offers: Mapping[int, Offer]  # by the higher neighbour
    vault: bytes


@dataclass(frozen=True)
class InputRecord:
    """What is kept of a masked input besides its place in the sum."""

    cohort: frozenset[int]
    signature: bytes  # of the whole message, to recognise a repetition


@dataclass(frozen=True, eq=False)
class ServerState:
    """What every state holds."""

    params: SessionParams
    session: bytes
    dropouts: Mapping[str, Phase]


@dataclass(frozen=True, eq=False)
class CollectingKeys(ServerState):
    """Phase 0."""

    received: Mapping[int, Advertise] = field(default_factory=dict)
    taken: frozenset[bytes] = frozenset()  # all public keys so far


@dataclass(frozen=True, eq=False)
class CollectingShares(ServerState):
    """Phase 1."""

    directory: Directory  # U1
    context: bytes  # session id and directory digest
    received: Mapping[int, ShareKeys] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CollectingInputs(ServerState):
    """Phase 2."""

    directory: Directory
    context: bytes
    encapsulations: Mapping[int, Encapsulations]  # empty unless hybrid
    senders: frozenset[int]  # U2: whose boxes were delivered
    running: RunningSum
    received: Mapping[int, InputRecord] = field(default_factory=dict)
    suspicions: tuple[Suspicion, ...] = ()


@dataclass(frozen=True, eq=False)
class CollectingConfirmations(ServerState):
    """Phase 3."""

    directory: Directory
    context: bytes
    encapsulations: Mapping[int, Encapsulations]
    masked: RingVector  # the sum, still masked
    cohorts: Mapping[int, frozenset[int]]  # by survivor (U3): whom it masked with
    suspicions: tuple[Suspicion, ...]
    received: Mapping[int, Confirm] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CollectingReveals(ServerState):
    """Phase 4."""

    directory: Directory
    context: bytes
    encapsulations: Mapping[int, Encapsulations]
    masked: RingVector
    cohorts: Mapping[int, frozenset[int]]
    suspicions: tuple[Suspicion, ...]
    confirmers: frozenset[int]  # U4
    received: Mapping[int, Unmask] = field(default_factory=dict)


def require_state(state: ServerState, expected: type[ServerState]) -> None:
    """SA-006: exactly the state type of this phase, and the newest one."""
    if type(state) is not expected:
        raise MisuseError(
            f"this step takes {expected.__name__}, not {type(state).__name__} (SA-006)"
        )
    if isinstance(state, CollectingInputs) and state.running.added != len(
        state.received
    ):
        raise MisuseError("an older CollectingInputs cannot be continued (SA-006)")
