"""Entries that messages of both sides are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols import kdf, kem, wire
from protocols.secagg.messages.framing import box_bytes
from protocols.suites import Suite

__all__ = [
    "Box",
    "Offer",
    "read_boxes",
    "read_offers",
    "write_boxes",
    "write_offers",
]


@dataclass(frozen=True)
class Box:
    """Two sealed shares and the peer they come from or go to."""

    peer: int  # 2
    sealed: bytes  # box_bytes: ciphertext if hybrid; nonce 12, ciphertext 72, tag 16


def write_boxes(boxes: Sequence[Box]) -> bytes:
    """A count in two bytes, then each box."""
    parts = [wire.u16(box.peer) + box.sealed for box in boxes]
    return wire.u16(len(boxes)) + b"".join(parts)


def read_boxes(reader: wire.Reader, suite: Suite) -> tuple[Box, ...]:
    """What ``write_boxes`` wrote; peers are strictly increasing."""
    size = box_bytes(suite)
    count = reader.number(2)
    boxes = tuple(Box(reader.number(2), reader.take(size)) for _ in range(count))
    wire.require_increasing([box.peer for box in boxes])
    return boxes


@dataclass(frozen=True)
class Offer:
    """In a hybrid suite: what a lower index encapsulated for a higher one."""

    peer: int  # 2
    ciphertext: bytes  # 1088: for the mask key of the higher index
    tag: bytes  # 32: shows that both sides hold the same secret


def write_offers(offers: Sequence[Offer]) -> bytes:
    """A count in two bytes, then each offer."""
    parts = [wire.u16(one.peer) + one.ciphertext + one.tag for one in offers]
    return wire.u16(len(offers)) + b"".join(parts)


def read_offers(reader: wire.Reader) -> tuple[Offer, ...]:
    """What ``write_offers`` wrote; peers are strictly increasing."""
    offers = tuple(
        Offer(
            reader.number(2),
            reader.take(kem.CIPHERTEXT_BYTES),
            reader.take(kdf.DIGEST_BYTES),
        )
        for _ in range(reader.number(2))
    )
    wire.require_increasing([one.peer for one in offers])
    return offers
