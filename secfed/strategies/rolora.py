"""RoLoRA: rounds alternate between B and A.

Reference: Chen et al., "Robust Federated Finetuning of LLMs via Alternating
Optimization of LoRA", arXiv 2502.01755 (first version 2024), NeurIPS 2025.

Exact in every round, because one factor is the same at all sites. B goes first:
it starts at zero, and while B is zero A has no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import HEAD, Strategy
from secfed.types import LORA_A, LORA_B

__all__ = ["RoLora"]


@dataclass(frozen=True)
class RoLora(Strategy):
    """Sites train B in odd rounds and A in even rounds."""

    name: ClassVar[str] = "rolora"
    title: ClassVar[str] = "train B in odd rounds, A in even rounds"
    reference: ClassVar[str] = "RoLoRA, Chen et al. 2024 (arXiv 2502.01755)"
    cost: ClassVar[str] = "n d r, n k r in turn"

    def trains(self, tensor: str, round_number: int, /) -> bool:
        """The active factor and the head."""
        active = LORA_B if round_number % 2 else LORA_A
        return tensor.endswith(active) or tensor.startswith(HEAD)
