"""Authenticated boxes: AES-256-GCM (SP 800-38D)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import MessageError

__all__ = ["NONCE_BYTES", "OVERHEAD_BYTES", "open_box", "seal_box"]

NONCE_BYTES = 12
OVERHEAD_BYTES = NONCE_BYTES + 16
"""Nonce before, tag behind the ciphertext."""


def seal_box(key: bytes, nonce: bytes, plaintext: bytes, header: bytes) -> bytes:
    """Encrypt ``plaintext`` and authenticate it together with ``header``.

    Requires: ``(key, nonce)`` is used for one plaintext only.
    """
    return nonce + AESGCM(key).encrypt(nonce, plaintext, header)


def open_box(key: bytes, box: bytes, header: bytes) -> bytes:
    """The plaintext of ``box``.

    Raises:
        MessageError: The box was not sealed under this key and header.
    """
    nonce, sealed = box[:NONCE_BYTES], box[NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, sealed, header)
    except (InvalidTag, ValueError) as error:
        raise MessageError("box does not open") from error
