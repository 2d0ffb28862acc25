"""Key encapsulation: ML-KEM-768 (FIPS 203).

The one place in ``protocols`` that draws randomness of its own: the library
offers no derandomised encapsulation.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)

from protocols.errors import MessageError, MisuseError
from protocols.keys import Secret

__all__ = [
    "CIPHERTEXT_BYTES",
    "KEY_BYTES",
    "SECRET_BYTES",
    "SEED_BYTES",
    "DecapsulationKey",
    "encapsulate",
    "verify_encapsulation_key",
]

KEY_BYTES: Final = 1184  # FIPS 203, table 3
CIPHERTEXT_BYTES: Final = 1088
SECRET_BYTES: Final = 32
SEED_BYTES: Final = 64  # d and z of FIPS 203, algorithm 16


class DecapsulationKey(Secret):
    """A single-session private key, from its 64-byte seed."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise MisuseError(f"a decapsulation seed has {SEED_BYTES} bytes")
        self._key = MLKEM768PrivateKey.from_seed_bytes(seed)
        self._public_bytes = self._key.public_key().public_bytes_raw()

    @property
    def public_bytes(self) -> bytes:
        """The 1184-byte encapsulation key."""
        return self._public_bytes

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The 32-byte secret.

        A ciphertext for another key gives an unrelated secret, not an error
        (implicit rejection): compare a tag that is derived from the secret.

        Raises:
            MessageError: ``ciphertext`` does not have 1088 bytes.
        """
        try:
            return self._key.decapsulate(ciphertext)
        except ValueError as error:
            raise MessageError("ciphertext has the wrong size") from error


def encapsulate(public: bytes) -> tuple[bytes, bytes]:
    """A fresh ciphertext (1088 bytes) and its secret (32 bytes).

    Raises:
        MessageError: ``public`` is not an encapsulation key.
    """
    secret, ciphertext = _public_key(public).encapsulate()
    return ciphertext, secret


def verify_encapsulation_key(public: bytes) -> bytes:
    """Return ``public`` if it passes the checks of FIPS 203, section 7.2.

    Raises:
        MessageError: It does not.
    """
    _public_key(public)
    return public


def _public_key(public: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(public)
    except ValueError as error:
        raise MessageError("not an ML-KEM-768 encapsulation key") from error
