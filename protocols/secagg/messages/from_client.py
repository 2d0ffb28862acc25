"""What a client sends, one message per phase, each signed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from protocols import kdf, labels, shamir, wire
from protocols.agreement import public_key_bytes
from protocols.errors import MessageError
from protocols.keys import SIGNATURE_BYTES
from protocols.secagg.messages.framing import (
    NONCE_BYTES,
    SignedMessage,
    open_message,
    vault_bytes,
)
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
    "REVEAL_RECOVERY",
    "REVEAL_SELF",
    "Advertise",
    "Confirm",
    "MaskedInput",
    "Reveal",
    "ShareKeys",
    "Unmask",
    "kind_for",
]

REVEAL_SELF: Final = 1  # a share of the self-mask secret b
REVEAL_RECOVERY: Final = 2  # a share of the recovery key R


@dataclass(frozen=True)
class Advertise(SignedMessage):
    """Phase 0, client to server; ``advertise_bytes`` long."""

    tag = 1
    label = labels.SIGN_ADVERTISE

    channel_key: bytes  # 32 or 1216: public key for boxes
    mask_key: bytes  # 32 or 1216: public key for pairwise masks
    commitment: bytes  # 32: commitment to the self-mask secret b
    nonce: bytes  # 32: this client's contribution to the directory

    def payload(self) -> tuple[bytes, ...]:
        """Two keys, the commitment and the nonce."""
        return (self.channel_key, self.mask_key, self.commitment, self.nonce)

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Advertise:
        """Parse; key validity is a rule, not syntax."""
        reader, session = open_message(cls.tag, suite, data)
        sender = reader.number(2)
        keys = [reader.take(public_key_bytes(suite)) for _ in range(2)]
        commitment, nonce = reader.take(kdf.DIGEST_BYTES), reader.take(NONCE_BYTES)
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(
            suite, session, sender, signature, keys[0], keys[1], commitment, nonce
        )


@dataclass(frozen=True)
class ShareKeys(SignedMessage):
    """Phase 1, client to server: one box for each neighbour.

    A hybrid suite adds one offer for each neighbour with a higher index, and the
    vault with the secrets of these offers, sealed under this client's R.
    """

    tag = 3
    label = labels.SIGN_SHARES

    boxes: tuple[Box, ...]  # 2 (count), then each, by recipient
    offers: tuple[Offer, ...] = ()  # hybrid: 2 (count), then 1122 each, by recipient
    vault: bytes = b""  # hybrid: vault_bytes(offers)

    def payload(self) -> tuple[bytes, ...]:
        """The boxes, and in a hybrid suite the offers and the vault."""
        boxes = write_boxes(self.boxes)
        if not self.suite.hybrid:
            return (boxes,)
        return (boxes, write_offers(self.offers), self.vault)

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> ShareKeys:
        """Parse; recipients are strictly increasing."""
        reader, session = open_message(cls.tag, suite, data)
        sender, boxes = reader.number(2), read_boxes(reader, suite)
        offers: tuple[Offer, ...] = ()
        vault = b""
        if suite.hybrid:
            offers = read_offers(reader)
            vault = reader.take(vault_bytes(len(offers)))
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(suite, session, sender, signature, boxes, offers, vault)


@dataclass(frozen=True)
class MaskedInput(SignedMessage):
    """Phase 2, client to server: the only place where the input appears."""

    tag = 5
    label = labels.SIGN_INPUT

    cohort: tuple[int, ...]  # 2 (count), then 2 each: U2, whom it masked with
    vector: bytes  # 4 (length), then the masked lane and body

    def payload(self) -> tuple[bytes, ...]:
        """The cohort and the masked vector."""
        size = wire.u32(len(self.vector))
        return (wire.write_indices(self.cohort), size, self.vector)

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> MaskedInput:
        """Parse; the shape of the vector is a rule, not syntax."""
        reader, session = open_message(cls.tag, suite, data)
        sender, cohort = reader.number(2), wire.read_indices(reader)
        vector = reader.take(reader.number(4))
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(suite, session, sender, signature, cohort, vector)


@dataclass(frozen=True)
class Confirm(SignedMessage):
    """Phase 3, client to server: a signature over the list that it saw.

    The list itself is part of the context that is signed, not of the message.
    """

    tag = 7
    label = labels.SIGN_SURVIVORS

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Confirm:
        """Parse."""
        reader, session = open_message(cls.tag, suite, data)
        sender, signature = reader.number(2), reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(suite, session, sender, signature)


@dataclass(frozen=True)
class Reveal:
    """One share of one peer's secret; the type of one entry allows only one kind."""

    peer: int  # 2
    kind: Literal[1, 2]  # 1: REVEAL_SELF or REVEAL_RECOVERY
    share: bytes  # 36


def kind_for(peer: int, survivors: Collection[int]) -> Literal[1, 2]:
    """SA-502: b of a survivor, R of a dropout; the list decides, nothing else."""
    return REVEAL_SELF if peer in survivors else REVEAL_RECOVERY


@dataclass(frozen=True)
class Unmask(SignedMessage):
    """Phase 4, client to server: exactly one share for each peer."""

    tag = 9
    label = labels.SIGN_REVEAL

    reveals: tuple[Reveal, ...]  # 2 (count), then 39 each, by peer

    def payload(self) -> tuple[bytes, ...]:
        """The reveals."""
        parts = [
            wire.u16(one.peer) + wire.u8(one.kind) + one.share for one in self.reveals
        ]
        return (wire.u16(len(parts)), *parts)

    @classmethod
    def from_bytes(cls, data: bytes, suite: Suite) -> Unmask:
        """Parse; peers are strictly increasing, shares canonical."""
        reader, session = open_message(cls.tag, suite, data)
        sender, count = reader.number(2), reader.number(2)
        reveals = tuple(cls._read_reveal(reader) for _ in range(count))
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        wire.require_increasing([one.peer for one in reveals])
        return cls(suite, session, sender, signature, reveals)

    @staticmethod
    def _read_reveal(reader: wire.Reader) -> Reveal:
        peer, kind = reader.number(2), reader.number(1)
        share = shamir.verify_share(reader.take(shamir.SHARE_BYTES))
        if kind == REVEAL_SELF:
            return Reveal(peer, REVEAL_SELF, share)
        if kind == REVEAL_RECOVERY:
            return Reveal(peer, REVEAL_RECOVERY, share)
        raise MessageError(f"unknown kind of share {kind}")
