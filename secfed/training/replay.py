"""The same steps with the noise left out, along the noisy trajectory.

Simulation only: what it computes is NOT PRIVATE and never enters a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from secfed.study.sections import TrainingSection
from secfed.training.optimizers import make_optimizer
from secfed.types import Adapter, Tensors

__all__ = ["Replay"]


class Replay:
    """Shadow copies of the trained parameters, fed with the sums before noise.

    The shadows take steps of an optimizer of the same kind.
    """

    def __init__(
        self,
        chosen: Mapping[str, nn.Parameter],
        settings: TrainingSection,
        learning_rate: float,
    ) -> None:
        self.shadows = {
            name: nn.Parameter(p.detach().clone()) for name, p in chosen.items()
        }
        self.optimizer = make_optimizer(self.shadows, settings, learning_rate)

    def step(
        self,
        gradients: Sequence[torch.Tensor | None],
        settle: Callable[[Mapping[str, nn.Parameter]], None] = lambda _shadows: None,
    ) -> None:
        """One step with these gradients instead of the noisy ones.

        Args:
            gradients: In the order of the parameters; None where one rests.
            settle: What the step does with noisy gradients, done with these.
        """
        for shadow, gradient in zip(self.shadows.values(), gradients, strict=True):
            shadow.grad = None if gradient is None else gradient.clone()
        settle(self.shadows)
        self.optimizer.step()

    def change(self, adapter: Adapter) -> Tensors:
        """How far the shadows are from the adapter that was received."""
        return {
            name: shadow.detach().numpy(force=True) - adapter.tensors[name]
            for name, shadow in self.shadows.items()
        }
