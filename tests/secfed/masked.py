"""A round of a rule with invented updates: encoded, summed in the ring, decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfed.codec import Codec
from secfed.strategies import ServerState, SiteView, Strategy, trained_names
from secfed.strategies.base import moved
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

MODULES = ("layer.0.query", "layer.1.value")
OUT, IN, R = 64, 60, 4
WIDE_RANGE = 8.0  # Of a ring of 32 bits, as in secfed.runtime.encoding.

Matrix = NDArray[np.float64]


class OneKey:
    """The same dither for everybody, so that only the updates differ."""

    def bytes(self, size: int, /) -> bytes:
        return bytes(size)


def initial(seed: int = 0) -> Adapter:
    """A random, B zero, two modules and a head."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for module in MODULES:
        a = rng.normal(scale=IN**-0.5, size=(R, IN))
        tensors[module + LORA_A] = a.astype(np.float32)
        tensors[module + LORA_B] = np.zeros((OUT, R), np.float32)
    tensors["head.bias"] = np.zeros(5, np.float32)
    return Adapter(tensors, scaling=2.0)


def busy(state: ServerState, seed: int = 1) -> ServerState:
    """The state with a B that is not zero, as if rounds had been played."""
    rng = np.random.default_rng(seed)
    moved_b = {
        name: rng.normal(scale=0.3, size=value.shape).astype(np.float32)
        for name, value in state.adapter.tensors.items()
        if name.endswith(LORA_B)
    }
    return ServerState(state.adapter.replaced(moved_b), state.round, state.memory)


def cut(change: Tensors, rank: int | None) -> dict[str, NDArray[np.float32]]:
    """What training leaves of a change at a rank: nothing beyond it."""
    kept = {name: value.copy() for name, value in change.items()}
    for name, value in kept.items():
        if rank is not None and name.endswith(LORA_A):
            value[rank:] = 0.0
        if rank is not None and name.endswith(LORA_B):
            value[:, rank:] = 0.0
    return kept


@dataclass(frozen=True)
class Sent:
    """One site after training: its own adapter, and what it sends."""

    own: Adapter
    payload: Tensors


def train(
    strategy: Strategy,
    state: ServerState,
    ranks: Sequence[int | None],
    seed: int = 3,
    scale: float = 0.1,
) -> list[Sent]:
    """Random changes at every site, each at its own rank."""
    rng = np.random.default_rng(seed)
    sent = []
    for rank in ranks:
        view = SiteView(rank=rank, round=state.round + 1)
        start = strategy.start(state.adapter, view)
        drawn = {
            name: rng.normal(scale=scale, size=start.tensors[name].shape)
            for name in trained_names(strategy, start, view.round)
        }
        noisy = {name: value.astype(np.float32) for name, value in drawn.items()}
        change = cut(noisy, strategy.rank_at(view))
        payload = strategy.payload(state.adapter, start, change)
        sent.append(Sent(moved(start, change), payload))
    return sent


def codec_of(strategy: Strategy, state: ServerState, sites: int) -> Codec:
    shapes = strategy.shapes(state.adapter, state.round + 1)
    return Codec(tuple(shapes.items()), value_range=WIDE_RANGE, num_sites=sites)


def masked_mean(
    strategy: Strategy, state: ServerState, sent: Sequence[Sent]
) -> dict[str, NDArray[np.float32]]:
    """What the coordinator decodes; masks cancel, so they are left out."""
    codec = codec_of(strategy, state, len(sent))
    total = np.zeros(codec.length, dtype=np.uint32)
    for one in sent:
        encoded = codec.encode(one.payload, OneKey())
        assert encoded.saturated == 0
        total += encoded.vector
    return codec.decode_mean(total, len(sent))


def play(strategy: Strategy, state: ServerState, sent: Sequence[Sent]) -> ServerState:
    mean = masked_mean(strategy, state, sent)
    return strategy.apply(state, mean, state.round + 1)


def product(adapter: Adapter, module: str) -> Matrix:
    """``B @ A``, dense, float64, without scaling."""
    b = adapter.tensors[module + LORA_B].astype(np.float64)
    return b @ adapter.tensors[module + LORA_A].astype(np.float64)


def mean_product(sent: Sequence[Sent], module: str) -> Matrix:
    return np.mean([product(one.own, module) for one in sent], axis=0)


def best_of_rank(matrix: Matrix, rank: int) -> Matrix:
    """The nearest matrix of a rank, by the whole decomposition."""
    u, s, vt = np.linalg.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def mean_of(sent: Sequence[Sent], name: str) -> Matrix:
    values = [one.own.tensors[name].astype(np.float64) for one in sent]
    return np.mean(values, axis=0)
