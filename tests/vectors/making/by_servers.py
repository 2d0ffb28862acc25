"""Servers that deviate, alone or with a client, and the client that refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from protocols.secagg import messages
from protocols.secagg.confirmations import confirmed_context
from tests.vectors.making.changes import (
    edited,
    flipped,
    parsed,
    raw,
    signed,
    with_item,
    without,
)
from tests.vectors.making.failures import VICTIM, Failure, by_server
from tests.vectors.making.play import Change, Game, Place

OTHER_SESSION = bytes(32)
LOW_ORDER = (1).to_bytes(32, "little")
FOUR = "four-clients"
LOST = "four-clients-one-leaves-before-masked-input"
SPARSE = "sparse-six-clients-one-leaves-before-masked-input"
HYBRID = "suite-2-three-clients"

other_session = edited(lambda m: replace(m, session=OTHER_SESSION))
truncated = raw(lambda data: data[:-1])
extended = raw(lambda data: data + b"\0")


# ------------------------------------------------------------ phase 1: rosters


def entries(edit: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Change:
    return edited(lambda m: replace(m, entries=edit(m.entries)))


def colluding_entry(**fields: Any) -> Change:
    """The entry of site-3, which signs whatever the server likes."""

    def change(game: Game, message: bytes) -> bytes:
        roster = parsed(message)
        entry = signed(
            game, "site-3", replace(roster.entries[3], **fields), game.session
        )
        entry_list = with_item(roster.entries, 3, entry)
        return replace(roster, entries=entry_list).to_bytes()

    return change


def repeated_key(game: Game, message: bytes) -> bytes:
    taken = parsed(message).entries[0].mask_key
    return colluding_entry(mask_key=taken)(game, message)


ROSTERS = (
    by_server(
        "roster-truncated",
        FOUR,
        "share-keys",
        truncated,
        "The roster lacks its last byte.",
    ),
    by_server(
        "roster-of-another-session",
        FOUR,
        "share-keys",
        other_session,
        "The roster names another session.",
    ),
    by_server(
        "roster-with-an-entry-of-another-session",
        FOUR,
        "share-keys",
        entries(
            lambda e: with_item(e, 2, replace(e[2], session=OTHER_SESSION)),
        ),
        "The entry of site-2 names another session, as if it had another model.",
    ),
    by_server(
        "roster-with-a-replaced-key",
        FOUR,
        "share-keys",
        entries(lambda e: with_item(e, 2, replace(e[2], channel_key=b"\x11" * 32))),
        "The server puts a key of its own into the entry of site-2.",
    ),
    by_server(
        "roster-with-a-low-order-key",
        FOUR,
        "share-keys",
        colluding_entry(channel_key=LOW_ORDER),
        "site-3 signs a channel key with which every exchange gives the same secret.",
        with_=("site-3",),
    ),
    by_server(
        "roster-with-a-key-that-is-not-canonical",
        FOUR,
        "share-keys",
        colluding_entry(mask_key=b"\xff" * 32),
        "site-3 signs a mask key that is not below 2^255 - 19.",
        with_=("site-3",),
    ),
    by_server(
        "roster-with-a-repeated-key",
        FOUR,
        "share-keys",
        repeated_key,
        "site-3 signs the mask key of site-0 as its own.",
        with_=("site-3",),
    ),
    by_server(
        "roster-with-a-stranger",
        FOUR,
        "share-keys",
        entries(lambda e: (*e, replace(e[3], sender=4))),
        "A fifth entry names an index that the study's roster does not have.",
    ),
    by_server(
        "roster-without-own-entry",
        FOUR,
        "share-keys",
        entries(lambda e: without(e, 1)),
        "The roster leaves site-1 out, to which it is sent.",
    ),
    by_server(
        "roster-too-short",
        FOUR,
        "share-keys",
        entries(lambda e: without(e, 2, 3)),
        "Two entries only: of two inputs each party knows the other's.",
    ),
    by_server(
        "roster-with-another-own-entry",
        FOUR,
        "share-keys",
        lambda game, message: entries(
            lambda e: with_item(
                e,
                1,
                signed(game, VICTIM, replace(e[1], nonce=bytes(32)), game.session),
            )
        )(game, message),
        "The own entry is validly signed, but not the one that was sent: it comes "
        "from another run of the same client, as after a restored backup.",
    ),
)


# ------------------------------------------------------ phase 1: neighbourhoods


def listing(place: int, **fields: Any) -> Change:
    return edited(
        lambda m: replace(
            m,
            listings=with_item(m.listings, place, replace(m.listings[place], **fields)),
        )
    )


def with_stranger(game: Game, message: bytes) -> bytes:
    """Everybody is listed, also the one that is no neighbour."""
    near = parsed(message)
    known = {one.entry.sender: one for one in near.listings}
    for name in game.spec.names:
        place = Place("share-keys", "down", name)
        if place not in game.sent:
            continue
        known.update(
            {one.entry.sender: one for one in parsed(game.sent[place]).listings}
        )
    listings = tuple(known[sender] for sender in sorted(known))
    return replace(near, listings=listings).to_bytes()


def shorter_proof(m: Any) -> Any:
    first = replace(m.listings[0], proof=m.listings[0].proof[:-1])
    return replace(m, listings=(first, *m.listings[1:]))


NEIGHBOURHOODS = (
    by_server(
        "neighbourhood-of-a-small-directory",
        SPARSE,
        "share-keys",
        edited(lambda m: replace(m, size=4)),
        "The directory is said to have four entries; at most one client may leave.",
    ),
    by_server(
        "neighbourhood-of-a-directory-larger-than-the-roster",
        SPARSE,
        "share-keys",
        edited(lambda m: replace(m, size=7)),
        "The directory is said to have seven entries; the study names six clients.",
    ),
    by_server(
        "neighbourhood-with-another-root",
        SPARSE,
        "share-keys",
        edited(lambda m: replace(m, root=flipped(m.root, 0))),
        "The proofs do not lead to the root that is shown.",
    ),
    by_server(
        "neighbourhood-with-a-wrong-position",
        SPARSE,
        "share-keys",
        listing(0, position=5),
        "The first entry is said to stand at another place of the directory.",
    ),
    by_server(
        "neighbourhood-with-a-short-proof",
        SPARSE,
        "share-keys",
        edited(shorter_proof),
        "One proof lacks its last hash.",
    ),
    by_server(
        "neighbourhood-with-a-client-that-is-no-neighbour",
        SPARSE,
        "share-keys",
        with_stranger,
        "All six clients are listed, with right proofs: one is no neighbour.",
        to="site-5",
    ),
    by_server(
        "neighbourhood-with-too-few-entries",
        SPARSE,
        "share-keys",
        edited(
            lambda m: replace(
                m,
                listings=tuple(
                    one
                    for place, one in enumerate(m.listings)
                    if one.entry.sender == 1 or place == len(m.listings) - 1
                ),
            )
        ),
        "Two entries, where three shares give a secret back.",
    ),
    by_server(
        "neighbourhood-without-own-entry",
        SPARSE,
        "share-keys",
        edited(
            lambda m: replace(
                m, listings=tuple(one for one in m.listings if one.entry.sender != 1)
            )
        ),
        "The neighbourhood leaves the client out to which it is sent.",
    ),
)


# --------------------------------------------------------- phase 2: deliveries


def boxes(edit: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Change:
    return edited(lambda m: replace(m, boxes=edit(m.boxes)))


def swapped(all_boxes: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *middle, last = all_boxes
    return (
        replace(first, sealed=last.sealed),
        *middle,
        replace(last, sealed=first.sealed),
    )


def reflected(game: Game, message: bytes) -> bytes:
    """Each box that site-1 sent comes back as if its recipient had sent it."""
    own = parsed(game.sent[Place("share-keys", "up", VICTIM)])
    return replace(parsed(message), boxes=own.boxes).to_bytes()


DELIVERIES = (
    by_server(
        "delivery-with-leftover-bytes",
        FOUR,
        "masked-input",
        extended,
        "One byte follows the delivery.",
    ),
    by_server(
        "delivery-of-another-session",
        FOUR,
        "masked-input",
        other_session,
        "The delivery names another session.",
    ),
    by_server(
        "box-of-a-stranger",
        FOUR,
        "masked-input",
        boxes(lambda b: (*b, replace(b[0], peer=9))),
        "A box comes from an index that is not in the directory.",
    ),
    by_server(
        "box-of-the-recipient-itself",
        FOUR,
        "masked-input",
        boxes(lambda b: (b[0], replace(b[1], peer=1), b[2])),
        "A box for site-1 comes from site-1.",
    ),
    by_server(
        "delivery-too-few-boxes",
        FOUR,
        "masked-input",
        boxes(lambda b: b[2:]),
        "One box: with site-1 itself there are two inputs.",
    ),
    by_server(
        "boxes-swapped",
        FOUR,
        "masked-input",
        boxes(swapped),
        "The boxes of site-0 and site-3 change places: neither opens, and too few "
        "are left.",
        because=("SA-202", "SA-205"),
    ),
    by_server(
        "boxes-sent-back",
        FOUR,
        "masked-input",
        reflected,
        "site-1 gets the boxes that it sent; a key is for one direction.",
        because=("SA-202", "SA-205"),
    ),
    by_server(
        "offer-without-a-box",
        HYBRID,
        "masked-input",
        boxes(lambda b: b[1:]),
        "The offer of site-0 comes without its box.",
    ),
    by_server(
        "delivery-without-an-offer",
        HYBRID,
        "masked-input",
        edited(lambda m: replace(m, offers=())),
        "The box of site-0 comes without the offer that it is bound to: it does not "
        "open, and too few are left.",
        because=("SA-202", "SA-205"),
    ),
    by_server(
        "offer-with-another-tag",
        HYBRID,
        "masked-input",
        edited(
            lambda m: replace(
                m, offers=(replace(m.offers[0], tag=flipped(m.offers[0].tag, 0)),)
            )
        ),
        "The server changes the tag of an offer: the box that is bound to it does not "
        "open, and too few are left.",
        because=("SA-202", "SA-205"),
    ),
)


# ------------------------------------------------------ phase 3: survivor lists


def survivors(*indices: int) -> Change:
    return edited(lambda m: replace(m, survivors=indices))


SURVIVOR_LISTS = (
    by_server(
        "survivor-list-out-of-order",
        FOUR,
        "confirm-survivors",
        survivors(0, 2, 1, 3),
        "The list is not increasing.",
    ),
    by_server(
        "survivor-list-of-another-session",
        FOUR,
        "confirm-survivors",
        other_session,
        "The list names another session.",
    ),
    by_server(
        "survivor-list-without-the-recipient",
        FOUR,
        "confirm-survivors",
        survivors(0, 2, 3),
        "The list leaves site-1 out, to which it is sent.",
    ),
    by_server(
        "survivor-list-with-a-stranger",
        FOUR,
        "confirm-survivors",
        survivors(0, 1, 2, 3, 4),
        "The list names an index that the study's roster does not have.",
    ),
    by_server(
        "survivor-list-with-a-client-not-masked-with",
        "five-clients-one-leaves-before-share-keys",
        "confirm-survivors",
        survivors(0, 1, 2, 3, 4),
        "The list names site-2, whose box was never delivered.",
    ),
    by_server(
        "survivor-list-too-short",
        FOUR,
        "confirm-survivors",
        survivors(0, 1),
        "Two survivors: of two inputs each party knows the other's.",
    ),
    by_server(
        "survivor-list-too-short-for-a-sparse-graph",
        SPARSE,
        "confirm-survivors",
        survivors(0, 1, 2, 3),
        "Four survivors of six clients, of which at most one may leave.",
    ),
    by_server(
        "second-survivor-list",
        FOUR,
        "confirm-survivors",
        survivors(0, 1, 2),
        "site-1 has signed the list and gets another one: it answers once in a phase, "
        "and this is not the message of the next one.",
        second=True,
        because=("SA-009",),
    ),
)


# ------------------------------------------------------ phase 4: confirmations


def confirmations(edit: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> Change:
    return edited(lambda m: replace(m, confirmations=edit(m.confirmations)))


def of_another_list(game: Game, message: bytes) -> bytes:
    """site-0 was shown another list, and its signature over that is relayed."""
    relayed = parsed(message)
    listed = confirmed_context(game.server.context, (0, 1, 2))
    confirm = messages.Confirm(relayed.suite, relayed.session, 0, b"")
    signature = signed(game, "site-0", confirm, listed).signature
    first = replace(relayed.confirmations[0], signature=signature)
    changed = with_item(relayed.confirmations, 0, first)
    return replace(relayed, confirmations=changed).to_bytes()


def confirmation_by(game: Game, index: int) -> messages.Confirmation:
    """What a client confirmed, as the server relays it."""
    sent = parsed(game.sent[Place("confirm-survivors", "up", f"site-{index}")])
    return messages.Confirmation(index, sent.signature)


def of_no_neighbour(game: Game, message: bytes) -> bytes:
    """With that of the one survivor who is no neighbour of site-1."""
    relayed = parsed(message)
    near = game.params.graph(game.server.context).closed(1)
    (far,) = game.server.cohorts.keys() - near
    together = (*relayed.confirmations, confirmation_by(game, far))
    changed = sorted(together, key=lambda one: one.signer)
    return replace(relayed, confirmations=tuple(changed)).to_bytes()


def by_others(game: Game, message: bytes) -> bytes:
    """Of as many survivors, with site-3 instead of site-0."""
    relayed = parsed(message)
    changed = (*relayed.confirmations[1:], confirmation_by(game, 3))
    return replace(relayed, confirmations=changed).to_bytes()


CONFIRMATIONS = (
    by_server(
        "confirmations-of-another-session",
        FOUR,
        "unmask",
        other_session,
        "The confirmations name another session.",
    ),
    by_server(
        "confirmations-too-few",
        FOUR,
        "unmask",
        confirmations(lambda c: c[2:]),
        "One confirmation, where three are needed.",
    ),
    by_server(
        "confirmation-of-a-client-not-listed",
        LOST,
        "unmask",
        confirmations(lambda c: (c[0], c[1], replace(c[2], signer=2))),
        "A confirmation by site-2, which is not in the list that site-1 signed.",
    ),
    by_server(
        "confirmation-of-a-client-that-is-no-neighbour",
        SPARSE,
        "unmask",
        of_no_neighbour,
        "A right confirmation of a client that holds no share of site-1's secrets.",
    ),
    by_server(
        "confirmation-with-a-replaced-signature",
        FOUR,
        "unmask",
        confirmations(
            lambda c: with_item(c, 0, replace(c[0], signature=c[2].signature))
        ),
        "The signature of site-2 stands beside the index of site-0.",
    ),
    by_server(
        "confirmation-of-another-list",
        FOUR,
        "unmask",
        of_another_list,
        "site-0 was shown a list without site-3; its signature over that one is "
        "relayed to site-1.",
        because=("SA-404",),
        with_=("site-0",),
    ),
    by_server(
        "asked-again-after-the-end",
        FOUR,
        "unmask",
        by_others,
        "site-1 has answered; then it gets other confirmations, all of them valid.",
        second=True,
    ),
)


FAILURES: tuple[Failure, ...] = (
    *ROSTERS,
    *NEIGHBOURHOODS,
    *DELIVERIES,
    *SURVIVOR_LISTS,
    *CONFIRMATIONS,
)
