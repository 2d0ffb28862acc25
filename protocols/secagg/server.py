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

from dataclasses import replace
from hmac import compare_digest

from protocols.errors import (
    MessageError,
    RuleBrokenError,
    blame_client,
)
from protocols.ring import RingVector
from protocols.secagg import messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.directory import bind, verify_entry, with_entry
from protocols.secagg.masks import (
    Mask,
    add_masks,
    commitment_of,
    mask_key_of,
    pair_mask,
    self_mask,
)
from protocols.secagg.params import SessionParams
from protocols.secagg.server_checks import (
    closed,
    is_repeated,
    noted,
    require_enough,
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
from protocols.secagg.unmasking import reconstruct

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
    entry = messages.Advertise.from_bytes(message)
    with blame_client(client):
        verify_sender(state, client, entry)
        verify_entry(state.params, state.session, entry)
        if is_repeated(state.received, entry):
            return state
        return replace(state, received=with_entry(state.received, entry))


def close_keys(state: CollectingKeys) -> tuple[CollectingShares, dict[str, bytes]]:
    """End phase 0: everybody who advertised gets the directory (U1)."""
    require_state(state, CollectingKeys)
    everybody = range(len(state.params.roster))
    dropouts = closed(state, everybody, state.received, "advertise-keys")
    roster = messages.Roster(state.session, tuple(state.received.values())).to_bytes()
    context = bind(state.session, state.received.values())
    following = CollectingShares(
        state.params, state.session, dropouts, state.received, context
    )
    return following, to_each(state.params, state.received, roster)


# ---------------------------------------------------------- phase 1: share keys


def receive_shares(
    state: CollectingShares, client: str, message: bytes
) -> CollectingShares:
    """Take one client's ``ShareKeys``: a box for each other member of U1 (SA-203)."""
    require_state(state, CollectingShares)
    shares = messages.ShareKeys.from_bytes(message)
    with blame_client(client):
        verify_signed(state, client, shares, state.directory, state.context)
        if is_repeated(state.received, shares):
            return state
        recipients = {box.peer for box in shares.boxes}
        if recipients != state.directory.keys() - {shares.sender}:
            raise RuleBrokenError("SA-203", "boxes are not for exactly the others")
    return replace(state, received={**state.received, shares.sender: shares})


def close_shares(state: CollectingShares) -> tuple[CollectingInputs, dict[str, bytes]]:
    """End phase 1: each sender (U2) gets the boxes addressed to it."""
    require_state(state, CollectingShares)
    dropouts = closed(state, state.directory, state.received, "share-keys")
    boxes: dict[int, list[messages.Box]] = {index: [] for index in state.received}
    for sender in sorted(state.received):
        for box in state.received[sender].boxes:
            if box.peer in boxes:
                boxes[box.peer].append(messages.Box(sender, box.sealed))
    deliveries = {
        state.params.name_of(index): messages.Delivery(
            state.session, tuple(addressed)
        ).to_bytes()
        for index, addressed in boxes.items()
    }
    following = CollectingInputs(
        state.params,
        state.session,
        dropouts,
        state.directory,
        state.context,
        frozenset(state.received),
        RunningSum(state.params.zeros()),
    )
    return following, deliveries


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
    masked = messages.MaskedInput.from_bytes(message)
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
        for other, record in state.received.items()
        if other not in cohort or masked.sender not in record.cohort
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
    # SA-303: the cohort holds the client, only clients of U2, and enough of them.
    cohort = set(masked.cohort)
    if masked.sender not in cohort or not cohort <= state.senders:
        raise RuleBrokenError("SA-303", "masked with a wrong cohort")
    state.params.require_cohort(len(cohort), "SA-303")
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
        state.running.total.copy(),
        {index: state.received[index].cohort for index in survivors},
        state.suspicions,
    )
    listed = messages.Survivors(state.session, survivors).to_bytes()
    return following, to_each(state.params, survivors, listed)


# --------------------------------------------------- phase 3: confirm survivors


def receive_confirmation(
    state: CollectingConfirmations, client: str, message: bytes
) -> CollectingConfirmations:
    """Take one survivor's ``Confirm`` over the list it was sent (SA-404)."""
    require_state(state, CollectingConfirmations)
    confirm = messages.Confirm.from_bytes(message)
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
    signers = sorted(state.received)
    collected = tuple(
        messages.Confirmation(index, state.received[index].signature)
        for index in signers
    )
    following = CollectingReveals(
        state.params,
        state.session,
        dropouts,
        state.directory,
        state.context,
        state.masked,
        state.cohorts,
        state.suspicions,
        frozenset(signers),
    )
    relayed = messages.Confirmations(state.session, collected).to_bytes()
    return following, to_each(state.params, signers, relayed)


# -------------------------------------------------------------- phase 4: unmask


def receive_reveal(
    state: CollectingReveals, client: str, message: bytes
) -> CollectingReveals:
    """Take one client's ``Unmask``: the one right share per peer (SA-504)."""
    require_state(state, CollectingReveals)
    unmask = messages.Unmask.from_bytes(message)
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


def close_reveals(state: CollectingReveals) -> SumResult:
    """End the session: rebuild the masks that are left and take them off.

    Raises:
        TooFewSurvivorsError: Fewer shares than the threshold.
        FaultyClientError: A dealer's shares agree on a wrong secret (SA-506).
        FaultySharesError: Shares of one dealer do not give its secret (SA-506).
    """
    require_state(state, CollectingReveals)
    dropouts = closed(state, state.confirmers, state.received, "unmask")
    # 1. Who must be rebuilt: b of each survivor, R of each dropout masked with.
    survivors = sorted(state.cohorts)
    masked_with = frozenset[int]().union(*state.cohorts.values())
    # 2. Rebuild, check against what was published, and note bad shares.
    suspicions = state.suspicions
    masks: list[Mask] = []
    for dealer in sorted(masked_with):
        secret, groups = _rebuilt(state, dealer)
        suspicions = noted(replace(state, suspicions=suspicions), "SA-506", groups)
        masks.extend(_leftover_masks(state, dealer, secret))
    # 3. Take the masks off a copy, so that a failed close changes nothing.
    total = state.masked.copy()
    add_masks(total, masks)
    names = tuple(state.params.name_of(index) for index in survivors)
    return SumResult(total, names, dropouts, suspicions)


def _rebuilt(
    state: CollectingReveals, dealer: int
) -> tuple[bytes, tuple[tuple[int, ...], ...]]:
    """SA-505: a secret counts only if it matches what its dealer published."""
    shares = {
        holder: one.share
        for holder, unmask in state.received.items()
        for one in unmask.reveals
        if one.peer == dealer
    }
    require_enough(len(shares), state.params, "unmask")
    entry = state.directory[dealer]

    def is_right(secret: bytes) -> bool:
        if dealer in state.cohorts:
            found = commitment_of(secret, state.session)
            return compare_digest(found, entry.commitment)
        found = mask_key_of(secret, state.session).public_bytes
        return compare_digest(found, entry.mask_key)

    return reconstruct(state.params, dealer, shares, is_right)


def _leftover_masks(state: CollectingReveals, dealer: int, secret: bytes) -> list[Mask]:
    """What to add to the sum to remove the masks that one secret gives."""
    if dealer in state.cohorts:
        return [self_mask(secret, state.context).inverse()]
    # What the dropout would have added is what cancels each survivor's side.
    key = mask_key_of(secret, state.session)
    return [
        pair_mask(dealer, key, peer, state.directory[peer].mask_key, state.context)
        for peer, cohort in state.cohorts.items()
        if dealer in cohort
    ]
