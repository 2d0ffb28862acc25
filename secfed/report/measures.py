"""The scores that a task has, which way is better, and how they are shown.

Scores are compared as numbers of which more is better. For accuracy that is
accuracy. For perplexity it is minus its logarithm, the mean log-likelihood of a
token: differences of perplexities grow with the perplexity, differences of
logarithms do not, and a difference is then a ratio of perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "ACCURACY",
    "PERPLEXITY",
    "SCORE_KEYS",
    "Measure",
    "measure_of",
    "score_part",
]

SCORE_KEYS: Final = (
    "accuracy",
    "macro_f1",
    "perplexity",
    "token_accuracy",
    "by_category",
)
"""What of a metrics line is a score."""


_LARGE: Final = 1000.0


@dataclass(frozen=True)
class Measure:
    """One task's main score.

    Attributes:
        key: Of the main score.
        second: The key of the score beside it.
        headings: Of both, in tables.
        reference: The name of what learned nothing, beside which scores are shown.
        unit: Of differences, in words.
        lower_is_better: Whether the best value is the smallest.
    """

    key: str
    second: str
    headings: tuple[str, str]
    reference: str
    unit: str
    lower_is_better: bool

    def merit(self, value: float) -> float:
        """The number that is compared: more is better."""
        return -math.log(value) if self.lower_is_better else value

    def value(self, merit: float) -> float:
        """The score that has this merit."""
        return math.exp(-merit) if self.lower_is_better else merit

    def shown(self, value: float | None) -> str:
        """A score for people; ``-`` when there is none."""
        if value is None:
            return "-"
        if not self.lower_is_better:
            return f"{100 * value:.1f} %"
        # Four digits, with zeros, so that columns can be read down.
        return f"{value:#.4g}" if value < _LARGE else f"{value:,.0f}"

    @property
    def factor(self) -> float:
        """What a score is multiplied with on an axis: shares are drawn as per cent."""
        return 1.0 if self.lower_is_better else 100.0

    @property
    def axis(self) -> str:
        """The name of an axis of scores."""
        return (
            f"{self.key}, less is better" if self.lower_is_better else "accuracy in %"
        )

    def difference(self, gap: float) -> str:
        """A difference of merits for people, without its unit."""
        change = math.expm1(-gap) if self.lower_is_better else gap
        return f"{100 * change:+.1f}"

    def bounds(self, interval: tuple[float, float]) -> str:
        """An interval of differences, the smaller number first."""
        low, high = reversed(interval) if self.lower_is_better else interval
        return f"[{self.difference(low)}, {self.difference(high)}]"

    def around(self, value: float, interval: tuple[float, float] | None) -> str:
        """A score with its interval, both of scores."""
        if interval is None:
            return self.shown(value)
        low, high = interval
        if self.lower_is_better:
            return f"{self.shown(value)} [{self.shown(low)}, {self.shown(high)}]"
        return f"{self.shown(value)} ± {50 * (high - low):.1f}"


ACCURACY: Final = Measure(
    key="accuracy",
    second="macro_f1",
    headings=("accuracy", "macro-F1"),
    reference="majority class",
    unit="points",
    lower_is_better=False,
)

PERPLEXITY: Final = Measure(
    key="perplexity",
    second="token_accuracy",
    headings=("perplexity", "token accuracy"),
    reference="base model",
    unit="% in perplexity",
    lower_is_better=True,
)


def measure_of(task: str | None) -> Measure:
    """The main score of a task as a study names it; None is classification."""
    return PERPLEXITY if task == "causal-lm" else ACCURACY


def score_part(line: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a metrics line."""
    return {key: line[key] for key in SCORE_KEYS if key in line}
