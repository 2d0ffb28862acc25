"""HKDF-SHA256 from HMAC alone: RFC 5869, section 2."""

from __future__ import annotations

import hmac


def hkdf_sha256(ikm: bytes, salt: bytes, info: bytes, length_bytes: int) -> bytes:
    return expand(extract(salt, ikm), info, length_bytes)


def extract(salt: bytes, ikm: bytes) -> bytes:
    """Section 2.2; HMAC pads an empty salt with zeros, as the RFC asks."""
    return hmac.digest(salt, ikm, "sha256")


def expand(prk: bytes, info: bytes, length_bytes: int) -> bytes:
    """Section 2.3."""
    output, last, number = b"", b"", 0
    while len(output) < length_bytes:
        number += 1
        last = hmac.digest(prk, last + info + bytes([number]), "sha256")
        output += last
    return output[:length_bytes]
