"""Trade-off curves: what any membership test can reach under a claimed guarantee.

A curve g maps a false positive rate to the highest true positive rate that a claim
allows (Dong, Roth and Su, JRSS-B 2022; their f is ``1 - g``). Every (epsilon, delta)
of a claim gives two straight lines above g (Kairouz, Oh and Viswanath, ICML 2015,
theorem 2.1); fewer lines only make the claim weaker, and so the audit more careful.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from secfed.privacy.distributions import compose, pld_epsilon, reference_interval
from secfed.privacy.events import DpEvent, merge

__all__ = ["ClaimedCurve", "Curve", "GaussianCurve", "Rates", "claimed_curve"]

Rates = NDArray[np.float64]

_LINES = 400
_FLOOR_DELTA = 1e-9
_LARGEST_EPSILON = 500.0  # exp() overflows above 709.


class Curve(Protocol):
    """A trade-off curve, both ways."""

    def highest_tpr(self, fpr: Rates, /) -> Rates:
        """g: an upper bound on the TPR at each FPR."""

    def least_fpr(self, tpr: float, /) -> float:
        """The inverse of g: a lower bound on the FPR at a TPR."""


@dataclass(frozen=True)
class ClaimedCurve:
    """The curve of a privacy profile; see ``claimed_curve``.

    Attributes:
        epsilons: (lines,), ascending from 0.
        deltas: (lines,), delta at each epsilon; upper bounds.
    """

    epsilons: Rates
    deltas: Rates

    def highest_tpr(self, fpr: Rates, /) -> Rates:
        """g: an upper bound on the TPR at each FPR."""
        at = np.asarray(fpr, dtype=np.float64)[..., None]
        direct = self.deltas + np.exp(self.epsilons) * at
        mirrored = 1 - np.exp(-self.epsilons) * (1 - self.deltas - at)
        bound: Rates = np.minimum(np.minimum(direct, mirrored).min(axis=-1), 1.0)
        return bound

    def least_fpr(self, tpr: float, /) -> float:
        """The inverse of g: a lower bound on the FPR at a TPR."""
        direct = np.exp(-self.epsilons) * (tpr - self.deltas)
        mirrored = 1 - self.deltas - np.exp(self.epsilons) * (1 - tpr)
        return max(float(direct.max()), float(mirrored.max()), 0.0)


@dataclass(frozen=True)
class GaussianCurve:
    """The curve of mu-Gaussian differential privacy."""

    mu: float

    def highest_tpr(self, fpr: Rates, /) -> Rates:
        """g: the TPR at each FPR."""
        found: Rates = ndtr(ndtri(fpr) + self.mu)
        return found

    def least_fpr(self, tpr: float, /) -> float:
        """The inverse of g."""
        return float(ndtr(ndtri(tpr) - self.mu))


def claimed_curve(events: Iterable[DpEvent]) -> ClaimedCurve:
    """The whole curve that a list of events promises, adding or removing one unit.

    From the privacy loss distribution of dp_accounting, which is pessimistic at every
    resolution: what the curve forbids, the mechanism cannot do.

    Args:
        events: Everything that ran; at least one.

    Raises:
        PlanError: An event is not one that the accountant knows.
    """
    merged = merge(events)
    interval = 4 * reference_interval(merged)
    end = pld_epsilon(merged, _FLOOR_DELTA, "add-remove", interval)
    if end > _LARGEST_EPSILON:
        return ClaimedCurve(np.zeros(1), np.ones(1))  # Forbids nothing.
    epsilons = np.linspace(0.0, end, _LINES)
    profile = compose(merged, "add-remove", interval)
    deltas = np.asarray(profile.get_delta_for_epsilon(epsilons), dtype=np.float64)
    return ClaimedCurve(epsilons, deltas)
