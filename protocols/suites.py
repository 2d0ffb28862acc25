"""The named sets of primitives that a session may use.

A suite is one number in the signed study; nothing is negotiated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from protocols.prg import Cipher

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """One set of primitives.

    Attributes:
        number: Its byte in every message header and in the session id.
        name: The primitives, in words.
        hybrid: Whether ML-KEM-768 (FIPS 203) joins X25519 in both key pairs, so
            that a recorded session stays closed to a later quantum computer.
            Signatures are classical in every suite.
        mask_cipher: The stream that masks are made of.
    """

    number: int
    name: str
    hybrid: bool
    mask_cipher: Cipher


SUITES: Final[Mapping[int, Suite]] = {
    suite.number: suite
    for suite in (
        Suite(
            1,
            "X25519, HKDF-SHA256, AES-256-CTR, AES-256-GCM, Ed25519",
            hybrid=False,
            mask_cipher="aes-256-ctr",
        ),
        Suite(
            2,
            "X25519 and ML-KEM-768, HKDF-SHA256, AES-256-CTR, AES-256-GCM, Ed25519",
            hybrid=True,
            mask_cipher="aes-256-ctr",
        ),
        Suite(
            3,
            "X25519, HKDF-SHA256, ChaCha20, AES-256-GCM, Ed25519",
            hybrid=False,
            mask_cipher="chacha20",
        ),
    )
}
