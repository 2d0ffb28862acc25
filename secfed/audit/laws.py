"""Is this noise what the plan promises? Tests of law and independence.

Every function returns p-values. With millions of numbers the smallest error has a
small p-value, so the level is small too (``LEVEL``): the false-alarm rate of a
conforming pipeline under fresh randomness is at most this for each check.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = [
    "LEVEL",
    "correlation_p",
    "inclusion_p",
    "ks_p",
    "neighbours_p",
    "variance_p",
]

LEVEL: Final = 1e-6

_LAGS: Final = 8

Numbers = NDArray[np.float64]


def ks_p(sample: Numbers) -> float:
    """Of the Kolmogorov-Smirnov test against the standard normal."""
    return float(stats.kstest(sample, "norm").pvalue)


def variance_p(sample: Numbers) -> float:
    """Two-sided, of the variance of a standard normal sample."""
    statistic = float(np.square(sample).sum())
    law = stats.chi2(len(sample))
    return min(1.0, 2 * float(min(law.cdf(statistic), law.sf(statistic))))


def neighbours_p(sample: Numbers) -> float:
    """Of the largest correlation between coordinates up to 8 places apart."""
    return min(
        1.0,
        _LAGS * min(_correlated(sample[k:], sample[:-k]) for k in range(1, _LAGS + 1)),
    )


def correlation_p(samples: Sequence[Numbers]) -> float:
    """Of the largest correlation between any two of the vectors; 1 for fewer."""
    pairs = list(combinations(samples, 2))
    if not pairs:
        return 1.0
    return min(1.0, len(pairs) * min(_correlated(one, two) for one, two in pairs))


def inclusion_p(draws: NDArray[np.bool_], rate: float) -> float:
    """Of a Poisson sample: its rate, every unit's rate, and independence of units.

    Args:
        draws: (draws, units), who was in each.
        rate: The promised probability.
    """
    times, units = draws.shape
    if rate == 1.0:
        return float(draws.all())
    whole = stats.binomtest(int(draws.sum()), times * units, rate).pvalue
    counts = draws.sum(axis=0)
    each = float(np.square(counts - times * rate).sum() / (times * rate * (1 - rate)))
    unit_law = stats.chi2(units)
    sizes = draws.sum(axis=1)
    spread = np.square(sizes - units * rate).sum() / (units * rate * (1 - rate))
    size_law = stats.chi2(times)
    parts = (
        whole,
        2 * min(unit_law.cdf(each), unit_law.sf(each)),
        2 * min(size_law.cdf(spread), size_law.sf(spread)),
    )
    return min(1.0, len(parts) * float(min(parts)))


def _correlated(one: Numbers, two: Numbers) -> float:
    """Two-sided p-value; under independence sqrt(n) r is close to normal."""
    size = min(len(one), len(two))  # Some rules train other tensors in other rounds.
    one, two = one[:size], two[:size]
    if one.std() == 0 or two.std() == 0:
        return 0.0  # A constant is no noise at all.
    r = float(np.corrcoef(one, two)[0, 1])
    return float(2 * stats.norm.sf(abs(r) * np.sqrt(len(one))))
