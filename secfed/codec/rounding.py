"""Real numbers into integers: scaled, cut to the range, rounded at random.

A number x becomes the fixed-point number ``t = rint(x * factor)`` with 32
fraction bits, ``factor = 2**32 * levels / range``. A dither u, uniform over the
integers 0 .. 2**32 - 1, is added, and the fraction is dropped::

    integer = floor((t + u) / 2**32)        E[integer] = t / 2**32 exactly

so rounding up happens with the probability of the fraction. What is not exact is
t: it differs from ``x * factor`` by at most 1/2 (2**-33 of a step) and by the
relative error of two roundings in double precision. Hence the bias bound ::

    |E[integer] - x / step| <= 2**-33 + 2**-50 * |x / step|

Nothing leaves the range: with ``|t| <= levels * 2**32`` and ``u < 2**32`` the
integer is in ``[-levels, levels]``, and ``levels < 2**31`` keeps ``t + u`` below
``2**63``.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from protocols.prg import KEY_BYTES, Stream

__all__ = ["ByteStream", "DitherStream", "dither_stream", "round_into", "scale_factor"]

FRACTION_BITS = 32
# Numbers at a time: the work arrays stay in the second-level cache.
_CHUNK = 1 << 15
# The high half of a 64-bit integer is its floor after division by 2**32.
_HIGH_HALF = 1 if sys.byteorder == "little" else 0


class ByteStream(Protocol):
    """A site's cryptographic randomness: fresh and unknown to others."""

    def bytes(self, size: int, /) -> bytes:
        """The next ``size`` bytes."""
        ...


class DitherStream(Protocol):
    """What fills an array with uniform bytes."""

    def fill(self, out: NDArray[Any], /) -> None:
        """Overwrite the contiguous array ``out``."""
        ...


def dither_stream(source: ByteStream) -> Stream:
    """An AES-256-CTR stream under a key that is drawn for this one encoding."""
    return Stream(source.bytes(KEY_BYTES))


def scale_factor(levels: int, value_range: float) -> float:
    """The factor that takes ``value_range`` to ``levels * 2**32``, and not above it.

    Rounding is monotone, so no number inside the range is taken outside.
    """
    limit = math.ldexp(levels, FRACTION_BITS)
    factor = limit / value_range
    while value_range * factor > limit:
        factor = math.nextafter(factor, 0.0)
    return factor


def round_into(
    values: NDArray[np.floating[Any]],
    levels: int,
    value_range: float,
    dither: DitherStream,
    out: NDArray[Any],
) -> int:
    """Write the rounded integers of ``values`` to ``out``, modulo its type.

    Args:
        values: Finite numbers, shape (n,), float32 or float64.
        levels: The integer that ``value_range`` becomes; below 2**31.
        value_range: Where numbers are cut.
        dither: Gives four bytes per number.
        out: Shape (n,), any integer type that holds the ring.

    Returns:
        How many numbers were outside the range.
    """
    if values.size == 0:
        return 0
    limit = math.ldexp(levels, FRACTION_BITS)
    factor = scale_factor(levels, value_range)
    # Multiplication is monotone: if the extremes fit, every number does.
    fits = max(float(values.max()), -float(values.min())) * factor <= limit
    size = min(_CHUNK, values.size)
    scaled = np.empty(size, dtype=np.float64)
    fixed = np.empty(size, dtype=np.int64)
    draws = np.empty(size, dtype=np.uint32)
    saturated = 0
    for start in range(0, values.size, size):
        part = values[start : start + size]
        x, t, u = scaled[: part.size], fixed[: part.size], draws[: part.size]
        np.multiply(part, factor, out=x, dtype=np.float64)
        if not fits:
            saturated += int(np.count_nonzero(np.abs(x) > limit))
            np.clip(x, -limit, limit, out=x)
        np.rint(x, out=x)
        np.copyto(t, x, casting="unsafe")  # whole numbers below 2**63: exact
        dither.fill(u)
        np.add(t, u, out=t)
        out[start : start + part.size] = t.view(np.int32)[_HIGH_HALF::2]
    return saturated
