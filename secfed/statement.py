"""The privacy statement: what a run promises, to whom, and what it does not.

It is computed from the ledger alone (plan and rounds) and the study, so that
anyone can compute its numbers again. What nobody measured is printed UNKNOWN;
nothing is filled in from what was intended.

Sections of the JSON object, all always present:

=======================  =====================================================
``headline, private``    the answer in one sentence, and as a boolean
``study``                name, title, method and digest
``guarantee``            what is promised to whom: unit, neighbours, delta, limit
``sites``                per site the cost of the steps as executed
``across_sites``         the composed cost for someone present at every site
``accountant``           who computed it, and by what second method
``trust``                each party: what it sees and what it does not
``composition``          earlier studies and tuning
``unprotected``          quantities that leave without a guarantee
``hazards``              generator and floating point
``execution``            where it ran; a simulation seed means NOT PRIVATE
``self_test``            the independence check before the first step
``empirical_lower_bound``  from an audit
``utility``              scores on the public hold-out, by subgroup where there are any
``provenance, limits``   what it was made from; what it cannot say
=======================  =====================================================

A study that distils a teacher adds ``teacher``: who it is and what it cost. Where a
study names earlier runs on private records, its private teacher or those by which its
settings were chosen, every site has ``with_named_runs``: their cost and this run's,
composed.

A study with ``[evaluation]`` has a section ``evaluation`` more: what was released of
held-back records, with which bound and noise, and the scores with their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

from protocols.secagg.params import MAX_COMPLETE
from protocols.suites import SUITES
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
from secfed.evaluated import evaluation_section
from secfed.privacy import accounting
from secfed.privacy.plan import PrivacyPlan
from secfed.strategies import get_strategy
from secfed.strategies.base import Strategy
from secfed.teacher_statement import teacher_limits, teacher_section
from secfed.tuning_statement import tuning_section
from secfed.utility import utility_section

__all__ = [
    "NOT_PRIVATE",
    "UNKNOWN",
    "StatementContext",
    "build_statement",
    "promised",
    "round_event_json",
]

UNKNOWN = "UNKNOWN"
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


def round_event_json(plan: Mapping[str, Any]) -> JsonObject:
    """The event of one round under a site's plan, as ``spent`` records it.

    Args:
        plan: ``PrivacyPlan.to_json()``.

    Raises:
        PlanError: A value is missing, unknown or out of range.
    """
    return accounting.event_to_json(PrivacyPlan.from_json(plan).round_event())


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
        tuning_section(study.get("tuning"), tuning, _costing(privacy)),
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
        "trust": _trust_section(plan, get_strategy(study["training"]["method"])),
        **taught,
        "composition": composition,
        "unprotected": list(_UNPROTECTED),
        "hazards": _hazards(seed),
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
            *_limits(privacy["unit"]),
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
    cost = _costing(study["privacy"])
    return {"teacher": teacher_section(study["distillation"], plan.teacher, cost)}


def _costing(privacy: Mapping[str, Any]) -> Callable[[Sequence[Any]], JsonObject]:
    """What events cost the unit that a study protects."""
    whole = privacy["unit"] == "site"
    return partial(_cost_of_both, delta=privacy["delta"], whole=whole)


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
    cost = _costing(privacy)
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
    cost = partial(_cost_of_both, delta=delta, whole=whole)
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


def _cost(events: Sequence[Any], delta: float) -> JsonObject:
    """What events cost the unit that they protect."""
    cost = accounting.guarantee(events, delta)
    return {
        "epsilon": cost.epsilon,
        "epsilon_rdp": cost.epsilon_rdp,
        "epsilon_replace_one": cost.epsilon_replace_one,
        "mu": UNKNOWN if cost.mu is None else cost.mu,
        "attack_rates": {
            "advantage": cost.advantage,
            "tpr_at_fpr_0.01": cost.tpr_at_fpr_1_percent,
            "tpr_at_fpr_0.001": cost.tpr_at_fpr_01_percent,
        },
    }


def _cost_of_both(events: Sequence[Any], delta: float, *, whole: bool) -> JsonObject:
    """What events cost the unit, and a person where the unit is the site."""
    of_a_person = {"of_a_person": _cost_of_a_person(events, delta)} if whole else {}
    return {**_cost(events, delta), **of_a_person}


def _of_a_person(events: Sequence[Any]) -> list[Any]:
    """Updates of a whole site, charged for a person whose records replace them."""
    return [accounting.replaced_event(event) for event in events]


def _cost_of_a_person(events: Sequence[Any], delta: float) -> JsonObject:
    cost = _cost(_of_a_person(events), delta)
    # Any change of a person's records is meant already, so there is no second one.
    del cost["epsilon_replace_one"]
    return {
        "meaning": "any change of one person's records at this site: it can replace "
        "the whole update, twice the clip norm",
        **cost,
    }


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
        events = _of_a_person(events)
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


def _trust_section(plan: PlanEntry, rule: Strategy) -> list[JsonObject]:
    server = (
        "may lie, drop, replay and equivocate"
        if plan.mode == "malicious"
        else "follows the protocol (an exception, signed by every site's operators)"
    )
    noise = (
        "which is private by its own noise" if plan.private else "which is not private"
    )
    return [
        {
            "party": "site",
            "sees": "its own records; every round's adapter; who takes part"
            + ("; a model of its own, parts of which never leave" * rule.personal),
            "does_not_see": "other sites' records or single updates",
        },
        {
            "party": "coordinator",
            "assumed": f"{server}, with up to {plan.max_colluders} colluding sites",
            **_coordinator(plan, rule, noise),
        },
        {
            "party": "recipient of the release",
            "sees": "the adapters, this statement, the ledger, the metrics on the "
            "public hold-out",
            "does_not_see": "sums or updates of single rounds before the strategy"
            + ("; what stays at the sites" * rule.personal),
        },
        {
            "party": "whoever recorded all messages and has a quantum computer later",
            "sees": "the directory of keys and who took part"
            if SUITES[plan.suite].hybrid
            else f"every site's update of every round, {noise}",
            "does_not_see": "a single site's update: key agreement is hybrid, "
            "with ML-KEM-768"
            if SUITES[plan.suite].hybrid
            else "the records themselves",
        },
        *[_OPERATOR] * (plan.deployed is None),
    ]


_OPERATOR: JsonObject = {
    "party": "operator of a local simulation",
    "sees": "everything, because all sites ran in one process",
    "does_not_see": "nothing is hidden from this party",
}


def _coordinator(plan: PlanEntry, rule: Strategy, noise: str) -> JsonObject:
    """What the coordinator sees under a rule; ``noise`` says what hides an update."""
    if rule.needs == "nothing":
        return {
            "sees": "who takes part and when; no number that was trained",
            "does_not_see": "anything that a site trained",
        }
    what = "updates" if rule.linear else f"what {rule.name} makes of noised factors"
    parts = -(-len(plan.sites) // MAX_COMPLETE)
    over = f"in each of {parts} cohorts " * (parts > 1)
    return {
        "sees": f"masked vectors, the sum over the surviving sites {over}of a round "
        f"of {what}, every adapter, who takes part and when",
        "does_not_see": f"a single site's update, {noise}, while "
        f"{plan.threshold} sites survive a round",
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


def _hazards(seed: int | None) -> list[str]:
    generator = (
        "generator: AES-256 in counter mode keyed by the operating system"
        if seed is None
        else "generator: AES-256 in counter mode keyed by the public simulation seed"
    )
    return [
        generator,
        _FLOATING_POINT,
        "memory: Python cannot prove that secrets were erased",
    ]


_FLOATING_POINT = (
    "floating point: the noise is a continuous Gaussian in floating point; its low "
    "bits can leak (Mironov, CCS 2012), and no discrete mechanism is used; one more "
    "person changes padding and micro-batch splits, which can move other contributions "
    "in their last bits"
)

_UNPROTECTED = (
    "which sites take part, drop out or fail in which round, and when",
    "sizes and times of messages, and how long a site trains",
    "site names, label names and what the study declares (nominal sizes, schema)",
    "how many coordinates the codec limited (computed from the noised update)",
    "the error text of a site that stops",
)

_SINGLE_UNITS = (
    "the guarantee covers single units, not facts about whole groups or sites"
)

_LIMITS = (
    "the ledger proves what the coordinator claimed, not that a site added noise",
    _SINGLE_UNITS,
    "a site that sends a poisoned update is limited by clipping only",
    "the base model is public and its own training data are not covered",
    "times are the coordinator's clock",
)


def _limits(unit: str) -> tuple[str, ...]:
    if unit != "site":
        return _LIMITS
    single = "the guarantee covers each site and each person alone, not several at once"
    return tuple(single if text == _SINGLE_UNITS else text for text in _LIMITS)
