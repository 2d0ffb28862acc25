"""Damaged copies of real bytes, made with the parser's own view of their fields.

The fields of a seed are what its parser takes from it, recorded while it parses.
So counts, lengths, indices and keys are changed, dropped, repeated and exchanged
as such, without a second description of the formats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from protocols import wire

_EDGES = (0, 1, 2, 3, 0x7F, 0x80, 0xFF)


@dataclass(frozen=True)
class Seed:
    """Bytes that parse, and where their fields are."""

    data: bytes
    fields: tuple[tuple[int, int], ...]  # start and size

    @classmethod
    def traced(cls, data: bytes, parse: Callable[[bytes], object]) -> Seed:
        with _recorded() as taken:
            parse(data)
        found = set()
        for inner, start, size in taken:
            base = data.find(inner)  # a nested reader has a part of the message
            if size and base >= 0:
                found.add((base + start, size))
        return cls(data, tuple(sorted(found)) or ((0, len(data)),))


@contextmanager
def _recorded() -> Iterator[list[tuple[bytes, int, int]]]:
    taken: list[tuple[bytes, int, int]] = []
    real = wire.Reader.take

    def take(reader: wire.Reader, size_bytes: int) -> bytes:
        taken.append((reader._data, reader._position, size_bytes))
        return real(reader, size_bytes)

    wire.Reader.take = take  # type: ignore[method-assign]
    try:
        yield taken
    finally:
        wire.Reader.take = real  # type: ignore[method-assign]


def mutated(random: Random, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    """One to three changes of ``seed``; now and then pure noise."""
    if random.random() < 0.02:
        return random.randbytes(random.randrange(2 * len(seed.data) + 1))
    data = seed.data
    for _ in range(random.choice((1, 1, 2, 3))):
        data = random.choice(_CHANGES)(random, data, seed, corpus)
    return data


Change = Callable[[Random, bytes, Seed, Sequence[Seed]], bytes]


def _flip(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    if random.random() < 0.5:
        return data[: random.choice(seed.fields)[0]]
    return data[: random.randrange(len(data) + 1)]


def _extend(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    return data + random.choice(
        (b"\0", random.randbytes(random.randrange(1, 64)), data[:64], data[-64:])
    )


def _splice(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    other = random.choice(corpus).data
    start, size = random.choice(seed.fields)
    return data[:start] + other[random.choice((0, start, start + size)) :]


def _set_number(
    random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]
) -> bytes:
    """Counts and lengths: borders, all ones (4 GB), and one more or less."""
    numbers = [field for field in seed.fields if field[1] <= 4]
    start, size = random.choice(numbers or seed.fields)
    old = int.from_bytes(data[start : start + size], "little")
    top = 256**size
    value = random.choice(
        (*_EDGES, old + 1, old - 1, top - 1, top // 2, len(data), random.randrange(top))
    )
    return data[:start] + (value % top).to_bytes(size, "little") + data[start + size :]


def _set_field(
    random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]
) -> bytes:
    start, size = random.choice(seed.fields)
    fill = random.choice((bytes(size), b"\xff" * size, random.randbytes(size)))
    return data[:start] + fill + data[start + size :]


def _drop(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    start, size = random.choice(seed.fields)
    return data[:start] + data[start + size :]


def _repeat(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    start, size = random.choice(seed.fields)
    times = random.choice((1, 1, 2, 20))
    return data[:start] + data[start : start + size] * times + data[start:]


def _exchange(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    """Two fields of one size in each other's place: order, sender, key."""
    start, size = random.choice(seed.fields)
    other, _ = random.choice([field for field in seed.fields if field[1] == size])
    changed = bytearray(data)
    first, second = data[start : start + size], data[other : other + size]
    if len(first) == len(second) == size:
        changed[start : start + size], changed[other : other + size] = second, first
    return bytes(changed)


def _borrow(random: Random, data: bytes, seed: Seed, corpus: Sequence[Seed]) -> bytes:
    """A field of the same size from another message."""
    start, size = random.choice(seed.fields)
    other = random.choice(corpus)
    sizes = [field for field in other.fields if field[1] == size]
    if not sizes:
        return other.data
    source, _ = random.choice(sizes)
    return data[:start] + other.data[source : source + size] + data[start + size :]


_CHANGES: tuple[Change, ...] = (
    _flip,
    _cut,
    _extend,
    _splice,
    _set_number,
    _set_field,
    _drop,
    _repeat,
    _exchange,
    _borrow,
)
