"""Secrets of one client, and the masks that grow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols import kdf, labels, wire
from protocols.keys import ExchangeKey, Secret
from protocols.prg import CHUNK_BYTES, KEY_BYTES, Stream
from protocols.ring import RingVector

__all__ = [
    "Mask",
    "add_masks",
    "commitment_of",
    "mask_key_of",
    "pair_mask",
    "self_mask",
]

# Open cipher contexts at a time; bounds memory, not speed.
_BATCH = 128


@dataclass(frozen=True, eq=False, repr=False)
class Mask(Secret):
    """One mask as two stream keys, added to a vector or subtracted from it.

    The lane and the body have a key each: a key makes one stream only.
    """

    body_key: bytes
    lane_key: bytes
    negative: bool = False

    def inverse(self) -> Mask:
        """The mask that cancels this one."""
        return Mask(self.body_key, self.lane_key, negative=not self.negative)


def commitment_of(self_secret: bytes, session: bytes) -> bytes:
    """What a client publishes of b, so that a reconstruction can be checked.

    b has 256 uniform bits, and mask and commitment come from it under
    different labels: knowing one says nothing about the other.
    """
    return kdf.derive(labels.COMMITMENT, self_secret, session, 32)


def mask_key_of(recovery: bytes, session: bytes) -> ExchangeKey:
    """The private key of the pairwise masks, derived from the recovery key R."""
    return ExchangeKey(kdf.derive(labels.MASK_KEY, recovery, session, 32))


def self_mask(self_secret: bytes, context: bytes) -> Mask:
    """The mask of one client alone, from b."""
    keys = kdf.derive(labels.SELF_MASK, self_secret, context, 2 * KEY_BYTES)
    return Mask(keys[:KEY_BYTES], keys[KEY_BYTES:])


def pair_mask(
    own: int, own_key: ExchangeKey, peer: int, peer_public: bytes, context: bytes
) -> Mask:
    """What ``own`` adds for ``peer``: the lower index adds, the higher subtracts."""
    indices = wire.u16(min(own, peer)) + wire.u16(max(own, peer))
    shared = own_key.exchange(peer_public)
    keys = kdf.derive(labels.PAIR_MASK, shared, context, 2 * KEY_BYTES, indices)
    return Mask(keys[:KEY_BYTES], keys[KEY_BYTES:], negative=own > peer)


def add_masks(vector: RingVector, masks: Sequence[Mask]) -> None:
    """Add all masks to ``vector`` in place, uniform over the whole ring (SA-302)."""
    for start in range(0, len(masks), _BATCH):
        batch = masks[start : start + _BATCH]
        signs = [mask.negative for mask in batch]
        _add_streams(vector.body, [Stream(mask.body_key) for mask in batch], signs)
        _add_streams(vector.lane, [Stream(mask.lane_key) for mask in batch], signs)


def _add_streams(
    target: NDArray[Any], streams: Sequence[Stream], negative: Sequence[bool]
) -> None:
    """Chunk outer, stream inner: a chunk stays in cache while all are added."""
    step = CHUNK_BYTES // target.itemsize
    buffer = np.empty(min(step, target.size), dtype=target.dtype)
    for start in range(0, target.size, step):
        part = target[start : start + step]
        mask = buffer[: part.size]
        for stream, subtract in zip(streams, negative, strict=True):
            stream.fill(mask)
            if subtract:
                np.subtract(part, mask, out=part)
            else:
                np.add(part, mask, out=part)
    buffer.fill(0)  # Best effort: the last mask chunk is not left in memory.
