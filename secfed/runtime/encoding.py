"""Which codec a round uses, from numbers that every site knows beforehand.

The step size of a tensor is its scale: divided by it, all numbers of an update
have the same law. After T steps of SGD a site's update is, in these units, ::

    (sum over steps j of c_j * (s_j + z_j)) / b

with b the expected batch, c_j the response of momentum (1 without), s_j the sum of
the step's clipped gradients and z_j Gaussian with standard deviation sigma * C.

**Noise.** ``sum(c_j * z_j) / b`` is exactly Gaussian with the public standard
deviation std of ``sgd_noise_std``, whatever the gradients were. A Gaussian is
beyond ``z * std`` with probability at most ``exp(-z**2 / 2)``. With z = 10, all of
2**32 numbers are inside but for a probability of 2**-40.

**Signal.** Clipping is on all tensors together, so ``|s_j|_2 <= C * B_j`` with B_j
the size of the sample, and ``|sum(c_j * s_j)|_2 <= C * sum(c_j * B_j)``. That
weighted sum of Poisson-sampled units has mean ``b * sum(c_j)``, variance at most
``b * sum(c_j**2)``, and single terms at most ``c = max(c_j)``. By Bernstein's
inequality it is beyond its mean by more than ::

    t = l * c / 3 + sqrt((l * c / 3)**2 + 2 * l * b * sum(c_j**2)),  l = 40 * ln(2)

with probability at most 2**-40, at a site with no more units than it declared.

**Range.** Signal plus noise, and one per cent for the rounding of float32 weights.
No single number exceeds the norm of the signal, and it is reached only if every
gradient pushes the same single weight. With a rotation the signal is spread: by
Hoeffding's inequality and again for 2**32 numbers and 2**-40, a rotated number is
beyond ``norm * sqrt(146 * ln(2) / block)`` with at most that probability.

**Adam** divides by its own estimate of the gradient's size, so there is no closed
form of the noise; but there is a bound on every step. With the weights w_i and u_i
of the two running means, ``|m| / sqrt(v) <= sqrt(sum(w_i**2 / u_i))`` by the
inequality of Cauchy and Schwarz, so no number can saturate.

**Width.** Rounding to multiples of ``step`` has at most the variance
``step**2 / 4``. Where ``step <= std / 5`` that is at most one per cent of the
noise's variance at every site, and 16 bits are enough (for Adam, where one step
moves a weight by about 1 in units of the scale, 1 stands for std). Else: 32 bits.

**A whole site as the unit.** The update itself is cut to the norm C and noised once
with standard deviation sigma * C, whatever the optimizer did. So the scale is 1 for
every tensor, the signal's norm is at most C with certainty, and the bounds on noise,
rotation and width are those above.

Without privacy nothing hides the rounding, and the products of factors that some
rules send have no such law: 32 bits and a wide range. The head beside such products
has its law under every rule, and a scale that makes the wide range its own. A rule that
moves a tensor in some steps only, or smooths its noise, sends smaller numbers with less
noise than the laws say: the range holds, but what hides the rounding is not known, so
32 bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from secfed.amplification import sgd_noise_std
from secfed.codec import WIDE_RING_BITS, Codec
from secfed.codec.packing import levels_of
from secfed.codec.rotation import block_length
from secfed.privacy.plan import PrivacyPlan
from secfed.report.results import HEAD_ONLY
from secfed.strategies import strategy_of
from secfed.strategies.base import HEAD
from secfed.study import Study
from secfed.types import Adapter

__all__ = ["UpdateLaw", "codec_for", "ring_bits_for", "step_size"]

RingBits = Literal[16, 32, 64]

_NARROW_RING_BITS: Final = 16
_WIDE_RANGE = 8.0
"""Bound on one number where there is no law; cut numbers are counted."""

_RARE_BITS = 40  # Each of the bounds above fails with probability 2**-40 at most,
_COUNT_BITS = 32  # over all of up to 2**32 numbers.
_FLOAT32_MARGIN = 1.01
_STEPS_PER_STD = 5

_ADAM_BETAS = (0.9, 0.999)
_ROTATION_LABEL = b"secfed/codec/rotation/1"


@dataclass(frozen=True)
class UpdateLaw:
    """How large one number of a private update is, in units of its step size.

    Attributes:
        largest: Bound on what the records do to one number.
        norm: The same for the L2 norm of all numbers; None: ``largest`` for each.
        noise: Standard deviation of the noise, the largest of all sites.
        hidden: What rounding is compared with: the smallest noise of all sites.
    """

    largest: float
    norm: float | None
    noise: float
    hidden: float

    def value_range(self, rotated: int | None = None) -> float:
        """What a number exceeds only with the probability stated above.

        Args:
            rotated: How many numbers are rotated together; None: no rotation.
        """
        noise = self.noise * math.sqrt(2 * (_RARE_BITS + _COUNT_BITS) * math.log(2))
        if rotated is None:
            return _FLOAT32_MARGIN * (self.largest + noise)
        norm = self.largest * math.sqrt(rotated) if self.norm is None else self.norm
        exponent = (1 + _RARE_BITS + _COUNT_BITS) * math.log(2)
        spread = math.sqrt(2 * exponent / block_length(rotated))
        return _FLOAT32_MARGIN * (norm * min(1.0, spread) + noise)


def codec_for(
    study: Study,
    plans: Mapping[str, PrivacyPlan],
    adapter: Adapter,
    round_number: int,
    *,
    private: bool,
) -> Codec:
    """The codec of one round; both sides derive it, each for itself.

    Args:
        study: The study of this arm.
        plans: Every site's plan; public.
        adapter: What the sites received.
        round_number: From 1; a rotation is fresh in every round.
        private: False for the baseline without noise.

    Raises:
        CodecError: The ring is too small for so many sites.
    """
    strategy = strategy_of(study)
    shapes = strategy.shapes(adapter, round_number)
    chosen = study.secagg.clip_range
    bounded = private and strategy.linear
    rotated = bounded and study.secagg.rotation is not None
    scales: tuple[float, ...] = ()
    if chosen is not None:
        value_range = chosen
    elif not bounded:
        value_range = _WIDE_RANGE
        scales = _head_scales(study, plans, shapes) if private else ()
    else:
        scales = tuple(step_size(study, name) for name in shapes)
        size = sum(map(math.prod, shapes.values())) if rotated else None
        value_range = _law(study, plans).value_range(size)
    return Codec(
        tuple(shapes.items()),
        value_range=value_range,
        num_sites=len(study.sites),
        ring_bits=ring_bits_for(study, plans, adapter, private=private),
        scales=scales,
        rotation_seed=_rotation_seed(study, round_number) if rotated else None,
    )


def _head_scales(
    study: Study, plans: Mapping[str, PrivacyPlan], names: Iterable[str]
) -> tuple[float, ...]:
    """Scales that make the wide range the head's own; 1 for other tensors."""
    wide = _law(study, plans).value_range() / _WIDE_RANGE
    return tuple(
        wide * step_size(study, name) if name.startswith(HEAD) else 1.0
        for name in names
    )


def ring_bits_for(
    study: Study,
    plans: Mapping[str, PrivacyPlan],
    adapter: Adapter,
    *,
    private: bool,
) -> RingBits:
    """The width that the study names, or the narrow one if noise hides its rounding.

    It is the same in all rounds, and so asks for the shapes of ``adapter`` only.
    """
    if not private:
        return WIDE_RING_BITS
    if study.secagg.ring_bits:
        return study.secagg.ring_bits
    strategy = strategy_of(study)
    if not (strategy.linear and strategy.plain_steps):
        return WIDE_RING_BITS
    law = _law(study, plans)
    chosen, hidden = study.secagg.clip_range, law.hidden
    if chosen is None:
        rotated = study.secagg.rotation is not None
        value_range = law.value_range(_fewest(study, adapter) if rotated else None)
    else:
        value_range = chosen
        hidden *= min(step_size(study, name) for name in _sent(study, adapter))
    levels = levels_of(_NARROW_RING_BITS, len(study.sites))
    fine = value_range * _STEPS_PER_STD <= hidden * levels
    return _NARROW_RING_BITS if fine else WIDE_RING_BITS


def _sent(study: Study, adapter: Adapter) -> list[str]:
    """The tensors that are sent in any round."""
    return sorted({name for shapes in _schedule(study, adapter) for name in shapes})


def _fewest(study: Study, adapter: Adapter) -> int:
    """How many numbers are sent in the round that sends fewest."""
    return min(
        sum(map(math.prod, shapes.values())) for shapes in _schedule(study, adapter)
    )


def _schedule(study: Study, adapter: Adapter) -> list[Mapping[str, tuple[int, ...]]]:
    strategy = strategy_of(study)
    rounds = range(1, study.training.rounds + 1)
    return [strategy.shapes(adapter, number) for number in rounds]


def step_size(study: Study, tensor: str) -> float:
    """The learning rate with which a private site trains one tensor.

    It is 1 where the unit is the site, whose update is clipped and noised as it is.
    """
    training = study.training
    if study.privacy.unit == "site":
        return 1.0
    if not tensor.startswith(HEAD):
        return training.learning_rate[training.method]
    if training.method == HEAD_ONLY:
        return training.learning_rate.get(HEAD_ONLY, training.head_rate)
    return training.head_rate


def _law(study: Study, plans: Mapping[str, PrivacyPlan]) -> UpdateLaw:
    training = study.training
    if study.privacy.unit == "site":
        clip = max(plan.clipping.sensitivity for plan in plans.values())
        stds = [plan.noise_std for plan in plans.values()]
        return UpdateLaw(largest=clip, norm=clip, noise=max(stds), hidden=min(stds))
    if training.optimizer == "adam":
        largest = _adam_bound(training.steps_per_round)
        return UpdateLaw(largest=largest, norm=None, noise=0.0, hidden=1.0)
    noise = [
        sgd_noise_std(
            plan.steps_per_round,
            1.0,
            plan.noise_multiplier,
            plan.clip_norm,
            plan.expected_batch,
            momentum=training.momentum,
        )
        for plan in plans.values()
    ]
    norm = max(_sgd_norm(plan, training.momentum) for plan in plans.values())
    return UpdateLaw(largest=norm, norm=norm, noise=max(noise), hidden=min(noise))


def _sgd_norm(plan: PrivacyPlan, momentum: float) -> float:
    """Bound on the L2 norm of what the records contribute; see *Signal* above."""
    responses = [
        (1.0 - momentum ** (j + 1)) / (1.0 - momentum)
        for j in range(plan.steps_per_round)
    ]
    batch = plan.expected_batch
    variance = batch * sum(response**2 for response in responses)
    rare = _RARE_BITS * math.log(2)
    third = rare * max(responses) / 3
    excess = third + math.sqrt(third**2 + 2 * rare * variance)
    return plan.clip_norm * (sum(responses) + excess / batch)


def _adam_bound(steps: int) -> float:
    """Bound on one number's way in ``steps`` steps of Adam with step size 1."""
    beta1, beta2 = _ADAM_BETAS
    total = 0.0
    for step in range(1, steps + 1):
        # Running means with the correction of their start (Kingma and Ba, 2015).
        ages = range(step)
        ratio = sum(
            ((1 - beta1) * beta1**age) ** 2 / ((1 - beta2) * beta2**age) for age in ages
        )
        total += math.sqrt(ratio * (1 - beta2**step)) / (1 - beta1**step)
    return total


def _rotation_seed(study: Study, round_number: int) -> bytes:
    """Public signs for one round, fixed before any site trains."""
    parts = (
        _ROTATION_LABEL,
        bytes.fromhex(study.digest()),
        round_number.to_bytes(8, "big"),
    )
    return hashlib.sha256(b"".join(parts)).digest()
