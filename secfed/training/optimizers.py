"""Which optimizer applies the noisy gradients; it cannot change the guarantee."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from secfed.study.sections import TrainingSection

__all__ = ["make_optimizer"]


def make_optimizer(
    chosen: Mapping[str, nn.Parameter], settings: TrainingSection, learning_rate: float
) -> torch.optim.Optimizer:
    """One optimizer, one group per tensor: the LoRA factors and the head differ."""
    groups = [
        {
            "params": [parameter],
            "lr": settings.head_rate if name.startswith("head.") else learning_rate,
        }
        for name, parameter in chosen.items()
    ]
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.SGD(groups, momentum=settings.momentum)
