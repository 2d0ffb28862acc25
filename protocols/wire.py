"""Reading and writing fixed-width little fields, strictly.

All integers on the wire are unsigned and little-endian. A value has exactly
one encoding; leftover or missing bytes are a ``MessageError``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise

from protocols.errors import MessageError

__all__ = [
    "Reader",
    "frame",
    "read_indices",
    "require_increasing",
    "u8",
    "u16",
    "u32",
    "u64",
    "write_indices",
]


def u8(value: int) -> bytes:
    """One byte."""
    return value.to_bytes(1, "little")


def u16(value: int) -> bytes:
    """Two bytes."""
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    """Four bytes."""
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    """Eight bytes."""
    return value.to_bytes(8, "little")


def frame(parts: Iterable[bytes]) -> bytes:
    """Concatenate ``parts``, each after its length in eight bytes.

    Guarantees: different sequences of parts give different bytes.
    """
    return b"".join(piece for part in parts for piece in (u64(len(part)), part))


class Reader:
    """A cursor over one received message."""

    def __init__(self, data: bytes) -> None:
        if not isinstance(data, bytes):
            raise MessageError("a message must be bytes")
        self._data = data
        self._position = 0

    def take(self, size_bytes: int) -> bytes:
        """The next ``size_bytes`` bytes."""
        end = self._position + size_bytes
        if end > len(self._data):
            raise MessageError("message is too short")
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def number(self, size_bytes: int) -> int:
        """The next ``size_bytes`` bytes as an unsigned integer."""
        return int.from_bytes(self.take(size_bytes), "little")

    def expect(self, expected: bytes, what: str) -> None:
        """The next bytes must be ``expected``."""
        if self.take(len(expected)) != expected:
            raise MessageError(f"wrong {what}")

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._data) - self._position)

    def finish(self) -> None:
        """Nothing may be left."""
        if self._position != len(self._data):
            raise MessageError("message has leftover bytes")


def write_indices(indices: Sequence[int]) -> bytes:
    """A count in two bytes, then each index in two bytes."""
    return struct.pack(f"<H{len(indices)}H", len(indices), *indices)


def read_indices(reader: Reader) -> tuple[int, ...]:
    """What ``write_indices`` wrote; indices must be strictly increasing."""
    count = reader.number(2)
    indices = struct.unpack(f"<{count}H", reader.take(2 * count))
    require_increasing(indices)
    return indices


def require_increasing(indices: Sequence[int]) -> None:
    """Refuse a second encoding of the same set: another order, or repeats."""
    if any(first >= second for first, second in pairwise(indices)):
        raise MessageError("indices are not strictly increasing")
