"""Every message with its fields, and bytes that are no message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

from protocols import merkle
from protocols.secagg import messages
from protocols.secagg.confirmations import confirmed_context
from protocols.secagg.messages.framing import VERSION, SignedMessage
from protocols.suites import Suite
from tests.vectors.making.changes import TYPES, parsed
from tests.vectors.making.play import Game, Place

__all__ = ["encodings", "invalid_encodings"]

Games = Mapping[str, Game]

PLAIN = "three-clients-threshold-2"
LOST = "four-clients-one-leaves-before-masked-input"
SPARSE = "sparse-six-clients-one-leaves-before-masked-input"
HYBRID = "suite-2-three-clients"

# Where each message is taken from. The last four differ by the suite's number only.
SOURCES = {
    "advertise": (Place("advertise-keys", "up", "site-1"), (PLAIN, HYBRID)),
    "roster": (Place("share-keys", "down", "site-1"), (PLAIN, HYBRID)),
    "share-keys": (Place("share-keys", "up", "site-1"), (PLAIN, HYBRID)),
    "delivery": (Place("masked-input", "down", "site-1"), (PLAIN, HYBRID)),
    "neighbourhood": (Place("share-keys", "down", "site-1"), (SPARSE,)),
    "masked-input": (Place("masked-input", "up", "site-1"), (PLAIN,)),
    "survivors": (Place("confirm-survivors", "down", "site-1"), (PLAIN, LOST)),
    "confirm": (Place("confirm-survivors", "up", "site-1"), (PLAIN,)),
    "confirmations": (Place("unmask", "down", "site-1"), (PLAIN,)),
    "unmask": (Place("unmask", "up", "site-1"), (PLAIN, LOST)),
}


# ------------------------------------------------------------------- messages


def encodings(games: Games) -> dict[str, Any]:
    """The content of each file of ``messages/``, by the name of the message."""
    files = {}
    for name, (place, sources) in SOURCES.items():
        cases = [_case(games[source], place) for source in sources]
        if name == "neighbourhood":
            cases.append(_hybrid_neighbourhood(games[HYBRID]))
        kind = TYPES[cases[0]["fields"]["tag"]]
        files[name] = {
            "message": kind.__name__,
            "phase": place.phase,
            "way": place.way,
            "cases": cases,
        }
    return files


def _case(game: Game, place: Place) -> dict[str, Any]:
    data = game.sent[place]
    message = parsed(data)
    case: dict[str, Any] = {
        "origin": f"{game.spec.name}, {place.client}",
        "suite": message.suite.number,
        "fields": _fields(message),
    }
    if isinstance(message, SignedMessage):
        case["signed"] = {
            "label": message.label.decode(),
            "identity_seed": game.spec.identity(place.client).to_bytes().hex(),
            "identity": game.spec.identity(place.client).public_bytes.hex(),
            "context": _context(game, place).hex(),
        }
    return {**case, "bytes": data.hex()}


def _context(game: Game, place: Place) -> bytes:
    if place.phase == "advertise-keys":
        return game.session
    context: bytes = game.server.context
    if place.phase in {"confirm-survivors", "unmask"}:
        return confirmed_context(context, sorted(game.server.cohorts))
    return context


def _hybrid_neighbourhood(game: Game) -> dict[str, Any]:
    """No hybrid round is sparse here: two entries of one on the complete graph."""
    roster = parsed(game.sent[Place("share-keys", "down", "site-1")])
    leaves = [entry.to_bytes() for entry in roster.entries]
    listings = tuple(
        messages.Listing(
            roster.entries[place], place, merkle.inclusion_proof(leaves, place)
        )
        for place in (1, 2)
    )
    root = merkle.root(leaves)
    message = messages.Neighbourhood(roster.suite, game.session, 3, root, listings)
    return {
        "origin": f"{game.spec.name}, its entries 1 and 2; never sent in that round",
        "suite": 2,
        "fields": _fields(message),
        "bytes": message.to_bytes().hex(),
    }


def _fields(message: Any) -> dict[str, Any]:
    """The fields in the order of the bytes; counts are those of the lists."""
    own = {field.name: getattr(message, field.name) for field in fields(message)}
    first = {
        "tag": message.tag,
        "version": VERSION,
        "suite": own.pop("suite"),
        "session": own.pop("session"),
    }
    if isinstance(message, SignedMessage):
        first["sender"] = own.pop("sender")
        own["signature"] = own.pop("signature")
    if isinstance(message, messages.ShareKeys | messages.Delivery) and (
        not message.suite.hybrid
    ):
        del own["offers"]
        own.pop("vault", None)
    return {name: _value(value) for name, value in {**first, **own}.items()}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Suite):
        return value.number
    if isinstance(value, tuple):
        return [_value(item) for item in value]
    if isinstance(value, messages.Advertise):
        return _fields(value)
    if is_dataclass(value):
        return {
            field.name: _value(getattr(value, field.name)) for field in fields(value)
        }
    return value


# ------------------------------------------------------------ no messages


@dataclass(frozen=True)
class Invalid:
    """Bytes that no party may take for a message."""

    name: str
    about: str
    data: bytes
    kind: str
    suite: int = 1

    def as_json(self) -> dict[str, Any]:
        return {
            "about": self.about,
            "message": self.kind,
            "suite": self.suite,
            "bytes": self.data.hex(),
            "error": "MessageError",
        }


HEAD_BYTES = 3 + 32
SENDER_BYTES = 2


def invalid_encodings(games: Games) -> dict[str, Any]:
    """The content of each file of ``messages/invalid/``, by the mutation."""
    plain = {
        name: parsed(games[sources[0]].sent[place])
        for name, (place, sources) in SOURCES.items()
    }
    hybrid = {
        name: parsed(games[HYBRID].sent[SOURCES[name][0]])
        for name in ("advertise", "share-keys", "delivery")
    }
    hybrid["share-keys"] = parsed(
        games[HYBRID].sent[Place("share-keys", "up", "site-0")]
    )
    hybrid["delivery"] = parsed(
        games[HYBRID].sent[Place("masked-input", "down", "site-2")]
    )
    found = [
        *_everywhere(plain),
        *_orders(plain, hybrid),
        *_counts(plain),
        *_values(plain),
        *_hybrid(hybrid),
    ]
    return {one.name: one.as_json() for one in found}


def _everywhere(plain: Mapping[str, Any]) -> list[Invalid]:
    """What can be wrong with every message."""
    found = []
    for name, following in pairwise([*plain, next(iter(plain))]):
        data, kind = plain[name].to_bytes(), type(plain[name]).__name__
        other = plain[following].tag
        changes = [
            ("truncated", "The last byte is missing.", data[:-1]),
            ("trailing-byte", "One byte follows.", data + b"\0"),
            (
                "of-another-type",
                f"The tag is {other}, that of {following}.",
                bytes([other]) + data[1:],
            ),
            (
                "of-another-version",
                "The version is 2.",
                data[:1] + b"\2" + data[2:],
            ),
            (
                "of-another-suite",
                "The suite is 3, in a session of suite 1.",
                data[:2] + b"\3" + data[3:],
            ),
        ]
        found += [
            Invalid(f"{name}-{suffix}", about, changed, kind)
            for suffix, about, changed in changes
        ]
    return found


def _orders(plain: Mapping[str, Any], hybrid: Mapping[str, Any]) -> list[Invalid]:
    """Every list has one order, and no entry twice."""
    lists = [
        ("roster", "entries", "senders"),
        ("neighbourhood", "listings", "senders"),
        ("share-keys", "boxes", "recipients"),
        ("delivery", "boxes", "dealers"),
        ("masked-input", "cohort", "cohort"),
        ("survivors", "survivors", "indices"),
        ("confirmations", "confirmations", "signers"),
        ("unmask", "reveals", "peers"),
    ]
    found = []
    for name, field, words in lists:
        found += _misordered(name, plain[name], field, words)
    for name in ("share-keys", "delivery"):
        found += _misordered(f"{name}-offers", hybrid[name], "offers", "peers")
    return found


def _misordered(name: str, message: Any, field: str, words: str) -> list[Invalid]:
    first, second, *others = getattr(message, field)
    kind, suite = type(message).__name__, message.suite.number
    orders = [
        ("not-increasing", "The first two entries change places.", (second, first)),
        ("repeated", "The first entry stands there twice.", (first, first)),
    ]
    return [
        Invalid(
            f"{name}-{words}-{suffix}",
            about,
            replace(message, **{field: (*start, *others)}).to_bytes(),
            kind,
            suite,
        )
        for suffix, about, start in orders
    ]


def _patched(message: Any, offset: int, changed: bytes) -> bytes:
    data = message.to_bytes()
    return bytes(data[:offset] + changed + data[offset + len(changed) :])


def _counts(plain: Mapping[str, Any]) -> list[Invalid]:
    """A count that does not fit what follows; the largest first."""
    count = HEAD_BYTES
    offsets = {
        "roster": count,
        "delivery": count,
        "survivors": count,
        "confirmations": count,
        "neighbourhood": count + 2 + 32,
        "share-keys": count + SENDER_BYTES,
        "masked-input": count + SENDER_BYTES,
        "unmask": count + SENDER_BYTES,
    }
    found = []
    for name, offset in offsets.items():
        message = plain[name]
        kind, data = type(message).__name__, message.to_bytes()
        right = int.from_bytes(data[offset : offset + 2], "little")
        for suffix, wrong in (("too-large", 65535), ("too-small", right - 1)):
            changed = _patched(message, offset, wrong.to_bytes(2, "little"))
            about = f"The count is {wrong}; {right} entries follow."
            found.append(Invalid(f"{name}-count-{suffix}", about, changed, kind))
    return found


def _values(plain: Mapping[str, Any]) -> list[Invalid]:
    """Fields with values that do not exist."""
    unmask, masked = plain["unmask"], plain["masked-input"]
    near, roster = plain["neighbourhood"], plain["roster"]
    first_reveal = HEAD_BYTES + SENDER_BYTES + 2
    length = HEAD_BYTES + SENDER_BYTES + 2 + 2 * len(masked.cohort)
    proof = HEAD_BYTES + 2 + 32 + 2 + len(near.listings[0].entry.to_bytes()) + 2
    return [
        Invalid(
            "unmask-unknown-kind",
            "The kind of the first share is 3; there are 1 and 2.",
            _patched(unmask, first_reveal + 2, b"\3"),
            "Unmask",
        ),
        Invalid(
            "unmask-kind-zero",
            "The kind of the first share is 0.",
            _patched(unmask, first_reveal + 2, b"\0"),
            "Unmask",
        ),
        Invalid(
            "unmask-share-not-canonical",
            "The first number of the first share is 8380417, the prime itself.",
            _patched(unmask, first_reveal + 3, (8380417).to_bytes(3, "little")),
            "Unmask",
        ),
        Invalid(
            "masked-input-length-too-large",
            "The vector is said to have 2^32 - 1 bytes.",
            _patched(masked, length, b"\xff" * 4),
            "MaskedInput",
        ),
        Invalid(
            "masked-input-length-too-small",
            "The vector is said to be one byte shorter than it is.",
            _patched(masked, length, (len(masked.vector) - 1).to_bytes(4, "little")),
            "MaskedInput",
        ),
        Invalid(
            "neighbourhood-proof-too-long",
            "The first proof is said to have 255 hashes.",
            _patched(near, proof, b"\xff"),
            "Neighbourhood",
        ),
        Invalid(
            "roster-entry-of-another-type",
            "The tag of the first entry is 3.",
            _patched(roster, HEAD_BYTES + 2, b"\3"),
            "Roster",
        ),
        Invalid(
            "roster-entry-of-another-suite",
            "The suite of the first entry is 3, in a session of suite 1.",
            _patched(roster, HEAD_BYTES + 2 + 2, b"\3"),
            "Roster",
        ),
    ]


def _hybrid(hybrid: Mapping[str, Any]) -> list[Invalid]:
    """What only the hybrid form can get wrong."""
    shares, delivery = hybrid["share-keys"], hybrid["delivery"]
    advertise = hybrid["advertise"]
    return [
        Invalid(
            "advertise-hybrid-without-encapsulation-keys",
            "Suite 2, with the public keys of suite 1.",
            replace(
                advertise,
                channel_key=advertise.channel_key[:32],
                mask_key=advertise.mask_key[:32],
            ).to_bytes(),
            "Advertise",
            2,
        ),
        Invalid(
            "share-keys-vault-too-short",
            "The vault holds one secret less than there are offers.",
            replace(shares, vault=shares.vault[:-32]).to_bytes(),
            "ShareKeys",
            2,
        ),
        Invalid(
            "share-keys-vault-too-long",
            "The vault holds one secret more than there are offers.",
            replace(shares, vault=shares.vault + bytes(32)).to_bytes(),
            "ShareKeys",
            2,
        ),
        Invalid(
            "delivery-without-offers",
            "Suite 2, and the message ends behind the boxes.",
            delivery.to_bytes()[: -2 - 1122 * len(delivery.offers)],
            "Delivery",
            2,
        ),
    ]
