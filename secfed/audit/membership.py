"""How well an attacker tells members from others, with intervals, against a claim.

Observed rates stand beside what the accountant allows: the area under the ROC curve
(Hanley and McNeil, Radiology 1982, for its interval), and true positive rates at low
false positive rates with Clopper-Pearson intervals. LiRA is the likelihood ratio of
Carlini et al. (IEEE S&P 2022), online, with one variance for all records because
shadow runs are few.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from secfed.audit.curves import Curve, Rates
from secfed.audit.refutation import Counts, Scores, clopper_pearson

__all__ = ["Point", "area", "lira_scores", "points_on_curve"]

_EACH_SIDE: Final = 0.025
_SMALLEST_SPREAD: Final = 1e-9


@dataclass(frozen=True)
class Point:
    """One place on the observed ROC curve; intervals hold with 95 % each.

    Attributes:
        asked_fpr: What the threshold was set for.
        fpr: Observed, with its upper bound.
        fpr_high: The upper bound.
        tpr: Observed.
        tpr_low: Lower bound.
        tpr_high: Upper bound.
        claimed: The highest TPR that the claim allows at ``fpr_high``.
    """

    asked_fpr: float
    fpr: float
    fpr_high: float
    tpr: float
    tpr_low: float
    tpr_high: float
    claimed: float

    def to_json(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"TPR {self.tpr:.3f} [{self.tpr_low:.3f}, {self.tpr_high:.3f}] at FPR "
            f"{self.asked_fpr:g} (observed {self.fpr:.3f}, below {self.fpr_high:.3f}: "
            f"{self.claimed:.3f} claimed)"
        )


def points_on_curve(
    scores: Scores, curve: Curve, rates: Sequence[float] = (0.1, 0.01, 0.001)
) -> tuple[Point, ...]:
    """The observed ROC at some false positive rates, beside the claim."""
    return tuple(_point(scores, curve, rate) for rate in rates)


def _point(scores: Scores, curve: Curve, rate: float) -> Point:
    others = np.sort(scores.values[~scores.members])[::-1]
    allowed = math.floor(rate * len(others))
    threshold = np.nextafter(others[allowed], np.inf) if len(others) else 0.0
    counts = Counts.at(scores, float(threshold))
    hits = np.array([counts.true_positives, counts.false_positives], dtype=np.float64)
    trials = np.array([counts.members, counts.others], dtype=np.float64)
    low, high = clopper_pearson(hits, trials, _EACH_SIDE)
    return Point(
        asked_fpr=rate,
        fpr=counts.fpr,
        fpr_high=float(high[1]),
        tpr=counts.tpr,
        tpr_low=float(low[0]),
        tpr_high=float(high[0]),
        claimed=float(curve.highest_tpr(high[1:])[0]),
    )


def area(scores: Scores) -> tuple[float, float, float]:
    """The area under the ROC curve and its approximate 95 % interval."""
    inside, outside = int(scores.members.sum()), int((~scores.members).sum())
    if not inside or not outside:
        return 0.5, 0.0, 1.0
    ranks = rankdata(scores.values)[scores.members].sum()
    a = float((ranks - inside * (inside + 1) / 2) / (inside * outside))
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    spread = a * (1 - a) + (inside - 1) * (q1 - a * a) + (outside - 1) * (q2 - a * a)
    half = float(norm.isf(_EACH_SIDE)) * math.sqrt(max(spread, 0) / (inside * outside))
    return a, max(0.0, a - half), min(1.0, a + half)


def lira_scores(
    target: Rates, shadows: NDArray[np.float64], members: NDArray[np.bool_]
) -> Rates:
    """Log-likelihood ratios of "in" against "out" for every canary.

    Args:
        target: (canaries,), the statistic under the audited adapter.
        shadows: (runs, canaries), the same under each shadow adapter.
        members: (runs, canaries), whether the canary was in that run.

    Returns:
        (canaries,); where a canary was never in, or never out, the mean over all
        canaries stands for it.
    """
    inside, spread_in = _law(shadows, members)
    outside, spread_out = _law(shadows, ~members)
    ratio: Rates = norm.logpdf(target, inside, spread_in) - norm.logpdf(
        target, outside, spread_out
    )
    return ratio


def _law(
    shadows: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[Rates, float]:
    """Each canary's mean over the chosen runs, and one deviation for all."""
    counts = chosen.sum(axis=0)
    overall = float(shadows[chosen].mean()) if chosen.any() else 0.0
    sums = np.where(chosen, shadows, 0.0).sum(axis=0)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), overall)
    residuals = (shadows - means)[chosen & (counts > 1)[None, :]]
    freedom = max(int((counts[counts > 1] - 1).sum()), 1)
    spread = math.sqrt(float(np.square(residuals).sum()) / freedom)
    return means, max(spread, _SMALLEST_SPREAD)
