"""FedRot-LoRA: sites turn their factors alike before these are averaged.

Reference: Zhang, Kim, Cha and Vikalo, "FedRot-LoRA: Mitigating Rotational Misalignment
in Federated LoRA", ICML 2026, arXiv 2602.23638.

``B @ A`` is ``(B Q) @ (Q' A)`` for every orthogonal Q, so that sites may hold nearly
the same product in factors that cancel in a mean. A site therefore turns what it has
trained towards the global factors that it received (``secfed.lowrank.align``), and
sends how far the turned factors are from these. That is post-processing: it sees the
noised factors and what is public.

The paper turns towards the global A in odd rounds and the global B in even ones. Here
Q minimises the sum of both distances in every round, since the mean suffers from both;
in round 1 B is zero and it is the paper's rule.

Biased, though less than ``fedavg``: a rotation cannot bring together products that
differ. What is sent is not the change of single numbers, and so has no narrow range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secfed.lowrank import align
from secfed.strategies.base import HEAD, Strategy, moved
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["FedRotLora"]


@dataclass(frozen=True)
class FedRotLora(Strategy):
    """Sites train both factors, turn them towards the global ones, and send both."""

    name: ClassVar[str] = "fedrot-lora"
    title: ClassVar[str] = "train A and B, turn them alike, average each factor"
    reference: ClassVar[str] = "FedRot-LoRA, Zhang et al., ICML 2026 (arXiv 2602.23638)"
    cost: ClassVar[str] = "n r (d + k)"
    exact: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return tensor.endswith((LORA_A, LORA_B)) or tensor.startswith(HEAD)

    def payload(self, received: Adapter, start: Adapter, change: Tensors, /) -> Tensors:
        """How far the turned factors are from those received."""
        trained = moved(start, change)
        turned = {
            name: value
            for module in received.modules()
            for name, value in _turned(received, trained, module).items()
        }
        return {
            name: (turned[name] - received.tensors[name]).astype(np.float32)
            if name in turned
            else change[name]
            for name in change
        }


def _turned(
    received: Adapter, trained: Adapter, module: str
) -> dict[str, NDArray[np.float64]]:
    """One module's factors with the same product, near those received."""
    a, b = module + LORA_A, module + LORA_B
    made = align(
        trained.tensors[b],
        trained.tensors[a],
        received.tensors[b],
        received.tensors[a],
        factor="both",
    )
    return {a: made.a, b: made.b}
