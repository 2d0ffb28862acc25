"""The accountants of dp_accounting behind typed functions.

The reference is the privacy loss distribution (PLD) with connect-the-dots
discretisation, which is pessimistic (Doroshenko et al., PoPETs 2022): what it
returns is an upper bound at every resolution. Renyi accounting (RDP) is a
second, looser upper bound from an independent derivation.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, reduce
from typing import Any, Literal

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from secfed.privacy.events import Merged

__all__ = [
    "REFERENCE_INTERVAL",
    "Neighbouring",
    "compose",
    "pld_epsilon",
    "rdp_epsilon",
    "reference_interval",
]

Neighbouring = Literal["add-remove", "replace-one"]

REFERENCE_INTERVAL = 1e-4  # The default of dp_accounting's PLDAccountant.

_RELATION = {
    "add-remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}
_COARSEST_INTERVAL = 1.0
_MAX_GRID_POINTS = 250_000  # Keeps one PLD near a second and 100 MB.
# The grid of Opacus and TensorFlow Privacy, with the higher orders that matter
# at small epsilon. More orders can only tighten the bound.
_ORDERS = tuple(1 + x / 10 for x in range(1, 100)) + tuple(range(12, 64))
_HIGH_ORDERS = (128, 256, 512, 1024)


def reference_interval(merged: Merged) -> float:
    """The discretisation of the reference PLD.

    dp_accounting's default, except that it is refined where the loss of one
    step is so small that rounding would add more than 1 % to the variance of
    the total (a step adds at most interval**2 / 8), and coarsened where the
    grid would not fit into memory.
    """
    largest_exponent = 700.0  # exp() overflows above 709.
    variance, largest_loss, steps = 0.0, 0.0, 0
    for q, noise, count in merged:
        chi_square = q * q * math.expm1(min(noise**-2, largest_exponent))
        variance += count * math.log1p(chi_square)
        # Ten standard deviations of the noise cover a mass of exp(-50).
        largest_loss = max(largest_loss, 10 / noise + noise**-2 / 2 + math.log(q))
        steps += count
    spread = variance / 2 + math.sqrt(2 * variance * math.log(1e5))
    fine = math.sqrt(0.08 * variance / steps)
    coarsest_needed = max(largest_loss, spread) / _MAX_GRID_POINTS
    return max(min(REFERENCE_INTERVAL, fine), coarsest_needed)


@lru_cache(maxsize=1024)
def pld_epsilon(
    merged: Merged, delta: float, neighbouring: str, interval: float
) -> float:
    """Epsilon at ``delta`` by the PLD on a grid of this interval.

    Infinity, which is an upper bound too, where the loss is so large that a
    grid that fits into memory would say nothing.
    """
    if interval > _COARSEST_INTERVAL:
        return math.inf
    distribution = compose(merged, neighbouring, interval)
    return float(distribution.get_epsilon_for_delta(delta))


@lru_cache(maxsize=8)
def compose(merged: Merged, neighbouring: str, interval: float) -> Any:
    """The PLD of all events together; ``merged`` is not empty."""
    unsampled = sum(count / noise**2 for q, noise, count in merged if q == 1)
    parts = [
        _one_step(q, noise, neighbouring, interval).self_compose(count)
        for q, noise, count in merged
        if q < 1
    ]
    if unsampled:
        # Gaussians compose exactly: their precisions add up.
        parts.append(_one_step(1.0, unsampled**-0.5, neighbouring, interval))
    return reduce(lambda left, right: left.compose(right), parts)


@lru_cache(maxsize=16)
def _one_step(q: float, noise: float, neighbouring: str, interval: float) -> Any:
    return pld.from_gaussian_mechanism(
        noise,
        sampling_prob=q,
        value_discretization_interval=interval,
        neighboring_relation=_RELATION[neighbouring],
    )


@lru_cache(maxsize=1024)
def rdp_epsilon(merged: Merged, delta: float) -> float:
    """Epsilon at ``delta`` by RDP, add-remove."""
    accountant = RdpAccountant(_ORDERS + _HIGH_ORDERS)
    with _quiet_orders():
        for q, noise, count in merged:
            gaussian = dp_accounting.GaussianDpEvent(noise)
            step = dp_accounting.PoissonSampledDpEvent(q, gaussian)
            accountant.compose(step if q < 1 else gaussian, count)
        return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet_orders() -> Iterator[None]:
    """Silence the note that an order is left out, which keeps the bound valid."""
    logger = logging.getLogger("absl")
    keep: Callable[[logging.LogRecord], bool] = lambda record: (  # noqa: E731
        "failed to converge" not in record.getMessage()
    )
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)
