"""Rounds of an aggregation rule without training: changes are drawn, not learned."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secfed.strategies import ServerState, Strategy, get_strategy, trained_names
from secfed.strategies.base import SiteView, moved
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

MODULES = ("layer.0.query", "layer.1.value")
SITES, OUT, IN, R, SCALING = 4, 9, 8, 3, 2.0
BASE = {
    module: np.random.default_rng(seed).normal(size=(OUT, IN)).astype(np.float32)
    for seed, module in enumerate(MODULES)
}
Array = NDArray[np.float64]


def initial(seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    tensors = {}
    for module in MODULES:
        tensors[module + LORA_A] = rng.normal(size=(R, IN)).astype(np.float32)
        tensors[module + LORA_B] = np.zeros((OUT, R), np.float32)
    tensors["head.weight"] = rng.normal(size=(5, IN)).astype(np.float32)
    return Adapter(tensors, scaling=SCALING)


def start_of(name: str) -> ServerState:
    return get_strategy(name).init(initial(), 5, BASE)


def changes(strategy: Strategy, adapter: Adapter, number: int, seed: int = 1):
    """Every site's change of what it trains, as if it had been trained."""
    rng = np.random.default_rng([seed, number])
    names = trained_names(strategy, adapter, number)
    return [
        {n: rng.normal(size=adapter.tensors[n].shape).astype(np.float32) for n in names}
        for _ in range(SITES)
    ]


def payloads(strategy: Strategy, state: ServerState, updates) -> list[Tensors]:
    view = SiteView(round=state.round + 1)
    start = strategy.start(state.adapter, view)
    return [strategy.payload(state.adapter, start, change) for change in updates]


def mean_of(tensors) -> dict[str, NDArray[np.float32]]:
    return {
        n: np.mean([t[n].astype(float) for t in tensors], axis=0).astype(np.float32)
        for n in tensors[0]
    }


def play(strategy: Strategy, state: ServerState, number: int, seed: int = 1):
    """One round; returns the state after it and the sites' adapters."""
    updates = changes(strategy, state.adapter, number, seed)
    mean = mean_of(payloads(strategy, state, updates))
    after = strategy.apply(state, mean, number)
    return after, [moved(state.adapter, update) for update in updates]


def deltas(adapter: Adapter) -> Array:
    return np.stack([adapter.delta(module) for module in MODULES])


def distance(found: Array, expected: Array) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
