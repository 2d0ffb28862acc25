"""The primary statistic: does what was seen refute the whole claimed curve?

A threshold on scores is a membership test. Its threshold is chosen on one half of the
canaries; on the other half true and false positives are counted, and the claim is
refuted at level alpha if the lower Clopper-Pearson bound of the TPR lies above the
curve at the upper bound of the FPR, each at level alpha / 2. Beside one epsilon, the
curve holds everything that the claim forbids: a lower bound on epsilon alone cannot
refute a claim of 7 with 1,000 canaries, even without any noise.

Assumption: given which canaries are in, their scores are independent. It holds for
coordinates of one noisy vector; scores that share a level (the loss of one model)
break it, and then the p-value is too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from secfed.audit.curves import Curve, Rates

__all__ = [
    "ASSUMPTION",
    "Counts",
    "Refutation",
    "Scores",
    "clopper_pearson",
    "p_value",
    "refute",
]

ASSUMPTION: Final = (
    "the p-value assumes that canary scores are independent, given who is in"
)

_CANDIDATES: Final = 256
_CHOICE_LEVEL: Final = 0.01
_SMALLEST_LOG10_P: Final = -30.0
_BISECTIONS: Final = 40


@dataclass(frozen=True)
class Scores:
    """What an attacker computed for each canary; a higher score says "in".

    Attributes:
        values: (canaries,).
        members: (canaries,), whether each was in.
    """

    values: NDArray[np.float64]
    members: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.values)

    def taken(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Scores:
        """Some of the canaries."""
        return Scores(self.values[rows], self.members[rows])

    def halves(self) -> tuple[Scores, Scores]:
        """Every second canary, and the others; their order says nothing."""
        rows = np.arange(len(self))
        return self.taken(rows[::2]), self.taken(rows[1::2])


@dataclass(frozen=True)
class Counts:
    """A test's outcome: of the members and of the others, how many it called in."""

    true_positives: int
    members: int
    false_positives: int
    others: int

    @classmethod
    def at(cls, scores: Scores, threshold: float) -> Counts:
        """Of the test that calls scores from ``threshold`` up "in"."""
        called = scores.values >= threshold
        return cls(
            true_positives=int((called & scores.members).sum()),
            members=int(scores.members.sum()),
            false_positives=int((called & ~scores.members).sum()),
            others=int((~scores.members).sum()),
        )

    @property
    def tpr(self) -> float:
        """Observed; 0 where there were no members."""
        return self.true_positives / max(self.members, 1)

    @property
    def fpr(self) -> float:
        """Observed; 0 where there were no others."""
        return self.false_positives / max(self.others, 1)


@dataclass(frozen=True)
class Refutation:
    """The held-out half against the claim.

    Attributes:
        counts: At the threshold that the other half chose.
        threshold: The threshold.
        bound: The highest TPR that the claim allows at the observed FPR.
        p: The smallest level at which the claim is refuted; 1 where it is not.
    """

    counts: Counts
    threshold: float
    bound: float
    p: float


def clopper_pearson(
    hits: Rates | NDArray[np.int64], trials: Rates, level: float
) -> tuple[Rates, Rates]:
    """One-sided lower and upper bounds of a rate, each wrong with probability level.

    Args:
        hits: How often it happened.
        trials: Of how many; with none the bounds are 0 and 1.
        level: In (0, 1).
    """
    k, n = np.asarray(hits, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    lower = np.where(k > 0, beta.ppf(level, np.maximum(k, 1), n - k + 1), 0.0)
    upper = np.where(k < n, beta.isf(level, k + 1, np.maximum(n - k, 1)), 1.0)
    return lower, upper


def p_value(counts: Counts, curve: Curve) -> float:
    """The smallest level at which these counts refute the curve; 1 if none does."""

    def refuted(log10_level: float) -> bool:
        margin = _margin(counts, curve, 10.0**log10_level)
        return bool(margin > 0)

    low, high = _SMALLEST_LOG10_P, 0.0
    if not refuted(high):
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return float(10.0**high)


def refute(scores: Scores, curve: Curve) -> Refutation:
    """Choose a threshold on one half of the canaries and test on the other."""
    first, second = scores.halves()
    threshold = _best_threshold(first, curve)
    counts = Counts.at(second, threshold)
    bound = float(curve.highest_tpr(np.array(counts.fpr)))
    return Refutation(counts, threshold, bound, p_value(counts, curve))


def _margin(counts: Counts, curve: Curve, level: float) -> float:
    hits = np.array([counts.true_positives, counts.false_positives], dtype=np.float64)
    trials = np.array([counts.members, counts.others], dtype=np.float64)
    lower, upper = clopper_pearson(hits, trials, level / 2)
    return float(lower[0] - curve.highest_tpr(upper[1:])[0])


def _best_threshold(scores: Scores, curve: Curve) -> float:
    """The one with the widest margin between the bounds and the curve."""
    called = np.sort(scores.values)
    if len(called) == 0:
        return 0.0
    places = np.linspace(0, len(called) - 1, _CANDIDATES).round().astype(np.int64)
    candidates = np.unique(called[places])
    inside = np.sort(scores.values[scores.members])
    outside = np.sort(scores.values[~scores.members])
    hits = len(inside) - np.searchsorted(inside, candidates).astype(np.int64)
    false = len(outside) - np.searchsorted(outside, candidates).astype(np.int64)
    full = np.ones(len(candidates))
    lower, _ = clopper_pearson(hits, full * len(inside), _CHOICE_LEVEL / 2)
    _, upper = clopper_pearson(false, full * len(outside), _CHOICE_LEVEL / 2)
    return float(candidates[np.argmax(lower - curve.highest_tpr(upper))])
