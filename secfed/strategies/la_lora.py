"""LA-LoRA: local steps alternate between B and A, and noisy gradients are smoothed.

Reference: Liu et al., "Rethinking LoRA for Privacy-Preserving Federated Learning in
Large Models", ICLR 2026, arXiv 2602.19926.

A step moves one factor and the head. So no step multiplies the noise of A with that of
B, though their sum over a round does. Only what moves is clipped and noised: a step is
one release of the same Gaussian mechanism, on fewer numbers. Steps are counted through
all rounds and B goes first, because A has no gradient while B is zero.

The filter is ``[1, 4, 6, 4, 1] / 16`` along a factor's long side (the inputs of A, the
outputs of B), closed to a ring. It sees noisy gradients only and costs no privacy. It
averages neighbours among hidden units, whose order means nothing: it lowers the noise,
and the gradient with it.

The authors' public code is not followed where it has no guarantee for a record: it
clips the mean gradient of a batch instead of single ones, to a norm that it takes from
the data without noise, and takes a second, unfiltered step with the same gradient. Its
scores cannot be compared with those of this rule.

Biased like ``fedavg``: both factors are averaged, each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from secfed.strategies.base import HEAD, Strategy
from secfed.types import LORA_A, LORA_B

__all__ = ["LaLora"]


@dataclass(frozen=True)
class LaLora(Strategy):
    """Sites train B in odd local steps and A in even ones, and send both."""

    name: ClassVar[str] = "la-lora"
    title: ClassVar[str] = "train B and A in alternate local steps, smooth the noise"
    reference: ClassVar[str] = "LA-LoRA, Liu et al., ICLR 2026 (arXiv 2602.19926)"
    cost: ClassVar[str] = "n r (d + k)"
    exact: ClassVar[bool] = False
    plain_steps: ClassVar[bool] = False
    smoothing: ClassVar[tuple[float, ...]] = tuple(w / 16 for w in (1, 4, 6, 4, 1))

    def trains(self, tensor: str, _round_number: int, /) -> bool:
        """Both factors and the head, in every round."""
        return tensor.endswith((LORA_A, LORA_B)) or tensor.startswith(HEAD)

    def active(self, tensor: str, step: int, /) -> bool:
        """The head always; B in odd steps, A in even ones."""
        resting = LORA_A if step % 2 else LORA_B
        return not tensor.endswith(resting)
