"""Training at a rank below that of the tensors: the rest of both factors stays zero.

Either the model has the tensors of the study and what is beyond the rank is dropped in
every step, or it has narrow ones (``secfed.adapters.narrowed``), and the update is put
among zeros at the end. Both give the same law; the narrow way computes less.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from secfed.errors import TrainingError
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["cut_change", "cut_gradients", "narrow", "widened"]


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


def narrow(adapter: Adapter, rank: int) -> Adapter:
    """The adapter's factors up to a rank, without the zeros beyond it.

    Raises:
        TrainingError: There is something beyond it, which would be lost.
    """
    tensors = {}
    for name, value in adapter.tensors.items():
        kept, rest = value, value[:0]
        if name.endswith(LORA_A):
            kept, rest = value[:rank], value[rank:]
        elif name.endswith(LORA_B):
            kept, rest = value[:, :rank], value[:, rank:]
        if rest.any():
            raise TrainingError(f"{name}: not zero beyond the site's rank {rank}")
        tensors[name] = kept
    return Adapter(tensors=tensors, scaling=adapter.scaling)


def widened(change: Tensors, adapter: Adapter) -> Tensors:
    """A change of narrow factors in the shapes of an adapter, zero beyond its rank."""
    wide = {}
    for name, value in change.items():
        wide[name] = np.zeros(adapter.tensors[name].shape, np.float32)
        wide[name][tuple(slice(size) for size in value.shape)] = value
    return wide
