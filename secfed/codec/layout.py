"""Which tensors an update has, and where each stands in the flat vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from secfed.errors import CodecError
from secfed.types import Tensors

__all__ = ["Layout", "Place"]


@dataclass(frozen=True)
class Place:
    """One tensor: its name, shape, place in the vector, and scale."""

    name: str
    shape: tuple[int, ...]
    numbers: slice
    scale: float


@dataclass(frozen=True)
class Layout:
    """The tensors of an update in wire order.

    Args:
        names_shapes: Names and shapes, in wire order.
        scales: What each tensor is divided by; empty: 1.

    Raises:
        CodecError: A name occurs twice, a tensor is empty, or scales are missing.
    """

    names_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    scales: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        names = [name for name, _ in self.names_shapes]
        if len(set(names)) != len(names):
            raise CodecError(f"a tensor is named twice: {names}")
        if any(size < 1 for _, shape in self.names_shapes for size in shape):
            raise CodecError("an empty tensor cannot be sent; leave it out")
        if self.scales and len(self.scales) != len(names):
            raise CodecError(f"{len(self.scales)} scales for {len(names)} tensors")

    @property
    def num_values(self) -> int:
        """How many numbers all tensors have together."""
        return sum(math.prod(shape) for _, shape in self.names_shapes)

    def places(self) -> list[Place]:
        """The tensors one after the other."""
        places = []
        start = 0
        scales = self.scales or (1.0,) * len(self.names_shapes)
        for (name, shape), scale in zip(self.names_shapes, scales, strict=True):
            stop = start + math.prod(shape)
            places.append(Place(name, shape, slice(start, stop), scale))
            start = stop
        return places

    def check(self, update: Tensors) -> None:
        """Refuse an update that is not exactly these tensors, float32 and finite.

        Raises:
            CodecError: Names the tensor, and no private number.
        """
        expected = {name for name, _ in self.names_shapes}
        if update.keys() != expected:
            missing, extra = expected - update.keys(), update.keys() - expected
            raise CodecError(
                f"the update has other tensors than the study sends: missing "
                f"{sorted(missing)}, unexpected {sorted(extra)}"
            )
        for name, shape in self.names_shapes:
            tensor = update[name]
            if tensor.dtype != np.float32 or tensor.shape != shape:
                raise CodecError(
                    f"{name}: {tensor.dtype} of shape {tensor.shape}; "
                    f"expected float32 of shape {shape}"
                )
            if not np.isfinite(tensor).all():
                raise CodecError(
                    f"{name}: NaN or infinity in the update; nothing was sent. "
                    "Lower the learning rate, or check the training precision"
                )
