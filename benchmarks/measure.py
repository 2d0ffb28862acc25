"""CPU time, medians with quartiles, pairs, fits, and what the machine is doing."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "Timing",
    "exponent",
    "load_average",
    "peak_memory_bytes",
    "timed",
    "wall_seconds",
]

Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    """Repeated measurements of one quantity, in seconds or as a ratio."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        """From any non-empty sequence."""
        return cls(tuple(float(value) for value in values))

    @property
    def median(self) -> float:
        """The middle value."""
        return float(np.median(self.values))

    def over(self, other: Timing) -> Timing:
        """Ratios of values that were measured as pairs."""
        pairs = zip(self.values, other.values, strict=True)
        return Timing.of([left / right for left, right in pairs])

    def scaled(self, factor: float) -> Timing:
        """The same measurements in another unit."""
        return Timing.of([value * factor for value in self.values])

    def shifted(self, by: float) -> Timing:
        """The same measurements plus a constant."""
        return Timing.of([value + by for value in self.values])

    def to_json(self) -> dict[str, Any]:
        """Median, quartiles and their number."""
        lower, middle, upper = np.percentile(self.values, (25, 50, 75))
        return {
            "median": float(middle),
            "q1": float(lower),
            "q3": float(upper),
            "repetitions": len(self.values),
        }


@contextmanager
def _without_collector() -> Iterator[None]:
    """Keep the garbage collector from running inside a measurement."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def timed(
    step: Callable[..., Result], *args: Any, **kwargs: Any
) -> tuple[Result, float]:
    """What ``step`` returns, and the CPU seconds of all threads it took."""
    with _without_collector():
        start = time.process_time()
        result = step(*args, **kwargs)
        return result, time.process_time() - start


def wall_seconds(step: Callable[..., object], *args: Any, **kwargs: Any) -> float:
    """Elapsed seconds of one call; only for comparing numbers of threads."""
    with _without_collector():
        start = time.perf_counter()
        step(*args, **kwargs)
        return time.perf_counter() - start


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The p of ``cost = c * size ** p``, by least squares on the logarithms."""
    slope, _ = np.polyfit(np.log(sizes), np.log(costs), deg=1)
    return float(slope)


def load_average() -> float:
    """Processes that wanted a core in the last minute, this one included."""
    return os.getloadavg()[0]


def peak_memory_bytes() -> int:
    """The most resident memory that this process ever had.

    Linux keeps ``VmHWM`` for each program; ``ru_maxrss`` would do for others, but
    on Linux a child starts with the value of the process that started it.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        # Imported here: the module does not exist on every system.
        import resource  # noqa: PLC0415

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = [one for one in status.read_text().splitlines() if "VmHWM" in one]
    return int(line.split()[1]) * 1024
