"""Signed integers into ring words and back; what a word holds in each ring.

==========  ==========================================================
ring_bits   one word
==========  ==========================================================
16, 32      one integer, two's complement
64          three 21-bit fields, and a top bit that is always zero
==========  ==========================================================

In the 64-bit ring the layout is planar: with m words, word i holds the integers
i, i + m and i + 2 m, in bits 0-20, 21-41 and 42-62. A field holds
``integer + levels`` (offset binary), so it is never negative. The sum of n fields
is at most ``2 * n * levels <= 2**21 - 1``: no field carries into the next, and
the sum of words is the word of sums. Missing integers at the end are zero.

Headroom, for n sites: the largest magnitude of one integer is ::

    levels = floor((2**(ring_bits - 1) - 1) / n)      16 and 32 bits
    levels = floor((2**21 - 1) / (2 * n))             64 bits
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secfed.errors import CodecError

__all__ = [
    "INTEGER_DTYPES",
    "RING_DTYPES",
    "RingArray",
    "from_words",
    "levels_of",
    "to_words",
    "words_of",
]

RingArray = NDArray[np.unsignedinteger[Any]]
"""Words of the ring: uint16, uint32 or uint64."""

RING_DTYPES: Mapping[int, type[np.unsignedinteger[Any]]] = {
    16: np.uint16,
    32: np.uint32,
    64: np.uint64,
}
INTEGER_DTYPES: Mapping[int, type[np.signedinteger[Any]]] = {
    16: np.int16,
    32: np.int32,
    64: np.int32,  # three of which share a word
}

PACKED_BITS = 64
FIELDS = 3
_FIELD_BITS = 21
_FIELD_MASK = (1 << _FIELD_BITS) - 1


def levels_of(ring_bits: int, num_sites: int) -> int:
    """The largest magnitude of an integer of which ``num_sites`` cannot overflow."""
    if ring_bits == PACKED_BITS:
        return _FIELD_MASK // (2 * num_sites)
    return ((1 << (ring_bits - 1)) - 1) // num_sites


def words_of(ring_bits: int, num_values: int) -> int:
    """How many words hold ``num_values`` integers."""
    if ring_bits == PACKED_BITS:
        return -(-num_values // FIELDS)
    return num_values


def to_words(
    integers: NDArray[np.signedinteger[Any]], ring_bits: int, levels: int
) -> RingArray:
    """The ring words of one site's integers.

    Requires: ``integers.dtype == INTEGER_DTYPES[ring_bits]`` and
    ``abs(integers) <= levels``.
    """
    dtype = RING_DTYPES[ring_bits]
    if ring_bits != PACKED_BITS:
        return integers.view(dtype)  # two's complement is reduction modulo the ring
    m = words_of(ring_bits, integers.size)
    words = np.zeros(m, dtype=np.int64)
    for plane in reversed(range(FIELDS)):
        part = integers[plane * m : (plane + 1) * m]
        words <<= _FIELD_BITS
        words[: part.size] += part
    # The offset of all fields at once: from here on no field is negative.
    words += sum(levels << (_FIELD_BITS * plane) for plane in range(FIELDS))
    return words.view(dtype)


def from_words(
    total: RingArray, ring_bits: int, levels: int, num_survivors: int, num_values: int
) -> NDArray[np.signedinteger[Any]]:
    """The sums of integers behind a sum of ``num_survivors`` words.

    Raises:
        CodecError: No such encodings add up to these words.
    """
    limit = num_survivors * levels
    if ring_bits == PACKED_BITS:
        sums, spare = _fields(total, limit, num_values)
    else:
        sums, spare = total.view(INTEGER_DTYPES[ring_bits]), 0
    if num_values and (int(sums.max()) > limit or int(sums.min()) < -limit or spare):
        raise CodecError(
            f"the sum holds a number that {num_survivors} encodings cannot add up "
            "to; a site or a mask is wrong, and the round must be aborted"
        )
    return sums


def _fields(
    total: RingArray, offset: int, num_values: int
) -> tuple[NDArray[np.signedinteger[Any]], int]:
    """The fields less their offset, and how many bits are set that never are."""
    words = total.astype(np.uint64)
    m = words.size
    sums = np.empty(FIELDS * m, dtype=INTEGER_DTYPES[PACKED_BITS])
    for plane in range(FIELDS):
        sums[plane * m : (plane + 1) * m] = words & np.uint64(_FIELD_MASK)
        words >>= np.uint64(_FIELD_BITS)
    sums -= offset
    spare = np.count_nonzero(words) + np.count_nonzero(sums[num_values:])
    return sums[:num_values], int(spare)
