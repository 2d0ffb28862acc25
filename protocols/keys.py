"""Identity keys (Ed25519) and key agreement (X25519)."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)

from protocols.errors import MessageError, MisuseError, SignatureError

__all__ = [
    "KEY_BYTES",
    "SIGNATURE_BYTES",
    "ExchangeKey",
    "Secret",
    "SigningKey",
    "generate_identity",
    "verify_exchange_key",
    "verify_signature",
]

KEY_BYTES = 32
SIGNATURE_BYTES = 64

_FIELD_PRIME = 2**255 - 19  # RFC 7748, section 4.1


class Secret:
    """Base of classes that hold secrets: ``repr`` shows only the type."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class SigningKey(Secret):
    """A long-term Ed25519 identity key (RFC 8032)."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise MisuseError(f"an identity seed has {KEY_BYTES} bytes")
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public_bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def from_bytes(cls, data: bytes) -> SigningKey:
        """The key that ``to_bytes`` stored."""
        return cls(data)

    def to_bytes(self) -> bytes:
        """The 32-byte secret seed, for storage only."""
        return self._key.private_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The 32-byte public key that others pin."""
        return self._public_bytes

    def sign(self, message: bytes) -> bytes:
        """The 64-byte deterministic signature over ``message``."""
        return self._key.sign(message)


def generate_identity(randomness: bytes) -> SigningKey:
    """An identity key from 32 fresh bytes of a cryptographic source."""
    return SigningKey(randomness)


def verify_signature(public: bytes, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        SignatureError: ``signature`` is not one of ``public`` over ``message``.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureError("signature does not verify") from error


class ExchangeKey(Secret):
    """A single-session X25519 private key (RFC 7748)."""

    def __init__(self, private: bytes) -> None:
        if len(private) != KEY_BYTES:
            raise MisuseError(f"an exchange key has {KEY_BYTES} bytes")
        self._key = X25519PrivateKey.from_private_bytes(private)
        self._public_bytes = self._key.public_key().public_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The 32-byte public key, canonical."""
        return self._public_bytes

    def exchange(self, public: bytes) -> bytes:
        """The 32-byte shared secret; derive from it, never use it as a key.

        Raises:
            MessageError: ``public`` is of low order, so the result would not
                depend on our key (RFC 7748, section 6.1).
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise MessageError("exchange key is of low order") from error


# The canonical points whose order divides 8, on the curve and on its twist: no
# private key contributes to an agreement with one of them (RFC 7748, section 7).
_SMALL_ORDER: Final = frozenset(
    value.to_bytes(KEY_BYTES, "little")
    for value in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD_PRIME - 1,
    )
)


def verify_exchange_key(public: bytes) -> bytes:
    """Return ``public`` if it is a canonical X25519 key that contributes.

    Raises:
        MessageError: The key has a second encoding (so that two "distinct"
            keys could be one), or is of low order.
    """
    if len(public) != KEY_BYTES or int.from_bytes(public, "little") >= _FIELD_PRIME:
        raise MessageError("exchange key is not canonical")
    if public in _SMALL_ORDER:
        raise MessageError("exchange key is of low order")
    return public
