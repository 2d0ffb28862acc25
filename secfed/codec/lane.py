"""The masked lane: counts and metrics as 64-bit numbers beside the body.

====================  =========================  ===============================
entry                 one site's number          format
====================  =========================  ===============================
``count``             1                          integer
``saturated``         numbers that were cut      integer
a metric              a real number in a range   Q31.32: ``rint(x * 2**32)``,
                                                 two's complement
``clipped_metrics``   metrics that were cut;     integer
                      only where there are any
====================  =========================  ===============================

What travels here is summed under the masks and then known to the coordinator. A
private site therefore sends ``count`` and ``saturated`` only: the latter is
computed from the noised update, so the plan covers it. A metric is computed from
records. It may be listed only where it is noised and the site's budget has paid for it
(``secfed.privacy.held_back``, in sessions of their own, which send no update) or where
nothing is private; masking does not protect a sum (PITFALLS 8, 23, 32).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secfed.errors import CodecError

__all__ = ["Lane", "LaneSum", "Metric"]

_UNIT = 2.0**32
_SIGN = 1 << 63
_RESERVED = ("count", "saturated", "clipped_metrics")


@dataclass(frozen=True)
class Metric:
    """A real number per site: its name, and the range ``[-largest, largest]``.

    Adding n of them is exact up to ``n * 2**-33``, from rounding to 2**-32.
    """

    name: str
    largest: float


@dataclass(frozen=True)
class LaneSum:
    """What a sum of lanes says about the survivors together.

    Attributes:
        saturated: Numbers that the codec cut.
        metrics: Sums of the metrics, after clipping to their ranges.
        clipped_metrics: How many metrics were outside their range.
    """

    saturated: int
    metrics: Mapping[str, float]
    clipped_metrics: int


@dataclass(frozen=True)
class Lane:
    """Names and formats of the lane; the sum of ``num_sites`` lanes cannot overflow.

    Args:
        num_sites: The most lanes that are ever summed.
        num_values: The numbers of one update, of which so many can saturate.
        metrics: What else is summed; empty in a private study (see above).

    Raises:
        CodecError: A name occurs twice, or a range is not positive or too wide.

    Example:
        >>> Lane(num_sites=4, num_values=100).names
        ('count', 'saturated')
    """

    num_sites: int
    num_values: int
    metrics: tuple[Metric, ...] = ()

    def __post_init__(self) -> None:
        if self.num_sites < 1 or self.num_values < 0:
            raise CodecError("a lane needs at least one site and no negative number")
        names = [*_RESERVED, *(metric.name for metric in self.metrics)]
        if len(set(names)) != len(names):
            raise CodecError(f"an entry of the lane is named twice: {names}")
        for metric in self.metrics:
            # n numbers of Q31.32 stay below 2**63; written so that NaN is refused.
            if not 0 < metric.largest * self.num_sites < _SIGN / _UNIT:
                raise CodecError(
                    f"{metric.name}: a range of {metric.largest} does not fit for "
                    f"{self.num_sites} sites; it must be positive and their sum "
                    "below 2**31"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The entries in order."""
        own = tuple(metric.name for metric in self.metrics)
        return ("count", "saturated", *own, *(("clipped_metrics",) if own else ()))

    @property
    def length(self) -> int:
        """How many 64-bit words the lane has."""
        return len(self.names)

    def encode(
        self, saturated: int, metrics: Mapping[str, float] | None = None
    ) -> NDArray[np.uint64]:
        """One site's lane.

        Args:
            saturated: From ``EncodedUpdate``.
            metrics: Exactly the metrics of this lane.

        Raises:
            CodecError: Another set of metrics, a metric that is not finite, or a
                count that no update has. Private numbers are not in the message.
        """
        if not 0 <= saturated <= self.num_values:
            raise CodecError("more numbers were cut than an update has")
        given = metrics or {}
        if given.keys() != {metric.name for metric in self.metrics}:
            raise CodecError(f"the lane holds {self.names}; other metrics were given")
        entries = [1, saturated]
        clipped = 0
        for metric in self.metrics:
            value = given[metric.name]
            if not math.isfinite(value):
                raise CodecError(f"{metric.name} is NaN or infinite; nothing was sent")
            clipped += abs(value) > metric.largest
            inside = min(max(value, -metric.largest), metric.largest)
            entries.append(round(inside * _UNIT) % (1 << 64))
        if self.metrics:
            entries.append(clipped)
        return np.array(entries, dtype=np.uint64)

    def decode(self, total: NDArray[np.uint64], num_survivors: int) -> LaneSum:
        """Read a sum of lanes.

        Raises:
            CodecError: No ``num_survivors`` lanes add up to this.
        """
        if total.dtype != np.uint64 or total.shape != (self.length,):
            raise CodecError(
                f"the lane is {total.dtype} of shape {total.shape}, not uint64 of "
                f"shape ({self.length},)"
            )
        words = dict(zip(self.names, map(int, total), strict=True))
        if words["count"] != num_survivors or not 1 <= num_survivors <= self.num_sites:
            raise CodecError(
                f"the masked count is {words['count']}, not {num_survivors}"
            )
        _require_count(words, "saturated", num_survivors * self.num_values)
        if self.metrics:
            _require_count(words, "clipped_metrics", num_survivors * len(self.metrics))
        return LaneSum(
            saturated=words["saturated"],
            metrics={
                metric.name: _signed(words[metric.name], metric, num_survivors)
                for metric in self.metrics
            },
            clipped_metrics=words.get("clipped_metrics", 0),
        )


def _require_count(words: Mapping[str, int], name: str, largest: int) -> None:
    if words[name] > largest:
        raise CodecError(f"the masked {name} is {words[name]}, above {largest}")


def _signed(word: int, metric: Metric, num_survivors: int) -> float:
    signed = word - (1 << 64) if word >= _SIGN else word
    # Each site's number was rounded to the grid after it was clipped.
    if abs(signed) > num_survivors * round(metric.largest * _UNIT):
        raise CodecError(f"the sum of {metric.name} is outside its range")
    return signed / _UNIT
