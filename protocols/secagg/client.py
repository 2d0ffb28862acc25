"""The client of a secure sum, in time order.

Each step takes the state of the phase before, what the server sent, and fresh
randomness where it needs some; it returns the next state and one message. A
step that fails leaves its state as it was; a step that succeeds uses it up, so
no phase is answered twice (SA-006). Whoever runs the steps stores the returned
bytes before sending them and resends them verbatim.

All bounds come from ``SessionParams``. Nothing is taken from the server except
keys under pinned identities, boxes that open, and lists that are checked here.
"""

from __future__ import annotations

from protocols import kdf, labels, shamir
from protocols.agreement import AgreementKey, KemSecret
from protocols.errors import (
    FaultyBoxesError,
    MessageError,
    MisuseError,
    RuleBrokenError,
    blame_server,
)
from protocols.keys import SigningKey
from protocols.prg import Stream
from protocols.ring import RingVector
from protocols.secagg import messages
from protocols.secagg.boxes import Channels, SharePair
from protocols.secagg.client_states import (
    Advertised,
    Finished,
    InputMasked,
    KeysShared,
    Seat,
    SurvivorsConfirmed,
    require_randomness,
    require_state,
    use_up,
)
from protocols.secagg.confirmations import (
    confirmed_context,
    verify_confirmations,
    verify_survivors,
)
from protocols.secagg.directory import (
    Directory,
    verify_neighbourhood,
    verify_roster,
    verify_session,
)
from protocols.secagg.hybrid import accept_offer, make_offers, seal_vault
from protocols.secagg.masks import (
    Mask,
    add_masks,
    commitment_of,
    mask_key_of,
    pair_mask,
    self_mask,
)
from protocols.secagg.params import SessionParams

__all__ = [
    "Advertised",
    "Finished",
    "InputMasked",
    "KeysShared",
    "SurvivorsConfirmed",
    "advertise_keys",
    "confirm_survivors",
    "mask_input",
    "share_keys",
    "unmask",
]


# ------------------------------------------------------ phase 0: advertise keys


def advertise_keys(
    params: SessionParams,
    name: str,
    identity: SigningKey,
    model_digest: bytes,
    *,
    randomness: bytes,
) -> tuple[Advertised, bytes]:
    """Make this session's keys and announce their public halves.

    Args:
        params: From the signed study, never from the server.
        name: This client's name in ``params.roster``.
        identity: The key that the roster pins for this client.
        model_digest: Digest of the model bytes this client received.
        randomness: At least 32 fresh bytes from a cryptographic source.

    Returns:
        The next state and the ``Advertise`` message for the server.

    Raises:
        MisuseError: ``identity`` is not the pinned one, or an argument is malformed.
    """
    require_randomness(randomness)
    index = params.index_of(name)
    if identity.public_bytes != params.roster[index].identity:
        raise MisuseError(f"{name}: identity is not the one pinned in the roster")
    session, suite = params.session_id(model_digest), params.primitives
    channel = AgreementKey.derive(labels.CHANNEL_SECRET, randomness, session, suite)
    self_secret = kdf.derive(labels.SELF_SECRET, randomness, session, 32)
    recovery = kdf.derive(labels.RECOVERY_SECRET, randomness, session, 32)
    entry = messages.Advertise(
        suite=suite,
        session=session,
        sender=index,
        signature=b"",
        channel_key=channel.public_bytes,
        mask_key=mask_key_of(recovery, session, suite).public_bytes,
        commitment=commitment_of(self_secret, session),
        nonce=kdf.derive(labels.NONCE, randomness, session, messages.NONCE_BYTES),
    ).signed(identity, session)
    seat = Seat(params, session, index, identity)
    state = Advertised(seat, channel, self_secret, recovery, entry)
    return state, entry.to_bytes()


# ---------------------------------------------------------- phase 1: share keys


def share_keys(
    state: Advertised, roster: bytes, *, randomness: bytes
) -> tuple[KeysShared, bytes]:
    """Split b and R and seal one share of each for every other client.

    Both are split among the neighbours *and* this client itself (SA-201): n
    shares exist and t of them suffice.

    Args:
        state: What ``advertise_keys`` returned; used up by success.
        roster: The server's ``Roster`` (``Neighbourhood`` in a sparse graph)
            message, as received.
        randomness: At least 32 fresh bytes from a cryptographic source.

    Returns:
        The next state and the ``ShareKeys`` message for the server.

    Raises:
        FaultyServerError: The roster is malformed, of another session, leaves
            this client out, repeats a key, holds an entry that its member did
            not sign, or lists too few clients (SA-101…107).
    """
    require_state(state, Advertised)
    require_randomness(randomness)
    seat, params = state.seat, state.seat.params
    with blame_server():
        directory, context = _accepted(params, state.entry, roster)
    # From here on the verified directory joins everything (SA-106).
    dealt = shamir.split(
        (state.self_secret, state.recovery),
        params.threshold,
        [index + 1 for index in directory],
        Stream(kdf.derive(labels.COEFFICIENTS, randomness, context, 32)),
    )
    shares = dict(zip(directory, dealt, strict=True))
    # Of our own two shares only the one of b is kept: nobody may ever reveal a
    # share of its own R, so it does not exist after this line (SA-503).
    own_share, _ = shares.pop(seat.index)
    offers: dict[int, messages.Offer] = {}
    offered: dict[int, KemSecret] = {}
    vault = b""
    if params.primitives.hybrid:
        offers, offered = make_offers(seat.index, directory, context)
        vault = seal_vault(state.recovery, offered, seat.index, context, randomness)
    channels = Channels(
        seat.index, state.channel, directory, context, params.primitives
    )
    boxes = channels.seal(shares, offers, randomness)
    following = KeysShared(
        seat,
        channels,
        state.self_secret,
        state.recovery,
        context,
        directory,
        own_share,
        offered,
    )
    signed = messages.ShareKeys(
        params.primitives,
        seat.session,
        seat.index,
        b"",
        boxes,
        tuple(offers.values()),
        vault,
    ).signed(seat.identity, context)
    use_up(state)
    return following, signed.to_bytes()


def _accepted(
    params: SessionParams, own: messages.Advertise, roster: bytes
) -> tuple[Directory, bytes]:
    """The directory that we accept, and the context that it gives."""
    if params.degree:
        near = messages.Neighbourhood.from_bytes(roster, params.primitives)
        return verify_neighbourhood(params, own, near)
    everybody = messages.Roster.from_bytes(roster, params.primitives)
    return verify_roster(params, own, everybody)


# -------------------------------------------------------- phase 2: masked input


def mask_input(
    state: KeysShared, delivery: bytes, vector: RingVector, *, threads: int = 1
) -> tuple[InputMasked, bytes]:
    """Mask ``vector`` with b and with one pairwise mask per opened box.

    A box that does not open costs its sender a place in our cohort (U2), which
    the message names. Sending it spends the input: never mask that again.

    Args:
        state: What ``share_keys`` returned; used up by success.
        delivery: The server's ``Delivery`` message, as received.
        vector: The encoded input; it is copied, not changed.
        threads: How many work on the masks at the same time.

    Returns:
        The next state and the ``MaskedInput`` message for the server.

    Raises:
        MisuseError: ``vector`` is not of this session's shape (SA-301).
        FaultyServerError: The delivery is malformed, of another session, from
            strangers, or of fewer clients than are needed (SA-204, SA-206).
        FaultyBoxesError: So few boxes open that fewer are left (SA-206).
    """
    require_state(state, KeysShared)
    seat, params = state.seat, state.seat.params
    if not params.fits(vector):
        raise MisuseError("vector does not have the shape of this session (SA-301)")
    with blame_server():
        parsed = messages.Delivery.from_bytes(delivery, params.primitives)
        verify_session(seat.session, parsed.session)
        # SA-206: with ourselves, at least the threshold; in a complete graph
        # these are all inputs that our masks cancel in.
        need = params.threshold if params.degree else params.min_cohort
        if len(parsed.boxes) + 1 < need:
            raise RuleBrokenError("SA-206", "too few boxes were delivered")
        shares, masks = _opened(state, parsed)
    if len(shares) + 1 < need:
        closed = [box.peer for box in parsed.boxes if box.peer not in shares]
        names = [params.name_of(index) for index in closed]
        raise FaultyBoxesError(names, len(shares) + 1, need)
    masked = vector.copy()
    add_masks(masked, masks, params.primitives, threads=threads)
    following = InputMasked(seat, state.context, shares, state.own_share)
    message = messages.MaskedInput(
        params.primitives,
        seat.session,
        seat.index,
        b"",
        tuple(sorted(following.cohort)),
        masked.to_bytes(),
    )
    signed = message.signed(seat.identity, state.context)
    use_up(state)
    return following, signed.to_bytes()


def _opened(
    state: KeysShared, delivery: messages.Delivery
) -> tuple[dict[int, SharePair], list[Mask]]:
    """The shares of those whose boxes and offers are good, and all our masks."""
    own, suite = state.seat.index, state.seat.params.primitives
    own_key = mask_key_of(state.recovery, state.seat.session, suite)
    offers = {offer.peer: offer for offer in delivery.offers}
    shares: dict[int, SharePair] = {}
    masks = [self_mask(state.self_secret, state.context)]
    for peer, pair in state.channels.open(delivery).items():
        secret = state.offered.get(peer)
        if suite.hybrid and secret is None:
            # SA-208: an offer without its secret counts as a box that does not open.
            try:
                offer = offers.get(peer)
                secret = accept_offer(own, own_key, peer, offer, state.context)
            except MessageError:
                continue
        public = state.directory[peer].mask_key
        masks.append(pair_mask(own, own_key, peer, public, state.context, secret))
        shares[peer] = pair
    return shares, masks


# --------------------------------------------------- phase 3: confirm survivors


def confirm_survivors(
    state: InputMasked, survivors: bytes
) -> tuple[SurvivorsConfirmed, bytes]:
    """Sign the list of clients whose inputs are in the sum (U3).

    Args:
        state: What ``mask_input`` returned; used up by success, so that a client
            signs one list per session.
        survivors: The server's ``Survivors`` message, as received.

    Returns:
        The next state and the ``Confirm`` message for the server.

    Raises:
        FaultyServerError: The list is malformed, of another session, leaves
            this client out, names somebody it did not mask with, or is too
            short (SA-401…403).
    """
    require_state(state, InputMasked)
    seat, suite = state.seat, state.seat.params.primitives
    with blame_server():
        parsed = messages.Survivors.from_bytes(survivors, suite)
        verify_session(seat.session, parsed.session)
        verify_survivors(
            seat.params,
            seat.index,
            _neighbourhood(seat, state.context),
            state.cohort,
            parsed.survivors,
        )
    message = messages.Confirm(suite, seat.session, seat.index, b"")
    confirmed = confirmed_context(state.context, parsed.survivors)
    following = SurvivorsConfirmed(
        seat, state.context, state.shares, state.own_share, parsed.survivors
    )
    signed = message.signed(seat.identity, confirmed)
    use_up(state)
    return following, signed.to_bytes()


def _neighbourhood(seat: Seat, context: bytes) -> frozenset[int]:
    return seat.params.graph(context).closed(seat.index)


# -------------------------------------------------------------- phase 4: unmask


def unmask(state: SurvivorsConfirmed, confirmations: bytes) -> tuple[Finished, bytes]:
    """Reveal exactly one share for each client this one masked with.

    A share of b for a survivor, of R for a dropout, of its own b for itself: the
    list that it signed decides, so no message can make it reveal both (SA-502).

    Args:
        state: What ``confirm_survivors`` returned; used up by success.
        confirmations: The server's ``Confirmations`` message, as received.

    Returns:
        The end, and the ``Unmask`` message for the server.

    Raises:
        FaultyServerError: The message is malformed, of another session, holds
            a confirmation that is not one of a survivor over *our* list, or
            fewer of them than the threshold (SA-501).
    """
    require_state(state, SurvivorsConfirmed)
    seat, survivors = state.seat, state.survivors
    suite = seat.params.primitives
    confirmed = confirmed_context(state.context, survivors)
    near = _neighbourhood(seat, state.context).intersection(survivors)
    with blame_server():
        parsed = messages.Confirmations.from_bytes(confirmations, suite)
        verify_session(seat.session, parsed.session)
        verify_confirmations(
            seat.params, seat.session, confirmed, near, parsed.confirmations
        )
    chosen = {seat.index: state.own_share}
    for dealer, (self_share, recovery_share) in state.shares.items():
        chosen[dealer] = self_share if dealer in near else recovery_share
    reveals = tuple(
        messages.Reveal(peer, messages.kind_for(peer, near), chosen[peer])
        for peer in sorted(chosen)
    )
    message = messages.Unmask(suite, seat.session, seat.index, b"", reveals)
    finished = Finished(tuple(seat.params.name_of(index) for index in survivors))
    signed = message.signed(seat.identity, confirmed)
    use_up(state)
    return finished, signed.to_bytes()
