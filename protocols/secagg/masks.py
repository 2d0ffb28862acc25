"""Secrets of one client, and the masks that grow from them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocols import kdf, labels, wire
from protocols.agreement import AgreementKey, KemSecret
from protocols.keys import Secret
from protocols.prg import ALIGNMENT_BYTES, CHUNK_BYTES, KEY_BYTES, Stream
from protocols.ring import RingVector
from protocols.suites import Suite

__all__ = [
    "Mask",
    "add_masks",
    "commitment_of",
    "mask_key_of",
    "pair_mask",
    "self_mask",
]

# Open cipher contexts at a time; bounds memory, not speed.
_BATCH: Final = 128


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Secret):
    """One mask: the key of its stream, and whether it is added or subtracted."""

    key: bytes
    negative: bool = False

    def inverse(self) -> Mask:
        """The mask that cancels this one."""
        return Mask(self.key, negative=not self.negative)


def commitment_of(self_secret: bytes, session: bytes) -> bytes:
    """What a client publishes of b, so that a reconstruction can be checked.

    b has 256 uniform bits, and mask and commitment come from it under
    different labels: knowing one says nothing about the other.
    """
    return kdf.derive(labels.COMMITMENT, self_secret, session, 32)


def mask_key_of(recovery: bytes, session: bytes, suite: Suite) -> AgreementKey:
    """The key pair of the pairwise masks, derived from the recovery key R."""
    return AgreementKey.derive(labels.MASK_KEY, recovery, session, suite)


def self_mask(self_secret: bytes, context: bytes) -> Mask:
    """The mask of one client alone, from b."""
    return Mask(kdf.derive(labels.SELF_MASK, self_secret, context, KEY_BYTES))


def pair_mask(
    own: int,
    own_key: AgreementKey,
    peer: int,
    peer_public: bytes,
    context: bytes,
    kem: KemSecret | None = None,
) -> Mask:
    """What ``own`` adds for ``peer``: the lower index adds, the higher subtracts.

    Args:
        own: Index in the roster.
        own_key: The mask key pair of ``own``.
        peer: Index in the roster.
        peer_public: The mask key that ``peer`` advertised.
        context: Session id and directory digest.
        kem: In a hybrid suite what the lower index encapsulated for the higher.
    """
    indices = wire.u16(min(own, peer)) + wire.u16(max(own, peer))
    key = own_key.agree(labels.PAIR_MASK, peer_public, kem, context, indices)
    return Mask(key, negative=own > peer)


def add_masks(
    vector: RingVector, masks: Sequence[Mask], suite: Suite, *, threads: int = 1
) -> None:
    """Add all masks to ``vector`` in place, uniform over the whole ring (SA-302).

    A mask is one stream: first the lane, rounded up to 64 bytes, then the body.

    Args:
        vector: What to mask, or a sum to unmask.
        masks: As many as there are; memory does not grow with them.
        suite: Which stream.
        threads: Parts of the body that are worked on at the same time; each
            enters the streams by their counter.
    """
    _add_to_lane(vector.lane, masks, suite)
    body = vector.body
    parts = max(1, min(threads, body.nbytes // CHUNK_BYTES))
    if parts == 1:
        _add_to_body(vector, 0, body.size, masks, suite)
        return
    # Equal parts, each beginning where a stream can be entered.
    aligned = ALIGNMENT_BYTES // body.itemsize
    step = -(-body.size // (parts * aligned)) * aligned
    with ThreadPoolExecutor(parts) as pool:
        jobs = [
            pool.submit(
                _add_to_body, vector, start, min(start + step, body.size), masks, suite
            )
            for start in range(0, body.size, step)
        ]
        for job in jobs:
            job.result()


def _add_to_lane(lane: NDArray[np.uint64], masks: Sequence[Mask], suite: Suite) -> None:
    if not lane.size:
        return
    buffer = np.empty_like(lane)
    for mask in masks:
        Stream(mask.key, suite.mask_cipher).fill(buffer)
        _add(lane, buffer, negative=mask.negative)
    buffer.fill(0)


def _add_to_body(
    vector: RingVector, start: int, stop: int, masks: Sequence[Mask], suite: Suite
) -> None:
    """Add the masks to elements ``start`` to ``stop`` of the body.

    Chunk outer, stream inner: a chunk stays in cache while all are added.
    """
    lane_bytes = -(-vector.lane.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    offset = lane_bytes + start * vector.body.itemsize
    target = vector.body[start:stop]
    step = CHUNK_BYTES // target.itemsize
    buffer = np.empty(min(step, target.size), dtype=target.dtype)
    for first in range(0, len(masks), _BATCH):
        batch = masks[first : first + _BATCH]
        streams = [
            Stream(mask.key, suite.mask_cipher, offset_bytes=offset) for mask in batch
        ]
        for position in range(0, target.size, step):
            part = target[position : position + step]
            chunk = buffer[: part.size]
            for mask, stream in zip(batch, streams, strict=True):
                stream.fill(chunk)
                _add(part, chunk, negative=mask.negative)
    buffer.fill(0)  # Best effort: the last mask chunk is not left in memory.


def _add(target: NDArray[Any], mask: NDArray[Any], *, negative: bool) -> None:
    if negative:
        np.subtract(target, mask, out=target)
    else:
        np.add(target, mask, out=target)
