"""What all messages have in common: sizes, the header and the signature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Final, Self

from protocols import aead, kdf, kem, shamir, wire
from protocols.agreement import public_key_bytes
from protocols.errors import RuleBrokenError, SignatureError
from protocols.keys import SIGNATURE_BYTES, SigningKey, verify_signature
from protocols.suites import Suite

__all__ = [
    "NONCE_BYTES",
    "VERSION",
    "SignedMessage",
    "advertise_bytes",
    "box_bytes",
    "header",
    "open_message",
    "vault_bytes",
]

NONCE_BYTES: Final = 32
SHARES_BYTES: Final = 2 * shamir.SHARE_BYTES

VERSION: Final = 1


def advertise_bytes(suite: Suite) -> int:
    """Size of an ``Advertise``: 229, or 2597 in a hybrid suite."""
    fixed = 3 + kdf.DIGEST_BYTES + 2 + kdf.DIGEST_BYTES + NONCE_BYTES + SIGNATURE_BYTES
    return fixed + 2 * public_key_bytes(suite)


def box_bytes(suite: Suite) -> int:
    """Size of a sealed box: 100, or 1188 in a hybrid suite."""
    ciphertext = kem.CIPHERTEXT_BYTES if suite.hybrid else 0
    return ciphertext + aead.OVERHEAD_BYTES + SHARES_BYTES


def vault_bytes(offers: int) -> int:
    """Size of a vault that holds one secret for each of ``offers`` offers."""
    return aead.OVERHEAD_BYTES + offers * kem.SECRET_BYTES


def header(tag: int, suite: Suite, session: bytes) -> bytes:
    """What every message begins with."""
    return bytes((tag, VERSION, suite.number)) + session


def open_message(tag: int, suite: Suite, data: bytes) -> tuple[wire.Reader, bytes]:
    """A reader behind the header of ``data``, and the session it names."""
    reader = wire.Reader(data)
    expected = bytes((tag, VERSION, suite.number))
    reader.expect(expected, "message type, version or suite")
    return reader, reader.take(kdf.DIGEST_BYTES)


@dataclass(frozen=True)
class SignedMessage:
    """What all messages of a client have in common."""

    tag: ClassVar[int]
    label: ClassVar[bytes]

    suite: Suite  # 1: its number
    session: bytes  # 32: session id
    sender: int  # 2: index in the roster
    signature: bytes  # 64, at the end of the message

    def payload(self) -> tuple[bytes, ...]:
        """The fields between the sender and the signature, in pieces."""
        return ()

    def pieces(self) -> tuple[bytes, ...]:
        """Everything but the signature; a long vector is not copied."""
        head = header(self.tag, self.suite, self.session) + wire.u16(self.sender)
        return (head, *self.payload())

    def to_bytes(self) -> bytes:
        """The one encoding of this message."""
        return b"".join((*self.pieces(), self.signature))

    def signed(self, identity: SigningKey, context: bytes) -> Self:
        """This message with the sender's signature over it and ``context``."""
        return replace(self, signature=identity.sign(self._text(context)))

    def _text(self, context: bytes) -> bytes:
        return kdf.digest_in_pieces(self.label, context, self.pieces())

    def verify(self, identity: bytes, context: bytes) -> None:
        """SA-014: the message is signed by ``identity`` in this context.

        Raises:
            RuleBrokenError: It is not.
        """
        try:
            verify_signature(identity, self._text(context), self.signature)
        except SignatureError as error:
            raise RuleBrokenError(
                "SA-014", f"signature of client number {self.sender} does not verify"
            ) from error
