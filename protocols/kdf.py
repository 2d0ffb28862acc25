"""All hashing and key derivation: SHA-256 and HKDF-SHA256 (RFC 5869).

Every call mixes in the specification version and a label; every part is
length-prefixed, so no two different inputs meet in one hash input.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols import labels, wire

__all__ = ["DIGEST_BYTES", "derive", "digest", "digest_in_pieces", "hkdf_sha256"]

DIGEST_BYTES = 32


def hkdf_sha256(ikm: bytes, *, salt: bytes, info: bytes, length_bytes: int) -> bytes:
    """Plain HKDF-SHA256 (RFC 5869); use ``derive`` inside the protocols."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=length_bytes, salt=salt, info=info)
    return kdf.derive(ikm)


def derive(
    label: bytes, ikm: bytes, salt: bytes, length_bytes: int, *info: bytes
) -> bytes:
    """Derive ``length_bytes`` for one purpose.

    Args:
        label: The purpose, from ``labels``.
        ikm: The secret input.
        salt: What the key belongs to: the session id, or the session id
            followed by the directory digest once that is verified.
        length_bytes: How many bytes to derive.
        info: Further public context; each part is length-prefixed.
    """
    context = wire.frame((labels.VERSION, label, *info))
    return hkdf_sha256(ikm, salt=salt, info=context, length_bytes=length_bytes)


def digest(label: bytes, *parts: bytes) -> bytes:
    """SHA-256 over the version, the label and the parts, all length-prefixed."""
    return hashlib.sha256(wire.frame((labels.VERSION, label, *parts))).digest()


def digest_in_pieces(label: bytes, first: bytes, pieces: Sequence[bytes]) -> bytes:
    """``digest(label, first, second)``, with ``second`` given in pieces."""
    state = hashlib.sha256(wire.frame((labels.VERSION, label, first)))
    state.update(wire.u64(sum(map(len, pieces))))
    for piece in pieces:
        state.update(piece)
    return state.digest()
