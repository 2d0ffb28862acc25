"""Streams that let an audit look on: known noise, counted noise. Never production."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secfed.privacy.noise import RandomStream, simulation_stream

__all__ = ["CountedStream", "SameNoise", "public_generator"]


class SameNoise(RandomStream):
    """Draws units from one stream and noise from another, both repeatable.

    Two trainings under one seed get the same noise whatever they draw, so that the
    difference of what they release is the difference of their sums.
    """

    __slots__ = ("_normals",)

    def __init__(self, seed: int) -> None:
        units = simulation_stream(seed, "audit", "units")
        super().__init__(units.bytes(32), simulated=True)
        self._normals = simulation_stream(seed, "audit", "noise")

    def normal(self, size: int) -> NDArray[np.float64]:
        """From the second stream."""
        return self._normals.normal(size)


class CountedStream(RandomStream):
    """Counts the samples that were drawn and the normals of each call."""

    __slots__ = ("normals", "samples")

    def __init__(self, seed: int) -> None:
        source = simulation_stream(seed, "audit", "counted")
        super().__init__(source.bytes(32), simulated=True)
        self.samples = 0
        self.normals: list[int] = []

    def uniform(self, size: int) -> NDArray[np.float64]:
        """One sample of units."""
        self.samples += 1
        return super().uniform(size)

    def normal(self, size: int) -> NDArray[np.float64]:
        """The noise of one step."""
        self.normals.append(size)
        return super().normal(size)


def public_generator(seed: int) -> np.random.Generator:
    """For choices that protect nobody: where canaries lie, invented records."""
    return np.random.default_rng(seed)
