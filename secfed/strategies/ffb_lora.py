"""FFB-LoRA: the mirror of FFA-LoRA; B is random and frozen, only A is trained.

Reference: ablation of Sun et al., ICLR 2024, arXiv 2403.12313 (freeze the other
factor).

The factors start the other way round: A at zero, so that the change of the
weights still starts at zero, and B random. PEFT draws A from
``U(-1/sqrt(in), 1/sqrt(in))``; B is drawn from ``U(-1/sqrt(out), 1/sqrt(out))``,
so that both frozen factors have the expected energy ``r / 3``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from secfed.strategies.base import HEAD, NO_WEIGHTS, BaseWeights, ServerState, Strategy
from secfed.strategies.public import public_uniform
from secfed.types import LORA_A, LORA_B, Adapter

__all__ = ["FfbLora"]


@dataclass(frozen=True)
class FfbLora(Strategy):
    """Sites train A; B stays as it was initialised."""

    name: ClassVar[str] = "ffb-lora"
    title: ClassVar[str] = "train A only; B is random, shared and frozen"
    reference: ClassVar[str] = "ablation of Sun et al., ICLR 2024 (arXiv 2403.12313)"
    cost: ClassVar[str] = "n k r"

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """A and the head, in every round."""
        return tensor.endswith(LORA_A) or tensor.startswith(HEAD)

    def init(
        self, adapter: Adapter, seed: int, _base: BaseWeights = NO_WEIGHTS, /
    ) -> ServerState:
        """Start from A = 0 and B drawn from the public seed."""
        factors: dict[str, NDArray[np.float32]] = {}
        for module in adapter.modules():
            a, b = adapter.tensors[module + LORA_A], adapter.tensors[module + LORA_B]
            factors[module + LORA_A] = np.zeros_like(a)
            factors[module + LORA_B] = _draw(seed, module, b.shape)
        return ServerState(adapter=adapter.replaced(factors), round=0)


def _draw(seed: int, module: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    label = f"secfed ffb-lora B|{seed}|{module}|{shape}"
    return public_uniform(label, shape, shape[0])
