"""A keyed stream of uniform bytes: AES-256 in counter mode from zero.

The whole 256-bit key is used. A key serves one purpose and one stream, which
is why the counter may always start at zero (SP 800-38A, section 6.5).
"""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy import frombuffer, uint8
from numpy.typing import NDArray

from protocols.errors import MisuseError

__all__ = ["CHUNK_BYTES", "KEY_BYTES", "Stream"]

KEY_BYTES = 32

CHUNK_BYTES = 128 * 1024
"""Chunk that stays in the second-level cache while several masks are added."""

# The stream is the encryption of zeros; this read-only buffer is that input.
_ZEROS = memoryview(bytes(CHUNK_BYTES))


class Stream:
    """Deterministic bytes from one key.

    Guarantees: the bytes do not depend on how the reads are cut.
    Requires: ``len(key) == 32``, and the key is used for nothing else.
    """

    def __init__(self, key: bytes, *, initial_counter: int = 0) -> None:
        if len(key) != KEY_BYTES:
            raise MisuseError(f"a stream key has {KEY_BYTES} bytes, not {len(key)}")
        counter = initial_counter.to_bytes(16, "big")
        self._encryptor = Cipher(AES256(key), CTR(counter)).encryptor()

    def read(self, size_bytes: int) -> bytes:
        """The next ``size_bytes`` bytes of the stream."""
        buffer = bytearray(size_bytes)
        self.fill(frombuffer(buffer, dtype=uint8))
        return bytes(buffer)

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite the contiguous array ``out`` with the next bytes of the stream."""
        view = out.view(uint8).data
        for start in range(0, len(view), CHUNK_BYTES):
            part = view[start : start + CHUNK_BYTES]
            self._encryptor.update_into(_ZEROS[: len(part)], part)

    def __repr__(self) -> str:
        return "Stream()"
