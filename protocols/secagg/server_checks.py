"""What the server checks in every phase alike."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from protocols.errors import RuleBrokenError, TooFewSurvivorsError
from protocols.secagg import messages
from protocols.secagg.directory import verify_session
from protocols.secagg.params import Phase, SessionParams
from protocols.secagg.server_states import (
    CollectingInputs,
    CollectingReveals,
    CollectingShares,
    ServerState,
    Suspicion,
)

__all__ = [
    "closed",
    "is_repeated",
    "neighbours",
    "noted",
    "to_each",
    "verify_sender",
    "verify_signed",
]


def verify_sender(
    state: ServerState, client: str, message: messages.SignedMessage
) -> None:
    """SA-011, SA-012: of this session, from the client whose connection it is."""
    verify_session(state.session, message.session)
    if message.sender != state.params.index_of(client):
        raise RuleBrokenError("SA-012", "message names another sender")


def verify_signed(
    state: ServerState,
    client: str,
    message: messages.SignedMessage,
    expected: Collection[int],
    context: bytes,
) -> None:
    """The message is of this session, phase and client, and signed."""
    verify_sender(state, client, message)
    # SA-014: signed by the pinned identity.
    message.verify(state.params.roster[message.sender].identity, context)
    # SA-015: from a client that took part in the phase before.
    if message.sender not in expected:
        raise RuleBrokenError("SA-015", "client is not part of this phase")


def is_repeated(
    received: Mapping[int, messages.SignedMessage], message: messages.SignedMessage
) -> bool:
    """SA-013: a verbatim repetition is ignored, a different one is a fault."""
    known = received.get(message.sender)
    if known is None:
        return False
    if known != message:
        raise RuleBrokenError("SA-013", "second, different message in one phase")
    return True


def closed(
    state: ServerState,
    expected: Collection[int],
    received: Collection[int],
    phase: Phase,
) -> dict[str, Phase]:
    """The dropouts up to and including this phase, if enough clients are left.

    SA-016: until the sum is fixed every cohort holds enough inputs; afterwards
    the threshold of confirmations and shares is enough. In a sparse graph it must
    be so in each neighbourhood, which only the bound on dropouts gives.
    """
    late = phase in {"confirm-survivors", "unmask"} and not state.params.degree
    need = state.params.threshold if late else state.params.min_cohort
    if len(received) < need:
        raise TooFewSurvivorsError(len(received), need, phase)
    missing = sorted(set(expected) - set(received))
    return {**state.dropouts, **{state.params.name_of(i): phase for i in missing}}


def neighbours(
    state: CollectingShares | CollectingInputs, index: int
) -> frozenset[int]:
    """Who shares with one client: its neighbours in the directory (U1)."""
    graph = state.params.graph(state.context)
    return graph.neighbours(index) & state.directory.keys()


def noted(
    state: CollectingInputs | CollectingReveals,
    rule: str,
    groups: Collection[tuple[int, ...]],
) -> tuple[Suspicion, ...]:
    """The suspicions so far and one for each new group."""
    name = state.params.name_of
    new = [Suspicion(rule, tuple(map(name, group))) for group in groups]
    return (*state.suspicions, *(one for one in new if one not in state.suspicions))


def to_each(
    params: SessionParams, recipients: Collection[int], message: bytes
) -> dict[str, bytes]:
    """The same message for every recipient, by name."""
    return {params.name_of(index): message for index in recipients}
