"""What the server sends. Nothing in it is signed: it is relayed or checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocols import kdf, wire
from protocols.keys import SIGNATURE_BYTES
from protocols.secagg.messages.framing import advertise_bytes, header, open_message
from protocols.secagg.messages.from_client import Advertise
from protocols.secagg.messages.parts import (
    Box,
    Offer,
    read_boxes,
    read_offers,
    write_boxes,
    write_offers,
)
from protocols.suites import Suite

__all__ = [
    "Confirmation",
    "Confirmations",
    "Delivery",
    "Listing",
    "Neighbourhood",
    "Roster",
    "Survivors",
]


@dataclass(frozen=True)
class Roster:
    """Phase 0, server to clients in a complete graph: everybody's keys."""

    tag: ClassVar[int] = 2

    suite: Suite  # 1
    session: bytes  # 32
    entries: tuple[Advertise, ...]  # 2 (count), then each, by sender

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        entries = b"".join(entry.to_bytes() for entry in self.entries)
        return (
            header(self.tag, self.suite, self.session)
            + wire.u16(len(self.entries))
            + entries
        )

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Roster:
        """Parse; senders are strictly increasing."""
        reader, session = open_message(cls.tag, suite, data)
        entries = tuple(
            Advertise.from_bytes(reader.take(advertise_bytes(suite)), suite)
            for _ in range(reader.number(2))
        )
        reader.finish()
        wire.require_increasing([entry.sender for entry in entries])
        return cls(suite, session, entries)


@dataclass(frozen=True)
class Listing:
    """One entry of the directory and where it stands in it."""

    entry: Advertise
    position: int  # 2: among the directory's entries, by sender
    proof: tuple[bytes, ...]  # 1 (count), then 32 each: RFC 9162, section 2.1.3


@dataclass(frozen=True)
class Neighbourhood:
    """Phase 0, server to one client in a sparse graph: keys of its neighbours."""

    tag: ClassVar[int] = 10

    suite: Suite  # 1
    session: bytes  # 32
    size: int  # 2: entries in the whole directory
    root: bytes  # 32: Merkle root of the whole directory
    listings: tuple[Listing, ...]  # 2 (count), then each, by sender

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        head = header(self.tag, self.suite, self.session)
        parts = [self._write(listing) for listing in self.listings]
        sizes = wire.u16(self.size) + self.root + wire.u16(len(parts))
        return head + sizes + b"".join(parts)

    @staticmethod
    def _write(listing: Listing) -> bytes:
        proof = wire.u8(len(listing.proof)) + b"".join(listing.proof)
        return listing.entry.to_bytes() + wire.u16(listing.position) + proof

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Neighbourhood:
        """Parse; senders are strictly increasing."""
        reader, session = open_message(cls.tag, suite, data)
        size, root = reader.number(2), reader.take(kdf.DIGEST_BYTES)
        listings = tuple(cls._read(reader, suite) for _ in range(reader.number(2)))
        reader.finish()
        wire.require_increasing([one.entry.sender for one in listings])
        return cls(suite, session, size, root, listings)

    @staticmethod
    def _read(reader: wire.Reader, suite: Suite) -> Listing:
        entry = Advertise.from_bytes(reader.take(advertise_bytes(suite)), suite)
        position, count = reader.number(2), reader.number(1)
        return Listing(
            entry, position, tuple(reader.take(kdf.DIGEST_BYTES) for _ in range(count))
        )


@dataclass(frozen=True)
class Delivery:
    """Phase 1, server to one client: the boxes (and offers) addressed to it."""

    tag: ClassVar[int] = 4

    suite: Suite  # 1
    session: bytes  # 32
    boxes: tuple[Box, ...]  # 2 (count), then each, by sender
    offers: tuple[Offer, ...] = ()  # hybrid: 2 (count), then 1122 each, by sender

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        offers = write_offers(self.offers) if self.suite.hybrid else b""
        head = header(self.tag, self.suite, self.session)
        return head + write_boxes(self.boxes) + offers

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Delivery:
        """Parse; senders are strictly increasing."""
        reader, session = open_message(cls.tag, suite, data)
        boxes = read_boxes(reader, suite)
        offers = read_offers(reader) if suite.hybrid else ()
        reader.finish()
        return cls(suite, session, boxes, offers)


@dataclass(frozen=True)
class Survivors:
    """Phase 3, server to clients: whose inputs are in the sum (U3)."""

    tag: ClassVar[int] = 6

    suite: Suite  # 1
    session: bytes  # 32
    survivors: tuple[int, ...]  # 2 (count), then 2 each, increasing

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        return header(self.tag, self.suite, self.session) + wire.write_indices(
            self.survivors
        )

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Survivors:
        """Parse; indices are strictly increasing."""
        reader, session = open_message(cls.tag, suite, data)
        survivors = wire.read_indices(reader)
        reader.finish()
        return cls(suite, session, survivors)


@dataclass(frozen=True)
class Confirmation:
    """One relayed confirmation."""

    signer: int  # 2
    signature: bytes  # 64


@dataclass(frozen=True)
class Confirmations:
    """Phase 4, server to clients: who confirmed the survivor list."""

    tag: ClassVar[int] = 8

    suite: Suite  # 1
    session: bytes  # 32
    confirmations: tuple[Confirmation, ...]  # 2 (count), then 66 each, by signer

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        parts = [wire.u16(one.signer) + one.signature for one in self.confirmations]
        count = wire.u16(len(parts))
        return header(self.tag, self.suite, self.session) + count + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Confirmations:
        """Parse; signers are strictly increasing."""
        reader, session = open_message(cls.tag, suite, data)
        count = reader.number(2)
        confirmations = tuple(
            Confirmation(reader.number(2), reader.take(SIGNATURE_BYTES))
            for _ in range(count)
        )
        reader.finish()
        wire.require_increasing([one.signer for one in confirmations])
        return cls(suite, session, confirmations)
