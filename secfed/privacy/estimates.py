"""From noised sums to scores with intervals that include the noise.

A score is a ratio of two noised sums, and its interval is Fieller's (1954): the
values t for which ``numerator - t * denominator`` is as near to zero as the noise
lets it be. That difference is linear in the released cells, so its noise is Gaussian
with a public standard deviation, and the interval of the *held-back units themselves*
covers with the stated probability however small the sums are. The interval of *such
units in general* adds how much a sample of as many units varies; that part is
estimated from the noised sums, rounded up, and is the usual approximation for large
numbers.

===========  ==================================  =============================
score        numerator                           denominator
===========  ==================================  =============================
accuracy     right                               right + wrong
mean loss    cap * cost                          cost + rest
F1           2 tp                                2 tp + fp + fn
macro-F1     the mean over classes; its limits are the means of the limits of single
             classes at a confidence that holds for all of them together (Bonferroni)
===========  ==================================  =============================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from secfed.privacy.held_back import EvaluationPlan

__all__ = ["CONFIDENCE", "Estimate", "estimates", "expected_margin"]

CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Estimate:
    """A score of the held-back units of all sites in a sum.

    Attributes:
        score: Its name.
        value: None where the noise leaves nothing to divide by.
        noise_interval: Of the held-back units themselves: the noise alone.
        interval: Of units like them: noise, and that they are a sample.
    """

    score: str
    value: float | None
    noise_interval: tuple[float, float]
    interval: tuple[float, float]

    def to_json(self) -> dict[str, object]:
        """The fields by name, without the score's."""
        return {
            "value": self.value,
            "noise_interval": list(self.noise_interval),
            "interval": list(self.interval),
        }


def expected_margin(
    plans: Sequence[EvaluationPlan], confidence: float = CONFIDENCE
) -> float | None:
    """Half the width of the noise interval of a share, at the declared sizes.

    The largest over all shares, that of one that is 0 or 1.

    Returns:
        None for F1 alone, whose noise depends on how records divide into classes.
    """
    first = plans[0]
    stds = [first.noise_std(name) for name in first.metrics if name != "f1"]
    if not stds:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    units = sum(plan.nominal_units for plan in plans)
    return z * stds[0] * math.sqrt(len(plans)) / units


@dataclass(frozen=True)
class _Ratio:
    """``sum(a * x) / sum(b * x)`` over cells x with equal, independent noise."""

    cells: tuple[float, ...]
    numerator: tuple[float, ...]
    denominator: tuple[float, ...]

    @property
    def value(self) -> float | None:
        """The ratio, cut to [0, 1]."""
        below = _dot(self.denominator, self.cells)
        if below <= 0:
            return None
        return min(max(_dot(self.numerator, self.cells) / below, 0.0), 1.0)

    def interval(self, z: float, std: float, *, sampled: bool) -> tuple[float, float]:
        """All t in [0, 1] with ``(a - t b) . x`` within z standard deviations of 0."""
        # 1. The squared difference less z**2 variances; both are quadratic in t.
        above = _dot(self.numerator, self.cells)
        below = _dot(self.denominator, self.cells)
        square, slope, constant = below**2, above * below, above**2
        weights = zip(self.cells, self.numerator, self.denominator, strict=True)
        for cell, a, b in weights:
            # Cells of a sample vary like counts.
            variance = z * z * (std**2 + max(cell, 0.0) * sampled)
            square -= variance * b * b
            slope -= variance * a * b
            constant -= variance * a * a
        # 2. Where square * t**2 - 2 * slope * t + constant <= 0.
        return _where_not_positive(square, slope, constant)


def estimates(
    plan: EvaluationPlan,
    sums: Mapping[str, float],
    num_sites: int,
    *,
    positive: int | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Estimate, ...]:
    """The scores that follow from the sum over some sites.

    Args:
        plan: Of any of them: they differ in sizes, not in noise.
        sums: Every cell of the plan, summed over the sites.
        num_sites: How many sites, each with noise of its own.
        positive: The class whose F1 is wanted beside the macro-F1.
        confidence: Of each interval.

    Raises:
        KeyError: A cell is missing.
    """
    found: list[Estimate] = []
    for metric in plan.metrics:
        std = plan.noise_std(metric) * math.sqrt(num_sites)
        if metric == "accuracy":
            cells = (sums["accuracy.right"], sums["accuracy.wrong"])
            found.append(_pair("accuracy", cells, std, confidence))
        elif metric == "loss":
            cells = (sums["loss.cost"], sums["loss.rest"])
            cost = _pair("mean_loss", cells, std, confidence)
            found.append(_scaled(cost, plan.loss_cap or 0.0))
        else:
            found += _of_classes(plan.classes, sums, std, positive, confidence)
    return tuple(found)


def _pair(
    score: str, cells: tuple[float, float], std: float, confidence: float
) -> Estimate:
    return _estimate(score, _Ratio(cells, (1.0, 0.0), (1.0, 1.0)), std, confidence)


def _estimate(score: str, ratio: _Ratio, std: float, confidence: float) -> Estimate:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return Estimate(
        score,
        ratio.value,
        ratio.interval(z, std, sampled=False),
        ratio.interval(z, std, sampled=True),
    )


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    value, noise, whole = estimate.value, estimate.noise_interval, estimate.interval
    return Estimate(
        estimate.score,
        None if value is None else factor * value,
        (factor * noise[0], factor * noise[1]),
        (factor * whole[0], factor * whole[1]),
    )


def _of_classes(
    classes: int,
    sums: Mapping[str, float],
    std: float,
    positive: int | None,
    confidence: float,
) -> list[Estimate]:
    """Accuracy, F1 of the class that is looked for, and macro-F1."""
    tp, fp, fn = (
        [sums[f"f1.{kind}.{k}"] for k in range(classes)] for kind in ("tp", "fp", "fn")
    )
    # Every record is a tp or an fn of its own class.
    ones, zeros = (1.0,) * classes, (0.0,) * classes
    whole = _Ratio((*tp, *fn), ones + zeros, ones + ones)
    ratios = [
        _Ratio(cells, (2.0, 0.0, 0.0), (2.0, 1.0, 1.0))
        for cells in zip(tp, fp, fn, strict=True)
    ]
    found = [_estimate("accuracy", whole, std, confidence)]
    if positive is not None:
        found.append(_estimate("f1", ratios[positive], std, confidence))
    together = 1 - (1 - confidence) / classes
    each = [_estimate("", ratio, std, together) for ratio in ratios]
    found.append(_mean("macro_f1", each))
    return found


def _mean(score: str, parts: Sequence[Estimate]) -> Estimate:
    values = [part.value for part in parts if part.value is not None]
    known = len(values) == len(parts)
    return Estimate(
        score,
        math.fsum(values) / len(values) if known else None,
        _mean_limits([part.noise_interval for part in parts]),
        _mean_limits([part.interval for part in parts]),
    )


def _mean_limits(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    count = len(intervals)
    return (
        math.fsum(low for low, _ in intervals) / count,
        math.fsum(high for _, high in intervals) / count,
    )


def _where_not_positive(
    square: float, slope: float, constant: float
) -> tuple[float, float]:
    """The hull of ``{t in [0, 1]: square t**2 - 2 slope t + constant <= 0}``.

    A single end of [0, 1], the nearer one, where the set is empty: the released
    numbers are then beyond what any share explains.
    """
    inside = [t for t in (0.0, 1.0) if square * t * t - 2 * slope * t + constant <= 0]
    root = slope * slope - square * constant
    if root >= 0 and square != 0:
        roots = [(slope + sign * math.sqrt(root)) / square for sign in (-1, 1)]
        inside += [t for t in roots if 0 <= t <= 1]
    elif square == 0 and slope != 0 and 0 <= constant / (2 * slope) <= 1:
        inside.append(constant / (2 * slope))
    if inside:
        return min(inside), max(inside)
    nearest = 0.0 if constant <= square - 2 * slope + constant else 1.0
    return nearest, nearest


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))
