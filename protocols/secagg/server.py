"""The server of a secure sum, in time order.

Each phase collects one message per client (``receive_…``) until the caller's
deadline, then closes (``close_…``) and returns the next state and one message
per client. A message may be repeated verbatim; a second different one is a
fault (SA-013). A step that fails leaves its state as it was.

``receive_…`` raises ``MessageError`` for bytes that are no message and
``FaultyClientError`` for a message that breaks a rule; the caller goes on without
that client. ``close_…`` raises ``TooFewSurvivorsError`` below the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from protocols.errors import MessageError, RuleBrokenError, blame_client
from protocols.ring import RingVector
from protocols.secagg import messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.directory import (
    bind,
    directory_root,
    joined,
    keys_of,
    verify_entry,
)
from protocols.secagg.masks import add_masks
from protocols.secagg.outgoing import (
    deliveries,
    encapsulations_of,
    published,
    relayed_confirmations,
)
from protocols.secagg.params import SessionParams
from protocols.secagg.server_checks import (
    closed,
    is_repeated,
    neighbours,
    noted,
    to_each,
    verify_sender,
    verify_signed,
)
from protocols.secagg.server_states import (
    CollectingConfirmations,
    CollectingInputs,
    CollectingKeys,
    CollectingReveals,
    CollectingShares,
    InputRecord,
    RunningSum,
    SumResult,
    Suspicion,
    require_state,
)
from protocols.secagg.unmasking import leftover_masks, rebuild_secrets

__all__ = [
    "CollectingConfirmations",
    "CollectingInputs",
    "CollectingKeys",
    "CollectingReveals",
    "CollectingShares",
    "SumResult",
    "Suspicion",
    "close_confirmations",
    "close_inputs",
    "close_keys",
    "close_reveals",
    "close_shares",
    "open_session",
    "receive_confirmation",
    "receive_input",
    "receive_keys",
    "receive_reveal",
    "receive_shares",
]


# ------------------------------------------------------ phase 0: advertise keys


def open_session(params: SessionParams, model_digest: bytes) -> CollectingKeys:
    """Start a session for the model that the server distributes."""
    return CollectingKeys(params, params.session_id(model_digest), {})


def receive_keys(state: CollectingKeys, client: str, message: bytes) -> CollectingKeys:
    """Take one client's ``Advertise`` (SA-101, SA-102)."""
    require_state(state, CollectingKeys)
    entry = messages.Advertise.from_bytes(message, state.params.primitives)
    with blame_client(client):
        verify_sender(state, client, entry)
        verify_entry(state.params, state.session, entry)
        if is_repeated(state.received, entry):
            return state
        taken = joined(state.taken, keys_of(entry))
    received = {**state.received, entry.sender: entry}
    return replace(state, received=received, taken=taken)


def close_keys(state: CollectingKeys) -> tuple[CollectingShares, Mapping[str, bytes]]:
    """End phase 0: everybody who advertised gets the directory (U1)."""
    require_state(state, CollectingKeys)
    everybody = range(len(state.params.roster))
    dropouts = closed(state, everybody, state.received, "advertise-keys")
    directory = dict(sorted(state.received.items()))
    root = directory_root(directory)
    context = bind(state.session, len(directory), root)
    following = CollectingShares(
        state.params, state.session, dropouts, directory, context
    )
    return following, published(following, root)


# ---------------------------------------------------------- phase 1: share keys


def receive_shares(
    state: CollectingShares, client: str, message: bytes
) -> CollectingShares:
    """Take one client's ``ShareKeys``: a box for each other member of U1 (SA-203)."""
    require_state(state, CollectingShares)
    shares = messages.ShareKeys.from_bytes(message, state.params.primitives)
    with blame_client(client):
        verify_signed(state, client, shares, state.directory, state.context)
        if is_repeated(state.received, shares):
            return state
        near = neighbours(state, shares.sender)
        if {box.peer for box in shares.boxes} != near:
            raise RuleBrokenError("SA-203", "boxes are not for exactly the neighbours")
        higher = {peer for peer in near if peer > shares.sender}
        expected = higher if state.params.primitives.hybrid else set()
        if {offer.peer for offer in shares.offers} != expected:
            raise RuleBrokenError("SA-207", "offers are not for exactly the higher")
    return replace(state, received={**state.received, shares.sender: shares})


def close_shares(state: CollectingShares) -> tuple[CollectingInputs, dict[str, bytes]]:
    """End phase 1: each sender (U2) gets the boxes addressed to it."""
    require_state(state, CollectingShares)
    dropouts = closed(state, state.directory, state.received, "share-keys")
    following = CollectingInputs(
        state.params,
        state.session,
        dropouts,
        state.directory,
        state.context,
        encapsulations_of(state.received),
        frozenset(state.received),
        RunningSum(state.params.zeros()),
    )
    return following, deliveries(state)


# -------------------------------------------------------- phase 2: masked input


def receive_input(
    state: CollectingInputs, client: str, message: bytes
) -> CollectingInputs:
    """Take one client's ``MaskedInput`` and add it to the running sum.

    A box that did not open leaves its two ends without a common mask, so both
    cannot be in one sum. The one whose input came first stays, the other counts
    as dropped, and the pair is noted: the dealer or the recipient deviated
    (SA-304). Denial of service by a member is not prevented, only named.
    """
    require_state(state, CollectingInputs)
    masked = messages.MaskedInput.from_bytes(message, state.params.primitives)
    with blame_client(client):
        verify_signed(state, client, masked, state.senders, state.context)
        known = state.received.get(masked.sender)
        if known is not None:
            # SA-013: the signature covers the message, so equal means equal.
            if known.signature != masked.signature:
                raise RuleBrokenError("SA-013", "second, different masked input")
            return state
        vector = _verified_input(state, masked)
    cohort = frozenset(masked.cohort)
    rivals = [
        other
        for other in neighbours(state, masked.sender) & state.received.keys()
        if other not in cohort or masked.sender not in state.received[other].cohort
    ]
    if rivals:
        suspicions = noted(
            state, "SA-304", [(masked.sender, other) for other in rivals]
        )
        return replace(state, suspicions=suspicions)
    state.running.add(vector)
    record = InputRecord(cohort, masked.signature)
    return replace(state, received={**state.received, masked.sender: record})


def _verified_input(
    state: CollectingInputs, masked: messages.MaskedInput
) -> RingVector:
    # SA-303: the cohort holds the client, only neighbours in U2, and enough of them.
    cohort, own = set(masked.cohort), {masked.sender}
    possible = (neighbours(state, masked.sender) & state.senders) | own
    if not own <= cohort or not cohort <= possible:
        raise RuleBrokenError("SA-303", "masked with a wrong cohort")
    state.params.require_threshold(len(cohort), "SA-303")
    # SA-301: the vector has the session's shape.
    params = state.params
    try:
        return RingVector.from_bytes(
            masked.vector, params.body_length, params.lane_length, params.ring_bits
        )
    except MessageError as error:
        raise RuleBrokenError("SA-301", str(error)) from error


def close_inputs(
    state: CollectingInputs,
) -> tuple[CollectingConfirmations, dict[str, bytes]]:
    """End phase 2: the survivors (U3) learn who they are."""
    require_state(state, CollectingInputs)
    dropouts = closed(state, state.senders, state.received, "masked-input")
    survivors = tuple(sorted(state.received))
    following = CollectingConfirmations(
        state.params,
        state.session,
        dropouts,
        state.directory,
        state.context,
        state.encapsulations,
        state.running.total.copy(),
        {index: state.received[index].cohort for index in survivors},
        state.suspicions,
    )
    suite = state.params.primitives
    listed = messages.Survivors(suite, state.session, survivors).to_bytes()
    return following, to_each(state.params, survivors, listed)


# --------------------------------------------------- phase 3: confirm survivors


def receive_confirmation(
    state: CollectingConfirmations, client: str, message: bytes
) -> CollectingConfirmations:
    """Take one survivor's ``Confirm`` over the list it was sent (SA-404)."""
    require_state(state, CollectingConfirmations)
    confirm = messages.Confirm.from_bytes(message, state.params.primitives)
    confirmed = confirmed_context(state.context, sorted(state.cohorts))
    with blame_client(client):
        verify_signed(state, client, confirm, state.cohorts, confirmed)
        if is_repeated(state.received, confirm):
            return state
    return replace(state, received={**state.received, confirm.sender: confirm})


def close_confirmations(
    state: CollectingConfirmations,
) -> tuple[CollectingReveals, dict[str, bytes]]:
    """End phase 3: everybody who confirmed (U4) gets all confirmations."""
    require_state(state, CollectingConfirmations)
    dropouts = closed(state, state.cohorts, state.received, "confirm-survivors")
    following = CollectingReveals(
        state.params,
        state.session,
        dropouts,
        state.directory,
        state.context,
        state.encapsulations,
        state.masked,
        state.cohorts,
        state.suspicions,
        frozenset(state.received),
    )
    return following, relayed_confirmations(state)


# -------------------------------------------------------------- phase 4: unmask


def receive_reveal(
    state: CollectingReveals, client: str, message: bytes
) -> CollectingReveals:
    """Take one client's ``Unmask``: the one right share per peer (SA-504)."""
    require_state(state, CollectingReveals)
    unmask = messages.Unmask.from_bytes(message, state.params.primitives)
    confirmed = confirmed_context(state.context, sorted(state.cohorts))
    with blame_client(client):
        verify_signed(state, client, unmask, state.confirmers, confirmed)
        if is_repeated(state.received, unmask):
            return state
        expected = {
            peer: messages.kind_for(peer, state.cohorts)
            for peer in state.cohorts[unmask.sender]
        }
        if {one.peer: one.kind for one in unmask.reveals} != expected:
            raise RuleBrokenError("SA-504", "not exactly one right share per peer")
    return replace(state, received={**state.received, unmask.sender: unmask})


def close_reveals(state: CollectingReveals, *, threads: int = 1) -> SumResult:
    """End the session: rebuild the masks that are left and take them off.

    Args:
        state: After the last reveal.
        threads: How many work on the masks at the same time.

    Raises:
        TooFewSurvivorsError: Fewer shares than the threshold.
        FaultyClientError: A dealer's shares agree on a wrong secret (SA-506), or
            a vault or an offer is not what its owner signed (SA-509).
        FaultySharesError: Shares of one dealer do not give its secret (SA-506).
    """
    require_state(state, CollectingReveals)
    dropouts = closed(state, state.confirmers, state.received, "unmask")
    # 1. Rebuild b of each survivor and R of each dropout masked with; check them
    # against what was published, and note bad shares.
    rebuilt = rebuild_secrets(state)
    # 2. Take the masks off a copy, so that a failed close changes nothing.
    total = state.masked.copy()
    masks = leftover_masks(state, rebuilt.secrets)
    add_masks(total, masks, state.params.primitives, threads=threads)
    survivors = tuple(state.params.name_of(index) for index in sorted(state.cohorts))
    suspicions = noted(state, "SA-506", rebuilt.suspects)
    return SumResult(total, survivors, dropouts, suspicions)
