"""The ChaCha20 keystream in Python integers: RFC 8439, section 2."""

from __future__ import annotations

from itertools import count, islice

MASK = 2**32 - 1
CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def keystream(key: bytes, nonce: bytes, counter: int, length_bytes: int) -> bytes:
    """``length_bytes`` of the stream, from block ``counter`` on."""
    blocks = -(-length_bytes // 64)
    numbers = islice(count(counter), blocks)
    stream = b"".join(block(key, nonce, number) for number in numbers)
    return stream[:length_bytes]


def block(key: bytes, nonce: bytes, counter: int) -> bytes:
    """One block of 64 bytes (section 2.3)."""
    if counter > MASK:
        raise ValueError("the block counter has 32 bits")
    start = [*CONSTANTS, *words(key), counter, *words(nonce)]
    state = list(start)
    for _ in range(10):
        for places in (*COLUMNS, *DIAGONALS):
            quarter_round(state, *places)
    total = [(a + b) & MASK for a, b in zip(state, start, strict=True)]
    return b"".join(word.to_bytes(4, "little") for word in total)


def quarter_round(state: list[int], a: int, b: int, c: int, d: int) -> None:
    """Section 2.1."""
    for first, second, third, turn in (
        (a, b, d, 16),
        (c, d, b, 12),
        (a, b, d, 8),
        (c, d, b, 7),
    ):
        state[first] = (state[first] + state[second]) & MASK
        state[third] = rotated(state[third] ^ state[first], turn)


def rotated(word: int, turn: int) -> int:
    return (word << turn | word >> (32 - turn)) & MASK


def words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
