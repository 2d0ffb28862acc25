"""FFA-fresh: FFA-LoRA with a new public A in every round.

Ours. Relatives without federation or noise: ReLoRA (Lialin et al., ICLR 2024), which
merges and restarts both factors, and Flora (Hao et al., ICML 2024), which draws new
random projections of the gradient.

FFA-LoRA trains B under one frozen random A, so the change of a weight never leaves the
r rows that A happened to have. Here a round ends with ::

    merged <- merged + scaling * mean(B) @ A,    A <- fresh,    B <- 0

It stays exact and one masked sum of B, and no product of two noises ever arises. In
exchange the rank of the change grows by r in every round, so the released adapter is
larger (``secfed.release``).

Every A follows from the study's seed: the first is the study's own, so that round 1 is
that of FFA-LoRA, and each next one is drawn from a hash of the one before and the
round. No record has any part in it. Who knows the means of B could therefore rebuild
``merged`` by itself; the coordinator sends it dense nevertheless, d * k numbers per
module and round, and ``bytes_down`` counts them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from secfed.strategies.base import (
    HEAD,
    NO_WEIGHTS,
    BaseWeights,
    ServerState,
    Strategy,
    require_finite,
)
from secfed.strategies.public import public_uniform
from secfed.types import LORA_A, LORA_B, MERGED, Adapter, Tensors

__all__ = ["FfaFresh"]


@dataclass(frozen=True)
class FfaFresh(Strategy):
    """Sites train B; the coordinator folds the product away and draws a new A."""

    name: ClassVar[str] = "ffa-fresh"
    title: ClassVar[str] = "train B under a new public A every round, fold B A away"
    reference: ClassVar[str] = (
        "ours; relatives ReLoRA, ICLR 2024, and Flora (Hao et al.), ICML 2024"
    )
    cost: ClassVar[str] = "n d r + d k r"

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """B and the head, in every round."""
        return tensor.endswith(LORA_B) or tensor.startswith(HEAD)

    def init(
        self, adapter: Adapter, _seed: int, _base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """The study's start, with nothing folded in yet."""
        nothing = {
            module + MERGED: np.zeros(adapter.delta(module).shape, np.float32)
            for module in adapter.modules()
        }
        return ServerState(adapter=adapter.with_tensors(nothing), round=0)

    def apply(
        self, state: ServerState, mean: Tensors, round_number: int, /
    ) -> ServerState:
        """The mean is added and folded away; the next round has another A."""
        after = super().apply(state, mean, round_number)
        tensors: dict[str, NDArray[np.float32]] = {}
        for module in after.adapter.modules():
            a, b = (after.adapter.tensors[module + end] for end in (LORA_A, LORA_B))
            merged = after.adapter.delta(module).astype(np.float32)
            require_finite(module + MERGED, merged, state.round)
            tensors[module + MERGED] = merged
            tensors[module + LORA_A] = _fresh(a, module, round_number)
            tensors[module + LORA_B] = np.zeros_like(b)
        return replace(after, adapter=after.adapter.replaced(tensors))


def _fresh(last: NDArray[Any], module: str, round_number: int) -> NDArray[np.float32]:
    """A new A with PEFT's law, from the last one and the round that it ended."""
    before = hashlib.sha256(np.ascontiguousarray(last, "<f4").tobytes()).hexdigest()
    label = f"secfed ffa-fresh A|{before}|{module}|{round_number}|{last.shape}"
    return public_uniform(label, last.shape, last.shape[1])
