"""Randomised Hadamard rotation: spread every number over all of them.

Reference: Suresh, Yu, Kumar and McMahan, "Distributed Mean Estimation with
Limited Communication", ICML 2017, section 3.

A vector is multiplied by random signs and then by the orthonormal Hadamard matrix
``H / sqrt(block)``. Lengths stay what they were, and every number of the result is
a random signed mean of all numbers: by Hoeffding's inequality, for a vector x that
does not depend on the signs, ::

    P(|y_i| > |x|_2 * sqrt(2 * ln(2 / p) / block)) <= p

so that a range for the rotated numbers may be far smaller than |x|_2, which is all
that one can promise for a single number of x.

A Hadamard matrix needs a power of two. Padding to the next one could nearly double
what is sent; small blocks spread less. Instead two blocks overlap: with ``block``
the largest power of two that fits, first the first ``block`` numbers are rotated,
then (with fresh signs) the last ``block``. Each step is orthonormal, every number
was in one of them, nothing is padded, and more than half of the numbers are mixed
with each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from protocols.prg import Stream

__all__ = ["block_length", "rotate", "unrotate"]

# A product with a 16 x 16 matrix does four levels of the transform at once. Products
# of at most so many columns stay on one thread: threads that wait for each other at
# every small product cost more than they do on a machine that is busy.
_LEVELS_AT_ONCE = 4
_COLUMNS = 512


def block_length(num_values: int) -> int:
    """The largest power of two up to ``num_values``, which is at least 1."""
    return 1 << (num_values.bit_length() - 1)


def rotate(values: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """The rotated vector, shape (n,); ``values`` stays as it was.

    Args:
        values: Finite numbers.
        seed: 32 public bytes; who knows them can rotate back.
    """
    turned = values.copy()
    for part, signs in _steps(values.size, seed):
        turned[part] = _hadamard(turned[part] * signs)
    return turned


def unrotate(values: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """The inverse of ``rotate``: the steps backwards, each its own inverse."""
    turned = values.copy()
    for part, signs in reversed(list(_steps(values.size, seed))):
        turned[part] = _hadamard(turned[part]) * signs
    return turned


def _steps(num_values: int, seed: bytes) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """The overlapping blocks and their signs, in the order of ``rotate``."""
    if num_values == 0:
        return
    block = block_length(num_values)
    stream = Stream(seed)
    for start in sorted({0, num_values - block}):
        octets = np.frombuffer(stream.read(-(-block // 8)), dtype=np.uint8)
        bits = np.unpackbits(octets, count=block, bitorder="little")
        yield slice(start, start + block), 1.0 - 2.0 * bits.astype(np.float64)


def _hadamard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``H @ values / sqrt(n)`` for n a power of two, in n * log n operations.

    H of size 2**k is the Kronecker product of H of smaller sizes, so a few bits of
    the index are transformed at a time, the lowest first.
    """
    size, stride = values.size, 1
    while stride < size:
        levels = min(_LEVELS_AT_ONCE, (size // stride).bit_length() - 1)
        values = _transform_axis(values, levels, stride)
        stride <<= levels
    return values


def _transform_axis(
    values: NDArray[np.float64], levels: int, stride: int
) -> NDArray[np.float64]:
    """Multiply by H along the axis of length ``2**levels`` with ``stride``."""
    out = np.empty_like(values)
    if stride == 1:  # the axis is the last one, and H is symmetric
        rows = (-1, min(_COLUMNS, values.size >> levels), 1 << levels)
        np.matmul(values.reshape(rows), _matrix(levels), out=out.reshape(rows))
        return out
    columns = min(stride, _COLUMNS)
    shape = (-1, 1 << levels, stride // columns, columns)
    # One small product for each (index above the axis, block of columns).
    source, target = (a.reshape(shape).transpose(0, 2, 1, 3) for a in (values, out))
    np.matmul(_matrix(levels), source, out=target)
    return out


@cache
def _matrix(levels: int) -> NDArray[np.float64]:
    """The orthonormal Hadamard matrix of size ``2**levels`` (Sylvester, 1867)."""
    matrix = np.ones((1, 1))
    for _ in range(levels):
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / math.sqrt(1 << levels)
