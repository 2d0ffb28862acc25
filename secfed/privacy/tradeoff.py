"""What an attacker can reach under all epsilons at once, not only at one delta."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from secfed.errors import PlanError
from secfed.privacy.distributions import (
    Neighbouring,
    compose,
    pld_epsilon,
    reference_interval,
)
from secfed.privacy.events import DpEvent, Merged, merge

__all__ = ["advantage", "conservative_mu", "true_positive_rate"]

_PROFILE_POINTS = 2000
_PROFILE_FLOOR = 1e-10
_MAX_MU = 100.0
_LARGEST_EPSILON = 500.0  # exp(), which the profile needs, overflows above 709.


def true_positive_rate(
    events: Iterable[DpEvent],
    false_positive_rate: float,
    neighbouring: Neighbouring = "add-remove",
) -> float:
    """An upper bound on the TPR of any test that tells neighbours apart.

    Every (epsilon, delta) of the profile bounds both error rates (Kairouz, Oh
    and Viswanath, ICML 2015, theorem 2.1); the smallest bound is returned.
    """
    if not 0 <= false_positive_rate <= 1:
        raise PlanError(f"a false positive rate is in [0, 1]: {false_positive_rate!r}")
    merged = merge(events)
    if not merged:
        return false_positive_rate
    epsilons, deltas = _profile(merged, neighbouring)
    direct = deltas + np.exp(epsilons) * false_positive_rate
    mirrored = 1 - np.exp(-epsilons) * (1 - deltas - false_positive_rate)
    bound = min(float(direct.min()), float(mirrored.min()), 1.0)
    return max(bound, false_positive_rate)


def advantage(
    events: Iterable[DpEvent], neighbouring: Neighbouring = "add-remove"
) -> float:
    """An upper bound on TPR - FPR of any test: delta at epsilon zero."""
    merged = merge(events)
    if not merged:
        return 0.0
    return float(_profile(merged, neighbouring)[1][0])


def conservative_mu(
    events: Iterable[DpEvent], neighbouring: Neighbouring = "add-remove"
) -> float | None:
    """A mu such that mu-Gaussian DP holds for every delta above 1e-10.

    For all epsilon >= 0, the events' delta is at most the larger of 1e-10 and
    the delta of the Gaussian mechanism with ``1 / mu`` noise (Dong, Roth and
    Su, JRSS-B 2022, corollary 2.13). Between two points of the grid the lower
    Gaussian value is compared with the higher PLD value, so nothing is missed.

    Returns:
        None if no mu up to 100 does.
    """
    merged = merge(events)
    if not merged:
        return 0.0
    epsilons, deltas = _profile(merged, neighbouring)
    if len(epsilons) == 1:
        return None
    needed, at = deltas[:-1], epsilons[1:]
    low, high = np.zeros_like(at), np.full_like(at, _MAX_MU)
    if (_gaussian_delta(at, high) < needed).any():
        return None
    for _ in range(60):
        middle = (low + high) / 2
        enough = _gaussian_delta(at, middle) >= needed
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return float(high.max()) * (1 + 1e-9)  # Covers rounding in the delta.


def _gaussian_delta(
    epsilons: NDArray[np.float64], mu: NDArray[np.float64]
) -> NDArray[np.float64]:
    upper = log_ndtr(-epsilons / mu + mu / 2)
    lower = epsilons + log_ndtr(-epsilons / mu - mu / 2)
    delta: NDArray[np.float64] = np.exp(upper) * -np.expm1(lower - upper)
    return delta


@lru_cache(maxsize=16)
def _profile(
    merged: Merged, neighbouring: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The privacy profile on a grid of epsilons, down to the floor of delta."""
    # Four times coarser than the reference: pessimistic and 4 times faster.
    interval = 4 * reference_interval(merged)
    end = pld_epsilon(merged, _PROFILE_FLOOR, neighbouring, interval)
    if end > _LARGEST_EPSILON:
        return np.zeros(1), np.ones(1)  # Only what holds without any privacy.
    distribution = compose(merged, neighbouring, interval)
    epsilons = np.linspace(0.0, end, _PROFILE_POINTS)
    deltas = np.asarray(distribution.get_delta_for_epsilon(epsilons), dtype=np.float64)
    epsilons.flags.writeable = deltas.flags.writeable = False
    return epsilons, deltas
