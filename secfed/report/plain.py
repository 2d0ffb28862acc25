"""The first page in plain words: who is protected, how strongly, and who is not.

Every sentence is built from what the run recorded. What was not recorded reads
UNKNOWN; nothing is assumed in the study's favour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secfed.report import whole_site
from secfed.report.reading import RunRecord, below, promises
from secfed.report.results import NON_PRIVATE, POOLED
from secfed.report.tables import UNKNOWN, round_up

__all__ = [
    "Protection",
    "StatementTable",
    "describe_protection",
    "flatten_statement",
    "statement_table",
]

_FALSE_ALARMS = 0.01
_RATE = "tpr_at_fpr_0.01"


@dataclass(frozen=True)
class Protection:
    """Sentences for the first page, in reading order."""

    headline: str
    whom: str
    against: str
    strength: str
    meaning: str
    not_protected: tuple[str, ...]


def describe_protection(record: RunRecord) -> Protection:
    """What the run protects and what it does not."""
    private = [arm for arm in record.comparison.arms if arm.is_private]
    unit = str(record.study_value("privacy", "unit") or UNKNOWN)
    sites = record.comparison.sites
    place = f"the {len(sites)} sites ({', '.join(sites)})" if sites else "the sites"
    if record.comparison.simulation_seed is not None:
        headline = (
            "NOT PRIVATE: this run used a public simulation seed, so its noise can "
            "be subtracted by anyone. The numbers show what a private run would do."
        )
    elif not private:
        headline = (
            "NOT PRIVATE: nothing in this run was trained with differential privacy."
        )
    else:
        worst = _worst(record)
        headline = (
            whole_site.headline(record, place, worst)
            if unit == "site"
            else f"Each single {unit} in the training data of {place} is protected "
            f"with epsilon at most {round_up(worst)} in each private arm"
            f"{_with_named_runs(record)}."
        )
    return Protection(
        headline=headline,
        whom=_whom(record, unit, place),
        against=_against(record),
        strength=_strength(record),
        meaning=_meaning(record),
        not_protected=_not_protected(record, unit),
    )


@dataclass(frozen=True)
class StatementTable:
    """A privacy statement as two tables: one column per site, and the rest."""

    name: str
    sites: tuple[str, ...]
    per_site: tuple[tuple[str, tuple[str, ...]], ...]
    fields: tuple[tuple[str, str], ...]


def statement_table(name: str, statement: Mapping[str, Any]) -> StatementTable:
    """Lay out the statement of the arm ``name``; no field is left out."""
    rest = dict(statement)
    sections = rest.get("sites")
    columns: dict[str, dict[str, str]] = {}
    if isinstance(sections, Mapping) and all(
        isinstance(section, Mapping) for section in sections.values()
    ):
        columns = {
            str(site): dict(flatten_statement(section))
            for site, section in sorted(rest.pop("sites").items())
        }
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    return StatementTable(
        name=name,
        sites=tuple(columns),
        per_site=tuple(
            (key, tuple(column.get(key, UNKNOWN) for column in columns.values()))
            for key in keys
        ),
        fields=flatten_statement(rest),
    )


def flatten_statement(
    value: Mapping[str, Any], prefix: str = ""
) -> tuple[tuple[str, str], ...]:
    """(field, text) of a statement, nested fields joined by a dot.

    >>> flatten_statement({"mu": {"north": 2.5}, "seed": None, "audit": "UNKNOWN"})
    (('mu.north', '2.5'), ('seed', 'none'), ('audit', 'UNKNOWN'))
    """
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            rows += flatten_statement(item, f"{name}.")
        elif isinstance(item, list | tuple) and any(
            isinstance(part, Mapping) for part in item
        ):
            for number, part in enumerate(item, start=1):
                rows += flatten_statement({str(number): part}, f"{name}.")
        else:
            rows.append((name, _text(item)))
    return tuple(rows)


def _text(value: object) -> str:
    if value is None or value in ("", [], {}, ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return "; ".join(_text(item) for item in value)
    return str(value)


def _whom(record: RunRecord, unit: str, place: str) -> str:
    cap = record.study_value("privacy", "max_records_per_unit")
    if unit == "record" and record.study_value("task", "kind") == "causal-lm":
        longest = record.study_value("model", "max_length")
        return (
            f"One block of at most {longest} tokens of a document at {place}, by "
            "declaration of the study. A document or a person with several blocks is "
            f"protected less{_everywhere(record)}."
        )
    if unit == "record":
        return (
            f"One record at {place}, by declaration of the study. A person with "
            f"several records is protected less{_everywhere(record)}."
        )
    if unit == "person":
        return (
            f"One person with all of their records at one of {place}"
            + (f", at most {cap} of which are used." if cap else ".")
            + " A person who is at several sites is protected less"
            + f"{_everywhere(record)}."
        )
    if unit == "site":
        return whole_site.whom(record, place, _everywhere(record))
    return f"The privacy unit is {UNKNOWN}."


def _everywhere(record: RunRecord) -> str:
    epsilon = _across_sites(record)
    if epsilon is None:
        return ""
    return f" (one at every site: epsilon {round_up(epsilon)})"


def _against(record: RunRecord) -> str:
    colluders = record.study_value("secagg", "colluders")
    mode = record.study_value("secagg", "mode")
    return (
        "Everyone who sees an adapter or an update: the coordinator, the other "
        "sites, later users, even those who know all other records, because noise "
        "is added at the site before anything leaves it. In addition the "
        "coordinator sees only the sum of the sites' masked updates"
        + (
            f", also when it works together with up to {colluders} of the sites"
            if colluders is not None
            else ""
        )
        + f" (secure aggregation; assumed coordinator: {mode or UNKNOWN})."
        + _where(record)
    )


def _where(record: RunRecord) -> str:
    places = dict.fromkeys(
        below(statement.get("execution"), "where")
        for statement in record.statements.values()
    )
    known = [place for place in places if isinstance(place, str)]
    if not known:
        return f" Where it ran: {UNKNOWN}."
    if any(place.startswith("local simulation") for place in known):
        return (
            f" This run was a {'; '.join(known)}: whoever operated it could see "
            "everything, whatever the protocol hides."
        )
    return f" Where it ran: {'; '.join(known)}."


def _strength(record: RunRecord) -> str:
    arms = [arm for arm in record.comparison.arms if arm.epsilon_max is not None]
    if not arms:
        return f"{UNKNOWN}: no arm has an epsilon."
    delta = _delta(record)
    shown = UNKNOWN if delta is None else f"{delta:g}"
    worst = _worst(record)
    spent = [b.spent for b in record.comparison.budget if b.spent is not None]
    total = (
        " All arms of this run together have cost the worst site "
        f"{round_up(max(spent))}; that is the figure for someone who sees every arm."
        if spent and len(arms) > 1
        else ""
    )
    return (
        f"Epsilon {round_up(worst)} at delta {shown} for the worst site in one arm: "
        f"{_grade(worst)}.{_of_a_person(record)}{total}"
    )


def _worst(record: RunRecord) -> float:
    """Epsilon of the worst site in one arm, with the runs that the study names."""
    told = [below(own, "epsilon") for own in promises(record)]
    own = [arm.epsilon_max or 0.0 for arm in record.comparison.arms if arm.is_private]
    stated = [float(e) for e in told if isinstance(e, int | float)]
    return max([*own, *stated], default=0.0)


def _with_named_runs(record: RunRecord) -> str:
    sites = (s.get("sites") for s in record.statements.values())
    told = (own for held in sites if isinstance(held, Mapping) for own in held.values())
    named = any(below(own, "with_named_runs") for own in told)
    return ", the earlier runs that the study names included" if named else ""


def _of_a_person(record: RunRecord) -> str:
    if not whole_site.is_the_unit(record):
        return ""
    epsilon = whole_site.epsilon_of_a_person(record)
    said = UNKNOWN if epsilon is None else f"{round_up(epsilon)}: {_grade(epsilon)}"
    return f" That is for the site as a whole; for one person it is {said}."


def _grade(epsilon: float) -> str:
    # The three tiers of Ponomareva et al., "How to DP-fy ML", JAIR 2023, section 5.2.
    if epsilon <= 1:
        return "a strong formal guarantee"
    if epsilon <= 10:  # noqa: PLR2004
        return "what practice calls a reasonable guarantee, not a strong one"
    return "a weak guarantee, close to none on paper"


def _meaning(record: RunRecord) -> str:
    rates = _stated_rate(record)
    used = (
        "one person's records were"
        if whole_site.is_the_unit(record)
        else "one unit was"
    )
    if rates is not None:
        return (
            f"Whoever sees one arm and guesses whether {used} used, and is wrong "
            "about outsiders in at most 1 % of cases, finds at most "
            f"{100 * rates:.1f} % of insiders (without any protection: up to 100 %; "
            "by blind guessing: 1 %)."
        )
    arms = [a.epsilon_max for a in record.comparison.arms if a.epsilon_max is not None]
    delta = _delta(record)
    if not arms or delta is None or whole_site.is_the_unit(record):
        return f"What an attacker can learn at most: {UNKNOWN}."
    bound = _membership_bound(max(arms), delta)
    return (
        "Whoever sees one arm and guesses whether one unit was used, and is wrong "
        "about outsiders in at most 1 % of cases, finds at most "
        f"{100 * bound:.2f} % of insiders (from epsilon and delta alone; the full "
        "privacy curve of the mechanism gives a smaller figure; by blind "
        "guessing: 1 %)."
    )


def _membership_bound(epsilon: float, delta: float) -> float:
    """Largest true-positive rate at 1 % false positives (Kairouz et al. 2015, 2.1)."""
    upper = math.exp(min(epsilon, 700.0)) * _FALSE_ALARMS + delta
    lower = 1 - math.exp(-epsilon) * (1 - delta - _FALSE_ALARMS)
    return min(1.0, upper, lower)


def _not_protected(record: RunRecord, unit: str) -> tuple[str, ...]:
    listed = [
        f"arm {arm.name} is NOT PRIVATE: it was trained without noise for "
        "comparison, and must never be released where the records are not public"
        for arm in record.comparison.arms
        if arm.kind == NON_PRIVATE
    ]
    listed += [
        f"arm {arm.name} had the records of all sites in one place, which no "
        "federation has: a simulation for comparison, without statement or evidence"
        for arm in record.comparison.arms
        if arm.kind == POOLED
    ]
    unit = unit if unit != UNKNOWN else "unit"
    listed += [
        "what is true of many people at once: the model is meant to learn it",
        f"groups: k {unit}s together have k times the epsilon",
        "the public hold-out that the scores are computed on, and the study file",
        "the result against a site that sends a poisoned update (clipping only)",
        "the records against someone who controls the site itself",
    ]
    for statement in record.statements.values():
        unprotected = statement.get("unprotected")
        if isinstance(unprotected, list):
            listed += [item for item in unprotected if isinstance(item, str)]
    return tuple(dict.fromkeys(listed))


def _delta(record: RunRecord) -> float | None:
    value = record.study_value("privacy", "delta")
    return float(value) if isinstance(value, int | float) else None


def _stated_rate(record: RunRecord) -> float | None:
    """The worst stated true-positive rate at 1 % false positives."""
    rates = []
    for own in promises(record):
        # Of a person, where the unit is the site: the larger of the two.
        told = below(own, "of_a_person") or own
        rate = below(below(told, "attack_rates"), _RATE)
        if isinstance(rate, int | float):
            rates.append(float(rate))
    return max(rates, default=None)


def _across_sites(record: RunRecord) -> float | None:
    """The worst stated epsilon of someone who is at every site."""
    found = []
    for statement in record.statements.values():
        value = below(statement.get("across_sites"), "epsilon")
        if isinstance(value, int | float):
            found.append(float(value))
    return max(found, default=None)
