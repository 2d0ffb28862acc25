"""X25519 in Python integers: the Montgomery ladder of RFC 7748, section 5.

Slow, and its time depends on the key: for comparison only.
"""

from __future__ import annotations

P = 2**255 - 19
A24 = 121665  # (486662 - 2) / 4
BASE_POINT = (9).to_bytes(32, "little")


def x25519(scalar: bytes, point: bytes) -> bytes:
    """The u-coordinate of ``scalar`` times the point with u-coordinate ``point``."""
    k = clamped(scalar)
    u = int.from_bytes(point, "little") % 2**255 % P  # The top bit is ignored.
    # Projective u-coordinates of two points that always differ by the input.
    low, high = (1, 0), (u, 1)
    for bit in range(254, -1, -1):
        if k >> bit & 1:
            low, high = added(high, low, u), doubled(high)
        else:
            low, high = doubled(low), added(low, high, u)
    x, z = low
    return (x * pow(z, P - 2, P) % P).to_bytes(32, "little")


def clamped(scalar: bytes) -> int:
    """The integer behind 32 bytes, a multiple of 8 in [2^254, 2^255)."""
    number = int.from_bytes(scalar, "little") % 2**254
    return 2**254 + number - number % 8


def doubled(point: tuple[int, int]) -> tuple[int, int]:
    x, z = point
    plus, minus = (x + z) ** 2 % P, (x - z) ** 2 % P
    difference = plus - minus
    return plus * minus % P, difference * (plus + A24 * difference) % P


def added(one: tuple[int, int], other: tuple[int, int], u: int) -> tuple[int, int]:
    """The sum of two points whose difference has the u-coordinate ``u``."""
    (x1, z1), (x2, z2) = one, other
    cross, straight = (x1 - z1) * (x2 + z2), (x1 + z1) * (x2 - z2)
    return (cross + straight) ** 2 % P, u * (cross - straight) ** 2 % P
