"""The vectors that are summed, made again whenever they are needed.

Nothing is kept: vector i is a function of i, so a session of thousands of clients
holds one vector at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.ring import RingVector

__all__ = ["dropped", "ring_vector", "update"]

_SPREAD = 0.01  # about the size of a clipped and noised LoRA update


def update(client: int, length: int) -> NDArray[np.float32]:
    """What client number ``client`` trained: float32, not yet encoded."""
    source = np.random.default_rng([1, client])
    return source.standard_normal(length, dtype=np.float32) * np.float32(_SPREAD)


def ring_vector(client: int, like: RingVector) -> RingVector:
    """A uniform element of the ring, in the shape of ``like``."""
    source = np.random.default_rng([2, client])
    body = np.frombuffer(source.bytes(like.body.nbytes), dtype=like.body.dtype)
    lane = np.frombuffer(source.bytes(like.lane.nbytes), dtype=like.lane.dtype)
    return RingVector(body, lane)


def dropped(names: Sequence[str], percent: int) -> frozenset[str]:
    """``percent`` of the clients, evenly spread over the roster, rounded down."""
    count = len(names) * percent // 100
    return frozenset(names[i * len(names) // count] for i in range(count))
