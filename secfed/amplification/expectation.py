"""The noise energy to expect of a study, from its public numbers.

Shapes, the plan and the law of the initial factor enter, and the norm of B as an
argument. It is safe to compute in production, before or during a study. What the
forms do not know is said in ``forms.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from secfed.amplification.closed_forms import NoiseLevels, sgd_noise_std
from secfed.amplification.forms import (
    Energy,
    Factors,
    RoundNoise,
    accumulated,
    each_round,
    of_core,
)
from secfed.amplification.rules import NoiseRule, sites_views

__all__ = ["InitialLaw", "Setting", "expected_each_round", "expected_in_all"]

InitialLaw = Literal["peft", "orthonormal"]
"""PEFT's default: uniform on (-1/sqrt(k), 1/sqrt(k)), so ``|A|**2`` is about r / 3.
Orthonormal rows: r."""

_PEFT_NORM2_PER_RANK: Final = 1 / 3
"""Each of r rows has k numbers of variance 1 / (3 k)."""


@dataclass(frozen=True)
class Setting:
    """The public numbers of a study that decide on its noise energy.

    Attributes:
        shapes: (d, k) of every adapted module: outputs and inputs.
        rank: r.
        lora_alpha: The change of a module is ``scaling * B @ A``.
        noise_multipliers: Sigma of every site.
        clip_norm: C.
        expected_batch: b.
        steps: Noisy steps per round.
        rounds: Rounds.
        learning_rate: Of the adapters; plain SGD with ``momentum``.
        momentum: Starts from zero in every round.
        whole_site: The site is the unit: noise of sigma * C once per round, on the
            whole update, whatever the optimizer and its rate are.
        initial: The law of the frozen or starting factor.
        norm_b2: ``|B|**2`` of one module's clean B; 0 at the start of a study.
        root_scaling: Whether the scaling falls with the root of the rank (rsLoRA).
    """

    shapes: tuple[tuple[int, int], ...]
    rank: int
    lora_alpha: float
    noise_multipliers: tuple[float, ...]
    clip_norm: float
    expected_batch: float
    steps: int
    rounds: int
    learning_rate: float
    momentum: float = 0.0
    whole_site: bool = False
    initial: InitialLaw = "peft"
    norm_b2: float = 0.0
    root_scaling: bool = False

    def __post_init__(self) -> None:
        if not self.shapes or not self.noise_multipliers:
            raise ValueError("a setting needs modules and sites")
        largest = min(min(shape) for shape in self.shapes)
        if not 1 <= self.rank <= largest:
            raise ValueError(
                f"rank {self.rank} is not between 1 and {largest}, the smallest side "
                "of an adapted matrix"
            )
        if min(self.steps, self.rounds) < 1:
            raise ValueError("a study has at least one round of at least one step")

    @property
    def scaling(self) -> float:
        """``lora_alpha / r``; of rsLoRA ``lora_alpha / sqrt(r)``."""
        return self.lora_alpha / (self.rank**0.5 if self.root_scaling else self.rank)

    def noise_std(self, noise_multiplier: float, steps: int) -> float:
        """Noise per number of one site's update of a factor trained for ``steps``."""
        if self.whole_site:
            return noise_multiplier * self.clip_norm if steps else 0.0
        return sgd_noise_std(
            steps,
            self.learning_rate,
            noise_multiplier,
            self.clip_norm,
            self.expected_batch,
            momentum=self.momentum,
        )


def expected_each_round(
    rule: NoiseRule,
    setting: Setting,
    survivors: Sequence[Sequence[bool]] | None = None,
) -> tuple[Energy, ...]:
    """Expected noise energy of every round, summed over modules.

    A round's energy is taken around what it received, noise included: what a run
    measures. Rules that do not accumulate have their first round only.

    Args:
        rule: The aggregation rule.
        setting: The study.
        survivors: For every round and site, whether it was in the mean; all, by
            default. A round without survivors was interrupted and adds nothing.
    """
    levels = _levels(rule, setting, survivors)
    total = [Energy()] * len(levels)
    for d, k in setting.shapes:
        chains = _chains(rule, setting, levels, d, k)
        for factors, noise in chains:
            energies = _cores(rule, setting, noise) or each_round(factors, noise)
            total = [
                old + new.times(setting.scaling**2 / len(chains))
                for old, new in zip(total, energies, strict=True)
            ]
    return tuple(total)


def expected_in_all(rule: NoiseRule, setting: Setting) -> tuple[Energy, ...]:
    """Expected energy of the noise that all rounds leave, for every module.

    In the order of ``setting.shapes``; around clean factors, so that the quadratic
    part holds the products of noises from different rounds as well. Rules that do
    not accumulate: after the first round.
    """
    levels = _levels(rule, setting, None)
    found = []
    for d, k in setting.shapes:
        module = Energy()
        chains = _chains(rule, setting, levels, d, k)
        for factors, noise in chains:
            cores = _cores(rule, setting, noise)
            whole = sum(cores, Energy()) if cores else accumulated(factors, noise)
            module += whole.times(setting.scaling**2 / len(chains))
        found.append(module)
    return tuple(found)


def _levels(
    rule: NoiseRule, setting: Setting, survivors: Sequence[Sequence[bool]] | None
) -> list[NoiseLevels]:
    """Every round's noise; a site that dropped out has weight zero."""
    sigmas = setting.noise_multipliers
    # No step is noisy where the unit is the site, and nothing is filtered.
    left = 1.0 if setting.whole_site else rule.filtered**0.5
    found = []
    for number in range(1, 1 + (setting.rounds if rule.accumulates else 1)):
        alive = [True] * len(sigmas) if survivors is None else survivors[number - 1]
        steps = setting.steps if any(alive) else 0
        alive = alive if steps else [True] * len(sigmas)
        std_a, std_b = (
            tuple(left * setting.noise_std(sigma, noisy) for sigma in sigmas)
            for noisy in rule.noisy_steps(number, steps)
        )
        weights = tuple(here / sum(alive) for here in alive)
        found.append(NoiseLevels(std_a, std_b, weights))
    return found


def _chains(
    rule: NoiseRule, setting: Setting, levels: Sequence[NoiseLevels], d: int, k: int
) -> list[tuple[list[Factors], list[RoundNoise]]]:
    """(factors, noise) of all rounds, for every model that comes out of them."""
    factors = [_factors(rule, setting, t, d, k) for t in range(1, len(levels) + 1)]
    by_round = [sites_views(rule, level) for level in levels]
    return [(factors, list(noise)) for noise in zip(*by_round, strict=True)]


def _factors(
    rule: NoiseRule, setting: Setting, round_number: int, d: int, k: int
) -> Factors:
    r = setting.rank
    start = float(r) if setting.initial == "orthonormal" else r * _PEFT_NORM2_PER_RANK
    if rule.trains == "a":  # Initialised the other way round: A = 0, B random.
        return Factors(d, k, r, norm_a2=0.0, norm_b2=start)
    remade = rule.orthonormal and round_number > 1
    return Factors(d, k, r, float(r) if remade else start, setting.norm_b2)


def _cores(
    rule: NoiseRule, setting: Setting, noise: Sequence[RoundNoise]
) -> list[Energy]:
    """Every round of a rule that trains a core between orthonormal factors."""
    if rule.trains != "core":
        return []
    return [of_core(own.b, setting.rank, setting.rank) for own in noise]
