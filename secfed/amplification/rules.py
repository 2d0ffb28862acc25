"""What each aggregation rule makes of the sites' noise, for the closed forms.

A rule is described by what carries noise (``trains``), by how the sites' noises
come together (``combines``), and by what happens to the factors between rounds. The
code of the rules is in ``secfed.strategies``; tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from secfed.amplification.closed_forms import NoiseLevels
from secfed.amplification.forms import RoundNoise

__all__ = ["NO_CLOSED_FORM", "REFERENCE", "RULES", "NoiseRule", "sites_views"]

Trains = Literal["both", "a", "b", "rounds", "steps", "core"]
Combines = Literal["means", "products", "keeps-a", "keeps-b", "nothing"]

REFERENCE: Final = "ffa-lora"
"""The rule that others are compared with: one noisy factor, exact, linear."""


@dataclass(frozen=True)
class NoiseRule:
    """How noise enters the weights under one aggregation rule.

    Attributes:
        name: As in a study file.
        trains: What is noisy: ``rounds`` and ``steps`` alternate, B first.
        combines: ``means`` of factors, mean of ``products``, or what a site keeps
            for itself: one factor (the other is averaged), or everything.
        orthonormal: A gets orthonormal rows between rounds.
        accumulates: Whether the forms hold after the first round.
        filtered: The share of the noise's variance that a filter over the noisy
            gradients leaves: the sum of its squared weights.
        note: What a reader of its numbers has to know.
    """

    name: str
    trains: Trains
    combines: Combines = "means"
    orthonormal: bool = False
    accumulates: bool = True
    filtered: float = 1.0
    note: str = ""

    def noisy_steps(self, round_number: int, steps: int) -> tuple[int, int]:
        """Noisy steps of (A, B) in a round of ``steps``; rounds count from 1.

        A core counts as B. Where steps alternate they count through all rounds, and
        the odd ones are B's.
        """
        if self.trains == "steps":
            noisy_b = (round_number * steps + 1) // 2
            noisy_b -= ((round_number - 1) * steps + 1) // 2
            return steps - noisy_b, noisy_b
        if self.trains == "rounds":
            return (0, steps) if round_number % 2 else (steps, 0)
        noisy_a = self.trains in {"both", "a"}
        noisy_b = self.trains in {"both", "b", "core"}
        return steps * noisy_a, steps * noisy_b

    @property
    def two_factors(self) -> bool:
        """Whether noise of A meets noise of B, in one round or over rounds."""
        return self.trains in {"both", "rounds", "steps"}


_BEFORE_TRUNCATION: Final = (
    "first round and before truncation to rank r, which depends on the noise and has "
    "no closed form: at most 4 times as much where the clean mean has rank r"
)

_ALL: Final = (
    NoiseRule("fedavg", "both"),
    NoiseRule("ffa-lora", "b"),
    NoiseRule("ffb-lora", "a"),
    NoiseRule("rolora", "rounds"),
    NoiseRule("fedsa-lora", "both", "keeps-b", note="mean over the sites' own models"),
    NoiseRule(
        "fedsa-lora-b", "both", "keeps-a", note="mean over the sites' own models"
    ),
    NoiseRule("fedex-lora", "both", "products"),
    NoiseRule(
        "flexlora",
        "both",
        "products",
        accumulates=False,
        note=_BEFORE_TRUNCATION,
    ),
    NoiseRule(
        "flexlora-sketch",
        "both",
        "products",
        accumulates=False,
        note=_BEFORE_TRUNCATION,
    ),
    NoiseRule("fedsvd", "b", orthonormal=True),
    NoiseRule("ffa-fresh", "b"),
    NoiseRule("la-lora", "steps", filtered=70 / 256),  # [1, 4, 6, 4, 1] / 16
    NoiseRule("fed-sb", "core", note="r x r core, orthonormal U and V"),
    NoiseRule("local", "both", "nothing", note="mean over the sites' own models"),
)

RULES: Final[Mapping[str, NoiseRule]] = {rule.name: rule for rule in _ALL}
"""The rules whose noise is known in advance, by name."""

NO_CLOSED_FORM: Final[Mapping[str, str]] = {
    "head-only": "it trains no adapter, so no noise enters the adapted weights",
    "hetlora": "its weights are norms of the noisy products",
    "fedrot-lora": "its rotations are computed from the noisy factors",
    "lora-fair": "its correction is computed from the noisy factors",
    "flora": "it needs single updates and cannot run under masking",
}
"""Rules that are measured only, and why."""


def sites_views(rule: NoiseRule, levels: NoiseLevels) -> tuple[RoundNoise, ...]:
    """The noise of a round in every model that comes out of it.

    One global model has one view. Rules that keep a factor at the site have one
    view per site: what is kept has the site's own variance, what is averaged has
    the mean's, and the two are independent (a site's A and B have noise of their
    own), so ``ab = a * b``.
    """
    if rule.combines == "means":
        return (RoundNoise.of_means(levels),)
    if rule.combines == "products":
        return (RoundNoise.of_products(levels),)
    found = []
    for std_a, std_b in zip(levels.std_a, levels.std_b, strict=True):
        a = levels.variance_a if rule.combines == "keeps-b" else std_a**2
        b = levels.variance_b if rule.combines == "keeps-a" else std_b**2
        found.append(RoundNoise(a, b, a * b))
    return tuple(found)
