"""Training at a rank below that of the tensors: the rest of both factors stays zero.

The model has narrow factors meanwhile (``secfed.adapters.narrowed``), and the update
is put among zeros at the end. Wide factors that are zero beyond the rank have zero
gradients there, so without noise both ways are the same.
"""

from __future__ import annotations

import numpy as np

from secfed.errors import TrainingError
from secfed.types import LORA_A, LORA_B, Adapter, Tensors

__all__ = ["narrow", "widened"]


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
