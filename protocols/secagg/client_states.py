"""What a client remembers between two phases: one frozen type per phase.

A state holds secrets, so its ``repr`` shows only its type. A step that succeeds
empties the state it was given (``use_up``), which keeps a client from answering
a phase twice, and drops the references to its secrets. Python cannot prove that
memory is erased (SA-507).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import MisuseError
from protocols.keys import Secret, SigningKey
from protocols.secagg.boxes import Channels
from protocols.secagg.directory import Directory
from protocols.secagg.messages import Advertise
from protocols.secagg.params import SessionParams

__all__ = [
    "Advertised",
    "ClientState",
    "Finished",
    "InputMasked",
    "KeysShared",
    "Seat",
    "SurvivorsConfirmed",
    "require_randomness",
    "require_state",
    "require_unused",
    "use_up",
]

MIN_RANDOMNESS_BYTES = 32


@dataclass(frozen=True, eq=False, repr=False)
class Seat(Secret):
    """Who this client is in the session; the same in every phase."""

    params: SessionParams
    session: bytes  # the session id, over the model this client received
    index: int  # position in the roster
    identity: SigningKey


@dataclass(frozen=True, eq=False, repr=False)
class ClientState(Secret):
    """Base of all states that can go on."""

    seat: Seat


@dataclass(frozen=True, eq=False, repr=False)
class Advertised(ClientState):
    """Phase 0 sent: keys are made, and nothing about others is known."""

    channel: AgreementKey
    self_secret: bytes  # b, gives the self mask
    recovery: bytes  # R, gives the private key of the pairwise masks
    entry: Advertise


@dataclass(frozen=True, eq=False, repr=False)
class KeysShared(ClientState):
    """Phase 1 sent: the directory is verified, both secrets are shared."""

    channels: Channels
    self_secret: bytes
    recovery: bytes
    context: bytes  # session id and directory digest
    directory: Directory  # U1, of our neighbourhood
    own_share: bytes  # of b; a share of our own R is never kept (SA-503)
    offered: Mapping[int, KemSecret]  # in a hybrid suite, by higher neighbour


@dataclass(frozen=True, eq=False, repr=False)
class InputMasked(ClientState):
    """Phase 2 sent: the input has left, masked; only shares are kept."""

    context: bytes
    shares: Mapping[int, tuple[bytes, bytes]]  # by dealer: of its b, of its R
    own_share: bytes

    @property
    def cohort(self) -> frozenset[int]:
        """U2: this client and those whose boxes opened."""
        return frozenset((self.seat.index, *self.shares))


@dataclass(frozen=True, eq=False, repr=False)
class SurvivorsConfirmed(ClientState):
    """Phase 3 sent: bound to one survivor list for good."""

    context: bytes
    shares: Mapping[int, tuple[bytes, bytes]]
    own_share: bytes
    survivors: tuple[int, ...]  # U3


@dataclass(frozen=True)
class Finished:
    """Phase 4 sent: no secret of this session is referenced any more."""

    survivors: tuple[str, ...]


def require_state(state: ClientState, expected: type[ClientState]) -> None:
    """SA-006: exactly the state type of this phase, not used before."""
    if type(state) is not expected:
        raise MisuseError(
            f"this step takes {expected.__name__}, not {type(state).__name__} (SA-006)"
        )
    require_unused(state)


def require_unused(state: ClientState) -> None:
    """SA-006: a state leads on once."""
    if not vars(state):
        raise MisuseError(f"this {type(state).__name__} has been used (SA-006)")


def use_up(state: ClientState) -> None:
    """SA-507: drop everything a finished state refers to."""
    vars(state).clear()


def require_randomness(randomness: bytes) -> None:
    """SA-005: enough of it; that it is fresh cannot be checked here."""
    if not isinstance(randomness, bytes) or len(randomness) < MIN_RANDOMNESS_BYTES:
        raise MisuseError(
            f"randomness must be {MIN_RANDOMNESS_BYTES} bytes or more (SA-005)"
        )
