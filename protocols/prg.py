"""A keyed stream of uniform bytes: AES-256 in counter mode, or ChaCha20.

The whole 256-bit key is used. A key serves one purpose and one stream, which
is why the counter may always start at zero (SP 800-38A, section 6.5; RFC 8439,
section 2.4, with a nonce of zeros).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from cryptography.hazmat.primitives.ciphers import Cipher as _Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy import frombuffer, uint8
from numpy.typing import NDArray

from protocols.errors import MisuseError

__all__ = ["ALIGNMENT_BYTES", "CHUNK_BYTES", "KEY_BYTES", "Cipher", "Stream"]

Cipher = Literal["aes-256-ctr", "chacha20"]

KEY_BYTES: Final = 32

CHUNK_BYTES: Final = 512 * 1024
"""Chunk that stays in the second-level cache while several masks are added.

Smaller ones are as fast in one thread, but two threads then wait for each other
at the interpreter's lock: measured at 128 KiB they gain nothing.
"""

_BLOCK_BYTES: Final[Mapping[Cipher, int]] = {"aes-256-ctr": 16, "chacha20": 64}

ALIGNMENT_BYTES: Final = 64
"""A stream can be entered at any multiple of this: a whole number of blocks."""

_LARGEST_OFFSET: Final = 2**38  # ChaCha20's 32-bit block counter, RFC 8439

# The stream is the encryption of zeros; this read-only buffer is that input.
_ZEROS = memoryview(bytes(CHUNK_BYTES))


class Stream:
    """Deterministic bytes from one key.

    Guarantees: the bytes do not depend on how the reads are cut, and a stream
    entered at ``offset_bytes`` continues as if all bytes before had been read.
    Requires: ``len(key) == 32``, and the key is used for nothing else.

    Args:
        key: 32 secret bytes.
        cipher: What makes the bytes.
        offset_bytes: Where to enter the stream; a multiple of 64.
        initial_counter: First block counter; zero except in known-answer tests.
    """

    def __init__(
        self,
        key: bytes,
        cipher: Cipher = "aes-256-ctr",
        *,
        offset_bytes: int = 0,
        initial_counter: int = 0,
    ) -> None:
        if len(key) != KEY_BYTES:
            raise MisuseError(f"a stream key has {KEY_BYTES} bytes, not {len(key)}")
        if offset_bytes % ALIGNMENT_BYTES or not 0 <= offset_bytes < _LARGEST_OFFSET:
            raise MisuseError(f"a stream cannot be entered at byte {offset_bytes}")
        counter = initial_counter + offset_bytes // _BLOCK_BYTES[cipher]
        self._encryptor = _cipher(key, cipher, counter).encryptor()

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


def _cipher(key: bytes, cipher: Cipher, counter: int) -> _Cipher[Any]:
    if cipher == "chacha20":
        # The library takes the block counter and the nonce in one argument.
        return _Cipher(ChaCha20(key, counter.to_bytes(16, "little")), mode=None)
    return _Cipher(AES256(key), CTR(counter.to_bytes(16, "big")))
