"""The scores that a task has, which way is better, and how they are shown.

A study names the score that decides; the others stand beside it.

Scores are compared as numbers of which more is better. For accuracy that is
accuracy. For perplexity it is minus its logarithm, the mean log-likelihood of a
token: differences of perplexities grow with the perplexity, differences of
logarithms do not, and a difference is then a ratio of perplexities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from secfed.statement.utility import SCORES

__all__ = [
    "ACCURACY",
    "BESIDE",
    "F1",
    "MACRO_F1",
    "MATTHEWS",
    "PERPLEXITY",
    "SCORE_KEYS",
    "SHARES",
    "Measure",
    "has_head",
    "measure_of",
    "score_part",
]

SHARES: Final = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "f1": "F1",
    "ece": "calibration error",
    "unparsed": "no answer",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "rouge_lsum": "ROUGE-Lsum",
    "token_accuracy": "token accuracy",
}
"""Scores in [0, 1], and their headings."""

SCORE_KEYS: Final = (*SCORES, "by_category")
"""What of a metrics line is a score."""

BESIDE: Final = (
    "accuracy",
    "macro_f1",
    "f1",
    "matthews",
    "ece",
    "unparsed",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "rouge_lsum",
    "perplexity",
)
"""The order of scores in the table beside the main one."""


_LARGE: Final = 1000.0


@dataclass(frozen=True)
class Measure:
    """One task's main score.

    Attributes:
        key: Of the main score.
        name: Of it, in sentences.
        second: The key of the score beside it.
        headings: Of both, in tables.
        reference: The name of what learned nothing, beside which scores are shown.
        unit: Of differences, in words.
        lower_is_better: Whether the best value is the smallest.
        sign: Behind a score that is shown times 100.
    """

    key: str
    name: str
    second: str
    headings: tuple[str, str]
    reference: str
    unit: str
    lower_is_better: bool
    sign: str = " %"

    @property
    def title(self) -> str:
        """Its name at the beginning of a line."""
        return self.name[:1].upper() + self.name[1:]

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
            return f"{100 * value:.1f}{self.sign}"
        # Four digits, with zeros, so that columns can be read down.
        return f"{value:#.4g}" if value < _LARGE else f"{value:,.0f}"

    @property
    def factor(self) -> float:
        """What a score is multiplied with on an axis: shares are drawn as per cent."""
        return 1.0 if self.lower_is_better else 100.0

    @property
    def axis(self) -> str:
        """The name of an axis of scores."""
        if self.lower_is_better:
            return f"{self.name}, less is better"
        return f"{self.name} {'in %' if self.sign else 'x 100'}"

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
    name="accuracy",
    second="macro_f1",
    headings=("accuracy", "macro-F1"),
    reference="majority class",
    unit="points",
    lower_is_better=False,
)

MACRO_F1: Final = Measure(
    key="macro_f1",
    name="macro-F1",
    second="accuracy",
    headings=("macro-F1", "accuracy"),
    reference="constant answer",
    unit="points",
    lower_is_better=False,
)

F1: Final = replace(MACRO_F1, key="f1", name="F1", headings=("F1", "accuracy"))
"""Of the label that the study names as positive."""

MATTHEWS: Final = replace(
    MACRO_F1,
    key="matthews",
    name="Matthews correlation",
    headings=("Matthews x 100", "accuracy"),
    sign="",
)
"""Shown times 100, as GLUE does: between -100 and 100, and 0 for a constant answer."""

PERPLEXITY: Final = Measure(
    key="perplexity",
    name="perplexity",
    second="token_accuracy",
    headings=("perplexity", "token accuracy"),
    reference="base model",
    unit="% in perplexity",
    lower_is_better=True,
)

_BY_NAME: Final = {
    "accuracy": ACCURACY,
    "macro-f1": MACRO_F1,
    "f1": F1,
    "matthews": MATTHEWS,
}


def measure_of(task: Mapping[str, Any] | None) -> Measure:
    """The main score of a study's ``[task]``; None is classification."""
    if task is None:
        return ACCURACY
    if task.get("kind") == "causal-lm":
        return PERPLEXITY
    found = _BY_NAME.get(task.get("score", "accuracy"), ACCURACY)
    # Of several classes the one that is looked for says more than their mean.
    if found is ACCURACY and task.get("positive") is not None:
        return replace(ACCURACY, second="f1", headings=("accuracy", "F1"))
    return found


def has_head(task: Mapping[str, Any] | None) -> bool:
    """Whether the task has a classifier, which could be trained alone."""
    return task is None or task.get("kind", "classification") == "classification"


def score_part(line: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a metrics line."""
    return {key: line[key] for key in SCORE_KEYS if key in line}
