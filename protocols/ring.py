"""Vectors over Z_2^b: what is masked, added and unmasked.

The body lives in Z_2^16, Z_2^32 or Z_2^64; the optional lane of 64-bit numbers
carries counts and metrics. Unsigned numpy arithmetic wraps, which is exactly
addition in the ring. A caller may pack several narrow fields into one 64-bit
word, as long as no field of a sum overflows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from protocols.errors import MessageError, MisuseError

__all__ = ["LANE_BYTES", "RING_BITS", "RingVector", "body_bytes"]

RING_BITS = (16, 32, 64)
LANE_BYTES = 8

_LANE = np.dtype("<u8")
_BODIES = tuple(np.dtype(f"<u{bits // 8}") for bits in RING_BITS)


def body_bytes(ring_bits: int) -> int:
    """Bytes per body element."""
    if ring_bits not in RING_BITS:
        raise MisuseError(f"ring_bits must be one of {RING_BITS}, not {ring_bits}")
    return ring_bits // 8


def _body_dtype(ring_bits: int) -> DTypeLike:
    return np.dtype(f"<u{body_bytes(ring_bits)}")


@dataclass(frozen=True, eq=False, repr=False)
class RingVector:
    """A body over Z_2^16, Z_2^32 or Z_2^64 and a lane over Z_2^64.

    Before masking it is private, so ``repr`` shows sizes only.
    """

    body: NDArray[Any]  # uint16, uint32 or uint64, one dimension, contiguous
    lane: NDArray[np.uint64]

    def __post_init__(self) -> None:
        for name, array in (("body", self.body), ("lane", self.lane)):
            if array.ndim != 1 or not array.flags.c_contiguous:
                raise MisuseError(f"{name} must be one-dimensional and contiguous")
        if self.body.dtype not in _BODIES:
            raise MisuseError(f"body must be uint16, 32 or 64, not {self.body.dtype}")
        if self.lane.dtype != _LANE:
            raise MisuseError(f"lane must be uint64, not {self.lane.dtype}")

    @classmethod
    def zeros(
        cls, body_length: int, lane_length: int = 0, ring_bits: int = 32
    ) -> RingVector:
        """The neutral element of addition."""
        body = np.zeros(body_length, dtype=_body_dtype(ring_bits))
        return cls(body=body, lane=np.zeros(lane_length, dtype=_LANE))

    @property
    def ring_bits(self) -> int:
        """Width of a body element in bits."""
        return int(self.body.dtype.itemsize) * 8

    def copy(self) -> RingVector:
        """A vector that shares no memory with this one."""
        return RingVector(body=self.body.copy(), lane=self.lane.copy())

    def has_shape_of(self, other: RingVector) -> bool:
        """Whether both live in the same ring and have the same lengths."""
        return (self.body.dtype, self.body.size, self.lane.size) == (
            other.body.dtype,
            other.body.size,
            other.lane.size,
        )

    def add_in_place(self, other: RingVector) -> None:
        """Add ``other`` to this vector."""
        if not self.has_shape_of(other):
            raise MisuseError("vectors of different shapes cannot be added")
        np.add(self.body, other.body, out=self.body)
        np.add(self.lane, other.lane, out=self.lane)

    def to_bytes(self) -> bytes:
        """The lane, then the body; every element little-endian."""
        return b"".join((self.lane.data, self.body.data))

    @classmethod
    def from_bytes(
        cls, data: bytes, body_length: int, lane_length: int = 0, ring_bits: int = 32
    ) -> RingVector:
        """A read-only view of what ``to_bytes`` wrote.

        Raises:
            MessageError: ``data`` does not have exactly the stated size.
        """
        dtype = np.dtype(_body_dtype(ring_bits))
        lane_size = lane_length * LANE_BYTES
        if len(data) != lane_size + body_length * dtype.itemsize:
            raise MessageError("vector has the wrong size")
        lane = np.frombuffer(data, dtype=_LANE, count=lane_length)
        body = np.frombuffer(data, dtype=dtype, count=body_length, offset=lane_size)
        return cls(body=body, lane=lane)

    def __repr__(self) -> str:
        sizes = f"{self.body.size} x {self.ring_bits} bit, lane {self.lane.size}"
        return f"<RingVector {sizes}>"
