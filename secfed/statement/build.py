"""A statement from the entries of a ledger: the only place that puts it together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from secfed.canonical import digest
from secfed.earlier_runs import events_at
from secfed.entries import (
    EvaluationEntry,
    EvaluationInterruptedEntry,
    InterruptedEntry,
    JsonObject,
    PlanEntry,
    RoundEntry,
    RunCosts,
)
from secfed.privacy import accounting
from secfed.statement.costs import (
    UNKNOWN,
    cost_of_both,
    costing,
    of_a_person,
    round_event_json,
)
from secfed.statement.evaluated import evaluation_section
from secfed.statement.teacher import teacher_limits, teacher_section
from secfed.statement.trust import UNPROTECTED, hazards, limits, trust_section
from secfed.statement.tuning import tuning_section
from secfed.statement.utility import utility_section
from secfed.strategies import get_strategy

__all__ = ["NOT_PRIVATE", "StatementContext", "build_statement", "promised"]

NOT_PRIVATE = "NOT PRIVATE"

Started = RoundEntry | InterruptedEntry
Evaluated = EvaluationEntry | EvaluationInterruptedEntry


@dataclass(frozen=True)
class StatementContext:
    """What the ledger cannot know; whatever is None is printed UNKNOWN.

    Attributes:
        self_test: Result of the independence self-test of each site.
        earlier_epsilon: Each site's epsilon spent on the same population before
            this run, by its own budget file.
        empirical_lower_bound: An audit's result.
        provenance: Names and digests: code version, model, libraries.
        scored: The last line of ``metrics.jsonl``: scores on the public hold-out.
    """

    self_test: Mapping[str, Any] | None = None
    earlier_epsilon: Mapping[str, float] | None = None
    empirical_lower_bound: Mapping[str, Any] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    scored: Mapping[str, Any] | None = None


def build_statement(
    study: Mapping[str, Any],
    plan: PlanEntry,
    rounds: Sequence[Started],
    context: StatementContext,
    evaluations: Sequence[Evaluated] = (),
    tuning: Sequence[RunCosts] = (),
) -> JsonObject:
    """Say what the rounds of a ledger cost and what that means.

    Args:
        study: ``Study.canonical()``, that is the content of ``study.json``.
        plan: The ledger's plan entry.
        rounds: Its round entries in order, completed and interrupted.
        context: What is known besides.
        evaluations: The ledger's evaluation entries in order, of both kinds.
        tuning: What its tuning entries say.

    Returns:
        The content of ``statement.json``.

    Raises:
        PlanError: The ledger holds an event that the accountant does not know.
        KeyError: The study or a plan lacks a field.
        StudyError: The study's method is unknown.
    """
    privacy = study["privacy"]
    seed = study.get("simulation", {}).get("seed")
    delta = privacy["delta"]
    named = [*([plan.teacher] if plan.teacher else []), *tuning]
    sites = {
        site: _site_section(site, plan, rounds, delta, evaluations, named)
        for site in sorted(plan.sites)
    }
    across = _across_section(plan, [*rounds, *evaluations], delta, named)
    evaluated = evaluation_section(study, plan, evaluations)
    reasons = _reasons(plan, seed, tuning)
    taught = _teacher(study, plan)
    composition = _composition_section(
        plan,
        context,
        tuning_section(study.get("tuning"), tuning, costing(privacy)),
        _elsewhere(plan, named, privacy),
    )
    return {
        "format": 1,
        "headline": _headline(reasons, _promised(sites, composition), privacy)
        + _WITH_TEACHER * (plan.teacher is not None and not reasons)
        + _WITH_TUNING * (bool(tuning) and not reasons),
        "private": not reasons,
        "study": {
            "name": study["study"]["name"],
            "title": study["study"]["title"],
            "method": study["training"]["method"],
            "digest": digest(study),
            **_base(study["model"]),
        },
        "guarantee": _guarantee_section(plan, privacy, _block(study)),
        "sites": sites,
        "across_sites": across,
        "accountant": {
            "reference": "privacy loss distribution, pessimistic discretisation",
            "second": "Renyi differential privacy",
            "library": f"dp-accounting {version('dp-accounting')}",
        },
        "trust": trust_section(plan, get_strategy(study["training"]["method"])),
        **taught,
        "composition": composition,
        "unprotected": list(UNPROTECTED),
        "hazards": hazards(seed),
        "execution": {
            "where": _DEPLOYED if plan.deployed else _LOCAL,
            "simulation_seed": seed,
            "verdict": NOT_PRIVATE if reasons else "private under the trust model",
            "reasons": reasons,
        },
        "self_test": dict(context.self_test) if context.self_test else UNKNOWN,
        "empirical_lower_bound": (
            dict(context.empirical_lower_bound)
            if context.empirical_lower_bound
            else UNKNOWN
        ),
        "provenance": dict(context.provenance) or UNKNOWN,
        "utility": utility_section(context.scored),
        "limits": [
            *limits(privacy["unit"]),
            *teacher_limits(study.get("distillation"), plan.teacher),
        ],
        **({} if evaluated is None else {"evaluation": evaluated}),
    }


_LOCAL = "local simulation: all sites in one process"
_DEPLOYED = (
    "deployment: every site answered signed orders in a process of its own; on whose "
    "machine is not recorded"
)
_WITH_TEACHER = ", the training of the teacher included"
_WITH_TUNING = ", the runs by which the settings were chosen included"


def _teacher(study: Mapping[str, Any], plan: PlanEntry) -> JsonObject:
    """The section of the teacher, where there is one."""
    if "distillation" not in study:
        return {}
    cost = costing(study["privacy"])
    return {"teacher": teacher_section(study["distillation"], plan.teacher, cost)}


def promised(statement: Mapping[str, Any]) -> dict[str, JsonObject]:
    """What people are promised, by site; those of the named runs' sites too.

    Args:
        statement: The content of ``statement.json``.
    """
    return _promised(statement["sites"], statement["composition"])


def _promised(
    sites: Mapping[str, JsonObject], composition: Mapping[str, Any]
) -> dict[str, JsonObject]:
    here = {site: own.get("with_named_runs", own) for site, own in sites.items()}
    return {**composition.get("elsewhere", {}), **here}


def _elsewhere(
    plan: PlanEntry, named: Sequence[RunCosts], privacy: Mapping[str, Any]
) -> JsonObject:
    """What the named runs spent at sites that take no part in this one."""
    sites = {site for costs in named for site in costs.spent} - plan.sites.keys()
    cost = costing(privacy)
    return {site: cost(events_at(named, site)) for site in sorted(sites)}


def _base(model: Mapping[str, Any]) -> JsonObject:
    """How the frozen weights were kept, where they were rounded to few bits."""
    kept = model.get("quantisation")
    return {} if kept is None else {"base_quantisation": kept}


def _events(site: str, rounds: Sequence[Started | Evaluated]) -> list[Any]:
    return [
        accounting.event_from_json(entry.spent[site])
        for entry in rounds
        if site in entry.spent
    ]


def _site_section(
    site: str,
    entry: PlanEntry,
    rounds: Sequence[Started],
    delta: float,
    evaluations: Sequence[Evaluated],
    named: Sequence[RunCosts],
) -> JsonObject:
    plan, earlier = entry.sites[site], events_at(named, site)
    involved = [entry for entry in rounds if site in entry.participants]
    counts = {
        "completed": sum(isinstance(entry, RoundEntry) for entry in involved),
        "interrupted": sum(isinstance(entry, InterruptedEntry) for entry in involved),
        "dropped_out": sum(
            isinstance(entry, RoundEntry) and site in entry.dropouts
            for entry in involved
        ),
    }
    if plan is None:
        return {"epsilon": None, "mechanism": None, "rounds": counts}
    expected = round_event_json(plan)
    as_planned = all(
        entry.spent[site] == expected for entry in rounds if site in entry.spent
    )
    num_spent = sum(site in entry.spent for entry in rounds)
    events = _events(site, [*rounds, *evaluations])
    whole = plan["unit"] == "site"
    cost = partial(cost_of_both, delta=delta, whole=whole)
    return {
        **cost(events),
        **({"with_named_runs": cost([*earlier, *events])} if earlier else {}),
        "mechanism": {
            "name": _WHOLE_UPDATE if whole else _CLIPPED_GRADIENTS,
            "clip_norm": plan["clip_norm"],
            "clip_rule": plan["clip_rule"],
            "noise_multiplier": plan["noise_multiplier"],
            "sampling_probability": plan["sampling_probability"],
            "expected_batch": plan["expected_batch"],
            "nominal_units": plan["nominal_units"],
        },
        "rounds": counts | {"planned": plan["rounds"], "spent": num_spent},
        "steps": {
            "planned": plan["rounds"] * plan["steps_per_round"],
            # An interrupted round counts in full: it may have run to its end.
            "spent": num_spent * plan["steps_per_round"] if as_planned else UNKNOWN,
            "as_planned": as_planned,
        },
    }


_CLIPPED_GRADIENTS = "Gaussian on clipped gradients of a Poisson sample"
_WHOLE_UPDATE = "Gaussian on the site's whole clipped update, once a round, not sampled"


def _across_section(
    plan: PlanEntry,
    rounds: Sequence[Started | Evaluated],
    delta: float,
    named: Sequence[RunCosts],
) -> JsonObject:
    whole = any(p is not None and p["unit"] == "site" for p in plan.sites.values())
    meaning = (
        "any change of the records that one person has at all sites together"
        if whole
        else "someone with one privacy unit at every site"
    )
    if not plan.private:
        return {"meaning": meaning, "epsilon": None, "delta": None}
    events = [event for site in sorted(plan.sites) for event in _events(site, rounds)]
    for site in sorted({site for costs in named for site in costs.spent}):
        events += events_at(named, site)
    if whole:
        events = of_a_person(events)
    return {
        "meaning": meaning,
        "epsilon": accounting.epsilon(events, delta),
        "delta": delta,
    }


def _reasons(
    plan: PlanEntry, seed: int | None, tuning: Sequence[RunCosts]
) -> list[str]:
    reasons = []
    if not plan.private:
        reasons.append("training added no noise")
    if seed is not None:
        reasons.append(
            f"all keys, samples and noise follow from the simulation seed {seed}, "
            f"which is written in the study"
        )
    if plan.teacher is not None and plan.teacher.simulation_seeds:
        reasons.append("the noise of the teacher's training follows from a public seed")
    if any(costs.simulation_seeds for costs in tuning):
        reasons.append("settings were chosen by runs whose noise follows from a seed")
    return reasons


def _headline(
    reasons: Sequence[str], sites: Mapping[str, JsonObject], privacy: Mapping[str, Any]
) -> str:
    if reasons:
        return f"{NOT_PRIVATE}: {'; '.join(reasons)}"
    worst = max(section["epsilon"] for section in sites.values())
    if privacy["unit"] == "site":
        person = max(section["of_a_person"]["epsilon"] for section in sites.values())
        return (
            f"At every site the released adapters are ({person:.4g}, "
            f"{privacy['delta']:g})-differentially private for any change of one "
            f"person's records, and ({worst:.4g}, {privacy['delta']:g})-differentially "
            "private for the site as a whole, its update present or zero"
        )
    return (
        f"At every site the released adapters are ({worst:.4g}, "
        f"{privacy['delta']:g})-differentially private for each {privacy['unit']} "
        f"added or removed"
    )


def _block(study: Mapping[str, Any]) -> int | None:
    """The tokens of a block, where documents are cut into blocks."""
    if study.get("task", {}).get("kind") != "causal-lm":
        return None
    return int(study["model"]["max_length"])


def _guarantee_section(
    plan: PlanEntry, privacy: Mapping[str, Any], block: int | None
) -> JsonObject:
    """``block``: records are pieces of documents, of at most so many tokens."""
    unit = privacy["unit"]
    whose = f"one {unit}"
    if unit == "person":
        whose += f", with at most {privacy.get('max_records_per_unit', 1)} records"
    if unit == "record" and block is not None:
        whose += f", a block of at most {block} tokens of one document"
        whose += "; a document or a person with several blocks is protected less"
    elif unit == "record":
        whose += "; a person with several records is protected less"
    elif block is not None:
        whose += f"; records are blocks of at most {block} tokens"
    if unit == "site":
        whose += (
            ": all its records, through the one update of a round, present or zero; a "
            "person is protected less than that, see of_a_person"
        )
    return {
        "unit": unit,
        "whose": whose,
        "neighbouring": privacy.get("neighbouring", "add-remove"),
        "also_reported": "replace-one",
        "delta": privacy["delta"] if plan.private else None,
        "epsilon_limit": privacy["epsilon"] if plan.private else None,
        "noise": (
            "local: each site's own update is private, whoever sees it; "
            "this part does not rest on the secure sum"
            if plan.private
            else "none"
        ),
        "released": "the adapters of every round and what is computed from them",
    }


def _composition_section(
    plan: PlanEntry,
    context: StatementContext,
    tuning: JsonObject | None,
    elsewhere: JsonObject,
) -> JsonObject:
    earlier = context.earlier_epsilon
    return {
        "earlier_studies": {
            site: UNKNOWN if earlier is None else earlier.get(site, UNKNOWN)
            for site in sorted(plan.sites)
        },
        "tuning": tuning or UNKNOWN,
        **({"elsewhere": elsewhere} if elsewhere else {}),
        "note": "other runs on the same records add to this one; events are "
        "composed, epsilons are not added",
    }
