"""How one privacy unit's contribution to a sum is bounded.

A rule turns the norms of a unit's gradient, one per trained tensor, into the
factors that its tensors are multiplied by. It owns the bound that it enforces:
the noise is scaled by ``Clipping.sensitivity`` and by nothing else.

=============  ==================================  ==============================
rule           contribution of the gradient g      why its norm is at most C
=============  ==================================  ==============================
``flat``       g min(1, C / |g|)                   |g| min(1, C / |g|) <= C
``normalised`` g C / (|g| + gamma), gamma > 0      C |g| / (|g| + gamma) < C
``per-tensor`` g_i min(1, C_i / |g_i|) for each    sum of C_i**2 over the m
               tensor i, with C_i = C / sqrt(m)    tensors is m C**2 / m = C**2
=============  ==================================  ==============================

``flat`` is Abadi et al. (CCS 2016, algorithm 1). ``normalised`` is the automatic
clipping of Bu et al. (NeurIPS 2023, "Automatic Clipping", AUTO-S in section 3):
every unit counts nearly the same whatever its gradient's length, so that C needs
no tuning; gamma keeps tiny gradients from being blown up. ``per-tensor`` is
McMahan et al. (ICLR 2018, section 2.3, per-layer clipping with equal bounds).

There is no adaptive rule: a clip norm that follows the data is a release of its
own (Andrew et al., NeurIPS 2021), and no event here would pay for it. For the
same reason nobody learns how many units were clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from secfed.errors import PlanError

__all__ = ["ClipRule", "Clipping"]

ClipRule = Literal["flat", "normalised", "per-tensor"]

NORM_RANGE = (1e-9, 1e9)
"""Of a clip norm: inside, no factor is a subnormal float32 number."""

SMALLEST_GAMMA = 1e-9
"""With it no factor overflows, also that of a gradient of zero."""

_MARGIN = 1.0 - 2.0**-20
"""Training multiplies in float32: one rounding of the factor and one of each
product, each by at most 2**-24. With the margin the bound holds exactly."""


@dataclass(frozen=True)
class Clipping:
    """A rule with its bound.

    Guarantees:
        For all norms, also those that are not finite, the contribution that
        ``factors`` leaves has a norm of at most ``sensitivity``.

    Attributes:
        rule: One of the three above.
        norm: C.
        gamma: The stability constant of ``normalised``; None for other rules.

    Raises:
        PlanError: Unknown rule, a value out of range, or gamma without the rule
            it belongs to.
    """

    rule: ClipRule
    norm: float
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.rule not in get_args(ClipRule):
            allowed = ", ".join(get_args(ClipRule))
            raise PlanError(f"clip_rule is one of {allowed}, not {self.rule!r}")
        smallest, largest = NORM_RANGE
        if not smallest <= self.norm <= largest:
            raise PlanError(
                f"clip_norm is in [{smallest:g}, {largest:g}], not {self.norm!r}"
            )
        if self.rule != "normalised" and self.gamma is not None:
            raise PlanError("clip_gamma belongs to clip_rule 'normalised' only")
        if self.rule == "normalised" and not _is_gamma(self.gamma):
            raise PlanError(
                f"clip_rule 'normalised' needs a finite clip_gamma of at least "
                f"{SMALLEST_GAMMA:g}, not {self.gamma!r}; Bu et al. use 0.01"
            )

    @property
    def sensitivity(self) -> float:
        """L2 bound on what adding or removing one unit changes in a sum."""
        return self.norm

    def factors(self, norms: NDArray[np.float64]) -> NDArray[np.float64]:
        """What to multiply each tensor of each unit by.

        Args:
            norms: (units, tensors), the L2 norms of every unit's gradients.

        Returns:
            (units, tensors) numbers >= 0. Zero for a unit with any norm that is
            not finite: it contributes nothing, and no other unit changes.
        """
        finite = np.isfinite(norms).all(axis=1, keepdims=True)
        norms = np.where(finite, norms, 0.0)
        bound = _MARGIN * self.norm
        if self.rule == "per-tensor":
            factors = _shrink(norms, bound / math.sqrt(norms.shape[1]))
        else:
            with np.errstate(over="ignore"):  # Then the factor is zero.
                whole = np.sqrt(np.square(norms).sum(axis=1, keepdims=True))
            factors = (
                _shrink(whole, bound)
                if self.gamma is None
                else bound / (whole + self.gamma)
            )
        return np.where(finite, np.broadcast_to(factors, norms.shape), 0.0)


def _shrink(norms: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Factors that bring norms down to ``bound`` and leave shorter ones alone."""
    return bound / np.maximum(norms, bound)


def _is_gamma(value: object) -> bool:
    return isinstance(value, float) and SMALLEST_GAMMA <= value < math.inf
