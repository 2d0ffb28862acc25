"""``[evaluation]``: scores on records that sites hold back, released with noise.

Without the table sites hold nothing back and release nothing but updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from secfed.study.fields import Count, Positive, Seed, list_as_tuple
from secfed.study.reading import ContradictionError, Table
from secfed.study.sections import MIN_UNITS

if TYPE_CHECKING:
    from secfed.study.definition import Study

__all__ = ["EvaluationSection", "MetricName", "check_evaluation"]

MetricName = Literal["accuracy", "loss", "f1"]
"""Everything that can be asked of records that are held back."""

_REFUSED_METHODS: Final[Mapping[str, str]] = {
    "local": "sends nothing, so that no mask would hide a site's scores",
    "fedsa-lora": "leaves a model of its own at every site",
    "fedsa-lora-b": "leaves a model of its own at every site",
}


class EvaluationSection(Table):
    """``[evaluation]``: what is held back, what is measured, with which noise."""

    # The share of its privacy units that a site holds back and never trains on.
    fraction: Annotated[float, Field(gt=0, le=0.5)]
    metrics: Annotated[
        tuple[MetricName, ...], Field(min_length=1), BeforeValidator(list_as_tuple)
    ]
    # Of every site's release, over the most that one unit can change all metrics by.
    noise_multiplier: Annotated[float, Field(ge=0.1, le=10_000)]
    # After which rounds; the last one where nothing is said.
    rounds: Annotated[tuple[Count, ...], BeforeValidator(list_as_tuple)] | None = None
    # A larger loss counts as this much.
    loss_cap: Positive | None = None
    # A site that declares fewer held-back units does not evaluate; it trains on all.
    min_units: Annotated[int, Field(ge=MIN_UNITS)] = MIN_UNITS
    # Fixes which units are held back. Public.
    seed: Seed = 0

    def due(self, rounds: int) -> tuple[int, ...]:
        """After which rounds of a study of so many."""
        return (rounds,) if self.rounds is None else self.rounds

    def nominal(self, nominal_units: int) -> int | None:
        """How many units a site of this declared size holds back, nominally.

        Returns:
            None where a site of this size does not evaluate. It follows from declared
            numbers alone, so that not taking part says nothing about records.
        """
        held = int(self.fraction * nominal_units)
        return held if held >= self.min_units else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.metrics)) != len(self.metrics):
            raise ContradictionError("metrics", "a metric is listed twice")
        if {"accuracy", "f1"} <= set(self.metrics):
            raise ContradictionError(
                "metrics",
                "accuracy follows from the counts of f1; asked for by itself it would "
                "cost noise again",
            )
        if (self.loss_cap is None) == ("loss" in self.metrics):
            raise ContradictionError(
                "loss_cap", "belongs to the metric 'loss' only, and is needed"
            )
        if self.rounds is not None and list(self.rounds) != sorted(set(self.rounds)):
            raise ContradictionError("rounds", "are listed once each, in order")
        if self.rounds == ():
            raise ContradictionError("rounds", "name at least one")
        return self


def check_evaluation(study: Study) -> None:
    """Refuse what the other tables do not allow.

    Raises:
        ContradictionError: Names the first key that does not fit.
    """
    section = study.evaluation
    if section is None:
        return
    for place, number in enumerate(section.rounds or (), start=1):
        if number > study.training.rounds:
            raise ContradictionError(
                f"evaluation.rounds[{place}]",
                f"the study has {study.training.rounds} rounds",
            )
    if study.privacy.unit == "site":
        raise ContradictionError(
            "evaluation",
            "where the unit is the site, all its scores are one contribution, and "
            "noise that hides a site hides them, too",
        )
    if study.compare is not None:
        raise ContradictionError(
            "evaluation",
            "belongs to a single run; arms of a comparison are scored on the public "
            "hold-out, where the best of many costs nothing",
        )
    _check_method(study)
    _check_metrics(study, section)


def _check_method(study: Study) -> None:
    reason = _REFUSED_METHODS.get(study.training.method)
    if reason is not None:
        raise ContradictionError(
            "evaluation", f"method {study.training.method!r} {reason}"
        )


def _check_metrics(study: Study, section: EvaluationSection) -> None:
    if study.is_prompted and "loss" in section.metrics:
        raise ContradictionError(
            "evaluation.metrics", "answers in words have 'accuracy' or 'f1', no loss"
        )
    if study.is_causal_lm and not study.is_prompted and "f1" in section.metrics:
        raise ContradictionError(
            "evaluation.metrics", "next-token prediction has no classes, and no f1"
        )
