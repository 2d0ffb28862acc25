"""Wall and CPU time of the parts of a round that several processes play together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import psutil

from benchmarks.measure import Timing

__all__ = ["Cost", "Reading", "Rounds", "summed", "timings"]


@dataclass(frozen=True)
class Cost:
    """Elapsed seconds, and CPU seconds of all processes together."""

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)


@dataclass(frozen=True)
class Reading:
    """What clocks show: elapsed, and CPU of this process and all below it."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Self:
        """Read both."""
        return cls(time.monotonic(), _cpu_seconds())

    def since(self, earlier: Reading) -> Cost:
        """What lies between two readings."""
        return Cost(self.wall - earlier.wall, self.cpu - earlier.cpu)


Rounds = list[dict[str, Cost]]
"""For each measured round its parts, in order."""


def summed(parts: dict[str, Cost], names: Iterable[str]) -> Cost:
    """The cost of some parts of a round."""
    return sum((parts[name] for name in names), Cost(0.0, 0.0))


def timings(costs: Sequence[Cost]) -> tuple[Timing, Timing]:
    """Wall and CPU seconds of the same part in several rounds."""
    return Timing.of([c.wall for c in costs]), Timing.of([c.cpu for c in costs])


def _cpu_seconds() -> float:
    """User and system time, of finished children too, where their parent waited."""
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            used = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += used.user + used.system + used.children_user + used.children_system
    return total
