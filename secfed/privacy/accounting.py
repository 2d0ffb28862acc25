"""What a list of privacy events costs.

Costs are computed from all events together and never by adding epsilons. This
module gathers the whole accounting interface; events are defined in
``events.py``, the two accountants in ``distributions.py`` and the bounds on
attacks in ``tradeoff.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal, get_args

from secfed.errors import PlanError
from secfed.privacy.distributions import (
    REFERENCE_INTERVAL,
    Neighbouring,
    pld_epsilon,
    rdp_epsilon,
    reference_interval,
)
from secfed.privacy.events import (
    REPLACED,
    DpEvent,
    Merged,
    event_from_json,
    event_to_json,
    group_event,
    merge,
    replaced_event,
    sampled_gaussian,
)
from secfed.privacy.tradeoff import advantage, conservative_mu, true_positive_rate

__all__ = [
    "REPLACED",
    "DpEvent",
    "Guarantee",
    "Neighbouring",
    "advantage",
    "conservative_mu",
    "epsilon",
    "event_from_json",
    "event_to_json",
    "fits",
    "group_event",
    "guarantee",
    "replaced_event",
    "sampled_gaussian",
    "smallest_noise_multiplier",
    "true_positive_rate",
]

_CALIBRATION_RANGE = (0.1, 1e4)
_STEPS_PER_UNIT = 10_000  # Noise multipliers are multiples of 1e-4.


def epsilon(
    events: Iterable[DpEvent],
    delta: float,
    neighbouring: Neighbouring = "add-remove",
    method: Literal["pld", "rdp"] = "pld",
) -> float:
    """An upper bound on epsilon at ``delta`` for all events together.

    Args:
        events: Everything that ran on one population.
        delta: In (0, 1).
        neighbouring: What differs between neighbouring data sets: one unit
            added or removed, or one unit replaced by another.
        method: ``pld``, the reference, or ``rdp``, looser and independent.

    Returns:
        Zero for no events.

    Raises:
        PlanError: An unknown event, ``delta`` outside (0, 1), or ``rdp`` with
            ``replace-one``, which that method does not cover.

    Example:
        >>> round(epsilon([sampled_gaussian(0.04, 1.5, 2250)], 1e-5), 4)
        6.7688
    """
    _check_delta(delta)
    if neighbouring not in get_args(Neighbouring):
        raise PlanError(f"neighbouring is add-remove or replace-one: {neighbouring!r}")
    merged = merge(events)
    if not merged:
        return 0.0
    if method == "pld":
        return pld_epsilon(merged, delta, neighbouring, reference_interval(merged))
    if method != "rdp":
        raise PlanError(f"method is pld or rdp: {method!r}")
    if neighbouring != "add-remove":
        raise PlanError("RDP covers add-remove only; use the PLD for replace-one")
    return rdp_epsilon(merged, delta)


def fits(
    events: Iterable[DpEvent],
    delta: float,
    limit: float,
    neighbouring: Neighbouring = "add-remove",
) -> bool:
    """Whether ``epsilon(events, delta, neighbouring) <= limit``, cheaply.

    A ten times coarser PLD is an upper bound too and 10 times faster, so the
    reference is computed only where the coarse one does not decide.
    """
    _check_delta(delta)
    merged = merge(events)
    if not merged:
        return limit >= 0
    interval = reference_interval(merged)
    if pld_epsilon(merged, delta, neighbouring, 10 * interval) <= limit:
        return True
    return pld_epsilon(merged, delta, neighbouring, interval) <= limit


@dataclass(frozen=True)
class Guarantee:
    """What a list of events promises, in every form that we report.

    Attributes:
        delta: The delta of all three epsilons.
        epsilon: Add-remove, by the reference (PLD).
        epsilon_rdp: Add-remove, by the second accountant.
        epsilon_replace_one: One unit replaced by another, by the reference.
        mu: See ``conservative_mu``; None means UNKNOWN.
        advantage: Bound on TPR - FPR of any membership attack.
        tpr_at_fpr_1_percent: Bound on an attack's true positive rate.
        tpr_at_fpr_01_percent: The same at a false positive rate of 0.1 %.
    """

    delta: float
    epsilon: float
    epsilon_rdp: float
    epsilon_replace_one: float
    mu: float | None
    advantage: float
    tpr_at_fpr_1_percent: float
    tpr_at_fpr_01_percent: float

    def to_json(self) -> dict[str, float | None]:
        """The fields by name."""
        return asdict(self)


def guarantee(events: Iterable[DpEvent], delta: float) -> Guarantee:
    """Every number that is reported beside an epsilon."""
    listed = tuple(events)
    return Guarantee(
        delta=delta,
        epsilon=epsilon(listed, delta),
        epsilon_rdp=epsilon(listed, delta, method="rdp"),
        epsilon_replace_one=epsilon(listed, delta, "replace-one"),
        mu=conservative_mu(listed),
        advantage=advantage(listed),
        tpr_at_fpr_1_percent=true_positive_rate(listed, 0.01),
        tpr_at_fpr_01_percent=true_positive_rate(listed, 0.001),
    )


@lru_cache(maxsize=256)
def smallest_noise_multiplier(
    target: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    neighbouring: Neighbouring = "add-remove",
    beside: Merged = (),
) -> float:
    """The smallest noise multiplier whose epsilon does not exceed ``target``.

    Guarantees:
        0.99 * target <= epsilon <= target, where epsilon is the reference for
        ``steps`` events with the returned noise multiplier and those of ``beside``.

    Raises:
        PlanError: No noise multiplier from 0.1 to 10,000 reaches the target, or the
            events beside leave nothing of it.
    """
    _check_delta(delta)
    others = [sampled_gaussian(q, noise, count) for q, noise, count in beside]
    if (taken := epsilon(others, delta, neighbouring)) >= target:
        raise PlanError(
            f"what runs beside the training costs epsilon {taken:.4g} of {target:g}; "
            "give it more noise, or ask for a larger epsilon"
        )
    # 1. Bracket and bisect on a coarse, still pessimistic PLD: its own error is
    #    steps * interval**2 / 8 on a variance near target**2 / (2 ln 1/delta).
    coarse = target * math.sqrt(4e-3 / math.log(1 / delta) / steps)
    coarse = min(max(coarse, REFERENCE_INTERVAL), 2e-3)

    def search(noise: float) -> float:
        event = sampled_gaussian(sampling_probability, noise, steps)
        merged = merge([event, *others])
        interval = max(coarse, reference_interval(merged))
        return pld_epsilon(merged, delta, neighbouring, interval) / target

    def reference(noise: float) -> float:
        event = sampled_gaussian(sampling_probability, noise, steps)
        return epsilon([event, *others], delta, neighbouring) / target

    low, high = _bracket(search, target)
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if search(middle) <= 1 else (middle, high)
    # 2. Move to where the reference itself is just below the target. Epsilon
    #    falls about like 1 / noise, and faster where epsilon is large, so that
    #    a step down is halved until it stays below.
    noise = _rounded_up(high)
    reached = reference(noise)
    while reached > 1:
        noise = _rounded_up(noise * reached**0.5 * 1.0005)
        reached = reference(noise)
    while reached < 0.995:  # noqa: PLR2004 - half of the promised 1 %
        smaller = _rounded_up(noise * max(reached, 0.5) ** 0.5)
        ratio = reference(smaller) if smaller < noise else math.inf
        if ratio > 1:
            return _refine(reference, smaller, noise)
        noise, reached = smaller, ratio
    return noise


def _bracket(
    relative_epsilon: Callable[[float], float], target: float
) -> tuple[float, float]:
    """Noise multipliers (low, high) on both sides of the target."""
    smallest, largest = _CALIBRATION_RANGE
    low = high = 1.0
    while relative_epsilon(high) > 1:
        low, high = high, 2 * high
        if high > largest:
            raise PlanError(
                f"epsilon {target:g} needs more than {largest:g} times the clip norm "
                "as noise; ask for a larger epsilon or fewer steps"
            )
    while low == high or relative_epsilon(low) <= 1:
        low, high = low / 2, low
        if low < smallest / 2:
            raise PlanError(
                f"epsilon {target:g} would leave practically no noise; ask for a "
                "smaller one"
            )
    return low, high


def _refine(
    relative_epsilon: Callable[[float], float], low: float, high: float
) -> float:
    """Bisect on the reference down to the step of noise multipliers."""
    while high - low > 1.5 / _STEPS_PER_UNIT:
        middle = _rounded_up((low + high) / 2)
        low, high = (low, middle) if relative_epsilon(middle) <= 1 else (middle, high)
    return high


def _rounded_up(noise: float) -> float:
    return math.ceil(noise * _STEPS_PER_UNIT) / _STEPS_PER_UNIT


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PlanError(f"delta is in (0, 1): {delta!r}")
