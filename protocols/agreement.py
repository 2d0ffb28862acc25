"""Key agreement between two clients: X25519, and with it ML-KEM-768 if hybrid.

A hybrid key is hard to find as long as one of the two problems is hard. The
derivation takes both secrets, the ciphertext and, through its salt, everybody's
public keys, as in the X-Wing combiner (Barbosa et al., IACR CiC 2024).
"""

from __future__ import annotations

from dataclasses import dataclass

from protocols import kdf, kem, labels
from protocols.errors import MessageError, MisuseError
from protocols.keys import KEY_BYTES, ExchangeKey, Secret, verify_exchange_key
from protocols.suites import Suite

__all__ = [
    "AgreementKey",
    "KemSecret",
    "components",
    "encapsulate",
    "public_key_bytes",
    "verify_public_key",
]


@dataclass(frozen=True, eq=False, repr=False)
class KemSecret(Secret):
    """What one side encapsulated and the other side decapsulates."""

    ciphertext: bytes
    secret: bytes


class AgreementKey(Secret):
    """A single-session key pair of one party."""

    def __init__(self, exchange_seed: bytes, kem_seed: bytes = b"") -> None:
        self._seeds = (exchange_seed, kem_seed)
        self._exchange = ExchangeKey(exchange_seed)
        self._kem = kem.DecapsulationKey(kem_seed) if kem_seed else None
        self._shared: dict[bytes, bytes] = {}  # one exchange serves both directions

    @classmethod
    def derive(
        cls, label: bytes, secret: bytes, session: bytes, suite: Suite
    ) -> AgreementKey:
        """The key pair that one secret gives in one session."""
        exchange_seed = kdf.derive(label, secret, session, KEY_BYTES)
        if not suite.hybrid:
            return cls(exchange_seed)
        return cls(
            exchange_seed,
            kdf.derive(labels.KEM_SEED, secret, session, kem.SEED_BYTES, label),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> AgreementKey:
        """The key that ``to_bytes`` stored."""
        return cls(data[:KEY_BYTES], data[KEY_BYTES:])

    def to_bytes(self) -> bytes:
        """The secret seeds, for storage only."""
        return b"".join(self._seeds)

    @property
    def public_bytes(self) -> bytes:
        """32 bytes, or 32 + 1184 if hybrid."""
        encapsulation_key = self._kem.public_bytes if self._kem else b""
        return self._exchange.public_bytes + encapsulation_key

    def decapsulate(self, ciphertext: bytes) -> KemSecret:
        """What the owner of ``ciphertext`` encapsulated for this key."""
        if self._kem is None:
            raise MisuseError("this suite has no key encapsulation")
        return KemSecret(ciphertext, self._kem.decapsulate(ciphertext))

    def agree(
        self,
        label: bytes,
        peer_public: bytes,
        encapsulated: KemSecret | None,
        context: bytes,
        *info: bytes,
    ) -> bytes:
        """The 32-byte key that both sides derive for one purpose.

        Args:
            label: The purpose.
            peer_public: The other side's public key, verified.
            encapsulated: The shared encapsulation; exactly in a hybrid suite.
            context: Session id and directory digest.
            info: Who the two sides are.

        Raises:
            MisuseError: ``encapsulated`` does not fit the suite.
        """
        if (encapsulated is None) != (self._kem is None):
            raise MisuseError("a key encapsulation is used exactly in hybrid suites")
        shared = self._exchanged(peer_public[:KEY_BYTES])
        if encapsulated is None:
            return kdf.derive(label, shared, context, 32, *info)
        secret = shared + encapsulated.secret
        return kdf.derive(label, secret, context, 32, *info, encapsulated.ciphertext)

    def _exchanged(self, public: bytes) -> bytes:
        if public not in self._shared:
            self._shared[public] = self._exchange.exchange(public)
        return self._shared[public]


def public_key_bytes(suite: Suite) -> int:
    """Size of a public key."""
    return KEY_BYTES + (kem.KEY_BYTES if suite.hybrid else 0)


def components(public: bytes) -> tuple[bytes, ...]:
    """The public key of each primitive."""
    return tuple(part for part in (public[:KEY_BYTES], public[KEY_BYTES:]) if part)


def encapsulate(peer_public: bytes) -> KemSecret:
    """A fresh encapsulation for the owner of a hybrid public key."""
    ciphertext, secret = kem.encapsulate(peer_public[KEY_BYTES:])
    return KemSecret(ciphertext, secret)


def verify_public_key(public: bytes, suite: Suite) -> bytes:
    """Return ``public`` if both sides can agree on a key with it.

    Raises:
        MessageError: It is of the wrong size, of low order or not canonical.
    """
    if len(public) != public_key_bytes(suite):
        raise MessageError("public key has the wrong size")
    verify_exchange_key(public[:KEY_BYTES])
    if suite.hybrid:
        kem.verify_encapsulation_key(public[KEY_BYTES:])
    return public
