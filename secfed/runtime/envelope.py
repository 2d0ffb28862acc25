"""Signed messages between the coordinator and a site, whatever carries them.

An *order* goes down, signed by the coordinator; an *answer* comes back, signed by the
site's identity and naming the order that it answers. The carrier can delay and drop,
and nothing else: both ends check the signature under a key that they pinned. The body
is the protocol's own message, unchanged.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, Self

from protocols.keys import SigningKey
from secfed.canonical import canonical_json, parse_canonical
from secfed.errors import VerificationError
from secfed.signing import ANSWER, ORDER, CoordinatorKey, framed, verify_signature

__all__ = [
    "ACCEPTED",
    "ORDERS",
    "Answer",
    "Order",
    "Post",
    "Sealed",
    "sign_answer",
    "sign_order",
]

ORDERS: Final = (
    "adapter",
    "advertise",
    "shares",
    "training",
    "masked-input",
    "confirm",
    "unmask",
    "witness",
)
"""Everything that a site can be asked, in the order of a round."""

ACCEPTED = "accepted"
_HEAD = re.compile(r"([0-9a-f]{64})?")


@dataclass(frozen=True)
class Order:
    """What the coordinator asks of one site in one phase.

    Attributes:
        study: Digest of the study.
        run_id: The run and arm that budgets are charged for.
        round: From 1; one more than the study's rounds brings the final adapter.
        phase: Name of the phase.
        site: Whom it asks.
        expires: Seconds since 1970 after which nobody waits for the answer.
    """

    study: str
    run_id: str
    round: int
    phase: str
    site: str
    expires: int


@dataclass(frozen=True)
class Answer:
    """What a site says of its answer.

    Attributes:
        order: Digest of the order that is answered.
        site: Who answers.
        status: ``ACCEPTED``, or in one word why the site declines.
        budget_head: The site's budget after reserving the round; else empty.
    """

    order: str
    site: str
    status: str
    budget_head: str


@dataclass(frozen=True)
class Sealed:
    """A header, a body and the signature over both, as they travel."""

    header: bytes
    body: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of header and body, in hexadecimal."""
        return _digest(self.header, self.body).hex()

    def open_order(self, coordinator_key: bytes) -> Order:
        """The order, if the pinned coordinator signed it.

        Raises:
            VerificationError: It did not, or the header is malformed.
        """
        verify_signature(coordinator_key, ORDER, self._signed(), self.signature)
        values = _fields(self.header, Order)
        return Order(**values)

    def open_answer(self, identity: bytes) -> Answer:
        """The answer, if the pinned site signed it.

        Raises:
            VerificationError: It did not, or the header is malformed.
        """
        verify_signature(identity, ANSWER, self._signed(), self.signature)
        values = _fields(self.header, Answer)
        if not _HEAD.fullmatch(values["budget_head"]):
            raise VerificationError("'budget_head' is not a digest")
        return Answer(**values)

    def _signed(self) -> bytes:
        return _digest(self.header, self.body)

    def __repr__(self) -> str:
        return f"Sealed(<{self.digest[:16]}>)"

    @classmethod
    def of(cls, header: object, body: object, signature: object) -> Self:
        """From three values of a carrier.

        Raises:
            VerificationError: One of them is not bytes.
        """
        if not (
            isinstance(header, bytes)
            and isinstance(body, bytes)
            and isinstance(signature, bytes)
        ):
            raise VerificationError("a message has the wrong fields")
        return cls(header, body, signature)


class Post(Protocol):
    """Carries sealed orders to sites and their sealed answers back."""

    def exchange(
        self, phase: str, orders: Mapping[str, Sealed], seconds: float
    ) -> Iterator[tuple[str, Sealed]]:
        """Send all orders; yield answers as they come until all are here or time is.

        A site that is known to be away ends its part at once and yields nothing.
        """


def sign_order(key: CoordinatorKey, order: Order, body: bytes) -> Sealed:
    """An order as it travels."""
    header = canonical_json(asdict(order))
    return Sealed(header, body, key.sign(ORDER, _digest(header, body)))


def sign_answer(identity: SigningKey, answer: Answer, body: bytes) -> Sealed:
    """An answer as it travels."""
    header = canonical_json(asdict(answer))
    signature = identity.sign(framed(ANSWER, _digest(header, body)))
    return Sealed(header, body, signature)


def _digest(header: bytes, body: bytes) -> bytes:
    length = len(header).to_bytes(8, "big")
    return hashlib.sha256(length + header + body).digest()


def _fields(header: bytes, kind: type[Order | Answer]) -> dict[str, Any]:
    """A header's values; every field of its type, and none else."""
    try:
        values = parse_canonical(header)
    except ValueError as error:
        raise VerificationError(f"a malformed header: {error}") from error
    types = {
        name: int if field.type == "int" else str
        for name, field in kind.__dataclass_fields__.items()
    }
    if not isinstance(values, dict) or values.keys() != types.keys():
        raise VerificationError("the fields of a header are not those expected")
    for name, expected in types.items():
        if type(values[name]) is not expected:
            raise VerificationError(f"{name!r} of a header has the wrong type")
    return values
