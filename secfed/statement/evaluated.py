"""The statement's section on evaluation, from the study and the ledger alone.

It says what was released of records that sites hold back, and computes the scores and
their intervals from the noised sums that the ledger records, so that anyone can
compute them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from secfed.entries import (
    EvaluationEntry,
    EvaluationInterruptedEntry,
    JsonObject,
    PlanEntry,
)
from secfed.privacy import accounting
from secfed.privacy.estimates import CONFIDENCE, estimates
from secfed.privacy.held_back import EvaluationPlan
from secfed.study.evaluation import EvaluationSection

__all__ = ["evaluation_event_json", "evaluation_section", "evaluations_of"]


def evaluations_of(
    study: Mapping[str, Any], plan: PlanEntry, classes: int = 0
) -> dict[str, EvaluationPlan]:
    """The plan of every site that evaluates, by the sizes that the ledger records.

    Args:
        study: ``Study.canonical()``.
        plan: The ledger's plan entry.
        classes: Of the study; only the cells of f1 depend on them.
    """
    table = study.get("evaluation")
    if table is None or not plan.private:
        return {}
    section = EvaluationSection.model_validate(_as_tuples(table))
    found = {}
    for site, values in plan.sites.items():
        held = section.nominal((values or {})["nominal_units"])
        if held is not None:
            found[site] = EvaluationPlan(
                metrics=section.metrics,
                noise_multiplier=section.noise_multiplier,
                nominal_units=held,
                classes=classes,
                loss_cap=section.loss_cap,
            )
    return found


def evaluation_event_json(plan: EvaluationPlan) -> JsonObject:
    """The event of one evaluation, as ``spent`` records it."""
    return accounting.event_to_json(plan.event())


def evaluation_section(
    study: Mapping[str, Any],
    plan: PlanEntry,
    entries: Sequence[EvaluationEntry | EvaluationInterruptedEntry],
) -> JsonObject | None:
    """What a statement says of the evaluations of a run; None where none was asked.

    Raises:
        KeyError: An entry lacks a cell.
        PlanError: The study asks for what no plan can give.
    """
    plans = evaluations_of(study, plan, _classes(entries))
    if not plans:
        return None
    first = next(iter(plans.values()))
    table, unit = study["evaluation"], study["privacy"]["unit"]
    return {
        "whose": f"{unit}s that a site holds back and never trains on",
        "fraction": table["fraction"],
        "nominal_units": {site: plans[site].nominal_units for site in sorted(plans)},
        "does_not_evaluate": sorted(plan.sites.keys() - plans.keys()),
        "mechanism": {
            "name": "Gaussian, rounded to a grid, on sums of bounded contributions",
            "contribution": f"of one {unit}: the mean over its held-back records",
            "noise_multiplier": first.noise_multiplier,
            "metrics": {
                name: {
                    "bound": first.bound(name),
                    "noise_std_of_a_site": first.noise_std(name),
                }
                for name in first.metrics
            },
            "loss_cap": first.loss_cap,
            "hazard": _HAZARD,
        },
        "unprotected": ["how long a site evaluates, which follows from its records"],
        "seen_by_the_coordinator": "the sum over the surviving sites of noised sums",
        "composition": _COMPOSITION,
        "denominators": "noised sums; the true number of held-back units is private",
        "confidence": CONFIDENCE,
        "rounds": [_of_entry(entry, first, _positive(study)) for entry in entries],
    }


_HAZARD = (
    "the rounded Gaussian is drawn from 53-bit uniforms, never beyond 8.58 standard "
    "deviations; it is added to whole numbers, so no low bit of a sum tells of records"
)

_COMPOSITION = (
    "sequential: evaluations are charged beside the training as if every unit were in "
    "both, although it is in one of them only; tighter parallel composition is not "
    "claimed, because a budget spans studies that divide the same people otherwise"
)


def _of_entry(
    entry: EvaluationEntry | EvaluationInterruptedEntry,
    plan: EvaluationPlan,
    positive: int | None,
) -> JsonObject:
    if isinstance(entry, EvaluationInterruptedEntry):
        return {"after_round": entry.round, "status": "interrupted", "scores": {}}
    found = estimates(plan, entry.sums, len(entry.survivors), positive=positive)
    return {
        "after_round": entry.round,
        "status": "completed",
        "sites_in_the_sum": list(entry.survivors),
        "scores": {estimate.score: estimate.to_json() for estimate in found},
    }


def _classes(entries: Sequence[object]) -> int:
    """How many classes the cells of f1 speak of."""
    for entry in entries:
        if isinstance(entry, EvaluationEntry):
            return sum(name.startswith("f1.tp.") for name in entry.sums)
    return 0


def _positive(study: Mapping[str, Any]) -> int | None:
    named = study.get("task", {}).get("positive")
    return None if named is None else list(study["data"]["labels"]).index(named)


def _as_tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
