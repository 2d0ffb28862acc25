"""What this machine can do at most, and how close the protocol comes to it.

The yardstick is a tight loop in the same process: AES-256-CTR over preallocated
buffers in chunks of 128 KiB, and an unsigned addition; chunk outer, key inner.
Each measurement of the protocol is paired with one of the yardstick, in turn.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from benchmarks.cases import Case, fresh
from benchmarks.inputs import ring_vector
from benchmarks.measure import Timing, timed, wall_seconds
from benchmarks.secagg_session import Session
from protocols.secagg import client, masks, server
from protocols.suites import SUITES

__all__ = [
    "Masking",
    "Threads",
    "keystream_rate",
    "masking_against_machine",
    "threads_against_one",
    "threads_are_known",
]

CHUNK_BYTES = 128 * 1024
_ZEROS = bytes(CHUNK_BYTES)


def _aes(number: int) -> Any:
    return Cipher(AES256(fresh("stream", number)), CTR(bytes(16))).encryptor()


def _chacha(number: int) -> Any:
    return Cipher(ChaCha20(fresh("stream", number), bytes(16)), mode=None).encryptor()


CIPHERS: dict[str, Callable[[int], Any]] = {"AES-256-CTR": _aes, "ChaCha20": _chacha}


def _keystreams(target: NDArray[Any], streams: Sequence[Any], *, add: bool) -> None:
    """Expand every stream over ``target``, and add it to it or not."""
    step = CHUNK_BYTES // target.itemsize
    buffer = np.empty(min(step, target.size), dtype=target.dtype)
    for start in range(0, target.size, step):
        part = target[start : start + step]
        mask = buffer[: part.size]
        source, sink = memoryview(_ZEROS)[: part.nbytes], mask.view(np.uint8).data
        for stream in streams:
            stream.update_into(source, sink)
            if add:
                np.add(part, mask, out=part)


def _yardstick_seconds(
    dtype: Any, length: int, count: int, cipher: str = "AES-256-CTR", *, add: bool
) -> float:
    """CPU seconds of one pass; buffers and cipher contexts are made before it."""
    target = np.ones(length, dtype=dtype)
    streams = [CIPHERS[cipher](number) for number in range(count)]
    return timed(_keystreams, target, streams, add=add)[1]


def keystream_rate(
    cipher: str, dtype: Any, length: int, *, add: bool, repetitions: int
) -> Timing:
    """Bytes per CPU second over 16 streams."""
    count = 16
    size = count * length * np.dtype(dtype).itemsize
    return Timing.of(
        [
            size / _yardstick_seconds(dtype, length, count, cipher, add=add)
            for _ in range(repetitions)
        ]
    )


@dataclass(frozen=True)
class Masking:
    """One client's masking, paired with the machine's own pace."""

    case: Case
    streams: int
    yardstick: Timing  # seconds for the same bytes
    masking: Timing  # deriving streams from keys, expanding and adding all masks
    step: Timing  # the whole step: open boxes, agree on keys, mask, encode, sign


def masking_against_machine(case: Case, repetitions: int) -> Masking:
    """Mask one vector again and again, each time beside the yardstick.

    The client's state is copied for each repetition; a real one masks once.
    """
    state, delivery, vector = _ready_to_mask(case)
    suite = SUITES[case.suite]
    keys = [_mask(number) for number in range(case.clients)]
    dtype = vector.body.dtype
    rows = [
        (
            _yardstick_seconds(dtype, case.length, case.clients, add=True),
            timed(masks.add_masks, vector.copy(), keys, suite)[1],
            timed(client.mask_input, copy.copy(state), delivery, vector)[1],
        )
        for _ in range(repetitions)
    ]
    columns = [Timing.of(column) for column in zip(*rows, strict=True)]
    return Masking(case, case.clients, *columns)


def _ready_to_mask(case: Case) -> tuple[Any, bytes, Any]:
    """A client's state before phase 2, what it gets, and a vector."""
    session = Session(case)
    session.advertise_and_share((0,))
    name = session.names[len(session.names) // 2]
    vector = ring_vector(0, session.params.zeros())
    return session.clients[name], session.downs[name], vector


def _mask(number: int) -> masks.Mask:
    """Self masks stand for pairwise ones: the same stream, agreed on earlier."""
    mask = masks.self_mask(fresh("mask", number), fresh("context"))
    return mask if number % 2 else mask.inverse()


@dataclass(frozen=True)
class Threads:
    """Elapsed seconds of one step with one and with two threads, in pairs."""

    case: Case
    step: str
    one: Timing
    two: Timing


def threads_are_known() -> bool:
    """Whether this version's steps take a number of threads."""
    steps = (client.mask_input, server.close_reveals)
    return all("threads" in inspect.signature(step).parameters for step in steps)


def threads_against_one(case: Case, repetitions: int) -> list[Threads]:
    """Masks alone, masking at the client, and unmasking at the server."""
    state, delivery, vector = _ready_to_mask(case)
    closing = _ready_to_close(case)

    added = [_mask(number) for number in range(case.clients)]

    def expand(threads: int) -> float:
        suite = SUITES[case.suite]
        masked = vector.copy()
        return wall_seconds(masks.add_masks, masked, added, suite, threads=threads)

    def mask(threads: int) -> float:
        args = (copy.copy(state), delivery, vector)
        return wall_seconds(client.mask_input, *args, threads=threads)

    def close(threads: int) -> float:
        return wall_seconds(server.close_reveals, closing, threads=threads)

    found = []
    for name, step in (
        ("masks alone", expand),
        ("mask input", mask),
        ("unmask", close),
    ):
        pairs = [(step(1), step(2)) for _ in range(repetitions)]
        one, two = zip(*pairs, strict=True)
        found.append(Threads(case, name, Timing.of(one), Timing.of(two)))
    return found


def _ready_to_close(case: Case) -> Any:
    """A server's state at the end of phase 4, with a tenth of dropouts."""
    session = Session(case)
    session.advertise_and_share((10,))
    session.mask((10,))
    return session.collect_reveals(10)
