"""Shamir secret sharing over GF(8380417), as exact float64 matrix products.

A 32-byte secret is cut into twelve limbs of 22 bits; every limb is the value
at zero of its own uniform polynomial of degree t - 1, and a share is the twelve
values at the holder's point. Shamir, "How to share a secret", CACM 1979.

Why floating point is exact here. With centred representatives every factor is
an integer of magnitude at most (p - 1) / 2 = 4190208 < 2^22. A sum of t products
is then an integer of magnitude at most t * 4190208^2 < t * 2^43.9977, which for
t <= 512 is at most 8.99e15 < 2^53 = 9.007e15. The same holds for every partial
sum, so whatever order, blocking or fused operations the library uses, each
intermediate result is an integer that float64 represents exactly, and the time
does not depend on the secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocols.errors import MessageError, MisuseError
from protocols.prg import Stream

__all__ = [
    "LIMBS",
    "MAX_THRESHOLD",
    "PRIME",
    "SECRET_BYTES",
    "SHARE_BYTES",
    "interpolate",
    "reconstruct",
    "split",
    "verify_share",
]

PRIME = 8380417  # 2^23 - 2^13 + 1
LIMB_BITS = 22
LIMBS = 12  # 12 * 22 = 264 >= 256
LIMB_BYTES = 3
SECRET_BYTES = 32
SHARE_BYTES = LIMBS * LIMB_BYTES
MAX_THRESHOLD = 512  # the bound of the module docstring

Integers = NDArray[np.int64]


def split(
    secrets: Sequence[bytes], threshold: int, points: Sequence[int], stream: Stream
) -> list[tuple[bytes, ...]]:
    """Share several secrets at once.

    Args:
        secrets: 32-byte secrets.
        threshold: How many shares give a secret back; fewer say nothing.
        points: The holders' distinct evaluation points, in 1..PRIME-1.
        stream: Fresh cryptographic bytes for the coefficients.

    Returns:
        For each point the shares of all secrets, in the order given.
    """
    _require_points(points)
    if not 1 <= threshold <= min(len(points), MAX_THRESHOLD):
        raise MisuseError(f"threshold {threshold} does not fit {len(points)} points")
    limbs = np.stack([_limbs_of(secret) for secret in secrets])  # (secrets, 12)
    width = limbs.size
    coefficients = np.empty((threshold, width), dtype=np.int64)
    coefficients[0] = limbs.ravel()
    # Uniform over the whole field, zero included: a leading zero is allowed,
    # and excluding it would tell threshold - 1 holders something.
    coefficients[1:] = _uniform(stream, (threshold - 1) * width).reshape(-1, width)
    values = _product(_powers(points, threshold), coefficients)
    rows = values.reshape(len(points), len(secrets), LIMBS)
    return [tuple(_share_of(share) for share in row) for row in rows]


def reconstruct(points: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """The secret behind exactly ``threshold`` shares at distinct points.

    Raises:
        MessageError: A share is malformed, or the limbs found are not those of
            a 32-byte secret (so at least one share is wrong).
    """
    return _secret_of(_interpolate(points, shares, at=0))


def interpolate(points: Sequence[int], shares: Sequence[bytes], at: int) -> bytes:
    """The share that the polynomials through ``shares`` have at point ``at``."""
    return _share_of(_interpolate(points, shares, at))


def verify_share(share: bytes) -> bytes:
    """Return ``share`` if it is the canonical encoding of twelve field elements."""
    _values_of([share])
    return share


def _interpolate(points: Sequence[int], shares: Sequence[bytes], at: int) -> Integers:
    _require_points(points)
    if not 1 <= len(points) == len(shares) <= MAX_THRESHOLD:
        raise MisuseError("one share per point, at most 512")
    values = _values_of(shares)
    return _product(_lagrange(tuple(points), at), values).reshape(-1)


def _require_points(points: Sequence[int]) -> None:
    distinct = len(set(points)) == len(points)
    if not distinct or not all(0 < point < PRIME for point in points):
        raise MisuseError("points must be distinct and in 1..PRIME-1")


def _centred(values: Integers) -> NDArray[np.float64]:
    """Representatives of least magnitude, |value| <= (PRIME - 1) / 2."""
    return np.where(values > PRIME // 2, values - PRIME, values).astype(np.float64)


def _product(left: Integers, right: Integers) -> Integers:
    """``left @ right`` modulo PRIME; see the module docstring for exactness."""
    exact: NDArray[np.float64] = _centred(left) @ _centred(right)
    values: Integers = exact.astype(np.int64) % PRIME
    return values


def _powers(points: Sequence[int], count: int) -> Integers:
    """Row i holds 1, x_i, x_i^2, … modulo PRIME; products stay below 2^46."""
    base = np.array(points, dtype=np.int64)
    powers = np.ones((len(points), count), dtype=np.int64)
    for exponent in range(1, count):
        powers[:, exponent] = powers[:, exponent - 1] * base % PRIME
    return powers


@lru_cache(maxsize=512)
def _lagrange(points: tuple[int, ...], at: int) -> Integers:
    """Weights that take the values at ``points`` to the value at ``at``.

    Points are public, and one set of holders serves many dealers: cached.
    """
    weights = []
    for own in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != own:
                numerator = numerator * (at - other) % PRIME
                denominator = denominator * (own - other) % PRIME
        weights.append(numerator * pow(denominator, -1, PRIME) % PRIME)
    row = np.array([weights], dtype=np.int64)
    row.flags.writeable = False
    return row


def _uniform(stream: Stream, count: int) -> Integers:
    """``count`` uniform field elements: 23 bits, refused if not below PRIME.

    One draw in 1024 is refused; the time says nothing about the values kept.
    """
    kept: list[Integers] = []
    missing = count
    while missing > 0:
        drawn = np.frombuffer(stream.read(4 * (missing + 8)), dtype="<u4")
        drawn = (drawn & 0x7FFFFF).astype(np.int64)
        fitting = drawn[drawn < PRIME][:missing]
        kept.append(fitting)
        missing -= len(fitting)
    return np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)


def _limbs_of(secret: bytes) -> Integers:
    if len(secret) != SECRET_BYTES:
        raise MisuseError(f"a secret has {SECRET_BYTES} bytes, not {len(secret)}")
    number = int.from_bytes(secret, "little")
    limbs = [(number >> (LIMB_BITS * i)) & (2**LIMB_BITS - 1) for i in range(LIMBS)]
    return np.array(limbs, dtype=np.int64)


def _secret_of(limbs: Integers) -> bytes:
    if int(limbs.max()) >= 2**LIMB_BITS:
        raise MessageError("reconstructed limb does not fit 22 bits")
    number = sum(int(limb) << (LIMB_BITS * i) for i, limb in enumerate(limbs))
    if number >= 2 ** (8 * SECRET_BYTES):
        raise MessageError("reconstructed secret does not fit 32 bytes")
    return number.to_bytes(SECRET_BYTES, "little")


def _share_of(values: Integers) -> bytes:
    return values.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :LIMB_BYTES].tobytes()


def _values_of(shares: Sequence[bytes]) -> Integers:
    """One row of twelve field elements for each share."""
    if any(len(share) != SHARE_BYTES for share in shares):
        raise MessageError(f"a share has {SHARE_BYTES} bytes")
    raw = np.frombuffer(b"".join(shares), dtype=np.uint8)
    raw = raw.reshape(len(shares), LIMBS, LIMB_BYTES)
    values = raw.astype(np.int64) @ np.array([1, 1 << 8, 1 << 16], dtype=np.int64)
    if int(values.max()) >= PRIME:
        raise MessageError("share is not canonical")
    return values
