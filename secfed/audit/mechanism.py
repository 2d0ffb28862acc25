"""The mechanism alone, vectorised: many Dirac canaries, no model.

Canaries are orthogonal gradients, one coordinate each, so a step is a vector: which
canaries are in and drawn, what the clip leaves of them, and noise. Sampling, clipping
and noise are the plan's own functions, the same that training calls; what is left out
is the model. Used for the power of an audit and for its many-seed tests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfed.audit.curves import Curve
from secfed.audit.refutation import Scores, refute
from secfed.privacy.noise import RandomStream
from secfed.privacy.plan import PrivacyPlan

__all__ = ["RAW_NORM", "drawn_members", "mechanism_scores", "power"]

RAW_NORM: Final = 8.0
"""A canary's gradient has this many times the norm C, so that it counts C after the
clip, and a missing clip is seen."""


def drawn_members(stream: RandomStream, count: int) -> NDArray[np.bool_]:
    """Which canaries are in: each with probability 1/2."""
    return stream.uniform(count) < 0.5  # noqa: PLR2004 - one half


def mechanism_scores(
    plan: PrivacyPlan, rounds: int, members: NDArray[np.bool_], stream: RandomStream
) -> Scores:
    """What an attacker sees of Dirac canaries over all steps, in multiples of C.

    Args:
        plan: Sampling, clip and noise.
        rounds: Of the plan's steps each.
        members: Which canaries are in.
        stream: Of sampling and noise.
    """
    count = len(members)
    left = kept_norm(plan)
    total = np.zeros(count)
    for _ in range(rounds * plan.steps_per_round):
        drawn = np.zeros(count)
        drawn[plan.sample_units(stream, count)] = left
        total += drawn * members + plan.noise(stream, count)
    return Scores(total / plan.clip_norm, members)


def kept_norm(plan: PrivacyPlan, tensors: int = 1) -> float:
    """What the plan's clip leaves of a canary that lies in one of some tensors."""
    norms = np.zeros((1, tensors))
    norms[0, 0] = RAW_NORM * plan.clip_norm
    return float(norms[0, 0] * plan.clipping.factors(norms)[0, 0])


def power(
    plan: PrivacyPlan,
    rounds: int,
    canaries: int,
    curve: Curve,
    stream: RandomStream,
    *,
    noise: float,
    level: float,
    repetitions: int,
) -> float:
    """How often an audit of this size refutes the claim if the noise is weaker.

    Args:
        plan: The plan of the claim.
        rounds: That are audited.
        canaries: How many.
        curve: The claim.
        stream: Of members, sampling and noise; nothing private takes part.
        noise: The factor on the noise; 0.5 is half of it.
        level: At which the claim is refuted.
        repetitions: Simulated audits.

    Returns:
        The share of refutations.
    """
    weaker = replace(plan, noise_multiplier=noise * plan.noise_multiplier)
    refuted = 0
    for _ in range(repetitions):
        members = drawn_members(stream, canaries)
        scores = mechanism_scores(weaker, rounds, members, stream)
        refuted += refute(scores, curve).p < level
    return refuted / repetitions
