"""Expected noise energy as a function of rank, lora_alpha, sigma, sites or steps.

From public numbers only, as ``expectation.py``: safe to compute in production.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from secfed.amplification.expectation import Setting, expected_in_all
from secfed.amplification.forms import Energy
from secfed.amplification.rules import NoiseRule

__all__ = [
    "AXES",
    "AXIS_NAMES",
    "HELD",
    "PARTS",
    "Axis",
    "Curve",
    "noise_curve",
    "usual_values",
    "with_value",
]

Axis = Literal["rank", "alpha", "sigma", "sites", "steps"]
AXES: Final[tuple[Axis, ...]] = get_args(Axis)

AXIS_NAMES: Final[Mapping[Axis, str]] = {
    "rank": "rank r",
    "alpha": "lora_alpha",
    "sigma": "noise multiplier sigma of every site",
    "sites": "sites",
    "steps": "steps per round",
}

HELD: Final[Mapping[Axis, str]] = {
    "rank": "lora_alpha stays, so the scaling lora_alpha / r falls",
    "alpha": "the rank stays",
    "sigma": "epsilon moves with sigma",
    "sites": "equal sites of the same sigma",
    "steps": "sigma stays, so epsilon grows",
}
"""What stays and what moves while the axis moves."""

PARTS: Final = ("linear_b", "linear_a", "quadratic", "core", "total")

_COUNTED: Final = frozenset({"rank", "sites", "steps"})
_POWERS: Final = 7
_SPREAD: Final = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Curve:
    """Expected noise energy over all rounds, summed over modules.

    Attributes:
        axis: What varies.
        values: Shape (n,).
        energies: By rule: ``linear_b``, ``linear_a``, ``quadratic``, ``core`` and
            ``total``, each float64 of shape (n,).
    """

    axis: Axis
    values: NDArray[np.float64]
    energies: Mapping[str, Mapping[str, NDArray[np.float64]]]


def noise_curve(
    settings: Mapping[NoiseRule, Setting], axis: Axis, values: Sequence[float]
) -> Curve:
    """The energy over all rounds along one axis, for every rule.

    Args:
        settings: By rule, since rules have step sizes of their own.
        axis: What to vary.
        values: At which values.

    Raises:
        ValueError: A value is impossible, or a rule's energy is known for the
            first round only.
    """
    if not values:
        raise ValueError("a curve needs values")
    energies = {}
    for rule, setting in settings.items():
        if not rule.accumulates:
            raise ValueError(f"{rule.name}: no closed form after the first round")
        points = [
            sum(expected_in_all(rule, with_value(setting, axis, value)), Energy())
            for value in values
        ]
        energies[rule.name] = {
            part: np.array([getattr(point, part) for point in points]) for part in PARTS
        }
    return Curve(axis, np.array(values, dtype=np.float64), energies)


def with_value(setting: Setting, axis: Axis, value: float) -> Setting:
    """The setting with one number replaced; nothing else moves.

    ``sigma`` is then that of every site. ``sites`` are equal sites with the root
    mean square of the setting's sigmas, whose mean has the noise of the setting's
    own mean where there are as many. Other steps at the same sigma are another
    epsilon, and another rank at the same ``lora_alpha`` is another scaling.

    Raises:
        ValueError: The value is not positive, not whole where it counts something,
            or a rank that the smallest module does not allow.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{axis} is positive, not {value:g}")
    if axis in _COUNTED and value != int(value):
        raise ValueError(f"{axis} is a whole number, not {value:g}")
    if axis == "rank":
        return replace(setting, rank=int(value))
    if axis == "alpha":
        return replace(setting, lora_alpha=value)
    if axis == "steps":
        return replace(setting, steps=int(value))
    own = setting.noise_multipliers
    if axis == "sigma":
        return replace(setting, noise_multipliers=(value,) * len(own))
    mean = math.sqrt(math.fsum(sigma**2 for sigma in own) / len(own))
    return replace(setting, noise_multipliers=(mean,) * int(value))


def usual_values(setting: Setting, axis: Axis) -> tuple[float, ...]:
    """Powers of two for what is counted; else a quarter to four times what it is."""
    if axis == "alpha":
        return tuple(share * setting.lora_alpha for share in _SPREAD)
    if axis == "sigma":
        own = setting.noise_multipliers
        mean = math.sqrt(math.fsum(sigma**2 for sigma in own) / len(own))
        return tuple(share * mean for share in _SPREAD)
    powers = tuple(2.0**power for power in range(_POWERS))
    if axis == "rank":
        largest = min(min(shape) for shape in setting.shapes)
        return tuple(value for value in powers if value <= largest)
    return powers
