"""What a local step does beside plain DP-SGD: who moves, and how noise is smoothed.

A step that moves some of the trained tensors clips, sums and noises these alone. Its
sum has the same sensitivity and the same noise on fewer numbers, so it is the same
mechanism and the same event. What happens to the noisy gradients afterwards is
post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from secfed.errors import TrainingError
from secfed.types import LORA_A, LORA_B

__all__ = ["LocalSteps"]

_LONG_SIDE: Final = {LORA_A: 1, LORA_B: 0}
"""The axis of a factor that the rank does not bound."""


def _always(_tensor: str, _step: int, /) -> bool:
    return True


@dataclass(frozen=True)
class LocalSteps:
    """Which trained tensors a step moves, and the filter over their gradients.

    Attributes:
        active: Whether a tensor takes part in a step; steps count from ``first``.
        smoothing: Weights of a filter along a factor's long side, which is closed to
            a ring; an odd number of them, not negative, with the sum 1. Then no
            number and no norm grows. Empty: no filter.
        first: The number of the round's first step.

    Raises:
        TrainingError: These are no such weights.
    """

    active: Callable[[str, int], bool] = _always
    smoothing: tuple[float, ...] = ()
    first: int = 1

    def __post_init__(self) -> None:
        weights = self.smoothing
        if not weights:
            return
        fair = min(weights) >= 0 and math.isclose(sum(weights), 1.0)
        if len(weights) % 2 == 0 or not fair:
            raise TrainingError(f"not weights of a filter around a number: {weights}")

    def moving(self, trains: Iterable[str], step: int) -> frozenset[str]:
        """The tensors that take part in a step of the round, which counts from 1.

        Raises:
            TrainingError: None does; such a step would spend budget for nothing.
        """
        number = self.first + step - 1
        chosen = frozenset(name for name in trains if self.active(name, number))
        if not chosen:
            raise TrainingError(f"no tensor takes part in local step {number}")
        return chosen

    def settle(
        self, chosen: Mapping[str, nn.Parameter], moving: frozenset[str]
    ) -> None:
        """Drop the gradients of resting tensors and smooth those of the others.

        Called between the noise and the optimizer's step. An optimizer leaves a
        parameter without a gradient alone, with all that it remembers of it.
        """
        for name, parameter in chosen.items():
            if name not in moving:
                parameter.grad = None
            axis = _LONG_SIDE.get(name[name.rfind(".") :])
            if parameter.grad is not None and axis is not None and self.smoothing:
                parameter.grad = _filtered(parameter.grad, self.smoothing, axis)


def _filtered(
    gradient: torch.Tensor, weights: tuple[float, ...], axis: int
) -> torch.Tensor:
    total = torch.zeros_like(gradient)
    for offset, weight in enumerate(weights, start=-(len(weights) // 2)):
        total.add_(torch.roll(gradient, offset, axis), alpha=weight)
    return total
