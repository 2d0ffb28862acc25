"""The nine messages, byte by byte.

Header of every message: tag (1), version (1), suite (1), session id (32). A
client's message continues with its index in the roster (2) and ends with an
Ed25519 signature (64). ``from_bytes`` accepts exactly what ``to_bytes`` writes
and raises ``MessageError`` for everything else (SA-010).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Literal, Self

from protocols import aead, kdf, labels, shamir, wire
from protocols.errors import MessageError, RuleBrokenError, SignatureError
from protocols.keys import (
    KEY_BYTES,
    SIGNATURE_BYTES,
    SigningKey,
    verify_signature,
)

__all__ = [
    "BOX_BYTES",
    "NONCE_BYTES",
    "REVEAL_RECOVERY",
    "REVEAL_SELF",
    "Advertise",
    "Box",
    "Confirm",
    "Confirmation",
    "Confirmations",
    "Delivery",
    "MaskedInput",
    "Reveal",
    "Roster",
    "ShareKeys",
    "SignedMessage",
    "Survivors",
    "Unmask",
    "kind_for",
]

BOX_BYTES: Final = aead.OVERHEAD_BYTES + 2 * shamir.SHARE_BYTES
NONCE_BYTES: Final = 32
REVEAL_SELF: Final = 1  # a share of the self-mask secret b
REVEAL_RECOVERY: Final = 2  # a share of the recovery key R

_VERSION: Final = 1
_SUITE: Final = 1
_NO_SIGNATURE: Final = bytes(SIGNATURE_BYTES)


def _header(tag: int, session: bytes) -> bytes:
    return bytes((tag, _VERSION, _SUITE)) + session


def _open(tag: int, data: bytes) -> tuple[wire.Reader, bytes]:
    reader = wire.Reader(data)
    reader.expect(bytes((tag, _VERSION, _SUITE)), "message type, version or suite")
    return reader, reader.take(kdf.DIGEST_BYTES)


@dataclass(frozen=True)
class SignedMessage:
    """What all messages of a client have in common."""

    tag: ClassVar[int]
    label: ClassVar[bytes]

    session: bytes  # 32: session id
    sender: int  # 2: index in the roster
    signature: bytes  # 64, at the end of the message

    def payload(self) -> bytes:
        """The fields between the sender and the signature."""
        return b""

    def body(self) -> bytes:
        """Everything but the signature."""
        head = _header(self.tag, self.session) + wire.u16(self.sender)
        return head + self.payload()

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        return self.body() + self.signature

    def signed(self, identity: SigningKey, context: bytes) -> Self:
        """This message with the sender's signature over it and ``context``."""
        signature = identity.sign(kdf.digest(self.label, context, self.body()))
        return replace(self, signature=signature)

    def verify(self, identity: bytes, context: bytes) -> None:
        """SA-014: the message is signed by ``identity`` in this context.

        Raises:
            RuleBrokenError: It is not.
        """
        text = kdf.digest(self.label, context, self.body())
        try:
            verify_signature(identity, text, self.signature)
        except SignatureError as error:
            raise RuleBrokenError("SA-014", "signature does not verify") from error


@dataclass(frozen=True)
class Advertise(SignedMessage):
    """Phase 0, client to server: 229 bytes."""

    tag = 1
    label = labels.SIGN_ADVERTISE
    SIZE_BYTES: ClassVar[int] = 3 + 32 + 2 + 4 * 32 + SIGNATURE_BYTES

    channel_key: bytes  # 32: X25519 public key for boxes
    mask_key: bytes  # 32: X25519 public key for pairwise masks
    commitment: bytes  # 32: commitment to the self-mask secret b
    nonce: bytes  # 32: this client's contribution to the directory

    def payload(self) -> bytes:
        """Two keys, the commitment and the nonce."""
        return self.channel_key + self.mask_key + self.commitment + self.nonce

    @classmethod
    def from_bytes(cls, data: bytes) -> Advertise:
        """Parse; key validity is a rule, not syntax."""
        reader, session = _open(cls.tag, data)
        sender = reader.number(2)
        keys = [reader.take(KEY_BYTES) for _ in range(2)]
        commitment, nonce = reader.take(kdf.DIGEST_BYTES), reader.take(NONCE_BYTES)
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(session, sender, signature, keys[0], keys[1], commitment, nonce)


@dataclass(frozen=True)
class Roster:
    """Phase 0, server to clients: the directory of everybody's keys."""

    tag: ClassVar[int] = 2

    session: bytes  # 32
    entries: tuple[Advertise, ...]  # 2 (count), then 229 each, by sender

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        entries = b"".join(entry.to_bytes() for entry in self.entries)
        return _header(self.tag, self.session) + wire.u16(len(self.entries)) + entries

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """Parse; senders are strictly increasing."""
        reader, session = _open(cls.tag, data)
        entries = tuple(
            Advertise.from_bytes(reader.take(Advertise.SIZE_BYTES))
            for _ in range(reader.number(2))
        )
        reader.finish()
        wire.require_increasing([entry.sender for entry in entries])
        return cls(session, entries)


@dataclass(frozen=True)
class Box:
    """Two sealed shares and the peer they come from or go to."""

    peer: int  # 2
    sealed: bytes  # 100: nonce 12, ciphertext 72, tag 16


def _write_boxes(boxes: Sequence[Box]) -> bytes:
    parts = [wire.u16(box.peer) + box.sealed for box in boxes]
    return wire.u16(len(boxes)) + b"".join(parts)


def _read_boxes(reader: wire.Reader) -> tuple[Box, ...]:
    count = reader.number(2)
    boxes = tuple(Box(reader.number(2), reader.take(BOX_BYTES)) for _ in range(count))
    wire.require_increasing([box.peer for box in boxes])
    return boxes


@dataclass(frozen=True)
class ShareKeys(SignedMessage):
    """Phase 1, client to server: one box for each other client."""

    tag = 3
    label = labels.SIGN_SHARES

    boxes: tuple[Box, ...]  # 2 (count), then 102 each, by recipient

    def payload(self) -> bytes:
        """The boxes."""
        return _write_boxes(self.boxes)

    @classmethod
    def from_bytes(cls, data: bytes) -> ShareKeys:
        """Parse; recipients are strictly increasing."""
        reader, session = _open(cls.tag, data)
        sender, boxes = reader.number(2), _read_boxes(reader)
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(session, sender, signature, boxes)


@dataclass(frozen=True)
class Delivery:
    """Phase 1, server to one client: the boxes addressed to it."""

    tag: ClassVar[int] = 4

    session: bytes  # 32
    boxes: tuple[Box, ...]  # 2 (count), then 102 each, by sender

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        return _header(self.tag, self.session) + _write_boxes(self.boxes)

    @classmethod
    def from_bytes(cls, data: bytes) -> Delivery:
        """Parse; senders are strictly increasing."""
        reader, session = _open(cls.tag, data)
        boxes = _read_boxes(reader)
        reader.finish()
        return cls(session, boxes)


@dataclass(frozen=True)
class MaskedInput(SignedMessage):
    """Phase 2, client to server: the only place where the input appears."""

    tag = 5
    label = labels.SIGN_INPUT

    cohort: tuple[int, ...]  # 2 (count), then 2 each: U2, whom it masked with
    vector: bytes  # 4 (length), then the masked lane and body

    def payload(self) -> bytes:
        """The cohort and the masked vector."""
        sized = wire.u32(len(self.vector)) + self.vector
        return wire.write_indices(self.cohort) + sized

    @classmethod
    def from_bytes(cls, data: bytes) -> MaskedInput:
        """Parse; the shape of the vector is a rule, not syntax."""
        reader, session = _open(cls.tag, data)
        sender, cohort = reader.number(2), wire.read_indices(reader)
        vector = reader.take(reader.number(4))
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(session, sender, signature, cohort, vector)


@dataclass(frozen=True)
class Survivors:
    """Phase 3, server to clients: whose inputs are in the sum (U3)."""

    tag: ClassVar[int] = 6

    session: bytes  # 32
    survivors: tuple[int, ...]  # 2 (count), then 2 each, increasing

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        return _header(self.tag, self.session) + wire.write_indices(self.survivors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Survivors:
        """Parse; indices are strictly increasing."""
        reader, session = _open(cls.tag, data)
        survivors = wire.read_indices(reader)
        reader.finish()
        return cls(session, survivors)


@dataclass(frozen=True)
class Confirm(SignedMessage):
    """Phase 3, client to server: a signature over the list that it saw.

    The list itself is part of the context that is signed, not of the message.
    """

    tag = 7
    label = labels.SIGN_SURVIVORS

    @classmethod
    def from_bytes(cls, data: bytes) -> Confirm:
        """Parse."""
        reader, session = _open(cls.tag, data)
        sender, signature = reader.number(2), reader.take(SIGNATURE_BYTES)
        reader.finish()
        return cls(session, sender, signature)


@dataclass(frozen=True)
class Confirmation:
    """One relayed confirmation."""

    signer: int  # 2
    signature: bytes  # 64


@dataclass(frozen=True)
class Confirmations:
    """Phase 4, server to clients: who confirmed the survivor list."""

    tag: ClassVar[int] = 8

    session: bytes  # 32
    confirmations: tuple[Confirmation, ...]  # 2 (count), then 66 each, by signer

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        parts = [wire.u16(one.signer) + one.signature for one in self.confirmations]
        count = wire.u16(len(parts))
        return _header(self.tag, self.session) + count + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Confirmations:
        """Parse; signers are strictly increasing."""
        reader, session = _open(cls.tag, data)
        count = reader.number(2)
        confirmations = tuple(
            Confirmation(reader.number(2), reader.take(SIGNATURE_BYTES))
            for _ in range(count)
        )
        reader.finish()
        wire.require_increasing([one.signer for one in confirmations])
        return cls(session, confirmations)


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

    def payload(self) -> bytes:
        """The reveals."""
        parts = [
            wire.u16(one.peer) + wire.u8(one.kind) + one.share for one in self.reveals
        ]
        return wire.u16(len(parts)) + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Unmask:
        """Parse; peers are strictly increasing, shares canonical."""
        reader, session = _open(cls.tag, data)
        sender, count = reader.number(2), reader.number(2)
        reveals = tuple(cls._read_reveal(reader) for _ in range(count))
        signature = reader.take(SIGNATURE_BYTES)
        reader.finish()
        wire.require_increasing([one.peer for one in reveals])
        return cls(session, sender, signature, reveals)

    @staticmethod
    def _read_reveal(reader: wire.Reader) -> Reveal:
        peer, kind = reader.number(2), reader.number(1)
        share = shamir.verify_share(reader.take(shamir.SHARE_BYTES))
        if kind == REVEAL_SELF:
            return Reveal(peer, REVEAL_SELF, share)
        if kind == REVEAL_RECOVERY:
            return Reveal(peer, REVEAL_RECOVERY, share)
        raise MessageError(f"unknown kind of share {kind}")
