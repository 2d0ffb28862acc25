"""Secret sharing over GF(8380417) in Python integers, one number at a time.

Written after the words of ``protocols.shamir``: a secret of 32 bytes is twelve
limbs of 22 bits, each the value at zero of its own polynomial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

PRIME = 2**23 - 2**13 + 1
LIMBS = 12


def split(
    secret: bytes, points: Sequence[int], coefficients: Sequence[Sequence[int]]
) -> list[bytes]:
    """One share per point.

    ``coefficients`` holds, for the powers 1, 2, … one number per limb.
    """
    terms = [limbs_of(secret), *coefficients]
    return [encoded([value(terms, limb, x) for limb in range(LIMBS)]) for x in points]


def value(terms: Sequence[Sequence[int]], limb: int, x: int) -> int:
    return sum(term[limb] * x**power for power, term in enumerate(terms)) % PRIME


def reconstruct(points: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """The secret behind as many shares as the threshold."""
    limbs = decoded(interpolate(points, shares, 0))
    if max(limbs) >= 2**22:
        raise ValueError("a limb has more than 22 bits")
    number = sum(limb << 22 * place for place, limb in enumerate(limbs))
    return number.to_bytes(32, "little")


def interpolate(points: Sequence[int], shares: Sequence[bytes], at: int) -> bytes:
    """Lagrange's formula: the share that belongs to the point ``at``."""
    weights = [weight(points, own, at) for own in points]
    rows = [decoded(share) for share in shares]
    columns = zip(*rows, strict=True)
    return encoded(
        [sum(w * y for w, y in zip(weights, column, strict=True)) for column in columns]
    )


def weight(points: Sequence[int], own: int, at: int) -> int:
    result = 1
    for other in points:
        if other != own:
            result = result * (at - other) * pow(own - other, -1, PRIME) % PRIME
    return result


def draw_coefficients(
    read: Callable[[int], bytes], count: int, width: int
) -> list[list[int]]:
    """``count`` rows of ``width`` uniform numbers, as ``protocols.shamir`` draws them.

    Each draw takes the low 23 bits of four bytes and is refused if they are not
    below the prime. A round reads eight words more than are missing and drops
    what it does not need.
    """
    kept: list[int] = []
    while len(kept) < count * width:
        missing = count * width - len(kept)
        data = read(4 * (missing + 8))
        words = [data[i : i + 4] for i in range(0, len(data), 4)]
        drawn = [int.from_bytes(word, "little") % 2**23 for word in words]
        kept += [number for number in drawn if number < PRIME][:missing]
    return [kept[i : i + width] for i in range(0, count * width, width)]


def limbs_of(secret: bytes) -> list[int]:
    number = int.from_bytes(secret, "little")
    return [number >> 22 * place & 2**22 - 1 for place in range(LIMBS)]


def encoded(values: Sequence[int]) -> bytes:
    return b"".join((number % PRIME).to_bytes(3, "little") for number in values)


def decoded(share: bytes) -> list[int]:
    return [int.from_bytes(share[i : i + 3], "little") for i in range(0, len(share), 3)]
