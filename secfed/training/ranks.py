"""Training at a rank below that of the tensors: the rest of both factors stays zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from secfed.types import LORA_A, LORA_B, Tensors

__all__ = ["cut_change", "cut_gradients"]


def cut_gradients(chosen: Mapping[str, nn.Parameter], rank: int | None) -> None:
    """Zero the noisy gradients beyond a site's rank, before the optimizer's step.

    Clipped gradients are zero there, because the other factor is; the noise is not.
    Dropping noisy numbers is post-processing.

    Args:
        chosen: The trained parameters by name, each with its ``grad``.
        rank: Of the site; None: that of the tensors.
    """
    if rank is None:
        return
    for name, parameter in chosen.items():
        gradient = parameter.grad
        if gradient is not None and name.endswith(LORA_A):
            gradient[rank:] = 0.0
        elif gradient is not None and name.endswith(LORA_B):
            gradient[:, rank:] = 0.0


def cut_change(change: Tensors, rank: int | None) -> Tensors:
    """The same for an update that was noised as a whole."""
    if rank is None:
        return change
    kept = {name: value.copy() for name, value in change.items()}
    for name, value in kept.items():
        if name.endswith(LORA_A):
            value[rank:] = 0.0
        elif name.endswith(LORA_B):
            value[:, rank:] = 0.0
    return kept
