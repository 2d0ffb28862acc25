"""FFA-LoRA: A is random, frozen and the same everywhere; only B is trained.

Reference: Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated
Learning", ICLR 2024, arXiv 2403.12313.

Exact: ``mean(B) @ A = mean(B @ A)``. Noise stays linear: there is no product of
two noises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import HEAD, Strategy
from secfed.types import LORA_B

__all__ = ["FfaLora"]


@dataclass(frozen=True)
class FfaLora(Strategy):
    """Sites train B; A stays as it was initialised."""

    name: ClassVar[str] = "ffa-lora"
    title: ClassVar[str] = "train B only; A is random, shared and frozen"
    reference: ClassVar[str] = "Sun et al., ICLR 2024 (arXiv 2403.12313)"
    cost: ClassVar[str] = "n d r"

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """B and the head, in every round."""
        return tensor.endswith(LORA_B) or tensor.startswith(HEAD)
