"""How noisy one number of a site's update is, by its plan and the local steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from secfed.amplification import NoiseLevels, sgd_noise_std
from secfed.privacy.plan import PrivacyPlan
from secfed.runtime.arms import Arm
from secfed.runtime.site_training import learning_rate_of, local_steps_of
from secfed.strategies.base import Strategy, trained_names
from secfed.training import LocalSteps
from secfed.types import LORA_A, LORA_B, LORA_R, Adapter

__all__ = ["FACTORS", "levels_of"]

FACTORS: Final = (LORA_A, LORA_B, LORA_R)
"""Suffixes of the tensors whose noise ends up in the adapted weights."""

_LONG_SIDE: Final = {LORA_A: 1, LORA_B: 0}
"""The axis of a factor that a rule's filter runs along."""


def levels_of(
    arm: Arm,
    strategy: Strategy,
    plans: Sequence[PrivacyPlan],
    adapter: Adapter,
    round_number: int,
) -> NoiseLevels | None:
    """The noise per number of each survivor's update; a core's stands in B's place.

    A factor that moves in some of the round's steps has the noise of these steps. A
    filter with weights w, which add up to one, leaves the share ``sum(w**2)`` of the
    variance of every number. The numbers along the filter's axis are no longer
    independent, but those across the rank are, and no closed form asks for more:
    the energies of the rows of ``xB @ A`` and of the columns of ``B @ xA`` add up
    whether or not they depend on each other.

    Returns:
        None where there is no closed form: under Adam steps, and where a filter is
        longer than a side.
    """
    names = trained_names(strategy, adapter, round_number)
    site_unit = arm.study.privacy.unit == "site"
    if arm.study.training.optimizer != "sgd" and not site_unit:
        return None
    steps = local_steps_of(arm, strategy, round_number)
    std = {}
    for suffix in FACTORS:
        own = [name for name in names if name.endswith(suffix)]
        if not own:
            std[suffix] = [0.0] * len(plans)
        elif site_unit:  # Once, after the last step.
            std[suffix] = [plan.noise_std for plan in plans]
        else:
            share = _left_by_filter(steps, adapter, own, suffix)
            if share is None:
                return None
            left = math.sqrt(share)
            std[suffix] = [left * _sgd_std(arm, plan, steps, own[0]) for plan in plans]
    return NoiseLevels.uniform(
        std_a=std[LORA_A],
        std_b=[b + core for b, core in zip(std[LORA_B], std[LORA_R], strict=True)],
    )


def _sgd_std(arm: Arm, plan: PrivacyPlan, steps: LocalSteps, name: str) -> float:
    """Of the steps in which the tensor moves; in the others momentum rests too."""
    numbers = range(steps.first, steps.first + plan.steps_per_round)
    moving = sum(steps.active(name, number) for number in numbers)
    return sgd_noise_std(
        moving,
        learning_rate_of(arm),
        plan.noise_multiplier,
        plan.clip_norm,
        plan.expected_batch,
        momentum=arm.study.training.momentum,
    )


def _left_by_filter(
    steps: LocalSteps, adapter: Adapter, names: Sequence[str], suffix: str
) -> float | None:
    """The share of a number's variance that the filter leaves; None: not one share."""
    axis = _LONG_SIDE.get(suffix)
    if not steps.smoothing or axis is None:
        return 1.0
    if min(adapter.tensors[name].shape[axis] for name in names) < len(steps.smoothing):
        return None  # On so short a ring the filter's weights meet each other.
    return sum(weight**2 for weight in steps.smoothing)
