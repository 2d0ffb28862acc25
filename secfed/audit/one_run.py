"""Lower bounds on epsilon from one run, beside the primary statistic.

Each of m canaries is in with probability 1/2. The attacker calls the highest scores
"in", the lowest "out", and abstains from the rest. A private mechanism bounds how many
of these guesses can be right, also where scores depend on each other: this is what
these bounds have and the p-value of ``refutation`` has not.

``steinke_p_value``: Steinke, Nasr and Jagielski, NeurIPS 2023 (arXiv 2305.08846),
theorem 3.1 with abstention. ``fdp_refutes``: Mahloujifar, Melis and Chaudhuri, 2024
(arXiv 2410.22235), the recursion of their section 4 for two symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import dp_accounting
import numpy as np
from scipy.special import expit
from scipy.stats import binom

from secfed.audit.curves import Curve, GaussianCurve
from secfed.audit.refutation import Scores

__all__ = [
    "Guesses",
    "LowerBounds",
    "fdp_epsilon",
    "fdp_p_value",
    "fdp_refutes",
    "lower_bounds",
    "make_guesses",
    "steinke_epsilon",
    "steinke_p_value",
]

_SHARES: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
_LARGEST_EPSILON: Final = 60.0
_BISECTIONS: Final = 30


@dataclass(frozen=True)
class Guesses:
    """How many canaries there were, how many were guessed, and how many rightly."""

    canaries: int
    guessed: int
    correct: int


@dataclass(frozen=True)
class LowerBounds:
    """Epsilon is at least this, with confidence ``1 - level``, at ``delta``.

    Attributes:
        guesses: On the held-out half; how many to guess was chosen on the other.
        steinke: By the theorem of Steinke et al.
        fdp: By the one-run f-DP bound for Gaussian curves.
        fdp_p: The p-value of the claimed curve itself, by the f-DP bound.
        level: One minus the confidence.
        delta: Of both epsilons.
    """

    guesses: Guesses
    steinke: float
    fdp: float
    fdp_p: float
    level: float
    delta: float


def make_guesses(scores: Scores, share: float) -> Guesses:
    """Guess a share of the canaries: half of them from above, half from below."""
    order = np.argsort(scores.values, kind="stable")
    each = max(1, round(share * len(scores) / 2))
    lowest, highest = order[:each], order[len(order) - each :]
    right = int((~scores.members[lowest]).sum()) + int(scores.members[highest].sum())
    return Guesses(len(scores), len(lowest) + len(highest), right)


def steinke_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """How probable so many right guesses are at most, under (epsilon, delta)."""
    tail = binom(guesses.guessed, expit(epsilon))
    least = float(tail.sf(guesses.correct - 1))
    fewer = np.arange(1, guesses.correct + 1)
    if delta == 0 or len(fewer) == 0:
        return min(least, 1.0)
    slopes = (tail.sf(guesses.correct - fewer - 1) - least) / fewer
    return float(min(least + 2 * guesses.canaries * delta * slopes.max(), 1.0))


def steinke_epsilon(guesses: Guesses, level: float, delta: float) -> float:
    """The largest epsilon that these guesses refute; 0 if they refute none."""
    return _largest_refuted(lambda e: steinke_p_value(guesses, e, delta) <= level)


def fdp_refutes(guesses: Guesses, curve: Curve, level: float) -> bool:
    """Whether so many right guesses have a probability below ``level`` on the curve.

    r and h bound the joint probabilities of a right and of a wrong guess at one canary
    with at least i right guesses in all; the curve ties h from below to r.
    """
    total, right = guesses.guessed, guesses.correct
    r = level * right / guesses.canaries
    h = level * (total - right) / guesses.canaries
    for i in range(right - 1, -1, -1):
        higher = curve.least_fpr(min(r, 1.0))
        if higher <= h:
            break  # Then neither of them changes any more.
        r, h = r + i / (total - i) * (higher - h), higher
    return r + h > total / guesses.canaries


def fdp_p_value(guesses: Guesses, curve: Curve) -> float:
    """The smallest level at which the curve is refuted; 1 if none is."""
    low, high = -30.0, 0.0
    if not fdp_refutes(guesses, curve, 1.0):
        return 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        refuted = fdp_refutes(guesses, curve, 10.0**middle)
        low, high = (low, middle) if refuted else (middle, high)
    return float(10.0**high)


def fdp_epsilon(guesses: Guesses, level: float, delta: float) -> float:
    """The epsilon at delta of the largest refuted Gaussian curve; 0 if none is."""

    def refuted(epsilon: float) -> bool:
        sigma = dp_accounting.get_sigma_gaussian(epsilon, delta)
        return fdp_refutes(guesses, GaussianCurve(1 / sigma), level)

    return _largest_refuted(refuted)


def lower_bounds(
    scores: Scores, curve: Curve, *, level: float, delta: float
) -> LowerBounds:
    """Choose how many to guess on one half; bound epsilon on the other."""
    first, second = scores.halves()
    tried = [(share, make_guesses(first, share)) for share in _SHARES]
    share = max(tried, key=lambda one: steinke_epsilon(one[1], level, delta))[0]
    guesses = make_guesses(second, share)
    return LowerBounds(
        guesses=guesses,
        steinke=steinke_epsilon(guesses, level, delta),
        fdp=fdp_epsilon(guesses, level, delta),
        fdp_p=fdp_p_value(guesses, curve),
        level=level,
        delta=delta,
    )


def _largest_refuted(refuted: Callable[[float], bool]) -> float:
    low, high = 0.0, 1.0
    if not refuted(1e-6):
        return 0.0
    while refuted(high):
        low, high = high, 2 * high
        if high > _LARGEST_EPSILON:
            return low
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
