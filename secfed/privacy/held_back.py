"""The one object that owns the bound, the noise and the event of an evaluation.

A site counts what an adapter does on the records that it holds back. Every privacy
unit contributes the mean over its own records, as cells that are never negative::

    accuracy   right, wrong           r and 1 - r                        norm <= 1
    loss       cost, rest             l / cap and 1 - l / cap            norm <= 1
    f1         tp, fp, fn by class    a right answer is one tp, a wrong  norm <= sqrt(2)
                                      one an fp and an fn

The norms: two cells that are not negative and add up to 1 have norm at most 1. With t,
p and n the sums over classes of a unit's tp, fp and fn, p <= 1 - t and n = 1 - t, so
its squared norm is at most t**2 + 2 (1 - t)**2 <= 2.

Cells are whole multiples of ``1 / GRID``, rounded down, which lengthens nothing. The
noise on the cells of a metric with bound B is ``sigma * sqrt(k) * B`` for k metrics:
divided by ``sqrt(k) * B``, all cells of a unit together have norm at most 1, so the
release is one Gaussian mechanism of the noise multiplier sigma. The noise is rounded
to the grid before it is added, in integers: a rounded Gaussian added to a whole number
is the rounding of the sum, so this is post-processing, and no low bit of a sum depends
on the records (Mironov, CCS 2012, attacks those).

Why pairs and no count? How many units are held back is private, too. The sum of a
pair is that number with noise, at no further cost, and it is what a mean is divided by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from secfed.errors import PlanError
from secfed.privacy import accounting
from secfed.privacy.accounting import DpEvent
from secfed.privacy.noise import RandomStream
from secfed.study import Study
from secfed.study.evaluation import MetricName

__all__ = [
    "GRID",
    "EvaluationPlan",
    "Outcomes",
    "cell_names",
    "evaluation_events",
    "evaluation_plan",
    "evaluation_run",
    "is_evaluation",
]

_EVALUATION: Final = "+evaluation"

GRID: Final = 1 << 20
"""A cell is a whole number of this fraction; a double holds 2**32 of them exactly."""

_BOUNDS: Final[Mapping[MetricName, float]] = {
    "accuracy": 1.0,
    "loss": 1.0,
    "f1": math.sqrt(2.0),
}
_TAIL = 10.0
"""Standard deviations that a range leaves to noise; the generator gives below 8.6."""


@dataclass(frozen=True)
class Outcomes:
    """What an adapter did on every held-back record. Private.

    Attributes:
        labels: (n,), the right classes.
        answers: (n,), the answered classes; below zero where it is none of them.
        right: (n,), in [0, 1]: how much of a record is right.
        loss: (n,), whatever the model gave; NaN and infinity count as the cap.
        units: (n,), numbers 0..num_units-1, each of which occurs.
        num_units: How many there are.
    """

    labels: NDArray[np.int64] = field(repr=False)
    answers: NDArray[np.int64] = field(repr=False)
    right: NDArray[np.float64] = field(repr=False)
    loss: NDArray[np.float64] = field(repr=False)
    units: NDArray[np.int64] = field(repr=False)
    num_units: int = field(repr=False)


@dataclass(frozen=True)
class EvaluationPlan:
    """One evaluation at one site: what is counted, its bound, its noise, its event.

    Guarantees:
        Adding or removing one unit changes the sums of a metric by no more than its
        bound (L2), and ``event`` is what ``released`` costs that unit.

    Attributes:
        metrics: What is counted.
        noise_multiplier: Sigma.
        nominal_units: The declared number of held-back units, not the true one.
        classes: Of the study; only f1 asks for them.
        loss_cap: In nats; None without the metric loss.

    Raises:
        PlanError: A value is out of range, or a metric is unknown or listed twice.
    """

    metrics: tuple[MetricName, ...]
    noise_multiplier: float
    nominal_units: int
    classes: int
    loss_cap: float | None = None

    def __post_init__(self) -> None:
        known = set(self.metrics) <= _BOUNDS.keys()
        if not self.metrics or not known or len(set(self.metrics)) < len(self.metrics):
            raise PlanError(f"metrics of an evaluation: {self.metrics!r}")
        if ("loss" in self.metrics) != (self.loss_cap is not None):
            raise PlanError("a cap belongs to the metric loss, and is needed")
        if self.loss_cap is not None and not 0 < self.loss_cap < math.inf:
            raise PlanError(f"loss_cap is positive and finite, not {self.loss_cap!r}")
        if self.nominal_units < 1 or self.classes < 0:
            raise PlanError(
                "an evaluation has units, and no negative number of classes"
            )
        self.event()  # It has a cost.

    @property
    def cells(self) -> tuple[str, ...]:
        """The names of all numbers that are released, in order."""
        return cell_names(self.metrics, self.classes)

    def bound(self, metric: MetricName) -> float:
        """The most that one unit changes the cells of a metric by (L2)."""
        return _BOUNDS[metric]

    def noise_std(self, metric: MetricName) -> float:
        """The standard deviation of one site's noise on every cell of a metric."""
        return self.noise_multiplier * math.sqrt(len(self.metrics)) * _BOUNDS[metric]

    def largest(self, metric: MetricName) -> float:
        """A public range of one site's released cell; what is beyond is cut."""
        return 2.0 * self.nominal_units + _TAIL * self.noise_std(metric)

    def event(self) -> DpEvent:
        """What one evaluation costs, whether it is released or interrupted."""
        return accounting.sampled_gaussian(1.0, self.noise_multiplier, 1)

    def contributions(self, outcomes: Outcomes) -> NDArray[np.int64]:
        """What every unit adds to the sums: (units, cells), in steps of 1 / GRID."""
        parts = [_CELLS[name](self, outcomes) for name in self.metrics]
        return np.concatenate(parts, axis=1)

    def released(
        self, contributions: NDArray[np.int64], stream: RandomStream
    ) -> dict[str, float]:
        """The noised sums by cell: the only form in which they may leave the site.

        Args:
            contributions: Of all units of the site; private.
            stream: The site's cryptographic randomness, used for nothing else.
        """
        sums = contributions.sum(axis=0) + self._noise(stream)
        return dict(zip(self.cells, (sums / GRID).tolist(), strict=True))

    def _noise(self, stream: RandomStream) -> NDArray[np.int64]:
        """A Gaussian on every cell, rounded to the grid."""
        stds = [
            self.noise_std(name)
            for name in self.metrics
            for _ in cell_names((name,), self.classes)
        ]
        return np.rint(GRID * np.array(stds) * stream.normal(len(stds))).astype(
            np.int64
        )


def evaluation_plan(
    study: Study, nominal_units: int, classes: int = 0
) -> EvaluationPlan | None:
    """What a study asks of a site of this declared size.

    Args:
        study: The study.
        nominal_units: The site's public number of units, with those held back.
        classes: Of the study; the cost does not depend on them.

    Returns:
        None where the site does not evaluate.
    """
    section = study.evaluation
    held = None if section is None else section.nominal(nominal_units)
    if section is None or held is None:
        return None
    return EvaluationPlan(
        metrics=section.metrics,
        noise_multiplier=section.noise_multiplier,
        nominal_units=held,
        classes=classes,
        loss_cap=section.loss_cap,
    )


def evaluation_events(study: Study, nominal_units: int) -> list[DpEvent]:
    """What a site of this declared size is charged for all evaluations of a study.

    They are composed with the training as if every unit were in both (sequential
    composition). That is an upper bound. A unit is in one of the two only, but a
    budget spans studies that divide the same people otherwise.
    """
    plan = evaluation_plan(study, nominal_units)
    if plan is None or study.evaluation is None:
        return []
    return [plan.event()] * len(study.evaluation.due(study.training.rounds))


def evaluation_run(run_id: str) -> str:
    """The name under which the evaluations of a run and arm are charged.

    A budget takes each round of a run once, and an evaluation is no round.
    """
    return f"{run_id}{_EVALUATION}"


def is_evaluation(run_id: str) -> bool:
    """Whether it is the name of a run's evaluations."""
    return run_id.endswith(_EVALUATION)


def cell_names(metrics: Iterable[MetricName], classes: int) -> tuple[str, ...]:
    """The numbers that metrics are made of, in the order in which they are summed."""
    names = []
    for metric in metrics:
        if metric == "f1":
            kinds = ("tp", "fp", "fn")
            names += [f"f1.{kind}.{k}" for kind in kinds for k in range(classes)]
        else:
            names += [f"{metric}.{part}" for part in _PAIRS[metric]]
    return tuple(names)


_PAIRS: Final = {"accuracy": ("right", "wrong"), "loss": ("cost", "rest")}


def _accuracy(plan: EvaluationPlan, outcomes: Outcomes) -> NDArray[np.int64]:
    del plan
    return _pair(outcomes, np.nan_to_num(outcomes.right))


def _loss(plan: EvaluationPlan, outcomes: Outcomes) -> NDArray[np.int64]:
    cap = plan.loss_cap or 0.0
    # What is no number is as bad as can be, and no error that would tell of it.
    cost = np.where(np.isfinite(outcomes.loss), outcomes.loss, cap) / cap
    return _pair(outcomes, cost)


def _pair(outcomes: Outcomes, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each unit's mean and what it lacks to 1; together exactly 1."""
    means = _unit_sums(outcomes, np.clip(values, 0.0, 1.0)) / _records(outcomes)
    # A mean of numbers up to 1 can be rounded above it.
    first = np.floor(GRID * np.clip(means, 0.0, 1.0)).astype(np.int64)
    return np.stack([first, GRID - first], axis=1)


def _f1(plan: EvaluationPlan, outcomes: Outcomes) -> NDArray[np.int64]:
    """Each unit's share of its records that are a tp, fp or fn of every class."""
    labels, answers = outcomes.labels, outcomes.answers
    right = labels == answers
    inside = (answers >= 0) & (answers < plan.classes)
    parts = []
    for where, classes in (
        (right, labels),
        (inside & ~right, answers),
        (~right, labels),
    ):
        counts = np.zeros((outcomes.num_units, plan.classes), dtype=np.int64)
        np.add.at(counts, (outcomes.units[where], classes[where]), 1)
        parts.append(counts * GRID // _records(outcomes)[:, None])
    return np.concatenate(parts, axis=1)


def _records(outcomes: Outcomes) -> NDArray[np.int64]:
    return np.bincount(outcomes.units, minlength=outcomes.num_units)


def _unit_sums(outcomes: Outcomes, values: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.bincount(outcomes.units, weights=values, minlength=outcomes.num_units)
    return sums.astype(np.float64)


_CELLS = {"accuracy": _accuracy, "loss": _loss, "f1": _f1}
